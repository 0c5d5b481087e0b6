"""The tables and plots of a sweep.

    sweep.csv         a row for each cell: varied values, figures with the ends of their intervals, network evaluations
                      of an image, seconds
    sweep.md          the same, rounded, without figures that no cell has
    fid.csv, .png, …  each figure over the first varied setting whose values are numbers, a curve for each combination
                      of the others; a dot for each cell if there is no such setting
    pareto-….png      quality over cost

Cost is the number of evaluations of the denoiser and of the guide that an image needed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from steersman.files import replacing
from steersman.lab.metrics.intervals import Figure
from steersman.lab.report.plots import Curve, Point, front, write_curves, write_dots, write_front
from steersman.lab.report.tables import markdown, with_interval, write_rows

__all__ = ["FRONTS", "Row", "fronts", "points", "write_figures", "write_fronts", "write_plots", "write_table"]

FRONTS = {"accuracy/judge": True, "accuracy/guide": True, "fid": False, "cfid": False}
"""The figures of quality that are compared with the cost, and whether a larger one is better."""

COST = ("denoiser", "classifier")


@dataclass(frozen=True, kw_only=True)
class Row:
    """The results of a cell.

    Attributes:
        name: The cell's name.
        values: The varied values.
        figures: The figures.
        evaluations: Network evaluations of an image, of ``denoiser`` and ``classifier``.
        seconds: Time that drawing took.
        lost: Images that became non-finite and were not written.
        broken: Images that are burnt or noise (`steersman.lab.evaluation`).
    """

    name: str
    values: Mapping[str, str]
    figures: Mapping[str, Figure]
    evaluations: Mapping[str, float]
    seconds: float
    lost: Sequence[str]
    broken: Sequence[str] = ()

    @property
    def cost(self) -> float:
        """Network evaluations of an image."""
        return sum(self.evaluations[name] for name in COST)


def points(rows: Sequence[Row], figure: str) -> list[Point]:
    """Returns a figure over the cost, of the cells that have it."""
    return [
        Point(name=row.name, cost=row.cost, quality=found.value, low=found.low, high=found.high)
        for row in rows
        if (found := row.figures.get(figure, Figure())).value is not None
    ]


def fronts(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Returns the names of the cells that no other dominates, for each figure of quality."""
    found = {name: front(points(rows, name), larger=larger) for name, larger in FRONTS.items()}
    return {name: [point.name for point in best] for name, best in found.items() if best}


def write_figures(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Writes rows with the same columns as CSV: a figure as its value, ``low`` and ``high``, None as an empty cell."""

    def cells(value: object) -> list[object]:
        values = [value.value, value.low, value.high] if isinstance(value, Figure) else [value]
        return ["" if each is None else each for each in values]

    columns = [
        [key, f"{key} low", f"{key} high"] if isinstance(value, Figure) else [key] for key, value in rows[0].items()
    ]
    lines = [[cell for value in row.values() for cell in cells(value)] for row in rows]
    write_rows(path, [name for names in columns for name in names], lines)


def write_table(out: Path, rows: Sequence[Row], *, about: str, pareto: Mapping[str, Sequence[str]] | None) -> None:
    """Writes ``sweep.csv`` and ``sweep.md``."""
    marks = {row.name: [name for name, best in (pareto or {}).items() if row.name in best] for row in rows}
    lines = [
        {
            **row.values,
            **row.figures,
            "lost": len(row.lost),
            "broken": len(row.broken),
            **{f"{name} evaluations": row.evaluations[name] for name in COST},
            "seconds": row.seconds,
            **({} if pareto is None else {"pareto": " ".join(marks[row.name])}),
        }
        for row in rows
    ]
    write_figures(out / "sweep.csv", lines)
    text = _markdown(rows, None if pareto is None else marks)
    with replacing(out / "sweep.md") as beside:
        beside.write_text(f"{about}\n\n{text}", encoding="utf-8")


def _markdown(rows: Sequence[Row], marks: Mapping[str, Sequence[str]] | None) -> str:
    figures = [name for name in rows[0].figures if any(row.figures[name].value is not None for row in rows)]
    broken = any(row.broken for row in rows)
    lines = []
    for row in rows:
        cells = dict(row.values)
        for name in figures:
            figure = row.figures[name]
            cells[name] = with_interval(name, figure.value, figure.low, figure.high)
        cells |= {f"{name} evaluations": f"{row.evaluations[name]:g}" for name in COST}
        cells["seconds"] = f"{row.seconds:.1f}"
        if broken:
            cells["burnt or noise"] = str(len(row.broken))
        if marks is not None:
            cells["best for its cost by"] = ", ".join(marks[row.name])
        lines.append(cells)
    return markdown(list(lines[0]), [list(cells.values()) for cells in lines], texts=len(rows[0].values))


def write_plots(out: Path, rows: Sequence[Row]) -> None:
    """Writes accuracy, FID and cFID over the varied values, each as CSV and PNG, if any cell has them."""
    horizontal = next((key for key in rows[0].values if all(_is_number(row.values[key]) for row in rows)), None)
    for figure in FRONTS:
        path, found = out / figure.replace("/", "-"), points(rows, figure)
        if not found:
            continue
        if horizontal is None:
            write_dots(path, found, figure=figure)
        else:
            curves = _curves(rows, horizontal, figure)
            logarithmic = horizontal.partition(".")[0] == "scale" and min(min(curve.x) for curve in curves) > 0
            write_curves(path, curves, x=horizontal, y=figure, log_x=logarithmic)


def write_fronts(out: Path, rows: Sequence[Row]) -> None:
    """Plots each figure of quality over the cost, and names the non-dominated cells."""
    cost = "network evaluations an image, denoiser and guide"
    for name in fronts(rows):
        path = out / f"pareto-{name.replace('/', '-')}.png"
        write_front(path, points(rows, name), larger=FRONTS[name], cost=cost, quality=name)


def _curves(rows: Sequence[Row], horizontal: str, figure: str) -> list[Curve]:
    """Returns a figure's curve for each combination of the other varied values."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        others = ", ".join(f"{key}={value}" for key, value in row.values.items() if key != horizontal)
        groups.setdefault(others or figure, []).append(row)
    curves = []
    for name, group in groups.items():
        x = {row.name: float(row.values[horizontal]) for row in group}
        found = points(group, figure)
        if found:
            below, above = ([point.reach[side] for point in found] for side in (0, 1))
            y = [point.quality for point in found]
            curves.append(Curve(name=name, x=[x[point.name] for point in found], y=y, spread=below, above=above))
    return curves


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
