"""Calibration: whether a classifier is as often right as it is sure, at each step of the reverse process.

Samples are drawn unguided, each for a class, which is what the classifier should see. With the confidence
``conf = max_i softmax(tau f)_i`` in M bins, or where the classifier tells several labels apart, that of the label or of
its absence, ``max(sigmoid(tau f_y), sigmoid(-tau f_y))``,

    ECE_t = sum_m |B_m| / n |acc(B_m) - conf(B_m)|                                (EluCD 4.1; Naeini et al. 2015)
    ICE   = (1 / T) integral of ECE_t dt                                          (EluCD eq. 1), by trapezoids

The temperature tau multiplies the logits. The error of one step is `steersman.lab.metrics.classification`'s.

Two classifiers that guide in turn, one where sigma / alpha is above a value and the other below (EluCD Table 2), are
measured as one: at each level by the one that is asked there.

Whether the better calibrated guides better is told by the figures of a sweep whose cells are these settings:

    CALIBRATION/integral.csv    of each setting the integral calibration error and its interval
    SWEEP/sweep.csv             of each cell what is varied, its figures and their intervals
    OUT/agree.csv, .md          of each setting both
    OUT/correlation.csv         of each figure its rank correlation with the error

A setting's name is, on the one side, those of classifier, smoothing, view and temperature that differ, and on the other
the values of what is varied. A setting and a cell belong together whose names have the same parts in whatever order.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.denoise import Conditioned, Denoiser, Prediction
from steersman.errors import InputError, about, unknown
from steersman.files import read_csv, replacing
from steersman.guidance.objective import Logits
from steersman.guidance.step import Classes, ClassifierInput
from steersman.lab.analysis.forward import answers
from steersman.lab.analysis.parts import Key, apart, names, stacked
from steersman.lab.metrics.classification import Reliability, binned, confidence, correct
from steersman.lab.metrics.intervals import Figure, by_chance, rank_correlation, resampled_together
from steersman.lab.report.plots import Curve, Pair, write_scatter
from steersman.lab.report.tables import ENDS, as_text, figure_in, markdown, write_figures, write_rows
from steersman.precision import ieee
from steersman.sampling import Report, Sampler, sample
from steersman.schedule import Level

__all__ = [
    "CONFIDENCE",
    "CORRECT",
    "ERROR",
    "NAME",
    "Errors",
    "Turns",
    "diagrams",
    "error_curves",
    "filled_bins",
    "calibration_errors",
    "in_turn",
    "integral",
    "pairs",
    "read_cells",
    "read_errors",
    "confidences",
    "write_agreement",
    "write_diagrams",
    "write_integrals",
]

CONFIDENCE, CORRECT = "confidence", "correct"
NAME, ERROR = "name", "integral calibration error"
PARTS, RANK = ("classifier", "smoothing", "input", "temperature"), "rank correlation"
TextTable = tuple[Sequence[str], Sequence[Sequence[str]]]  # a header and rows

FEWEST = 3  # settings that a correlation needs to say anything


class _Overheard(Conditioned):
    """A denoiser whose answers are kept."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__(denoiser, {})
        self.answers: list[tuple[Tensor, Level, Prediction]] = []

    def __call__(self, x_t: Float[Tensor, "B C H W"], level: Level, **condition: Any) -> Prediction:  # noqa: ANN401
        prediction = super().__call__(x_t, level, **condition)
        self.answers.append((x_t, level, prediction))
        return prediction


@ieee()
def confidences(
    denoiser: Denoiser,
    sampler: Sampler,
    classifiers: Mapping[Key, Logits],
    targets: Mapping[Key, Classes],
    seeds: Sequence[int],
    *,
    inputs: Mapping[str, ClassifierInput],
    temperatures: Sequence[float] = (1.0,),
    at: Collection[int] | None = None,
    condition: Mapping[str, Any] | None = None,
    on_step: Callable[[], None] = lambda: None,
    **sampling: Any,  # noqa: ANN401
) -> dict[Key, Tensor]:
    """Returns confidence and correctness of each image at each step, (B, T).

    They are of what the denoiser is asked about first in a step, and of its answer.
    """
    for temperature in temperatures:
        if not temperature > 0:
            raise InputError(f"temperature must be above 0, got {temperature:g}")
    overheard, conditioned = _Overheard(denoiser), Conditioned(denoiser, condition or {})
    found = defaultdict(list)

    def look(report: Report) -> None:
        x_t, level, prediction = overheard.answers[0]
        overheard.answers.clear()
        if at is None or report.step.index in at:
            for name, shown, logits, target, multilabel in answers(
                classifiers, targets, inputs, x_t, prediction, level, conditioned
            ):
                right = correct(logits, target, multilabel=multilabel)
                for temperature in temperatures:
                    key = (*name, shown, f"τ {temperature:g}")
                    sure = confidence(temperature * logits, target, multilabel=multilabel)
                    found[(CONFIDENCE, *key)].append(sure)
                    found[(CORRECT, *key)].append(right)
        on_step()

    sample(overheard, sampler, seeds=seeds, condition=condition, callbacks=[look], **sampling)
    return stacked(found)


@dataclass(frozen=True, kw_only=True)
class Turns:
    """Two classifiers that guide in turn, as `steersman.guidance.Switch` has it.

    Attributes:
        name: What the two are called.
        above: The classifier where ``sigma / alpha > at``.
        below: The other one.
        at: Where they change.
    """

    name: str
    above: str
    below: str
    at: float


def in_turn(values: Mapping[Key, np.ndarray], turns: Turns, levels: Sequence[Level]) -> dict[Key, np.ndarray]:
    """Returns what was measured of two classifiers as of one, by its name."""
    first = np.array([float(level.sigma / level.alpha) > turns.at for level in levels])
    return {
        (kind, turns.name, *rest): np.where(first, values[kind, name, *rest], values[kind, turns.below, *rest])
        for kind, name, *rest in values
        if name == turns.above
    }


def integral(errors: Sequence[float], times: Sequence[float]) -> float:
    """Returns the mean of the errors over time, by trapezoids: ``(1 / T) integral ECE_t dt``."""
    if len(errors) == 1:
        return errors[0]
    return float(np.trapezoid(errors, times) / (times[-1] - times[0]))


def _predictions(values: Mapping[Key, np.ndarray]) -> Iterable[tuple[Key, Tensor, Tensor]]:
    """Yields confidence and correctness, (images, levels), after what names classifier, view and temperature."""
    for kind, *rest in values:
        if kind == CONFIDENCE:
            sure, right = (torch.from_numpy(values[kind, *rest]) for kind in (CONFIDENCE, CORRECT))
            yield tuple(rest), sure, right


def diagrams(values: Mapping[Key, np.ndarray], bins: int) -> dict[Key, list[Reliability]]:
    """Returns the reliability diagram at each level, by what names a classifier, its view and its temperature."""
    return {
        key: [binned(*columns, bins) for columns in zip(sure.T, right.T, strict=True)]
        for key, sure, right in _predictions(values)
    }


def filled_bins(diagram: Reliability) -> list[tuple[float, float, int, float, float]]:
    """Returns of each bin that is not empty: low and high end, count, mean confidence, accuracy."""
    bins = len(diagram.count)
    return [
        (m / bins, (m + 1) / bins, int(diagram.count[m]), float(diagram.confidence[m]), float(diagram.accuracy[m]))
        for m in range(bins)
        if diagram.count[m]
    ]


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Calibration errors of a classifier along sampling.

    Attributes:
        steps: ``ECE_t``, a level each.
        integral: Their mean over time.
    """

    steps: Sequence[Figure]
    integral: Figure


def calibration_errors(values: Mapping[Key, np.ndarray], times: Sequence[float], bins: int) -> dict[Key, Errors]:
    """Returns the calibration errors with their intervals, by what names a classifier, its view and its temperature."""
    found = {}
    for key, sure, right in _predictions(values):

        def figures(chosen: Int[Tensor, " m"], sure: Tensor = sure, right: Tensor = right) -> Float[Tensor, " K"]:
            steps = binned(sure[chosen], right[chosen], bins).error
            return torch.cat([steps, steps.new_tensor([integral(steps.tolist(), times)])])

        *steps, over_time = resampled_together(figures, len(sure), bounds=(0.0, 1.0))
        found[key] = Errors(steps=steps, integral=over_time)
    return found


def error_curves(found: Mapping[Key, Errors], x: Sequence[float]) -> list[Curve]:
    """Returns ``ECE_t`` of each, with its interval as the band."""
    curves = []
    for key, (panel, name) in apart(found).items():
        y, low, high = np.array([(step.value, step.low, step.high) for step in found[key].steps], float).T
        below, above = (
            (None, None) if np.isnan(low).any() else ((y - low).clip(0).tolist(), (high - y).clip(0).tolist())
        )
        curves.append(Curve(name=name, panel=panel, x=x, y=y.tolist(), spread=below, above=above))
    return curves


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
        return {row[NAME]: figure_in(row, ERROR) for row in rows}


def read_cells(
    folder: Path, *, where: Mapping[str, str] | None = None, best: Collection[str] = (), larger: Mapping[str, bool]
) -> dict[str, dict[str, Figure]]:
    """Returns the figures of a sweep's cells, by the values of what is varied.

    Args:
        folder: The sweep's.
        where: The values that some of the settings have in these cells.
        best: The settings over which each cell has the best of each figure.
        larger: Of each figure, whether a larger one is better.
    """
    header, rows = _read("sweep", folder / "sweep.csv")
    given = [name for name in header if f"{name}{ENDS[1]}" in header]
    # The columns of what is varied stand before all figures.
    first = min(header.index(name) for name in (*given, "lost") if name in header) if given else 0
    varied, where = header[:first], where or {}
    for key in (*where, *best):
        if key not in varied:
            raise unknown("setting that the sweep varies", key, varied)
    groups = defaultdict(list)
    for row in rows:
        if not row.get("unguided") and all(row[key] == value for key, value in where.items()):
            groups[", ".join(row[key] for key in varied if key not in where and key not in best)].append(row)
    if not groups:
        listed = ", ".join(f"{key}={value}" for key, value in where.items())
        raise InputError(f"where must be values of the sweep's cells, got {listed}, which no cell has")
    with about("sweep", folder / "sweep.csv"):
        return {
            name: {figure: _best(group, figure, larger[figure]) for figure in given if figure in larger}
            for name, group in groups.items()
        }


def pairs(errors: Mapping[str, Figure], cells: Mapping[str, Mapping[str, Figure]], figure: str) -> list[Pair]:
    """Returns error and figure of the settings that are on both sides, in the errors' order."""
    known = {
        _parts(name): y for name, figures in cells.items() if (y := figures.get(figure, Figure())).value is not None
    }
    found = [Pair(name=name, x=error, y=known[_parts(name)]) for name, error in errors.items() if _parts(name) in known]
    if len(found) < FEWEST:
        raise InputError(
            f"agree needs at least {FEWEST} settings with the same name that have {figure} and a calibration error, "
            f"got {len(found)}; the calibration has {' | '.join(errors)}, the sweep {' | '.join(cells)}"
        )
    return found


def _parts(name: str) -> frozenset[str]:
    return frozenset(part.strip() for part in name.split(","))


def _best(rows: Sequence[Mapping[str, str]], name: str, larger: bool) -> Figure:  # noqa: FBT001
    figures = [figure for row in rows if (figure := figure_in(row, name)).value is not None]
    return max(figures, key=lambda figure: (figure.value or 0) * (1 if larger else -1), default=Figure())


def _read(kind: str, path: Path) -> tuple[list[str], list[dict[str, str]]]:
    header, *rows = read_csv(path, kind)
    if not rows:
        raise InputError(f"{kind}: {str(path)!r} must have a row below its header, got none")
    return header, [dict(zip(header, row, strict=True)) for row in rows]


def write_diagrams(out: Path, found: Mapping[Key, Sequence[Reliability]], x: Sequence[float]) -> None:
    """Writes the diagrams at each level, of which x is the time or sigma, as ``reliability.csv``."""
    called = names(found)
    rows = [
        (called[key], at, *filled)
        for key, row in found.items()
        for at, diagram in zip(x, row, strict=True)
        for filled in filled_bins(diagram)
    ]
    write_rows(out / "reliability.csv", ("curve", "x", "low", "high", "count", "confidence", "accuracy"), rows)


def write_integrals(out: Path, integrals: Mapping[Key, Figure], heading: str) -> None:
    """Writes the integral calibration error of each setting as ``integral.csv``, and as ``integral.md`` to read."""
    called = names(integrals)
    rows = [dict(zip(PARTS, key, strict=True)) | {NAME: called[key], ERROR: each} for key, each in integrals.items()]
    write_figures(out / "integral.csv", rows)
    shown = [[*key, as_text(ERROR, each)] for key, each in integrals.items()]
    heading = f"{heading}. In brackets the 95% interval. Smaller is better; only equal counts compare."
    _write_markdown(out / "integral.md", heading, ([*PARTS, ERROR], shown), texts=len(PARTS))


def write_agreement(out: Path, found: Mapping[str, Sequence[Pair]]) -> list[TextTable]:
    """Writes the calibration errors beside the figures of the same settings, and returns two tables of them as text.

    The first has the settings, the best calibrated first; the second the rank correlations. Each figure has a plot.
    """
    errors = {pair.name: pair.x for settings in found.values() for pair in settings}
    columns = {ERROR: errors} | {name: {pair.name: pair.y for pair in settings} for name, settings in found.items()}
    ranked = {
        setting: {name: column.get(setting, Figure()) for name, column in columns.items()}
        for setting in sorted(errors, key=lambda setting: errors[setting].value or 0)
    }
    write_figures(out / "agree.csv", [{NAME: setting, **row} for setting, row in ranked.items()])
    shown = [[setting, *(as_text(name, each) for name, each in row.items())] for setting, row in ranked.items()]
    correlations, lines = [], []
    for name, settings in found.items():
        x, y = ([getattr(pair, side).value for pair in settings] for side in ("x", "y"))
        rank, p, count = rank_correlation(x, y), by_chance(x, y), len(settings)
        correlations.append({"figure": name, "settings": count, RANK: rank, "p": p})
        signed = "–" if rank.value is None else f"{rank.value:.2f} [{rank.low:.2f}, {rank.high:.2f}]"
        lines.append([name, str(count), signed, f"{p:.2g}"])
        title = f"no {RANK}, as all are equal" if rank.value is None else f"{RANK} {signed}, p = {p:.2g}"
        title += f", {count} settings"
        write_scatter(out / f"{name.replace('/', '-')}.png", settings, x=ERROR, y=name, title=title)
    write_figures(out / "correlation.csv", correlations)
    tables = [([NAME, *columns], shown), (["figure", "settings", RANK, "p"], lines)]
    heading = (
        "In brackets the 95% intervals: a figure's is of the images, that of a rank correlation (Spearman's) of the "
        "settings by bootstrap. p is the chance of a rank correlation as far from 0 if settings were paired at random."
    )
    _write_markdown(out / "agree.md", heading, *tables)
    return tables


def _write_markdown(path: Path, heading: str, *tables: TextTable, texts: int = 1) -> None:
    text = "\n".join(markdown(header, rows, texts=texts) for header, rows in tables)
    with replacing(path) as beside:
        beside.write_text(f"{heading}\n\n{text}", encoding="utf-8")
