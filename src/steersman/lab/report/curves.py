"""Named curves, as a table and as a plot beside it: each value y(x) with, where it is known, a band y ± spread.

    PATH.csv    a row a point: curve, x, y, spread (empty where there is none)
    PATH.png    all curves in one plot, or those of each panel in one, side by side on the same axes

On a logarithmic axis the band is y (1 + spread / y) and y / (1 + spread / y), which is y ± spread where that is small,
and stays above 0 where it is not. A plot of many curves shows no bands; the table has them. Curves of the same name
look the same in all panels. Values that are far too small for a logarithmic plot run out of it below.
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

__all__ = [
    "COLOURS",
    "HEIGHT",
    "LINE",
    "STROKES",
    "WIDTH",
    "Curve",
    "beside",
    "write_curves",
    "write_figure",
    "write_rows",
]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000")  # Okabe & Ito 2008
STROKES = ("-", "--", ":", "-.")  # for each further round of the colours
WIDTH, HEIGHT, LINE = 6.4, 3.6, 0.2  # inches: the plot's sides and one line of the legend
PANEL_WIDTH, PANEL_HEIGHT = 3.4, 2.5  # inches: the sides of one panel of several
DOTS = 150  # an inch
TICKS = 10  # places that a logarithmic axis marks instead of powers of ten, at most
DECADES = 8  # that a logarithmic vertical axis shows below the largest value, at most
MARKED = 40  # points; a curve of more is drawn without marks
BANDS = 8  # curves; a plot or panel of more shows no bands


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A value over another, under a name.

    Attributes:
        name: What the legend says.
        panel: In which panel it stands, and what stands above that; None for all, if there is but one.
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
    panel: str | None = None

    def __post_init__(self) -> None:
        counts = [len(each) for each in (self.x, self.y, self.spread, self.above) if each is not None]
        if len(set(counts)) > 1:
            listed = ", ".join(map(str, counts))
            raise InputError(
                f"curve {self.name!r} must have as many values of each of x, y, spread and above, got {listed}"
            )

    @property
    def title(self) -> str:
        """What it is called among all: its panel and its name."""
        return self.name if self.panel is None else f"{self.panel}, {self.name}"


def write_curves(
    path: Path, curves: Sequence[Curve], *, x: str, y: str, log_y: bool = False, log_x: bool = False
) -> None:
    """Writes curves as a table and as a plot.

    Args:
        path: Where to, without an ending.
        curves: One or more; each name keeps its colour for its place among the names.
        x: What the horizontal axis shows, with its unit.
        y: What the vertical one shows.
        log_y: Whether the vertical axis is logarithmic.
        log_x: Whether the horizontal one is.

    Raises:
        InputError: There is no curve.
    """
    if not curves:
        raise InputError("curves must have at least 1 curve, got none")
    columns = ["spread", *(["above"] if any(curve.above is not None for curve in curves) else [])]
    rows = [
        (curve.title, *row)
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
    with replacing(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(header)
        table.writerows(rows)


def write_figure(path: Path, figure: "Figure") -> None:
    """Writes a figure as PNG."""
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=DOTS, metadata={"Software": None})


def _figure(curves: Sequence[Curve], x: str, y: str, *, log_x: bool, log_y: bool) -> "Figure":
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(curve.name for curve in curves))
    titles = list(dict.fromkeys(curve.panel for curve in curves))
    across = beside(len(titles))
    width = WIDTH if len(titles) == 1 else PANEL_WIDTH * across
    columns = max(1, min(len(names), int(84 * width / WIDTH) // (max(map(len, names)) + 8)))
    lines, down = math.ceil(len(names) / columns), math.ceil(len(titles) / across)
    height = (HEIGHT if len(titles) == 1 else PANEL_HEIGHT * down + 0.3) + LINE * lines
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for axes, title in zip(panels.flat, titles, strict=False):
        own = [curve for curve in curves if curve.panel == title]
        for curve in own:
            place = names.index(curve.name)
            colour = COLOURS[place % len(COLOURS)]
            _draw(axes, curve, colour, STROKES[place // len(COLOURS) % len(STROKES)])
            if curve.spread is not None and len(own) <= BANDS:
                _draw_band(axes, curve, colour, log=log_y)
        if title is not None:
            axes.set_title(title, fontsize="medium")
        if log_x:
            axes.set_xscale("log")
            _mark(axes, sorted({x_i for curve in curves for x_i in curve.x}))
        if log_y:
            axes.set_yscale("log")
            _cut(axes, [y for curve in curves for y in curve.y])
        axes.grid(visible=True, color="0.9", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    for place in range(len(titles), down * across):  # the axis of the one above is not seen below an empty place
        panels.flat[place - across].tick_params(labelbottom=True)
        panels.flat[place].set_visible(False)
    if len(titles) == 1:
        panels[0, 0].set(xlabel=x, ylabel=y)
    else:
        for place in range(max(0, len(titles) - across), len(titles)):
            panels.flat[place].set_xlabel(x)
        figure.supylabel(y, fontsize="medium")
    shown = {line.get_label(): line for axes in panels.flat for line in axes.lines}
    handles = [shown[name] for name in names]
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize="small")
    return figure


def beside(panels: int) -> int:
    """Returns how many of some panels stand side by side: two of an even number, three of an odd one."""
    return min(panels, 3 if panels % 2 else 2)


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


def _cut(axes: "Axes", values: Sequence[float]) -> None:
    """Lets what is too far below the largest value run out of the plot, if anything is."""
    known = [value for value in values if 0 < value < math.inf]
    if known and min(known) < max(known) / 10**DECADES:
        axes.set_ylim(bottom=max(known) / 10**DECADES)


def _mark(axes: "Axes", places: Sequence[float]) -> None:
    """Marks the places themselves on a logarithmic axis, where they are few."""
    if len(places) <= TICKS:
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.minorticks_off()
