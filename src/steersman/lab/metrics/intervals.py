"""Figures with their 95% intervals, and rank correlations of figures.

**A figure of n images**: R random halves of ``h = floor(n / 2)`` images are drawn without replacement. With the same
figure θ_r of each half and q the quantiles at 2.5% and 97.5%,

    low, high = θ + sqrt(h / (n - h)) q(θ_r - mean_r θ_r).

For a mean this interval has the variance ``s^2 / n``, as the bootstrap with replacement; but no image is drawn twice,
which nearest neighbours would take for a dense place. The interval of a biased figure, such as a Fréchet distance, says
where the figure of another n images would lie. The reference's own chance is not in it.

**A share of n images** has Wilson's interval, which keeps its width at 0 and at 1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.errors import InputError

__all__ = [
    "RESAMPLES",
    "Figure",
    "by_chance",
    "mean_of",
    "rank_correlation",
    "resampled",
    "resampled_together",
    "share",
    "wilson",
]

RESAMPLES = 200
QUANTILES = (0.025, 0.975)
SETTINGS_RESAMPLES = 2000
EXACT = 9  # settings whose pairings are all counted: 362,880
PAIRINGS = 100_000  # drawn for more settings


@dataclass(frozen=True)
class Figure:
    """A figure with its 95% interval; no value if it is undefined. The note says why, or which images it is of."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    note: str | None = field(default=None, compare=False)


def resampled(figure: Callable[[Int[Tensor, " m"]], float], count: int, **settings: Any) -> Figure:  # noqa: ANN401
    """Returns a figure of ``count`` images with its interval. For the settings see `resampled_together`."""

    def alone(chosen: Int[Tensor, " m"]) -> Float[Tensor, "1"]:
        return torch.tensor([figure(chosen)], dtype=torch.float64)

    return resampled_together(alone, count, **settings)[0]


def resampled_together(
    figures: Callable[[Int[Tensor, " m"]], Float[Tensor, " K"]],
    count: int,
    *,
    least: int = 1,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Figure]:
    """Returns several figures of ``count`` images with their intervals.

    ``figures`` maps the indices of some images to their figures, in float64, of which it needs at least ``least``; they
    stay within ``bounds``. There are no intervals if half of the images or ``resamples`` are too few.
    """
    values, half = figures(torch.arange(count)), count // 2
    if half < max(least, 1) or resamples < 2:
        return [Figure(value) for value in values.tolist()]
    generator = torch.Generator().manual_seed(seed)
    halves = torch.stack([figures(torch.randperm(count, generator=generator)[:half]) for _ in range(resamples)])
    deviations = (halves - halves.mean(0)) * math.sqrt(half / (count - half))
    ends = (values + deviations.quantile(torch.tensor(QUANTILES, dtype=torch.float64), dim=0)).clamp(*bounds)
    return [Figure(*figure) for figure in zip(values.tolist(), *ends.tolist(), strict=True)]


def wilson(successes: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns Wilson's interval of a share: every p with ``|k/n - p| <= z sqrt(p (1 - p) / n)``."""
    from scipy.stats import binomtest

    if not 0 <= successes <= count or count < 1:
        raise InputError(f"wilson needs 0 to n successes of n, with n at least 1, got {successes} of {count}")
    if not 0 < confidence < 1:
        raise InputError(f"confidence must be between 0 and 1, got {confidence}")
    low, high = binomtest(successes, count).proportion_ci(confidence, method="wilson")
    return float(low), float(high)


def share(successes: int, count: int) -> Figure:
    """Returns a share of images with Wilson's interval."""
    return Figure(successes / count, *wilson(successes, count))


def mean_of(figures: Sequence[Figure]) -> Figure:
    """Returns the mean of figures of independent samples; the sides of their intervals add up as deviations do."""
    values = [figure.value for figure in figures if figure.value is not None]
    if not values or len(values) < len(figures):
        return Figure()
    mean = sum(values) / len(values)

    def end(ends: Sequence[float | None], sign: int) -> float | None:
        sides = [end - value for end, value in zip(ends, values, strict=True) if end is not None]
        return mean + sign * math.hypot(*sides) / len(values) if len(sides) == len(values) else None

    return Figure(mean, end([figure.low for figure in figures], -1), end([figure.high for figure in figures], 1))


def rank_correlation(
    x: Sequence[float], y: Sequence[float], *, resamples: int = SETTINGS_RESAMPLES, seed: int = 0
) -> Figure:
    """Returns Spearman's rank correlation with its bootstrap interval over the settings; undefined if it is nan.

    Settings in perfect order have an interval of no width, however few they are: see `by_chance`.
    """
    first, second = _pair(x, y)
    value = float(_spearman(first, second))
    if math.isnan(value):
        return Figure()
    draws = np.random.default_rng(seed).integers(len(first), size=(resamples, len(first)))
    # A draw of one setting again and again has no correlation and is left out.
    low, high = np.nanquantile(_spearman(first[draws], second[draws]), QUANTILES).tolist()
    return Figure(value, low, high)


def by_chance(x: Sequence[float], y: Sequence[float], *, drawn: int = PAIRINGS, seed: int = 0) -> float:
    """Returns the share of random pairings of x and y with a rank correlation at least as far from 0; nan if undefined.

    All pairings of up to 9 settings are counted; of more, ``drawn`` are drawn, to which the one given is added.
    """
    from scipy.stats import permutation_test

    first, second = map(_ranks, _pair(x, y))
    if not (first.any() and second.any()):
        return math.nan
    result = permutation_test(
        (first,),
        lambda shuffled, axis: np.abs((shuffled * second).sum(axis)),  # the correlation but for a constant factor
        permutation_type="pairings",
        vectorized=True,
        alternative="greater",
        n_resamples=math.factorial(len(first)) if len(first) <= EXACT else drawn,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def _pair(x: Sequence[float], y: Sequence[float]) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    first, second = (np.array(list(values), dtype=np.float64) for values in (x, y))
    if len(first) != len(second) or len(first) < 2:
        raise InputError(
            f"correlation needs two lists of the same length, at least 2, got {len(first)} and {len(second)} values"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise InputError("correlation needs finite values, but some are not finite")
    return first, second


def _ranks(values: Float[np.ndarray, "*R n"]) -> Float[np.ndarray, "*R n"]:
    """Returns the ranks along the last axis around their mean; equal values share a rank."""
    from scipy.stats import rankdata

    return rankdata(values, axis=-1) - (values.shape[-1] + 1) / 2


def _spearman(x: Float[np.ndarray, "*R n"], y: Float[np.ndarray, "*R n"]) -> Float[np.ndarray, "*R"]:
    first, second = _ranks(x), _ranks(y)
    with np.errstate(invalid="ignore"):  # 0 / 0 where all values of a row are equal
        return np.asarray((first * second).sum(-1) / np.sqrt((first**2).sum(-1) * (second**2).sum(-1)))
