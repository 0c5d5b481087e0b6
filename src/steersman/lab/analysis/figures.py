"""What was measured of each image, as curves over the levels."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.lab.analysis.calibration import CONFIDENCE, CORRECT, integral
from steersman.lab.analysis.parts import Key
from steersman.lab.metrics.calibration import Reliability, binned, errors
from steersman.lab.metrics.resample import Figure, resampled_together
from steersman.lab.report.plots import Curve

__all__ = [
    "Errors",
    "apart",
    "diagrams",
    "error_curves",
    "filled_bins",
    "found_errors",
    "mean_curves",
    "names",
    "share_curves",
]

CROWDED = 6  # curves that a panel has at most, where it can be


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Calibration errors of a classifier along a walk.

    Attributes:
        steps: ``ECE_t``, a level each.
        integral: Their mean over time.
    """

    steps: Sequence[Figure]
    integral: Figure


def names(keys: Iterable[Key]) -> dict[Key, str]:
    """Returns a name for each key: its parts that are not the same in all of them, or its first one."""
    keys = list(keys)
    told = _told(keys)
    return {key: _joined(key, told) for key in keys}


def apart(keys: Iterable[Key], most: int = CROWDED) -> dict[Key, tuple[str | None, str]]:
    """Returns each key's name in two: what its panel is called, None if one panel does, and what is left.

    The panel tells as many of the first parts as it takes for few keys in each.

    Args:
        keys: They.
        most: How many a panel has at most, unless all but the last part are told already.
    """
    keys = list(keys)
    told = _told(keys)
    splits = [(told[:place], told[place:]) for place in range(len(told))]

    def largest(outer: Sequence[int]) -> int:
        return max(Counter(_joined(key, outer) for key in keys).values())

    outer, inner = next((each for each in splits if largest(each[0]) <= most), splits[-1])
    return {key: (_joined(key, outer) if outer else None, _joined(key, inner)) for key in keys}


def _told(keys: Sequence[Key]) -> list[int]:
    return [place for place, parts in enumerate(zip(*keys, strict=True)) if len(set(parts)) > 1] or [0]


def _joined(key: Key, places: Sequence[int]) -> str:
    return ", ".join(key[place] for place in places)


def mean_curves(values: Mapping[Key, np.ndarray], x: Sequence[float]) -> list[Curve]:
    """Returns each mean over the images with their standard deviation as the band; what is not finite is left out.

    Args:
        values: (images, levels), by what names the curve.
        x: Where the levels stand.
    """
    curves = []
    for key, (panel, name) in apart(values).items():
        columns = [column[np.isfinite(column)] for column in values[key].astype(np.float64).T]
        y = [float(column.mean()) if len(column) else float("nan") for column in columns]
        spread = [float(column.std(ddof=1)) if len(column) > 1 else 0.0 for column in columns]
        curves.append(Curve(name=name, panel=panel, x=x, y=y, spread=spread))
    return curves


def share_curves(values: Mapping[Key, np.ndarray], x: Sequence[float]) -> list[Curve]:
    """Returns the share of images of which something is true, with its standard error ``sqrt(p (1 - p) / n)``.

    Args:
        values: Truths of (images, levels), by what names the curve.
        x: Where the levels stand.
    """
    curves = []
    for key, (panel, name) in apart(values).items():
        p = values[key].mean(0)
        spread = np.sqrt(p * (1 - p) / len(values[key]))
        curves.append(Curve(name=name, panel=panel, x=x, y=p.tolist(), spread=spread.tolist()))
    return curves


def diagrams(values: Mapping[Key, np.ndarray], bins: int) -> dict[Key, list[Reliability]]:
    """Returns the reliability diagram at each level, by what names a classifier, its view and its temperature.

    Args:
        values: What `steersman.lab.analysis.calibration.trusted` measured.
        bins: M.
    """
    return {
        key: [binned(sure[:, place], right[:, place], bins) for place in range(sure.shape[1])]
        for key, (sure, right) in _predictions(values).items()
    }


def found_errors(values: Mapping[Key, np.ndarray], times: Sequence[float], bins: int) -> dict[Key, Errors]:
    """Returns the calibration errors with their intervals, by what names a classifier, its view and its temperature.

    Args:
        values: What `steersman.lab.analysis.calibration.trusted` measured.
        times: The levels' times.
        bins: M.
    """
    found = {}
    for key, (sure, right) in _predictions(values).items():

        def figures(chosen: Int[Tensor, " m"], sure: Tensor = sure, right: Tensor = right) -> Float[Tensor, " K"]:
            steps = errors(sure[chosen], right[chosen], bins)
            return torch.cat([steps, steps.new_tensor([integral(steps.tolist(), times)])])

        *steps, over_time = resampled_together(figures, len(sure), bounds=(0.0, 1.0))
        found[key] = Errors(steps=steps, integral=over_time)
    return found


def error_curves(found: Mapping[Key, Errors], x: Sequence[float]) -> list[Curve]:
    """Returns ``ECE_t`` of each, with its interval as the band."""
    curves = []
    for key, (panel, name) in apart(found).items():
        y, low, high = (np.array([getattr(each, end) for each in found[key].steps], float) for end in _ENDS)
        below, above = (
            (None, None) if np.isnan(low).any() else ((y - low).clip(0).tolist(), (high - y).clip(0).tolist())
        )
        curves.append(Curve(name=name, panel=panel, x=x, y=y.tolist(), spread=below, above=above))
    return curves


_ENDS = ("value", "low", "high")


def _predictions(values: Mapping[Key, np.ndarray]) -> dict[Key, tuple[Tensor, Tensor]]:
    """Returns confidence and correctness, (images, levels), by the rest of their keys."""
    return {
        key[1:]: (torch.from_numpy(values[key]), torch.from_numpy(values[CORRECT, *key[1:]]))
        for key in values
        if key[0] == CONFIDENCE
    }


def filled_bins(diagram: Reliability) -> list[tuple[float, float, int, float, float]]:
    """Returns of each bin that is not empty: low and high end, count, mean confidence, accuracy."""
    bins = len(diagram.count)
    return [
        (m / bins, (m + 1) / bins, int(diagram.count[m]), float(diagram.confidence[m]), float(diagram.accuracy[m]))
        for m in range(bins)
        if diagram.count[m]
    ]
