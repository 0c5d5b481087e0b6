"""Figures of things that have names and no order: a dot each with its interval, one below the other.

PATH.csv    a row each: name, value, low, high
PATH.png    the plot
"""

from collections.abc import Sequence
from pathlib import Path

from steersman.lab.report.curves import COLOURS, WIDTH, write_figure, write_rows
from steersman.lab.report.front import Point

__all__ = ["write_dots"]

MARGIN, LINE = 1.0, 0.3  # inches: above and below the dots, and for each


def write_dots(path: Path, points: Sequence[Point], *, figure: str) -> None:
    """Writes figures as a table and as a plot.

    Args:
        path: Where to, without an ending.
        points: One or more, from top to bottom.
        figure: What is measured.
    """
    from matplotlib.figure import Figure

    rows = [(p.name, p.quality, *("" if end is None else end for end in (p.low, p.high))) for p in points]
    write_rows(path.with_name(f"{path.name}.csv"), ("name", "value", "low", "high"), rows)
    drawn = Figure(figsize=(WIDTH, MARGIN + LINE * len(points)), layout="constrained")
    axes = drawn.add_subplot()
    places = range(len(points))
    x, reach = [point.quality for point in points], list(zip(*(point.reach for point in points), strict=True))
    axes.errorbar(x, list(places), xerr=reach, fmt="o", color=COLOURS[0])
    axes.set_yticks(list(places), [point.name for point in points])
    axes.set_ylim(len(points) - 0.5, -0.5)
    axes.set(xlabel=figure)
    axes.grid(visible=True, axis="x", color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    write_figure(path.with_name(f"{path.name}.png"), drawn)
