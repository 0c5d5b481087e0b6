"""What a tune writes of its trials: a table, plots of accuracy and distance over cost, and the chosen one's recipe."""

from collections.abc import Collection, Sequence
from pathlib import Path

import yaml

from steersman.files import replacing
from steersman.lab.metrics.intervals import Figure
from steersman.lab.report.plots import Point, write_front
from steersman.lab.report.tables import in_a_line, with_interval, write_rows
from steersman.lab.run import Run
from steersman.lab.tune.trials import Trial

__all__ = ["write_plots", "write_recipe", "write_table"]

COUNTED = ("denoiser", "decoder", "classifier")


def write_table(path: Path, trials: Sequence[Trial], front: Collection[int]) -> None:
    """Writes a row a trial as CSV, also of those that could not be drawn, with why.

    Args:
        path: Where to.
        trials: All of them.
        front: The numbers of those that no other beats in accuracy, distance and cost.
    """
    figures = [f"{name}{end}" for name in ("accuracy", "distance") for end in ("", " low", " high")]
    counted = [f"{name} {what}" for name in COUNTED for what in ("evaluations", "passes back")]
    rows = []
    for trial in trials:
        ends = [end for each in (trial.accuracy, trial.distance) for end in (each.value, each.low, each.high)]
        counts = [taken.get(name) for name in COUNTED for taken in (trial.evaluations, trial.passes)]
        numbers = ["" if each is None else each for each in (*ends, trial.cost, *counts, trial.same)]
        marks = ["yes" if trial.number in front else "", trial.reason or ""]
        rows.append([trial.number, trial.said, *numbers, *marks])
    write_rows(path, ["trial", "settings", *figures, "cost", *counted, "same as", "pareto", "refused"], rows)


def write_plots(out: Path, trials: Sequence[Trial]) -> None:
    """Plots accuracy and distance over cost, those named that no other beats in the two."""
    for name, larger in (("accuracy", True), ("distance", False)):
        points = [_point(trial, trial.accuracy if larger else trial.distance) for trial in trials if trial.drawn]
        cost = "cost of an image, in evaluations of the denoiser"
        write_front(out / f"pareto-{name}.png", points, larger=larger, cost=cost, quality=name)


def _point(trial: Trial, figure: Figure) -> Point:
    assert trial.cost is not None and figure.value is not None
    shown = [key for key in ("recipe", "sampling.steps", "scale") if key in trial.settings]
    named = [f"{key}={in_a_line(trial.settings[key])}" for key in shown]
    name = f"trial {trial.number}" + (f" ({', '.join(named)})" if named else "")
    return Point(name=name, cost=trial.cost, quality=figure.value, low=figure.low, high=figure.high)


def write_recipe(path: Path, trial: Trial, run: Run, reference: str) -> None:
    """Writes a trial's settings as a recipe, with what they were found for and what they gave.

    Args:
        path: Where to.
        trial: The trial.
        run: Its run.
        reference: What its images were compared with.
    """
    accuracy = with_interval("accuracy/judge", trial.accuracy.value, trial.accuracy.low, trial.accuracy.high)
    distance = with_interval("cfid", trial.distance.value, trial.distance.low, trial.distance.high)
    targets = ", ".join(run.targets or run.blend)
    notes = (
        f"For the denoiser {run.denoiser} and the guide {', '.join(run.classifiers)}; judged by {run.judge} on "
        f"{run.num} images of each target ({targets}), seeds {run.seed} to {run.seed + run.num - 1}, and compared with "
        f"{reference}. The best of many on the same images is flattered: measure it on other seeds."
    )
    content = {
        "title": f"Found by steersman tune, from {run.recipe.name}",
        "notes": notes,
        "expected": [
            f"accuracy by the judge {accuracy}, distance {distance}, cost {trial.cost:g} evaluations of the denoiser"
        ],
        "settings": run.recipe.resolved(),
    }
    with replacing(path) as beside:
        beside.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120), encoding="utf-8")
