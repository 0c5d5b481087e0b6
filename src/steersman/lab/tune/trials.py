"""The trials of a tune: their table and plots, and the one whose settings become the recipe.

Within all bounds, the cheapest trial is chosen; with a budget and no bound on the distance, the one with the least
distance. Without any bound, a trial must reach the lower end of the most accurate trial's interval.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from steersman.errors import InputError
from steersman.files import replacing
from steersman.lab.metrics.intervals import Figure
from steersman.lab.report.plots import Point, write_front
from steersman.lab.report.tables import with_interval
from steersman.lab.run import Run
from steersman.lab.sweep.cells import settings_line
from steersman.lab.sweep.table import write_figures
from steersman.typed import finite

__all__ = ["LARGER", "Bounds", "Trial", "choose", "write_plots", "write_recipe", "write_table"]

LARGER = (True, False, False)
"""Whether a larger accuracy, distance and cost is better."""

COUNTED = ("denoiser", "decoder", "classifier")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A finished trial.

    Attributes:
        number: Its number.
        settings: The values of the searched settings.
        accuracy: Share of its images in which the judge sees the target; a lost image counts as one in which it does
            not.
        distance: cFID of its images.
        cost: Cost of an image, in evaluations of the denoiser.
        evaluations: Evaluations for an image of ``denoiser``, ``classifier`` and a latent model's ``decoder``.
        passes: Backward passes through them.
        same: Number of the earlier trial with the same settings, whose images it has.
        reason: Why it was not drawn; None if it was.
    """

    number: int
    settings: Mapping[str, Any]
    accuracy: Figure = field(default_factory=Figure)
    distance: Figure = field(default_factory=Figure)
    cost: float | None = None
    evaluations: Mapping[str, int] = field(default_factory=dict)
    passes: Mapping[str, int] = field(default_factory=dict)
    same: int | None = None
    reason: str | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Trial":
        """Returns a trial from its fields as they are written down."""
        return cls(**{**row, "accuracy": Figure(**row["accuracy"]), "distance": Figure(**row["distance"])})

    @property
    def line(self) -> str:
        """The settings in one line."""
        return settings_line(self.settings)

    @property
    def drawn(self) -> bool:
        """Whether it was drawn and has all three figures."""
        return self.reason is None

    @property
    def objectives(self) -> tuple[float, float, float]:
        """Accuracy, distance and cost of a trial that was drawn."""
        values = self.accuracy.value, self.distance.value, self.cost
        accuracy, distance, cost = (value for value in values if value is not None)
        return accuracy, distance, cost


@dataclass(frozen=True, kw_only=True)
@finite
class Bounds:
    """The bounds of the chosen trial, None for no bound.

    Attributes:
        accuracy: Lower limit on the accuracy.
        distance: Upper limit on the distance.
        budget: Upper limit on the cost; a trial above it is not drawn.
    """

    accuracy: float | None = None
    distance: float | None = None
    budget: float | None = None

    def __post_init__(self) -> None:
        if self.accuracy is not None and not 0 < self.accuracy <= 1:
            raise InputError(f"accuracy must be above 0 and at most 1, got {self.accuracy}")
        for name, value in (("distance", self.distance), ("budget", self.budget)):
            if value is not None and not value > 0:
                raise InputError(f"{name} must be above 0, got {value}")


def choose(trials: Iterable[Trial], bounds: Bounds) -> Trial:
    """Returns the trial whose settings become the recipe."""
    kept = [trial for trial in trials if trial.drawn]
    if not kept:
        raise InputError("none of the trials could be drawn; search a space in which some can")
    least = bounds.accuracy
    if bounds == Bounds():
        surest = max(kept, key=lambda trial: (trial.objectives[0], -trial.objectives[2]))
        least = surest.accuracy.low
    limits = ("accuracy", least, -1), ("distance", bounds.distance, 1), ("budget", bounds.budget, 1)
    for index, (name, limit, sign) in enumerate(limits):
        if limit is None:
            continue

        def value(trial: Trial, index: int = index, sign: int = sign) -> float:
            return sign * trial.objectives[index]

        within = [trial for trial in kept if value(trial) <= sign * limit]
        if not within:
            nearest = min(kept, key=value)
            accuracy, distance, cost = nearest.objectives
            raise InputError(
                f"no trial keeps to {name} {limit:g} and the other bounds; the nearest is trial {nearest.number}, "
                f"accuracy {with_interval('accuracy', accuracy, None, None)}, distance {distance:.3g}, cost {cost:g}"
            )
        kept = within
    by_distance = bounds.budget is not None and bounds.distance is None
    return min(kept, key=lambda trial: trial.objectives[1:] if by_distance else trial.objectives[:0:-1])


def write_table(path: Path, trials: Sequence[Trial], front: Collection[int]) -> None:
    """Writes a row for each trial as CSV, also for those that were not drawn."""
    counts = {"evaluations": "evaluations", "passes back": "passes"}
    rows = [
        {
            "trial": trial.number,
            "settings": trial.line,
            "accuracy": trial.accuracy,
            "distance": trial.distance,
            "cost": trial.cost,
            **{f"{name} {title}": getattr(trial, key).get(name) for name in COUNTED for title, key in counts.items()},
            "same as": trial.same,
            "pareto": "yes" if trial.number in front else "",
            "refused": trial.reason,
        }
        for trial in trials
    ]
    write_figures(path, rows)


def write_plots(out: Path, trials: Sequence[Trial]) -> None:
    """Plots accuracy and distance over cost, and names the trials that no other beats in the two."""
    cost = "cost of an image, in evaluations of the denoiser"
    for name, larger in (("accuracy", True), ("distance", False)):
        points = [_point(trial, trial.accuracy if larger else trial.distance) for trial in trials if trial.drawn]
        write_front(out / f"pareto-{name}.png", points, larger=larger, cost=cost, quality=name)


def _point(trial: Trial, figure: Figure) -> Point:
    assert trial.cost is not None and figure.value is not None
    settings = {key: trial.settings[key] for key in ("recipe", "sampling.steps", "scale") if key in trial.settings}
    name = f"trial {trial.number}" + (f" ({settings_line(settings)})" if settings else "")
    return Point(name=name, cost=trial.cost, quality=figure.value, low=figure.low, high=figure.high)


def write_recipe(path: Path, trial: Trial, run: Run, reference: str) -> None:
    """Writes a trial's settings as a recipe, with its figures and what they were measured on."""
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
