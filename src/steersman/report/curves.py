"""Named curves, as a table and as a plot beside it: each value y(x) with, where it is known, a band y ± spread.

    PATH.csv    a row a point: curve, x, y, spread (empty where there is none)
    PATH.png    all curves in one plot

On a logarithmic axis the band is y (1 + spread / y) and y / (1 + spread / y), which is y ± spread where that is small,
and stays above 0 where it is not. A plot of many curves shows no bands; the table has them.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from steersman.errors import InputError
from steersman.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "HEIGHT", "LINE", "STROKES", "WIDTH", "Curve", "write_curves", "write_figure", "write_rows"]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000")  # Okabe & Ito 2008
STROKES = ("-", "--", ":", "-.")  # for each further round of the colours
WIDTH, HEIGHT, LINE = 6.4, 3.6, 0.2  # inches: the plot's sides and one line of the legend
DOTS = 150  # an inch
TICKS = 10  # places that a logarithmic axis marks instead of powers of ten, at most
MARKED = 40  # points; a curve of more is drawn without marks
BANDS = 8  # curves; a plot of more shows no bands


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A value over another, under a name.

    Attributes:
        name: What the legend says.
        x: Where.
        y: The values, as many; what is not a number is a gap.
        spread: Half the height of the band around each, as many; None for no band.
        above: How far the band goes up, where that is not as far as it goes down, likewise.

    Raises:
        InputError: They are not as many.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] | None = None
    above: Sequence[float] | None = None

    def __post_init__(self) -> None:
        counts = [len(each) for each in (self.x, self.y, self.spread, self.above) if each is not None]
        if len(set(counts)) > 1:
            listed = ", ".join(map(str, counts))
            raise InputError(f"curve {self.name!r}: {listed} values of x, y, spread given; allowed: as many of each")


def write_curves(
    path: Path, curves: Sequence[Curve], *, x: str, y: str, log_y: bool = False, log_x: bool = False
) -> None:
    """Writes curves as a table and as a plot.

    Args:
        path: Where to, without an ending.
        curves: One or more; each keeps its colour for its place among them.
        x: What the horizontal axis shows, with its unit.
        y: What the vertical one shows.
        log_y: Whether the vertical axis is logarithmic.
        log_x: Whether the horizontal one is.

    Raises:
        InputError: There is no curve.
    """
    if not curves:
        raise InputError("curves: none given; allowed: one or more")
    columns = ["spread", *(["above"] if any(curve.above is not None for curve in curves) else [])]
    rows = [
        (curve.name, *row)
        for curve in curves
        for row in zip(
            curve.x, curve.y, *(getattr(curve, each) or [""] * len(curve.x) for each in columns), strict=True
        )
    ]
    write_rows(path.with_name(f"{path.name}.csv"), ("curve", "x", "y", *columns), rows)
    write_figure(path.with_name(f"{path.name}.png"), _figure(curves, x, y, log_x=log_x, log_y=log_y))


def write_rows(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Writes a table as CSV; numbers in full, so that they read back the same.

    Args:
        path: Where to.
        header: The columns' names.
        rows: As many cells each.
    """
    with replacing(path) as beside, beside.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(header)
        table.writerows(rows)


def write_figure(path: Path, figure: "Figure") -> None:
    """Writes a figure as PNG."""
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=DOTS, metadata={"Software": None})


def _figure(curves: Sequence[Curve], x: str, y: str, *, log_x: bool, log_y: bool) -> "Figure":
    from matplotlib.figure import Figure

    longest = max(len(curve.name) for curve in curves)
    columns = max(1, min(len(curves), 84 // (longest + 8)))
    lines = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(WIDTH, HEIGHT + LINE * lines), layout="constrained")
    axes = figure.add_subplot()
    for place, curve in enumerate(curves):
        _draw(axes, curve, COLOURS[place % len(COLOURS)], STROKES[place // len(COLOURS) % len(STROKES)])
        if curve.spread is not None and len(curves) <= BANDS:
            _draw_band(axes, curve, COLOURS[place], log=log_y)
    axes.set(xlabel=x, ylabel=y)
    if log_x:
        axes.set_xscale("log")
        _mark(axes, sorted({x_i for curve in curves for x_i in curve.x}))
    if log_y:
        axes.set_yscale("log")
    axes.grid(visible=True, color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize="small")
    return figure


def _draw(axes: "Axes", curve: Curve, colour: str, stroke: str) -> None:
    """Draws a curve along its x, whatever order its points were given in."""
    order = _along(curve)
    x, y = [curve.x[i] for i in order], [curve.y[i] for i in order]
    mark = "o" if len(x) <= MARKED else ""
    axes.plot(x, y, label=curve.name, color=colour, linestyle=stroke, linewidth=1.5, marker=mark, markersize=3)


def _draw_band(axes: "Axes", curve: Curve, colour: str, *, log: bool) -> None:
    """Draws the band around a curve; on a logarithmic axis where the curve is above 0."""
    below = curve.spread or [0.0] * len(curve.x)
    above = curve.above or below
    points = [(curve.x[i], curve.y[i], below[i], above[i]) for i in _along(curve) if not log or curve.y[i] > 0]
    x = [point[0] for point in points]
    low = [y / (1 + down / y) if log else y - down for _, y, down, _ in points]
    high = [y + up for _, y, _, up in points]
    axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)


def _along(curve: Curve) -> list[int]:
    return sorted(range(len(curve.x)), key=lambda i: curve.x[i])


def _mark(axes: "Axes", places: Sequence[float]) -> None:
    """Marks the places themselves on a logarithmic axis, where they are few."""
    if len(places) <= TICKS:
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.minorticks_off()
