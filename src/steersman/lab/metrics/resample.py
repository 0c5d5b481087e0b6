"""How much a figure would vary from sample to sample of as many images.

Of n images, R random halves of h = floor(n / 2) are drawn without replacement, and of each the same figure θ_r. Then

    low, high = θ + sqrt(h / (n - h)) q(θ_r - mean_r θ_r),    q the quantiles at 2.5% and 97.5%.

This is the bootstrap without replacement. For a mean, the variance of such a half's is ``(1 - h/n) s^2 / h``, so that
the interval has that of the mean, ``s^2 / n``, as with replacement; but no image is drawn twice, which nearest
neighbours would take for the densest place of all.

Taking the halves' mean away leaves out what they are biased by for being fewer. So the interval of a biased figure, as
a Fréchet distance is, says where the same figure of another n images would lie, not where that of infinitely many
would. The reference is what it is: its own chance is not in the interval.

A share of n independent images has Wilson's interval instead, which keeps its width at 0 and at 1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.lab.metrics.classification import wilson

__all__ = ["RESAMPLES", "Figure", "mean_of", "resampled", "resampled_together", "share"]

RESAMPLES = 200


@dataclass(frozen=True)
class Figure:
    """A figure with its 95% interval; None where undefined.

    Attributes:
        value: The figure of all images.
        low: Where the interval begins.
        high: Where it ends.
        note: What to know of it: why it is undefined, or of which of the images it is.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    note: str | None = field(default=None, compare=False)


def resampled(
    figure: Callable[[Int[Tensor, " m"]], float],
    count: int,
    *,
    least: int = 1,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Figure:
    """Returns a figure with its interval.

    Args:
        figure: Maps indices of some of the images to their figure.
        count: n, how many there are.
        least: How many the figure needs; where half of them are fewer, there is no interval.
        bounds: What the figure is never below or above.
        resamples: R; fewer than 2 for no interval.
        seed: Of the halves.
    """

    def alone(chosen: Int[Tensor, " m"]) -> Float[Tensor, "1"]:
        return torch.tensor([figure(chosen)], dtype=torch.float64)

    (found,) = resampled_together(alone, count, least=least, bounds=bounds, resamples=resamples, seed=seed)
    return found


def resampled_together(
    figures: Callable[[Int[Tensor, " m"]], Float[Tensor, " K"]],
    count: int,
    *,
    least: int = 1,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Figure]:
    """Returns several figures of the same images, each with its interval, of the same halves.

    Args:
        figures: Maps indices of some of the images to their figures, in float64.
        count: As in `resampled`, like what follows.
        least: How many each figure needs.
        bounds: What none is ever below or above.
        resamples: R.
        seed: Of the halves.
    """
    values, half = figures(torch.arange(count)), count // 2
    if half < max(least, 1) or resamples < 2:
        return [Figure(value) for value in values.tolist()]
    generator = torch.Generator().manual_seed(seed)
    found = torch.stack([figures(torch.randperm(count, generator=generator)[:half]) for _ in range(resamples)])
    away = (found - found.mean(0)) * math.sqrt(half / (count - half))
    ends = (values + away.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)).clamp(*bounds)
    return [Figure(*each) for each in zip(values.tolist(), *ends.tolist(), strict=True)]


def share(successes: int, count: int) -> Figure:
    """Returns the share of images of which something holds, with Wilson's interval."""
    return Figure(successes / count, *wilson(successes, count))


def mean_of(figures: Sequence[Figure]) -> Figure:
    """Returns the mean of figures of independent samples; their intervals' sides add up as deviations do."""

    def side(ends: Sequence[float | None]) -> float | None:
        away = [
            end - each.value
            for end, each in zip(ends, figures, strict=True)
            if end is not None and each.value is not None
        ]
        return math.hypot(*away) / len(figures) if len(away) == len(figures) else None

    values = [each.value for each in figures if each.value is not None]
    if not values or len(values) < len(figures):
        return Figure()
    value = sum(values) / len(values)
    below, above = side([each.low for each in figures]), side([each.high for each in figures])
    return Figure(value, None if below is None else value - below, None if above is None else value + above)
