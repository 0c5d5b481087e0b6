"""What was measured of each image, as curves over the levels."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from steersman.analysis.calibration import CONFIDENCE, CORRECT
from steersman.analysis.parts import Key
from steersman.metrics.calibration import Reliability, binned
from steersman.report.curves import Curve

__all__ = ["diagrams", "error_curves", "filled_bins", "mean_curves", "names", "share_curves"]


def names(keys: Iterable[Key]) -> dict[Key, str]:
    """Returns a name for each key: its parts that are not the same in all of them, or its first one."""
    keys = list(keys)
    told = [place for place, parts in enumerate(zip(*keys, strict=True)) if len(set(parts)) > 1] or [0]
    return {key: ", ".join(key[place] for place in told) for key in keys}


def mean_curves(values: Mapping[Key, np.ndarray], x: Sequence[float]) -> list[Curve]:
    """Returns each mean over the images with their standard deviation as the band; what is not finite is left out.

    Args:
        values: (images, levels), by what names the curve.
        x: Where the levels stand.
    """
    curves = []
    for key, name in names(values).items():
        columns = [column[np.isfinite(column)] for column in values[key].astype(np.float64).T]
        y = [float(column.mean()) if len(column) else float("nan") for column in columns]
        spread = [float(column.std(ddof=1)) if len(column) > 1 else 0.0 for column in columns]
        curves.append(Curve(name=name, x=x, y=y, spread=spread))
    return curves


def share_curves(values: Mapping[Key, np.ndarray], x: Sequence[float]) -> list[Curve]:
    """Returns the share of images of which something is true, with its standard error ``sqrt(p (1 - p) / n)``.

    Args:
        values: Truths of (images, levels), by what names the curve.
        x: Where the levels stand.
    """
    curves = []
    for key, name in names(values).items():
        p = values[key].mean(0)
        spread = np.sqrt(p * (1 - p) / len(values[key]))
        curves.append(Curve(name=name, x=x, y=p.tolist(), spread=spread.tolist()))
    return curves


def diagrams(values: Mapping[Key, np.ndarray], bins: int) -> dict[Key, list[Reliability]]:
    """Returns the reliability diagram at each level, by what names a classifier, its view and its temperature.

    Args:
        values: What `steersman.analysis.calibration.trusted` measured.
        bins: M.
    """
    found = {}
    for key in values:
        if key[0] == CONFIDENCE:
            sure, right = (torch.from_numpy(values[part, *key[1:]]) for part in (CONFIDENCE, CORRECT))
            found[key[1:]] = [binned(sure[:, place], right[:, place], bins) for place in range(sure.shape[1])]
    return found


def error_curves(found: Mapping[Key, Sequence[Reliability]], x: Sequence[float]) -> list[Curve]:
    """Returns ``ECE_t`` of each diagram's sequence."""
    return [Curve(name=name, x=x, y=[each.error for each in found[key]]) for key, name in names(found).items()]


def filled_bins(diagram: Reliability) -> list[tuple[float, float, int, float, float]]:
    """Returns of each bin that is not empty: low and high end, count, mean confidence, accuracy."""
    bins = len(diagram.count)
    return [
        (m / bins, (m + 1) / bins, int(diagram.count[m]), float(diagram.confidence[m]), float(diagram.accuracy[m]))
        for m in range(bins)
        if diagram.count[m]
    ]
