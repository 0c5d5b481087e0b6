"""Whether the better calibrated guides better: calibration errors and figures of samples, setting by setting.

    CALIBRATION/integral.csv    of each setting the integral calibration error and its interval
    SWEEP/sweep.csv             of each cell what is varied, its figures and their intervals

A setting's name is, on the one side, those of classifier, smoothing, view and temperature that differ, and on the other
the values of what is varied. A setting and a cell belong together whose names have the same parts in whatever order.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from steersman.errors import InputError, about, unknown
from steersman.files import read_csv
from steersman.lab.metrics.intervals import Figure
from steersman.lab.report.plots import Pair

__all__ = ["ENDS", "ERROR", "NAME", "Cell", "pairs", "read_cells", "read_errors"]

NAME, ERROR = "name", "integral calibration error"
ENDS = ("", " low", " high")
"""What a column is called beside its figure."""

FEWEST = 3  # settings that a correlation needs to say anything


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a sweep, or the best ones of several.

    Attributes:
        name: The values of what is varied.
        figures: Its figures.
    """

    name: str
    figures: Mapping[str, Figure]


def read_errors(folder: Path) -> dict[str, Figure]:
    """Returns the integral calibration error of each setting by its name."""
    path = folder / "integral.csv"
    header, rows = _read("calibration", path)
    for column in (NAME, ERROR):
        if column not in header:
            raise InputError(
                f"calibration: {str(path)!r} has no column {column!r}; give a folder of steersman analyze calibration"
            )
    with about("calibration", path):
        return {row[NAME]: _figure(row, ERROR) for row in rows}


def read_cells(
    folder: Path, *, where: Mapping[str, str] | None = None, best: Collection[str] = (), larger: Mapping[str, bool]
) -> list[Cell]:
    """Returns the cells of a sweep."""
    header, rows = _read("sweep", folder / "sweep.csv")
    given = [name for name in header if f"{name}{ENDS[1]}" in header]
    first = min(header.index(name) for name in (*given, "lost") if name in header) if given else 0
    varied = header[:first]
    where = where or {}
    for key in (*where, *best):
        if key not in varied:
            raise unknown("setting that the sweep varies", key, varied)
    kept = [row for row in rows if all(row[key] == value for key, value in where.items())]
    if not kept:
        listed = ", ".join(f"{key}={value}" for key, value in where.items())
        raise InputError(f"where must be values of the sweep's cells, got {listed}, which no cell has")
    groups: dict[str, list[Mapping[str, str]]] = {}
    for row in kept:
        called = ", ".join(row[key] for key in varied if key not in where and key not in best)
        groups.setdefault(called, []).append(row)
    with about("sweep", folder / "sweep.csv"):
        return [
            Cell(name=called, figures={name: _best(group, name, larger[name]) for name in given if name in larger})
            for called, group in groups.items()
        ]


def pairs(errors: Mapping[str, Figure], cells: Sequence[Cell], figure: str) -> list[Pair]:
    """Returns error and figure of the settings that are on both sides, in the errors' order."""
    known = {
        _parts(cell.name): found for cell in cells if (found := cell.figures.get(figure, Figure())).value is not None
    }
    found = [Pair(name=name, x=error, y=known[_parts(name)]) for name, error in errors.items() if _parts(name) in known]
    if len(found) < FEWEST:
        ours, theirs = (" | ".join(each) for each in (errors, [cell.name for cell in cells]))
        raise InputError(
            f"agree needs at least {FEWEST} settings with the same name that have {figure} and a calibration error, "
            f"got {len(found)}; the calibration has {ours}, the sweep {theirs}"
        )
    return found


def _parts(name: str) -> frozenset[str]:
    return frozenset(part.strip() for part in name.split(","))


def _best(rows: Sequence[Mapping[str, str]], name: str, larger: bool) -> Figure:  # noqa: FBT001
    figures = [found for row in rows if (found := _figure(row, name)).value is not None]
    return max(figures, key=lambda each: (each.value or 0) * (1 if larger else -1), default=Figure())


def _figure(row: Mapping[str, str], name: str) -> Figure:
    value, low, high = (float(row[name + end]) if row.get(name + end) else None for end in ENDS)
    return Figure(value, low, high)


def _read(kind: str, path: Path) -> tuple[list[str], list[dict[str, str]]]:
    header, *rows = read_csv(path, kind)
    if not rows:
        raise InputError(f"{kind}: {str(path)!r} must have a row below its header, got none")
    return header, [dict(zip(header, row, strict=True)) for row in rows]
