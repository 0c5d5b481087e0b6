"""One step of a trajectory, and its reverse variance.

From a level t to a cleaner level s, with ``r = alpha_t / alpha_s`` and ``beta = sigma_t^2 - r^2 sigma_s^2`` (for a
variance-preserving schedule ``1 - a``, ``a = r^2``), the posterior of ``x_s`` given ``x_t`` and ``x_0`` is Gaussian:

    mean       mu = (r sigma_s^2 x_t + alpha_s beta x_0) / sigma_t^2
    variance   beta_tilde = beta sigma_s^2 / sigma_t^2                                    (Ho et al. 2020, eq. 6, 7)

The variance belongs to the pair of levels, so that it follows any respacing. ADM learns a fraction f per value:
``log Sigma = f log beta + (1 - f) log beta_tilde`` (Nichol & Dhariwal 2021, eq. 15). Into a clean image ``beta_tilde``
is zero, and so is ``Sigma``.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from steersman.batching import broadcast
from steersman.schedule import Level

__all__ = ["Batch", "Classes", "FixedVariance", "PerImage", "Step", "Targets"]
__all__ += ["posterior_mean", "reverse_variance", "transition"]

Batch = Float[Tensor, "B *shape"]
PerImage = Float[Tensor, " B"]
Targets = Any
"""What each image is steered to (`steersman.guidance.target`): a tensor, or nested tuples or dictionaries of tensors,
with a row for each image."""
Classes = Int[Tensor, " B"] | Int[Tensor, "B S"]
"""Targets that are classes: the index of one, or those of a set, filled up with -1."""

FixedVariance = Literal["small", "large", "clipped"]


class Step(NamedTuple):
    """A step of a trajectory.

    Attributes:
        index: The step's index, 0 first.
        count: The number of steps.
        repeat: The repetition of the step under recurrence, 0 first.
        stage: The evaluation of the denoiser within the step: 0, and 1 for Heun's second.
        level: The level of that evaluation; of the first one, the level that the step starts from.
        next: The level that the step leads to.
        variance: The reverse variance ``Sigma_t`` of this pair of levels: (), or the sample's shape where learned.
        peak: The largest variance of the steps so far.
        levels: All levels of the trajectory, the noisiest first; one more than steps.
    """

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]
    repeat: int
    stage: int
    level: Level
    next: Level
    variance: Float[Tensor, "..."]
    peak: Float[Tensor, "..."]
    levels: tuple[Level, ...] = ()

    @classmethod
    def at(cls, levels: Sequence[Level], index: int, fixed: FixedVariance = "small") -> "Step":
        """Returns a step of a trajectory over some levels, with the fixed reverse variances."""
        pairs = pairwise(levels[: index + 2])
        variances = [reverse_variance(level, next, fixed=fixed, levels=levels) for level, next in pairs]
        peak = torch.stack(variances).max()
        return cls(index, len(levels) - 1, 0, 0, levels[index], levels[index + 1], variances[-1], peak, tuple(levels))

    @property
    def left(self) -> int:
        """The number of steps after this one: t, counted T-1 .. 0."""
        return self.count - 1 - self.index

    @property
    def varies(self) -> bool:
        """Whether the step has a variance; a learned one is above zero, so that no accelerator needs to be awaited."""
        return self.variance.ndim > 0 or bool(self.variance > 0)

    @property
    def start(self) -> Level:
        """The level that the whole step starts from, at each of its evaluations."""
        return self.levels[self.index] if self.stage else self.level


def transition(level: Level, next: Level) -> tuple[Float64[Tensor, "*batch"], Float64[Tensor, "*batch"]]:
    """Returns ``r = alpha_t / alpha_s`` and ``beta``, of ``x_t = r x_s + sqrt(beta) eps``."""
    ratio = level.alpha / next.alpha
    return ratio, level.sigma**2 - ratio**2 * next.sigma**2


def posterior_mean(x_t: Batch, x0: Batch, level: Level, next: Level) -> Batch:
    """Returns ``mu``, the mean of ``x_s`` given ``x_t`` and ``x_0``."""
    ratio, beta = transition(level, next)
    of_x_t = ratio * next.sigma**2 / level.sigma**2
    of_x0 = next.alpha * beta / level.sigma**2
    return broadcast(of_x_t, x_t) * x_t + broadcast(of_x0, x0) * x0


def reverse_variance(
    level: Level,
    next: Level,
    fraction: Batch | None = None,
    fixed: FixedVariance = "small",
    levels: Sequence[Level] = (),
) -> Float[Tensor, "..."]:
    """Returns ``Sigma_t`` of a pair of levels."""
    _, beta = transition(level, next)
    small = beta * next.sigma**2 / level.sigma**2
    if fixed == "clipped" and not small > 0 and len(levels) > 2:
        small = reverse_variance(levels[-3], levels[-2])
    if fraction is None or not small > 0:
        return beta if fixed == "large" and fraction is None else small
    log_small, log_share = (broadcast(value.log(), fraction) for value in (small, beta / small))
    return (log_small + fraction * log_share).exp()  # one CPU scalar an operation: accelerators take no two
