"""The table of a sweep: a row a cell, as CSV in full and as Markdown to read.

    sweep.csv    what is varied; each figure with the ends of its interval; network evaluations an image; seconds
    sweep.md     the same, rounded, without the figures that no cell has

Cost is the number of network evaluations that an image needed, of the denoiser and of the guide together
(`steersman.sampling.watch.evaluations`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from steersman.files import replacing
from steersman.lab.metrics.intervals import Figure
from steersman.lab.report.plots import Point, front
from steersman.lab.report.tables import markdown, with_interval, write_rows

__all__ = ["FRONTS", "Row", "fronts", "points", "write_table"]

FRONTS = {"accuracy/judge": True, "accuracy/guide": True, "fid": False, "cfid": False}
"""What quality is measured by against cost, and whether a larger one is better."""

COST = ("denoiser", "classifier")


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came of a cell.

    Attributes:
        name: The cell's name.
        values: What it has of everything that is varied.
        figures: Its figures.
        evaluations: Network evaluations an image took, of ``denoiser`` and ``classifier``.
        seconds: What drawing took.
        lost: The images that became non-finite and were not written.
        broken: The images that are burnt or noise (`steersman.lab.evaluation`).
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
        """Network evaluations an image took in all."""
        return sum(self.evaluations[name] for name in COST)


def points(rows: Sequence[Row], figure: str) -> list[Point]:
    """Returns a figure of each cell over its cost, where it has that figure."""
    return [
        Point(name=row.name, cost=row.cost, quality=found.value, low=found.low, high=found.high)
        for row in rows
        if (found := row.figures.get(figure, Figure())).value is not None
    ]


def fronts(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Returns the names of the cells that no other dominates, by each figure of quality that there is."""
    found = {name: front(points(rows, name), larger=larger) for name, larger in FRONTS.items()}
    return {name: [point.name for point in best] for name, best in found.items() if best}


def write_table(out: Path, rows: Sequence[Row], *, about: str, pareto: Mapping[str, Sequence[str]] | None) -> None:
    """Writes ``sweep.csv`` and ``sweep.md``.

    Args:
        out: The folder.
        rows: One or more, with the same keys.
        about: What the table is of, for the Markdown.
        pareto: The non-dominated cells by figure, for a column that marks them; None for no such column.
    """
    varied, figures = list(rows[0].values), list(rows[0].figures)
    ends = [f"{name}{end}" for name in figures for end in ("", " low", " high")]
    tail = ["lost", "broken", *(f"{name} evaluations" for name in COST), "seconds"]
    marks = {row.name: [name for name, best in (pareto or {}).items() if row.name in best] for row in rows}
    header = [*varied, *ends, *tail, *(["pareto"] if pareto is not None else [])]
    lines = []
    for row in rows:
        found = [row.figures[name] for name in figures]
        numbers = ["" if end is None else end for each in found for end in (each.value, each.low, each.high)]
        counted = [len(row.lost), len(row.broken), *(row.evaluations[name] for name in COST), row.seconds]
        lines.append(
            [*row.values.values(), *numbers, *counted, *([" ".join(marks[row.name])] if pareto is not None else [])]
        )
    write_rows(out / "sweep.csv", header, lines)
    with replacing(out / "sweep.md") as beside:
        beside.write_text(_markdown(rows, about, marks if pareto is not None else None), encoding="utf-8")


def _markdown(rows: Sequence[Row], about: str, marks: Mapping[str, Sequence[str]] | None) -> str:
    varied = list(rows[0].values)
    figures = [name for name in rows[0].figures if any(row.figures[name].value is not None for row in rows)]
    header = [*varied, *figures, *(f"{name} evaluations" for name in COST), "seconds"]
    broken = any(row.broken for row in rows)
    header += ["burnt or noise"] if broken else []
    header += ["best for its cost by"] if marks is not None else []
    lines = []
    for row in rows:
        cells = [*row.values.values(), *(_shown(name, row.figures[name]) for name in figures)]
        cells += [*(f"{row.evaluations[name]:g}" for name in COST), f"{row.seconds:.1f}"]
        cells += [str(len(row.broken))] if broken else []
        lines.append([*cells, *([", ".join(marks[row.name])] if marks is not None else [])])
    return f"{about}\n\n{markdown(header, lines, texts=len(varied))}"


def _shown(name: str, figure: Figure) -> str:
    return with_interval(name, figure.value, figure.low, figure.high)
