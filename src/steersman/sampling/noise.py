"""Who draws what: each image has random numbers of its own, so that no other image changes them.

Image k draws from generators seeded by k alone, one for each purpose, on the CPU whatever the device; so a change of
batch, device or recurrence leaves the other draws as they were. Where an image has several candidates, the first draws
as it would alone. A CPU generator keeps 32 bits of its seed, which bounds the seeds.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from steersman.batching import send
from steersman.errors import InputError

__all__ = ["SEEDS", "GivenNoise", "Noise", "Purpose", "SeededNoise"]

Purpose = Literal["start", "step", "renoise", "check"]
PURPOSES: tuple[Purpose, ...] = ("start", "step", "renoise")
APART = ("choice", "check")  # purposes whose seeds are mixed, so that they could come later
SEEDS = 2**30


@runtime_checkable
class Noise(Protocol):
    """Draws for a batch of images, of which each may have several candidates, its rows."""

    def __call__(self, purpose: Purpose, candidates: int = 1) -> Float[Tensor, "N C H W"]:
        """Returns the next normal draw for a purpose: the start, a step's own noise, recurrence's, a check's."""
        ...

    def uniform(self) -> Float[Tensor, " B"]:
        """Returns the next number from 0 to 1 for each image, by which its candidates are drawn; on any device."""
        ...


class SeededNoise:
    """Draws that follow from each image's seed.

    Args:
        seeds: One an image, from 0 to below 2^30.
        shape: A sample's shape (C, H, W).
        device: Where the draws go.
        dtype: Their type; drawn in float32, or in float64 where that is asked for.

    Raises:
        InputError: A seed out of range.
    """

    def __init__(
        self, seeds: Sequence[int], shape: tuple[int, ...], device: torch.device | str, dtype: torch.dtype
    ) -> None:
        for seed in seeds:
            if not 0 <= seed < SEEDS:
                raise InputError(f"seed must be between 0 and {SEEDS - 1}, got {seed}")
        self.seeds, self.shape, self.device, self.dtype = seeds, shape, device, dtype
        self.generators: dict[tuple[str, int], list[torch.Generator]] = {}

    def _generators(self, purpose: str, candidate: int) -> list[torch.Generator]:
        """Returns each image's generator for a purpose of a candidate, made when it is first asked for."""
        if (purpose, candidate) not in self.generators:
            place = [*PURPOSES, *APART].index(purpose)
            self.generators[purpose, candidate] = [
                torch.Generator().manual_seed(
                    seed * len(PURPOSES) + place
                    if candidate == 0 and purpose in PURPOSES
                    else int(np.random.SeedSequence((seed, place, candidate)).generate_state(1)[0])
                )
                for seed in self.seeds
            ]
        return self.generators[purpose, candidate]

    def __call__(self, purpose: Purpose, candidates: int = 1) -> Float[Tensor, "N C H W"]:
        """Returns the next draw for a purpose, for so many candidates an image, image by image."""
        streams = zip(*(self._generators(purpose, candidate) for candidate in range(candidates)), strict=True)
        draws = [torch.randn(self.shape, generator=each, dtype=self.dtype) for image in streams for each in image]
        return send(torch.stack(draws), self.device)

    def uniform(self) -> Float64[Tensor, " B"]:
        """Returns the next number for each image."""
        draws = [torch.rand((), generator=each, dtype=torch.float64) for each in self._generators("choice", 0)]
        return torch.stack(draws)


class GivenNoise:
    """Draws from outside, in the order in which they are used: the start first.

    Args:
        draws: A list of tensors, or an iterator over them: (N, C, H, W), with a row for each candidate of each image;
            (B,) from 0 to 1 where candidates are drawn.
        images: How many images there are.
        shape: A sample's shape (C, H, W).
        device: Where they go.
        dtype: Their type.
    """

    def __init__(
        self,
        draws: Iterable[Tensor],
        images: int,
        shape: tuple[int, ...],
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        self.draws: Iterator[Tensor] = iter(draws)
        self.counted = self.draws is not draws
        self.images, self.shape, self.device, self.dtype = images, tuple(shape), device, dtype
        self.used = 0

    def __call__(self, purpose: Purpose, candidates: int = 1) -> Float[Tensor, "N C H W"]:
        """Returns the next draw, whatever it is for.

        Raises:
            InputError: There is none left, or it has another shape.
        """
        return send(self._next(purpose, (self.images * candidates, *self.shape)).to(self.dtype), self.device)

    def uniform(self) -> Float[Tensor, " B"]:
        """Returns the next draw, one number an image.

        Raises:
            InputError: There is none left, it has another shape, or it is not between 0 and 1.
        """
        draw = self._next("choice", (self.images,))
        if draw.device.type == "cpu" and not bool(((draw >= 0) & (draw <= 1)).all()):
            raise InputError(f"noise: draw {self.used}, for the choice, must be numbers from 0 to 1")
        return draw

    def finish(self) -> None:
        """Refuses draws that nothing has used; what is left in an iterator is for whoever goes on with it.

        Raises:
            InputError: There are some.
        """
        if self.counted and next(self.draws, None) is not None:
            raise InputError(f"noise must have the {self.used} draws that these settings use, got more")

    def _next(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        draw = next(self.draws, None)
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
