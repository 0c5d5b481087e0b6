"""Plots, each with the table of its values beside it: ``PATH.png``, ``PATH.pdf`` for papers, and ``PATH.csv``.

    curves     y(x) with a band y ± spread, in one plot or one panel each
    dots       named figures with their intervals, one below the other
    front      quality over cost, with the pairs that no other one dominates (Pareto) joined and named
    scatter    two figures of named settings against each other

On a logarithmic axis a band is y (1 + spread / y) and y / (1 + spread / y): y ± spread where that is small, and above 0
where it is not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steersman.errors import InputError
from steersman.files import replacing
from steersman.lab.metrics.intervals import Figure as Measured
from steersman.lab.report.tables import write_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "LINE",
    "MARKS",
    "Curve",
    "Pair",
    "beside",
    "front",
    "write_curves",
    "write_dots",
    "write_figure",
    "write_front",
    "write_scatter",
]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000")  # Okabe & Ito 2008
STROKES = ("-", "--", ":", "-.")  # for each further round of the colours
MARKS = ("o", "s", "^", "D")  # likewise
WIDTH, HEIGHT, LINE = 6.4, 3.6, 0.2  # inches: the plot's sides and one line of the legend
PANEL_WIDTH, PANEL_HEIGHT = 3.4, 2.5  # inches: the sides of one panel of several
CHARACTERS = 84  # of a legend's line across the whole width
STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
}

TICKS = 10  # values that a logarithmic axis marks in place of powers of ten, at most
DECADES = 8  # below the largest value that a logarithmic vertical axis shows, at most
MARKED = 40  # points; a curve of more is drawn without marks
BANDS = 8  # curves; a panel of more shows no bands, the table has them


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A value over another, under a name.

    Attributes:
        name: What the legend says.
        x: The horizontal positions.
        y: The values, as many; NaN leaves a gap.
        spread: Half the height of the band around each value; None for no band.
        above: The band's height above each value, where it differs from that below.
        panel: The title of the curve's panel; None where there is one panel.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] | None = None
    above: Sequence[float] | None = None
    panel: str | None = None

    def __post_init__(self) -> None:
        counts = [len(values) for values in (self.x, self.y, self.spread, self.above) if values is not None]
        if len(set(counts)) > 1:
            listed = ", ".join(map(str, counts))
            raise InputError(
                f"curve {self.name!r} must have as many values of each of x, y, spread and above, got {listed}"
            )

    @classmethod
    def of(cls, name: str, x: Sequence[float], figures: Sequence[Measured]) -> "Curve":
        """Returns the curve of figures, with their intervals as the band."""
        below, above = zip(*map(_reach, figures), strict=True)
        return cls(name=name, x=x, y=list(map(_value, figures)), spread=below, above=above)

    @property
    def title(self) -> str:
        """Its panel and its name."""
        return self.name if self.panel is None else f"{self.panel}, {self.name}"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two figures of a named setting, such as its cost and its quality; both have a value."""

    name: str
    x: Measured
    y: Measured


def write_curves(
    path: Path, curves: Sequence[Curve], *, x: str, y: str, log_y: bool = False, log_x: bool = False
) -> None:
    """Writes curves as a table and as a plot; x and y are the axes' labels."""
    if not curves:
        raise InputError("curves must have at least 1 curve, got none")
    columns = ["spread", *(["above"] if any(curve.above is not None for curve in curves) else [])]
    rows = [
        (curve.title, *row)
        for curve in curves
        for row in zip(
            curve.x, curve.y, *(getattr(curve, name) or [""] * len(curve.x) for name in columns), strict=True
        )
    ]
    write_rows(path.with_name(f"{path.name}.csv"), ("curve", "x", "y", *columns), rows)
    write_figure(path.with_name(f"{path.name}.png"), _figure(curves, x, y, log_x=log_x, log_y=log_y))


def write_dots(path: Path, pairs: Sequence[Pair], *, figure: str) -> None:
    """Writes the second figure of each pair as a table and as a plot, from top to bottom."""
    rows = [(pair.name, *("" if end is None else end for end in _ends(pair.y))) for pair in pairs]
    write_rows(path.with_name(f"{path.name}.csv"), ("name", "value", "low", "high"), rows)
    drawn, ((axes,),) = _plot(1.0 + 0.3 * len(pairs), **{"axes.grid.axis": "x"})
    turned = [Pair(name=pair.name, x=pair.y, y=Measured(place)) for place, pair in enumerate(pairs)]
    _draw_pairs(axes, turned, color=COLOURS[0])
    axes.set_yticks(range(len(pairs)), [pair.name for pair in pairs])
    axes.set_ylim(len(pairs) - 0.5, -0.5)
    axes.set_xlabel(figure)
    write_figure(path.with_name(f"{path.name}.png"), drawn)


def front(pairs: Sequence[Pair], *, larger: bool) -> list[Pair]:
    """Returns the pairs that no other dominates, the least x first; ``larger`` says whether a larger y is better.

    A pair dominates another if it is no worse in both, and better in one of them; a smaller x is better. Equal pairs do
    not dominate each other; one with a value that is not a number is on no front.
    """
    sign = -1 if larger else 1
    known = [(_value(pair.x), sign * _value(pair.y), pair) for pair in pairs]
    known = [(x, loss, pair) for x, loss, pair in known if not math.isnan(x) and not math.isnan(loss)]

    def dominated(x: float, loss: float) -> bool:
        return any(c <= x and q <= loss and (c, q) != (x, loss) for c, q, _ in known)

    best = [pair for x, loss, pair in known if not dominated(x, loss)]
    return sorted(best, key=lambda pair: (_value(pair.x), pair.name))


def write_front(path: Path, pairs: Sequence[Pair], *, larger: bool, x: str, y: str) -> None:
    """Plots pairs, the front named and joined, the others grey; x and y are the axes' labels."""
    best = front(pairs, larger=larger)
    if not best:
        raise InputError("the front needs at least 1 point that has a cost and a quality, got none")
    others = [pair for pair in pairs if pair not in best]
    figure, ((axes,),) = _plot(HEIGHT + LINE * (len(best) + bool(others)))
    joined = [_value(pair.x) for pair in best], [_value(pair.y) for pair in best]
    axes.step(*joined, where="post", color="0.6", linewidth=1, zorder=1)
    if others:
        _draw_pairs(axes, others, color="0.7", label="others")
    for index, pair in enumerate(best):
        _draw_pairs(axes, [pair], color=COLOURS[index % len(COLOURS)], label=pair.name)
    axes.set(xlabel=x, ylabel=y)
    figure.legend(loc="outside lower left", ncols=1)
    write_figure(path, figure)


def write_scatter(path: Path, pairs: Sequence[Pair], *, x: str, y: str, title: str) -> None:
    """Plots pairs of figures, a mark each with both intervals; x and y are the axes' labels."""
    columns, lines = _legend([pair.name for pair in pairs])
    drawn, ((axes,),) = _plot(HEIGHT + 0.3 + LINE * lines)
    for index, pair in enumerate(pairs):
        colour, mark = COLOURS[index % len(COLOURS)], MARKS[index // len(COLOURS) % len(MARKS)]
        style = {"color": colour, "elinewidth": 0.8, "ecolor": f"{colour}80", "markersize": 6}
        _draw_pairs(axes, [pair], fmt=mark, label=pair.name, **style)
    axes.set(xlabel=x, ylabel=y, title=title)
    drawn.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns)
    write_figure(path, drawn)


def _draw_pairs(axes: "Axes", pairs: Sequence[Pair], *, fmt: str = "o", **style: Any) -> None:  # noqa: ANN401
    """Draws a mark for each pair, with the intervals of both figures that have one."""
    for side in ("x", "y"):
        figures = [getattr(pair, side) for pair in pairs]
        style[side] = list(map(_value, figures))
        below, above = zip(*map(_reach, figures), strict=True)
        if any(below) or any(above):  # else the legend shows a bar that no pair has
            style[f"{side}err"] = below, above
    axes.errorbar(fmt=fmt, **style)


def _ends(figure: Measured) -> tuple[float | None, float | None, float | None]:
    return figure.value, figure.low, figure.high


def _value(figure: Measured) -> float:
    return math.nan if figure.value is None else figure.value


def _reach(figure: Measured) -> tuple[float, float]:
    """Returns how far an interval goes below and above its figure, as bars and bands are drawn."""
    low, high = (_value(figure) if end is None else end for end in (figure.low, figure.high))
    return max(0.0, _value(figure) - low), max(0.0, high - _value(figure))


def write_figure(path: Path, figure: "Figure") -> None:
    """Writes a figure as PNG, and beside it as PDF."""
    from matplotlib import rc_context

    for kind, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        with replacing(path.with_suffix(f".{kind}")) as beside, rc_context({"pdf.fonttype": 42}):
            figure.savefig(beside, format=kind, dpi=150, metadata=metadata)


def beside(panels: int) -> int:
    """Returns how many panels stand side by side: two of an even number, three of an odd one."""
    return min(panels, 3 if panels % 2 else 2)


def _plot(
    height: float, *, width: float = WIDTH, down: int = 1, across: int = 1, **style: object
) -> tuple["Figure", Sequence[Sequence["Axes"]]]:
    """Returns a figure with rows of plots, which share their axes."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE | style):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).tolist()


def _legend(names: Sequence[str], width: float = WIDTH) -> tuple[int, int]:
    """Returns the columns and lines of a legend."""
    fit = int(CHARACTERS * width / WIDTH) // (max(map(len, names)) + 8)
    columns = max(1, min(len(names), fit))
    return columns, math.ceil(len(names) / columns)


def _figure(curves: Sequence[Curve], x: str, y: str, *, log_x: bool, log_y: bool) -> "Figure":
    """Returns the plot of curves; those of one name look the same in all panels."""
    names = list(dict.fromkeys(curve.name for curve in curves))
    titles = list(dict.fromkeys(curve.panel for curve in curves))
    count, across = len(titles), beside(len(titles))
    down = math.ceil(count / across)
    width, height = (WIDTH, HEIGHT) if count == 1 else (PANEL_WIDTH * across, PANEL_HEIGHT * down + 0.3)
    columns, lines = _legend(names, width)
    figure, rows = _plot(height + LINE * lines, width=width, down=down, across=across)
    panels = [axes for row in rows for axes in row]
    for axes, title in zip(panels, titles, strict=False):
        own = [curve for curve in curves if curve.panel == title]
        for curve in own:
            index = names.index(curve.name)
            colour, stroke = COLOURS[index % len(COLOURS)], STROKES[index // len(COLOURS) % len(STROKES)]
            _draw(axes, curve, colour, stroke, band=len(own) <= BANDS, log=log_y)
        if title is not None:
            axes.set_title(title)
        if log_x:
            axes.set_xscale("log")
            _mark(axes, sorted({value for curve in curves for value in curve.x}))
        if log_y:
            axes.set_yscale("log")
            _cut(axes, [value for curve in curves for value in curve.y])
    for index in range(count, len(panels)):  # the panel above an empty place shows the axis that this one would
        panels[index - across].tick_params(labelbottom=True)
        panels[index].set_visible(False)
    for axes in panels[max(0, count - across) : count]:
        axes.set_xlabel(x)
    if count == 1:
        panels[0].set_ylabel(y)
    else:
        figure.supylabel(y, fontsize="medium")
    shown: dict[Any, Any] = {line.get_label(): line for axes in panels for line in axes.lines}
    handles = [shown[name] for name in names]
    figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize="small", frameon=False)
    return figure


def _draw(axes: "Axes", curve: Curve, colour: str, stroke: str, *, band: bool, log: bool) -> None:
    """Draws a curve along its x, whatever order its points were given in, and the band around it."""
    below = curve.spread or [0.0] * len(curve.x)
    points = sorted(zip(curve.x, curve.y, below, curve.above or below, strict=True), key=lambda point: point[0])
    x, y = [point[0] for point in points], [point[1] for point in points]
    mark = "o" if len(x) <= MARKED else ""
    axes.plot(x, y, label=curve.name, color=colour, linestyle=stroke, linewidth=1.5, marker=mark, markersize=3)
    if curve.spread is None or not band:
        return
    points = [point for point in points if not log or point[1] > 0]
    low = [y / (1 + down / y) if log else y - down for _, y, down, _ in points]
    high = [y + up for _, y, _, up in points]
    axes.fill_between([point[0] for point in points], low, high, color=colour, alpha=0.12, linewidth=0)


def _cut(axes: "Axes", values: Sequence[float]) -> None:
    """Lets what is too far below the largest value run out of the plot, if anything is."""
    known = [value for value in values if 0 < value < math.inf]
    if known and min(known) < max(known) / 10**DECADES:
        axes.set_ylim(bottom=max(known) / 10**DECADES)


def _mark(axes: "Axes", values: Sequence[float]) -> None:
    """Marks the values themselves on a logarithmic axis, where they are few."""
    if len(values) <= TICKS:
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
