"""Figures and settings as text: in a cell, as Markdown, as CSV."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import yaml

from steersman.files import replacing

__all__ = ["in_a_line", "markdown", "with_interval", "write_rows"]

SHARES = ("accuracy", "precision", "recall", "coverage")  # figures in [0, 1], shown in per cent


def in_a_line(value: object) -> str:
    """Returns a setting as a text: itself, or YAML in one line."""
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False).removesuffix("...\n").strip()


def with_interval(name: str, value: float | None, low: float | None, high: float | None) -> str:
    """Returns a figure as ``value [low, high]``: a share in per cent, else with three digits; a dash for none."""
    if value is None:
        return "–"
    if low is None or high is None:
        return _rounded(name, value)
    return f"{_rounded(name, value)} [{_rounded(name, low)}, {_rounded(name, high)}]"


def _rounded(name: str, number: float) -> str:
    if math.isnan(number):
        return "–"
    if name.startswith(SHARES):
        return f"{number:.1%}"
    return f"{number:.3g}" if abs(number) < 100 else f"{number:.1f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int) -> str:
    """Returns a table as Markdown; all but the first columns of texts are numbers, aligned to the right."""
    lines = [header, ["---"] * texts + ["---:"] * (len(header) - texts), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines) + "\n"


def write_rows(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Writes a table as CSV; numbers in full, so that they read back the same."""
    with replacing(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(header)
        table.writerows(rows)
