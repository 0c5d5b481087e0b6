"""Tables of figures and settings: as text in a cell, as Markdown, as CSV.

A row is a mapping from columns to cells. A cell is a text, a number, None where it is empty, or a `Figure`, which takes
three columns of a CSV file: ``NAME``, ``NAME low`` and ``NAME high``.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from steersman.files import read_csv, replacing
from steersman.lab.metrics.intervals import Figure

__all__ = [
    "ENDS",
    "FEW",
    "as_text",
    "few_images",
    "figure_in",
    "in_a_line",
    "latex",
    "markdown",
    "read_figures",
    "title",
    "write_figures",
    "write_rows",
]

SHARES = ("accuracy", "probability", "precision", "recall", "coverage")  # figures in [0, 1], shown in per cent
ENDS = ("", " low", " high")
"""What the columns of a figure are called after its name."""

TITLES = {
    "accuracy/guide": "accuracy (guide) ↑",
    "accuracy/judge": "accuracy (judge) ↑",
    "fid": "FID ({features}) ↓",
    "cfid": "cFID ({features}) ↓",
    "kid": "KID ({features}) ↓",
    "precision": "precision ↑",
    "recall": "recall ↑",
    "density": "density ↑",
    "coverage": "coverage ↑",
    "clip_score": "CLIP score ↑",
}
FEW = 256  # images, below which distances are biased and intervals wide
ESCAPES = {each: f"\\{each}" for each in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
}


def in_a_line(value: object) -> str:
    """Returns a setting as a text: itself, or YAML in one line."""
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False).removesuffix("...\n").strip()


def as_text(column: str, cell: Figure | float | str | None, gap: str = " ") -> str:
    """Returns a cell as text: a share in per cent, any other number with three digits; a dash for nothing.

    An interval stands in brackets after the gap.
    """
    if isinstance(cell, Figure):
        value, low, high = (as_text(column, end) for end in (cell.value, cell.low, cell.high))
        return value if cell.low is None or cell.high is None else f"{value}{gap}[{low}, {high}]"
    if isinstance(cell, str):
        return cell or "–"
    if cell is None or math.isnan(cell):
        return "–"
    if column.startswith(SHARES):
        return f"{cell:.1%}"
    return f"{cell:.3g}" if abs(cell) < 100 else f"{cell:.1f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int) -> str:
    """Returns a table as Markdown; all but the first columns of texts are numbers, aligned to the right."""
    lines = [header, ["---"] * texts + ["---:"] * (len(header) - texts), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines) + "\n"


def latex(header: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int) -> str:
    """Returns a table for LaTeX with the package booktabs, in which intervals are small."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join("".join(ESCAPES.get(letter, letter) for letter in cell) for cell in cells) + r" \\"

    body = [line(cells).replace(" [", r" {\scriptsize [").replace("]", "]}") for cells in rows]
    columns = "l" * texts + "r" * (len(header) - texts)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", line(header), r"\midrule", *body]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def title(figure: str, features: str) -> str:
    """Returns the name of a figure with the features that it is by and the direction that is better."""
    return TITLES.get(figure, figure).format(features=features.removeprefix("zoo:"))


def few_images(count: int) -> list[str]:
    """Returns a warning where figures are of few images."""
    few = f"Figures of {count} images a cell are rough: distances are biased and intervals are wide. "
    return [f"{few}Compare the cells with each other alone, or give --num {FEW} or more."] if count < FEW else []


def write_rows(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Writes a table as CSV; numbers in full, so that they read back the same."""
    with replacing(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(header)
        table.writerows(rows)


def write_figures(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Writes rows of the same columns as CSV, each figure in three of them."""
    header, lines = [], []
    for name, cell in rows[0].items():
        header += [f"{name}{end}" for end in ENDS] if isinstance(cell, Figure) else [name]
    for row in rows:
        spread = [(c.value, c.low, c.high) if isinstance(c, Figure) else (c,) for c in row.values()]
        lines.append(["" if cell is None else cell for cells in spread for cell in cells])
    write_rows(path, header, lines)


def read_figures(path: Path, kind: str) -> list[dict[str, str | Figure]]:
    """Returns the rows that `write_figures` wrote, with numbers as texts; ``kind`` names the file in messages."""
    header, *lines = read_csv(path, kind)
    names = [name for name in header if not name.endswith(ENDS[1:])]
    rows = []
    for line in lines:
        cells = dict(zip(header, line, strict=True))
        rows.append({name: figure_in(cells, name) if f"{name}{ENDS[1]}" in cells else cells[name] for name in names})
    return rows


def figure_in(cells: Mapping[str, str], name: str) -> Figure:
    """Returns the figure in a row's columns; an end without a column or a cell is unknown."""
    return Figure(*(float(cells[name + end]) if cells.get(name + end) else None for end in ENDS))
