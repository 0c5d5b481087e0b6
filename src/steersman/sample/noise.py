"""Who draws what: each image has random numbers of its own, so that no other image changes them.

Image k draws from generators seeded by k alone, one for each purpose, on the CPU whatever the device; so a change of
batch, device or recurrence leaves the other draws as they were. A CPU generator keeps 32 bits of its seed, which bounds
the seeds.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.errors import InputError

__all__ = ["SEEDS", "GivenNoise", "Noise", "Purpose", "SeededNoise"]

Purpose = Literal["start", "step", "renoise"]
PURPOSES: tuple[Purpose, ...] = ("start", "step", "renoise")
SEEDS = 2**30


@runtime_checkable
class Noise(Protocol):
    """Standard normal draws for a batch."""

    def __call__(self, purpose: Purpose) -> Float[Tensor, "B C H W"]:
        """Returns the next draw for a purpose: the walk's start, a step's own noise, or recurrence's."""
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
                raise InputError(f"seed: {seed} given; allowed: 0 to {SEEDS - 1}")
        self.shape, self.device, self.dtype = shape, device, dtype
        self.generators = {
            purpose: [torch.Generator().manual_seed(seed * len(PURPOSES) + place) for seed in seeds]
            for place, purpose in enumerate(PURPOSES)
        }

    def __call__(self, purpose: Purpose) -> Float[Tensor, "B C H W"]:
        """Returns the next draw for a purpose."""
        draws = [torch.randn(self.shape, generator=each, dtype=self.dtype) for each in self.generators[purpose]]
        return torch.stack(draws).to(self.device)


class GivenNoise:
    """Draws from outside, in the order in which they are used: the start first.

    Args:
        draws: Tensors (B, C, H, W).
        device: Where they go.
        dtype: Their type.
    """

    def __init__(self, draws: Iterable[Tensor], device: torch.device | str, dtype: torch.dtype) -> None:
        self.draws: Iterator[Tensor] = iter(draws)
        self.device, self.dtype = device, dtype

    def __call__(self, purpose: Purpose) -> Float[Tensor, "B C H W"]:
        """Returns the next draw, whatever it is for.

        Raises:
            InputError: There is none left.
        """
        try:
            return next(self.draws).to(device=self.device, dtype=self.dtype)
        except StopIteration:
            raise InputError(
                f"noise: no draw left for the {purpose}; allowed: the start and one for each random step"
            ) from None
