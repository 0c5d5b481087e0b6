"""``steersman analyze calibration`` and ``agree``."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from steersman.cli.analyzing.common import Scope, carry_out, floats, print_curves
from steersman.cli.root import Terminal
from steersman.errors import InputError, unknown
from steersman.files import parse_yaml, replacing, write_json
from steersman.lab.analysis import in_turn, trusted
from steersman.lab.analysis.calibration import (
    ENDS,
    ERROR,
    NAME,
    Turns,
    diagrams,
    error_curves,
    filled_bins,
    found_errors,
    pairs,
    read_cells,
    read_errors,
)
from steersman.lab.analysis.figures import draw_reliability
from steersman.lab.analysis.forward import axis, choose, indices_among
from steersman.lab.analysis.parts import Key, Parts, apart, names
from steersman.lab.metrics.intervals import Figure, by_chance, rank_correlation
from steersman.lab.report.plots import Pair, write_curves, write_scatter
from steersman.lab.report.tables import markdown, with_interval, write_rows
from steersman.lab.sweep.table import FRONTS
from steersman.models.classifiers import Classifier
from steersman.recipes.axes import build
from steersman.sampling import levels_of
from steersman.schedule import Level, Schedule

__all__ = ["agree", "calibration"]

PANELS = 4  # reliability diagrams side by side
PARTS = ("classifier", "smoothing", "input", "temperature")
"""What names a setting."""


def calibration(
    scope: Scope,
    out: Path,
    *,
    num: int,
    classes: Sequence[str] | None,
    softplus: str,
    temperature: str,
    bins: int,
    sampler: str,
    steps: int,
    cfg_scale: float,
    seed: int,
    switch: Sequence[str] = (),
) -> None:
    """Measures calibration along the reverse process."""
    console = Terminal()
    views, turns = scope.shown(), [_turns(each, scope.specs()) for each in switch]
    temperatures = floats("temperature", temperature)
    smoothings = [None if each == "none" else floats("softplus", each)[0] for each in softplus.split(",")]
    if num < 1 or bins < 1:
        raise InputError(f"num and bins must be at least 1, got num {num} and bins {bins}")
    walker = build("sampler", parse_yaml(sampler))
    with console.status("loading the networks"):
        denoiser = scope.load_denoiser()
        classifiers: dict[Key, Classifier] = {}
        for beta in smoothings:
            smoothed = "as trained" if beta is None else f"β {beta:g}"
            loaded = scope.load_classifiers(softplus=beta)
            classifiers |= {(name, smoothed): classifier for name, classifier in loaded.items()}
    if not denoiser.classes:
        raise InputError("denoiser must have labels, as images are drawn for each class")
    wanted = tuple(classes or denoiser.classes)
    for name in wanted:
        if name not in denoiser.classes:
            raise unknown("class of the denoiser", name, denoiser.classes)
    targets = {key: indices_among(classifier, wanted) for key, classifier in classifiers.items()}
    levels = levels_of(walker, denoiser.schedule, steps)[:-1]
    at = scope.places(levels)
    settings = scope.settings() | {"softplus": softplus, "temperature": temperature, "num": num}
    settings |= {"classes": list(wanted), "sampler": sampler, "steps": steps, "cfg_scale": cfg_scale, "seed": seed}
    parts = Parts(out, {"analysis": "calibration"} | settings, num)

    def measure(places: list[int], on_step: Callable[[], None]) -> dict[Key, Tensor]:
        drawn = [place % len(wanted) for place in places]
        labels = [denoiser.classes.index(wanted[each]) for each in drawn]
        return trusted(
            denoiser,
            walker,
            classifiers,
            {key: torch.tensor([row[each] for each in drawn], device=scope.device) for key, row in targets.items()},
            [seed + place for place in places],
            views=views,
            temperatures=temperatures,
            at=set(at),
            condition={"label": torch.tensor(labels, device=scope.device), "cfg_scale": cfg_scale},
            device=scope.device,
            on_step=on_step,
            steps=steps,
        )

    carry_out(console, parts, scope, [denoiser, *classifiers.values()], steps, measure)
    values, visited = parts.read(), [levels[place] for place in at]
    for each in turns:
        values |= in_turn(values, each, visited)
    walk = (
        f"{num} images, the classes in turn, seeds {seed} to {seed + num - 1}, in {steps} steps ({sampler}), unguided"
    )
    _show(console, out, values, visited, denoiser.schedule, bins, walk)


def _show(
    console: Terminal,
    out: Path,
    values: dict[Key, np.ndarray],
    levels: Sequence[Level],
    schedule: Schedule,
    bins: int,
    walk: str,
) -> None:
    """Writes the figures of what was measured at some levels, and prints them."""
    x, title, log_x = axis(schedule, levels)
    errors, found = found_errors(values, [float(level.time) for level in levels], bins), diagrams(values, bins)
    called, curves = names(errors), error_curves(errors, x)
    write_curves(out / "calibration", curves, x=title, y="expected calibration error", log_x=log_x)
    _write_integrals(out, {key: (called[key], each.integral) for key, each in errors.items()}, f"{walk}; {bins} bins")
    rows = [
        (called[key], time, *numbers_of)
        for key, row in found.items()
        for time, each in zip(x, row, strict=True)
        for numbers_of in filled_bins(each)
    ]
    write_rows(out / "reliability.csv", ("curve", "x", "low", "high", "count", "confidence", "accuracy"), rows)
    panels = choose(levels, count=min(PANELS, len(levels)))
    count = len(next(iter(values.values())))
    draw_reliability(
        out / "reliability.png",
        {name: [found[key][place] for place in panels] for key, name in apart(found).items()},
        [f"{title.partition(' (')[0]} = {x[place]:.3g}" for place in panels],
        least=max(1, round(count**0.5 / 3)),  # 5 of 256: what one image does not move from 0 to 1
    )
    means = [with_interval(ERROR, *_ends(each.integral)) for each in errors.values()]
    print_curves(console, curves, "expected calibration error", ".3f", means)
    console.print(f"figures in {out}")


def _write_integrals(out: Path, found: Mapping[Key, tuple[str, Figure]], about: str) -> None:
    """Writes the integral calibration error of each setting as CSV, and as Markdown to read."""
    header = [*PARTS, NAME, *(f"{ERROR}{end}" for end in ENDS)]
    lines = [(*key, name, *("" if end is None else end for end in _ends(each))) for key, (name, each) in found.items()]
    write_rows(out / "integral.csv", header, lines)
    shown = [(*key, with_interval(ERROR, *_ends(each))) for key, (_, each) in found.items()]
    with replacing(out / "integral.md") as beside:
        about = f"{about}. In brackets the 95% interval. Smaller is better; only equal counts compare."
        beside.write_text(f"{about}\n\n{markdown([*PARTS, ERROR], shown, texts=len(PARTS))}", encoding="utf-8")


def _ends(figure: Figure) -> tuple[float | None, float | None, float | None]:
    return figure.value, figure.low, figure.high


def _turns(text: str, known: Collection[str]) -> Turns:
    """Returns the two classifiers that ``[NAME=]ABOVE,BELOW,AT`` names."""
    name, named, rest = text.partition("=")
    name, rest = (name, rest) if named and not {",", ":"} & set(name) else (None, text)
    above, below, at = (["", "", *rest.rsplit(",", 2)])[-3:]
    try:
        place = float(at)
    except ValueError:
        place = -1.0
    if not (above and below and place >= 0):
        raise InputError(f"switch must be [NAME=]ABOVE,BELOW,AT, two classifiers and sigma / alpha, got {text!r}")
    for each in (above, below):
        if each not in known:
            raise unknown("classifier to switch", each, known)
    if name in known:
        raise InputError(f"switch: {name!r} is already the name of a classifier; give another name")
    return Turns(name=name or f"{above} until {place:g} then {below}", above=above, below=below, at=place)


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
    console = Terminal()
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
        console.print(f"in the calibration alone: {' | '.join(left)}")
    console.print(f"figures in {out}")


def _values(given: Sequence[str]) -> dict[str, str]:
    """Returns the values that stand behind the last equals sign of each."""
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


def _print(console: Terminal, found: Mapping[str, Sequence[Pair]], rows: Mapping[str, tuple[Figure, float]]) -> None:
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
            table.add_row(*line)
        console.print(table, soft_wrap=False)
