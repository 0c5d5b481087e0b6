"""Random numbers: each image has generators of its own, so that no other image changes its draws.

Image k draws from generators seeded by k alone, one for each purpose, on the CPU whatever the device; so a change of
batch, device or recurrence leaves the other draws as they were. Of an image's particles, the first draws as the image
would alone. A CPU generator keeps 32 bits of its seed, which bounds the seeds.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from steersman.batching import send
from steersman.errors import InputError

__all__ = ["SEEDS", "GivenNoise", "Purpose", "SeededNoise"]

Purpose = Literal["start", "step", "renoise", "check"]
_SEEDED = ("start", "step", "renoise")  # purposes whose seeds are consecutive
_MIXED = ("choice", "check")  # purposes added later, whose seeds are hashed so as to collide with none of the others
SEEDS = 2**30  # 3 * 2^30 < 2^32


class SeededNoise:
    """Draws that follow from each image's seed, from 0 to below 2^30, in float32 or float64."""

    def __init__(
        self, seeds: Sequence[int], shape: tuple[int, ...], device: torch.device | str, dtype: torch.dtype
    ) -> None:
        for seed in seeds:
            if not 0 <= seed < SEEDS:
                raise InputError(f"seed must be between 0 and {SEEDS - 1}, got {seed}")
        self.seeds, self.shape, self.device, self.dtype = seeds, shape, device, dtype
        self._made: dict[tuple[str, int], list[torch.Generator]] = {}

    def __call__(self, purpose: Purpose, particles: int = 1) -> Float[Tensor, "N *shape"]:
        """Returns the next draw for a purpose, image by image."""
        images = zip(*(self._generators(purpose, particle) for particle in range(particles)), strict=True)
        draws = [torch.randn(self.shape, generator=each, dtype=self.dtype) for image in images for each in image]
        return send(torch.stack(draws), self.device)

    def uniform(self) -> Float64[Tensor, " B"]:
        """Returns the next number for each image."""
        draws = [torch.rand((), generator=each, dtype=torch.float64) for each in self._generators("choice", 0)]
        return torch.stack(draws)

    def _generators(self, purpose: str, particle: int) -> list[torch.Generator]:
        """Returns each image's generator for a purpose of a particle, made at its first use."""
        if (purpose, particle) not in self._made:
            number = [*_SEEDED, *_MIXED].index(purpose)
            seeds = (
                seed * len(_SEEDED) + number
                if particle == 0 and purpose in _SEEDED
                else int(np.random.SeedSequence((seed, number, particle)).generate_state(1)[0])
                for seed in self.seeds
            )
            self._made[purpose, particle] = [torch.Generator().manual_seed(seed) for seed in seeds]
        return self._made[purpose, particle]


class GivenNoise:
    """Draws from outside, in the order in which they are used: the start first."""

    def __init__(
        self,
        draws: Iterable[Tensor],
        images: int,
        shape: tuple[int, ...],
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        self._draws: Iterator[Tensor] = iter(draws)
        self._all_used = self._draws is not draws  # what is left in an iterator is for whoever goes on with it
        self.images, self.shape, self.device, self.dtype = images, tuple(shape), device, dtype
        self.used = 0

    def __call__(self, purpose: Purpose, particles: int = 1) -> Float[Tensor, "N *shape"]:
        """Returns the next draw, whatever it is for."""
        return send(self._next(purpose, (self.images * particles, *self.shape)).to(self.dtype), self.device)

    def uniform(self) -> Float[Tensor, " B"]:
        """Returns the next draw, one number an image."""
        draw = self._next("choice", (self.images,))
        if draw.device.type == "cpu" and not bool(((draw >= 0) & (draw <= 1)).all()):
            raise InputError(f"noise: draw {self.used}, for the choice, must be numbers from 0 to 1")
        return draw

    def finish(self) -> None:
        """Refuses draws in a list that nothing has used."""
        if self._all_used and next(self._draws, None) is not None:
            raise InputError(f"noise must have the {self.used} draws that these settings use, got more")

    def _next(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        draw = next(self._draws, None)
        if draw is None:
            raise InputError(
                f"noise must have a draw for the start and for each random step, got {self.used}: no draw left for the "
                f"{purpose}"
            )
        self.used += 1
        if not isinstance(draw, Tensor) or not draw.is_floating_point() or draw.shape != shape:
            got = f"{draw.dtype} of shape {tuple(draw.shape)}" if isinstance(draw, Tensor) else type(draw).__name__
            raise InputError(
                f"noise: draw {self.used}, for the {purpose}, must be a tensor of floats of shape {shape}, got {got}"
            )
        return draw
