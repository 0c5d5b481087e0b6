"""The plots of a sweep: a figure over the varied value, or cell by cell where no varied value is a number.

The horizontal axis is the first thing varied whose values are all numbers; each combination of the others is a curve.
The band is the figure's interval.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from steersman.lab.report.plots import Curve, write_curves, write_dots, write_front
from steersman.lab.sweep.table import FRONTS, Row, fronts, points

__all__ = ["write_fronts", "write_plots"]

SCALE = "scale"


def write_plots(out: Path, rows: Sequence[Row]) -> None:
    """Writes accuracy, FID and cFID over the varied value, each as CSV and PNG, where there are any.

    Args:
        out: The folder.
        rows: One or more.
    """
    horizontal = next((key for key in rows[0].values if all(_is_number(row.values[key]) for row in rows)), None)
    for figure in FRONTS:
        path, found = out / figure.replace("/", "-"), points(rows, figure)
        if not found:
            continue
        if horizontal is None:
            write_dots(path, found, figure=figure)
        else:
            curves = _curves(rows, horizontal, figure)
            logarithmic = horizontal.partition(".")[0] == SCALE and min(min(curve.x) for curve in curves) > 0
            write_curves(path, curves, x=horizontal, y=figure, log_x=logarithmic)


def write_fronts(out: Path, rows: Sequence[Row]) -> None:
    """Plots each figure of quality against cost, the non-dominated cells named."""
    for name in fronts(rows):
        write_front(
            out / f"pareto-{name.replace('/', '-')}.png",
            points(rows, name),
            larger=FRONTS[name],
            cost="network evaluations an image, denoiser and guide",
            quality=name,
        )


def _curves(rows: Sequence[Row], horizontal: str, figure: str) -> list[Curve]:
    """Returns a figure's curve for each combination of what else is varied, where it has that figure."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        others = ", ".join(f"{key}={value}" for key, value in row.values.items() if key != horizontal)
        groups.setdefault(others or figure, []).append(row)
    curves = []
    for name, group in groups.items():
        found = points(group, figure)
        x = {row.name: float(row.values[horizontal]) for row in group}
        below, above = ([point.reach[side] for point in found] for side in (0, 1))
        y = [point.quality for point in found]
        curves.append(Curve(name=name, x=[x[point.name] for point in found], y=y, spread=below, above=above))
    return [curve for curve in curves if curve.x]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
