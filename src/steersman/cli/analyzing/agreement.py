"""``steersman analyze agree``."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from steersman.errors import InputError, unknown
from steersman.files import replacing, write_json
from steersman.lab.analysis.agreement import ENDS, ERROR, NAME, pairs, read_cells, read_errors
from steersman.lab.analysis.parts import Parts
from steersman.lab.metrics.rank import by_chance, rank_correlation
from steersman.lab.metrics.resample import Figure
from steersman.lab.report.curves import write_rows
from steersman.lab.report.figures import with_interval
from steersman.lab.report.scatter import Pair, write_scatter
from steersman.lab.report.tables import markdown
from steersman.lab.sweep.table import FRONTS

__all__ = ["agree"]


def agree(
    calibration: Path,
    sweep: Path,
    out: Path,
    *,
    figures: Sequence[str] | None,
    where: Sequence[str],
    best: Sequence[str],
) -> None:
    """Joins a calibration and a sweep, and measures whether their figures move together."""
    console = Console()
    for name in figures or ():
        if name not in FRONTS:
            raise unknown("figure", name, FRONTS)
    errors = read_errors(calibration)
    cells = read_cells(sweep, where=_values(where), best=best, larger=FRONTS)
    wanted = figures or [name for name in FRONTS if any(_known(cell.figures.get(name)) for cell in cells)]
    found = {name: pairs(errors, cells, name) for name in wanted}
    if not found:
        raise InputError(f"sweep: {str(sweep)!r} must have one of the figures {', '.join(FRONTS)}, it has none")
    settings = {"analysis": "agree", "calibration": str(calibration), "sweep": str(sweep)}
    settings |= {"figures": figures, "where": list(where), "best": list(best)}
    Parts(out, settings, 0)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "settings.json", settings)
    rows = {name: _correlation(each) for name, each in found.items()}
    _write_tables(out, found, rows)
    for name, each in found.items():
        path = out / f"{name.replace('/', '-')}.png"
        write_scatter(path, each, x=ERROR, y=name, title=_told(*rows[name], len(each)))
    both = {pair.name for each in found.values() for pair in each}
    _print(console, found, rows)
    if left := [name for name in errors if name not in both]:
        console.print(f"in the calibration alone: {escape(' | '.join(left))}", soft_wrap=True)
    console.print(f"figures in {escape(str(out))}", soft_wrap=True)


def _values(given: Sequence[str]) -> dict[str, str]:
    """Returns the values that stand behind the last equals sign of each.

    Raises:
        InputError: One without.
    """
    found = {}
    for each in given:
        key, equals, value = each.partition("=")
        if not equals:
            raise InputError(f"where must be KEY=VALUE, as in scale=5, got {each!r}")
        found[key] = value
    return found


def _known(figure: Figure | None) -> bool:
    return figure is not None and figure.value is not None


def _correlation(each: Sequence[Pair]) -> tuple[Figure, float]:
    x, y = ([getattr(pair, side).value for pair in each] for side in ("x", "y"))
    return rank_correlation(x, y), by_chance(x, y)


def _told(figure: Figure, p: float, count: int) -> str:
    if figure.value is None:
        return f"no rank correlation, as all are equal; {count} settings"
    return f"rank correlation {_signed(figure)}, p = {p:.2g}, {count} settings"


def _signed(figure: Figure) -> str:
    if figure.value is None or figure.low is None or figure.high is None:
        return "–"
    return f"{figure.value:.2f} [{figure.low:.2f}, {figure.high:.2f}]"


def _write_tables(out: Path, found: Mapping[str, Sequence[Pair]], rows: Mapping[str, tuple[Figure, float]]) -> None:
    titles, table = [ERROR, *found], _settings(found)
    header = [NAME, *(f"{name}{end}" for name in titles for end in ENDS)]
    lines = [
        [name, *("" if end is None else end for each in figures for end in (each.value, each.low, each.high))]
        for name, figures in table.items()
    ]
    write_rows(out / "agree.csv", header, lines)
    lines = [
        (name, len(found[name]), *("" if end is None else end for end in (each.value, each.low, each.high)), p)
        for name, (each, p) in rows.items()
    ]
    header = ["figure", "settings", *(f"rank correlation{end}" for end in ENDS), "p"]
    write_rows(out / "correlation.csv", header, lines)
    shown = [
        [name, *(with_interval(t, e.value, e.low, e.high) for t, e in zip(titles, figures, strict=True))]
        for name, figures in table.items()
    ]
    first = markdown([NAME, *titles], shown, texts=1)
    second = markdown(["figure", "settings", "rank correlation", "p"], _correlations(found, rows), texts=1)
    about = (
        "In brackets the 95% intervals: a figure's is of the images, that of a rank correlation (Spearman's) of the "
        "settings by bootstrap. p is the chance of a rank correlation as far from 0 if settings were paired at random."
    )
    with replacing(out / "agree.md") as beside:
        beside.write_text(f"{about}\n\n{first}\n{second}", encoding="utf-8")


def _settings(found: Mapping[str, Sequence[Pair]]) -> dict[str, list[Figure]]:
    """Returns of each setting its error and its figures, the best calibrated first."""
    errors = {pair.name: pair.x for each in found.values() for pair in each}
    ranked = sorted(errors, key=lambda name: errors[name].value or 0)
    by_name = [{pair.name: pair.y for pair in each} for each in found.values()]
    return {name: [errors[name], *(each.get(name, Figure()) for each in by_name)] for name in ranked}


def _correlations(found: Mapping[str, Sequence[Pair]], rows: Mapping[str, tuple[Figure, float]]) -> list[list[str]]:
    return [[name, str(len(found[name])), _signed(each), f"{p:.2g}"] for name, (each, p) in rows.items()]


def _print(console: Console, found: Mapping[str, Sequence[Pair]], rows: Mapping[str, tuple[Figure, float]]) -> None:
    titles = [ERROR, *found]
    values = [
        [name, *(with_interval(t, each.value, None, None) for t, each in zip(titles, figures, strict=True))]
        for name, figures in _settings(found).items()
    ]
    tables = [([NAME, *titles], values)]
    tables += [(["figure", "settings", "rank correlation", "p"], _correlations(found, rows))]
    for header, lines in tables:
        table = Table(box=None, pad_edge=False)
        for place, title in enumerate(header):
            table.add_column(title, justify="right" if place else "left")
        for line in lines:
            table.add_row(*map(escape, line))
        console.print(table)
