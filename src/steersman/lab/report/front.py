"""What is worth its cost: the points that no other one dominates, and a plot of them among the others.

A point dominates another if it is no worse in cost and in loss, and better in one of them (Pareto). Equal points do not
dominate each other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from steersman.errors import InputError
from steersman.lab.report.curves import COLOURS, HEIGHT, LINE, WIDTH, write_figure

__all__ = ["Point", "front", "write_front"]


@dataclass(frozen=True, kw_only=True)
class Point:
    """Something that has a cost and a quality, with the ends of that one's interval.

    Attributes:
        name: What it is called.
        cost: The smaller the better.
        quality: A figure of it.
        low: The lower end of its interval, None where there is none.
        high: The upper end, likewise.
    """

    name: str
    cost: float
    quality: float
    low: float | None = None
    high: float | None = None

    @property
    def reach(self) -> tuple[float, float]:
        """How far the interval goes below and above the quality."""
        low, high = (self.quality if end is None else end for end in (self.low, self.high))
        return max(0.0, self.quality - low), max(0.0, high - self.quality)


def front(points: Sequence[Point], *, larger: bool) -> list[Point]:
    """Returns the points that no other dominates, the cheapest first.

    Args:
        points: Any number; one whose cost or quality is not a number is on no front.
        larger: Whether a larger quality is a better one.
    """
    sign = -1 if larger else 1
    known = [point for point in points if not math.isnan(point.cost) and not math.isnan(point.quality)]
    pairs = {(point.cost, sign * point.quality) for point in known}

    def dominated(point: Point) -> bool:
        cost, loss = point.cost, sign * point.quality
        return any(c <= cost and q <= loss and (c, q) != (cost, loss) for c, q in pairs)

    return sorted((point for point in known if not dominated(point)), key=lambda point: (point.cost, point.name))


def write_front(path: Path, points: Sequence[Point], *, larger: bool, cost: str, quality: str) -> None:
    """Plots quality over cost as PNG, the front named and joined, the others grey.

    Args:
        path: Where to.
        points: One or more.
        larger: Whether a larger quality is a better one.
        cost: What the horizontal axis shows.
        quality: What the vertical one shows.

    Raises:
        InputError: No point has both.
    """
    from matplotlib.figure import Figure

    best = front(points, larger=larger)
    if not best:
        raise InputError("the front needs at least 1 point that has a cost and a quality, got none")
    others = [point for point in points if point not in best]
    figure = Figure(figsize=(WIDTH, HEIGHT + LINE * (len(best) + bool(others))), layout="constrained")
    axes = figure.add_subplot()
    axes.step([p.cost for p in best], [p.quality for p in best], where="post", color="0.6", linewidth=1, zorder=1)
    groups = [("others", "0.7", others)] if others else []
    groups += [(point.name, COLOURS[place % len(COLOURS)], [point]) for place, point in enumerate(best)]
    for name, colour, group in groups:
        x, y = [point.cost for point in group], [point.quality for point in group]
        reach = list(zip(*(point.reach for point in group), strict=True))
        axes.errorbar(x, y, reach, fmt="o", color=colour, label=name)
    axes.set(xlabel=cost, ylabel=quality)
    axes.grid(visible=True, color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower left", ncols=1, frameon=False, fontsize="small")
    write_figure(path, figure)
