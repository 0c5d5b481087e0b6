"""What a sampler is: a way from one level to the next.

A step takes ``x_t`` to ``mean + deviation``. Guides may move the mean or turn the deviation, so the two are told apart;
a deterministic step has no deviation and draws no noise.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from steersman.errors import InputError
from steersman.guidance.injection import Estimate
from steersman.guidance.step import FixedVariance, Step
from steersman.schedule import Level, Schedule, Spacing

__all__ = ["Draw", "Move", "OwnLevels", "Predict", "Sampler", "levels_of", "randomly"]


@runtime_checkable
class Predict(Protocol):
    """The denoiser, already guided and clipped; may be asked twice a step.

    Attributes:
        schedule: The denoiser's, for levels between those of the walk.
    """

    @property
    def schedule(self) -> Schedule: ...  # noqa: D102

    def __call__(self, x_t: Float[Tensor, "B C H W"], level: Level, stage: int = 0) -> Estimate:
        """Returns the estimate at a level; the stage counts the evaluations within the step."""
        ...


Draw = Callable[[], Float[Tensor, "B C H W"]]


class Move(NamedTuple):
    """A step's outcome: ``x_s = mean + deviation``.

    Attributes:
        mean: Where it leads.
        deviation: The noise that is added, None where there is none.
        variance: The variance of that noise.
    """

    mean: Float[Tensor, "B C H W"]
    deviation: Float[Tensor, "B C H W"] | None = None
    variance: Float[Tensor, "..."] | None = None


@runtime_checkable
class Sampler(Protocol):
    """Steps from level to level. One that inherits from it has ``small`` variances and no state, but where it says so.

    Attributes:
        fixed: Which reverse variance belongs to its steps where the model learned none; weights follow it, whatever
            noise is drawn.
        noisy: Whether its steps end with noise, but for the one into a clean image; None where only a step tells.
    """

    @property
    def fixed(self) -> FixedVariance:  # noqa: D102
        return "small"

    @property
    def noisy(self) -> bool | None:  # noqa: D102
        return None

    def init(self, x: Float[Tensor, "B C H W"]) -> tuple:
        """Returns the state before the first step; empty for one-step methods."""
        return ()

    def step(
        self, x_t: Float[Tensor, "B C H W"], step: Step, predict: Predict, draw: Draw, state: tuple
    ) -> tuple[Move, tuple]:
        """Returns the way to ``step.next`` and the next state."""
        ...


@runtime_checkable
class OwnLevels(Protocol):
    """A sampler that brings the levels of its walk with it."""

    def levels(
        self, schedule: Schedule, steps: int, spacing: Spacing, ratio_min: float, ratio_max: float
    ) -> tuple[Level, ...]:
        """Returns its levels on a denoiser's schedule, noisiest first, one more than steps.

        Raises:
            InputError: They are not on that schedule, or the settings cannot be met.
        """
        ...


def levels_of(
    sampler: Sampler,
    schedule: Schedule,
    steps: int,
    spacing: Spacing = "linspace",
    ratio_min: float = 0.0,
    ratio_max: float = math.inf,
) -> tuple[Level, ...]:
    """Returns the levels of a sampler's walk: its own where it brings some, else the schedule's.

    Raises:
        InputError: The range is none, or the sampler or the schedule refuses it.
    """
    if not 0 <= ratio_min < ratio_max:
        raise InputError(
            f"ratio_min and ratio_max must satisfy 0 <= ratio_min < ratio_max, got {ratio_min} and {ratio_max}"
        )
    if isinstance(sampler, OwnLevels):
        return sampler.levels(schedule, steps, spacing, ratio_min, ratio_max)
    return schedule.levels(steps, spacing, ratio_min, ratio_max)


def randomly(variance: Float[Tensor, "..."], draw: Draw, step: Step) -> Float[Tensor, "B C H W"] | None:
    """Returns ``sqrt(variance) eps``, or None into a clean image and where the variance is zero."""
    if not step.next.sigma > 0 or not step._replace(variance=variance).varies:
        return None
    eps = draw()
    return variance.sqrt().to(eps.dtype) * eps
