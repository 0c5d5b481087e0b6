"""Two figures of named settings against each other, a mark each with both intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from steersman.lab.metrics.resample import Figure
from steersman.lab.report.curves import COLOURS, HEIGHT, LINE, WIDTH, write_figure

__all__ = ["MARKS", "Pair", "write_scatter"]

MARKS = ("o", "s", "^", "D")  # for each further round of the colours


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two figures of a setting.

    Attributes:
        name: The setting's.
        x: The one.
        y: The other; both have a value.
    """

    name: str
    x: Figure
    y: Figure


def write_scatter(path: Path, pairs: Sequence[Pair], *, x: str, y: str, title: str) -> None:
    """Plots the pairs as PNG.

    Args:
        path: Where to.
        pairs: One or more.
        x: What the horizontal axis shows.
        y: What the vertical one shows.
        title: What stands above.
    """
    from matplotlib.figure import Figure as Drawing

    columns = max(1, min(len(pairs), 84 // (max(len(pair.name) for pair in pairs) + 8)))
    lines = -(-len(pairs) // columns)
    drawn = Drawing(figsize=(WIDTH, HEIGHT + 0.3 + LINE * lines), layout="constrained")
    axes = drawn.add_subplot()
    for place, pair in enumerate(pairs):
        mark = MARKS[place // len(COLOURS) % len(MARKS)]
        reach = (_reach(each) for each in (pair.y, pair.x))
        colour = COLOURS[place % len(COLOURS)]
        style = {"color": colour, "elinewidth": 0.8, "ecolor": f"{colour}80", "markersize": 6}
        at = ([figure.value or 0.0] for figure in (pair.x, pair.y))
        axes.errorbar(*at, *reach, fmt=mark, label=pair.name, **style)
    axes.set(xlabel=x, ylabel=y)
    axes.set_title(title, fontsize="medium")
    axes.grid(visible=True, color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    drawn.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize="small")
    write_figure(path, drawn)


def _reach(figure: Figure) -> list[list[float]] | None:
    """Returns how far an interval goes below and above its figure."""
    if figure.value is None or figure.low is None or figure.high is None:
        return None
    return [[max(0.0, figure.value - figure.low)], [max(0.0, figure.high - figure.value)]]
