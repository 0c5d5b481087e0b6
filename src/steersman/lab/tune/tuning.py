"""A tune: proposed settings are drawn and measured until there are enough trials; then one trial is chosen.

    OUT/tune.yaml                    the space, and the settings that all trials share
    OUT/trials/0007/                 a run each, with its evaluation.json
    OUT/study.log                    Optuna's journal, with the figures of each trial
    OUT/prices.json                  the measured times of the networks
    OUT/tune.csv                     a row for each trial
    OUT/pareto-accuracy.png, …       accuracy and distance over cost
    OUT/recipe.yaml                  the chosen settings

A tune that was stopped continues; neither finished trials nor settings of an earlier trial are drawn again.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from steersman.errors import InputError, about
from steersman.files import write_yaml, writing_to
from steersman.lab.generate import generate_until_stopped, open_session
from steersman.lab.generate.store import locked
from steersman.lab.metrics.intervals import Figure, share
from steersman.lab.report.plots import Pair, write_front
from steersman.lab.report.tables import as_text, write_figures
from steersman.lab.run import Run, other_settings
from steersman.lab.session import Networks, Session
from steersman.lab.stop import Stop
from steersman.lab.sweep import Study
from steersman.lab.sweep.cells import CASE, RECIPE, settings_line
from steersman.lab.sweep.sweeping import Measure
from steersman.lab.tune.cost import COUNTED, Prices
from steersman.lab.tune.search import TRIED, Proposal, Search, Space, around, check, options, placed
from steersman.recipes import load_recipe
from steersman.typed import finite, typed

__all__ = [
    "LARGER",
    "Bounds",
    "Trial",
    "Tune",
    "Tuning",
    "choose",
    "resumed",
    "write_plots",
    "write_recipe",
    "write_table",
]

ACCURACY, DISTANCE = "accuracy/judge", "cfid"
LARGER = (True, False, False)
"""Whether a larger accuracy, distance and cost is better."""

REFUSED = 100  # proposals in a row that cannot be drawn, after which the search is given up


@dataclass(frozen=True, kw_only=True)
@finite
class Tune(Study):
    """What is searched, for which networks and targets.

    Attributes:
        recipes: The recipes whose settings are tried first; the space is around them, or all trials start from the
            first.
        space: The space; None for the space around the recipes.
        seed: Seed of the search.
    """

    recipes: tuple[str, ...] = TRIED
    space: Space | None = None
    seed: int = 0
    figures: tuple[str, ...] = (ACCURACY, DISTANCE)

    def run(self, chosen: Mapping[str, Any]) -> Run:
        """Returns the run of some of the searched settings."""
        return self._run(self.recipes[0], chosen)

    @cached_property
    def searched(self) -> Space:
        """The space, checked."""
        if self.space is None:
            return around([load_recipe(name, self.changes) for name in dict.fromkeys(self.recipes)])
        if "denoiser" in self.space:
            raise InputError("search: denoiser cannot be searched, as costs are measured in its evaluations")
        check(self.space)
        return self.space

    def points(self) -> list[dict[str, Any]]:
        """Returns the first proposals: the settings of each recipe, as far as they are in the space."""
        space, found = self.searched, []
        cases = [case for case in options(space.get(CASE)) if isinstance(case, Mapping)]
        named = [name for patterns in (space, *cases) for name in options(patterns.get(RECIPE))]
        for name in dict.fromkeys([*named, *self.recipes]):
            point = placed(space, {"recipe": name, **load_recipe(name, self.changes).resolved()})
            if point and point not in found:
                found.append(point)
        return found


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


class Tuning:
    """A tune with checked settings and loaded networks; nothing is written before it is `begun`.

    The bounds are those of the chosen trial; a trial above the budget is not drawn.
    """

    def __init__(self, tune: Tune, out: Path, bounds: Bounds | None = None) -> None:
        self.out, self.file, self.bounds = out, out / "tune.yaml", bounds or Bounds()
        self.tune = tune = tune.placed(tune.run({}), self.file)
        run = tune.run({})
        self.space, self.points, self.record = tune.searched, tune.points(), _record(tune, run)
        if other := other_settings(self.file, self.record, "tune"):
            raise InputError(
                f"out: {str(out)!r} holds a tune with other settings ({', '.join(other)}); give another --out, "
                "or its settings"
            )
        self.networks, self.measure = Networks(), Measure(tune, num=run.num, device=run.device)
        self._check(open_session(run, self.networks))

    def _check(self, session: Session) -> None:
        """Refuses targets that cannot be judged or compared."""
        if session.judge is None:
            raise InputError("judge must be given: a network that says whether an image shows its target")
        if lacking := [target.name for target in session.targets if target.judge is None]:
            raise InputError(f"judge must know each target, but {session.run.judge!r} lacks {', '.join(lacking)}")
        if session.run.num < 2:
            raise InputError(f"num must be at least 2 to measure a distance, got {session.run.num}")
        if self.measure.rehearse(session)[DISTANCE].value is None:
            names = ", ".join(target.name for target in session.targets)
            raise InputError(
                f"reference must have images of the classes {names}, but {self.tune.reference!r} has no classes"
            )

    @contextmanager
    def begun(self) -> Iterator[list[Trial]]:
        """Locks the folder, and yields its finished trials."""
        with writing_to(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        with locked(self.out, 0):  # a second tune would propose and draw the same trials
            with writing_to(self.out):
                write_yaml(self.file, self.record)
                self.prices = Prices(self.out / "prices.json")
                self.search, self.trials = resumed(self.space, self.out / "study.log", self.points, self.tune.seed)
            yield self.trials

    @property
    def drawn(self) -> list[Trial]:
        """The trials that were drawn."""
        return [trial for trial in self.trials if trial.drawn]

    def work(
        self,
        trials: int,
        *,
        on_run: Callable[[Proposal, int], object] = lambda proposal, count: None,
        on_images: Callable[[float], object] = lambda count: None,
        on_trial: Callable[[Trial], object] = lambda trial: None,
        stop: Stop | None = None,
    ) -> list[Trial]:
        """Draws until ``trials`` are drawn, earlier ones included, and returns all, also those that cannot be drawn.

        ``on_run`` is called before each trial that is drawn, with its number of images; ``on_images`` with fractions of
        new images; ``on_trial`` after each trial.
        """
        refused = 0
        while len(self.drawn) < trials:
            proposal = self.search.ask()
            trial = self._tried(proposal, on_run, on_images, stop)
            self.search.tell(trial.objectives if trial.drawn else None, asdict(trial))
            self.trials.append(trial)
            on_trial(trial)
            refused = 0 if trial.drawn else refused + 1
            if refused == REFUSED:
                raise InputError(f"search: {refused} proposals in a row cannot be drawn; the last: {trial.reason}")
        return self.trials

    def _tried(
        self,
        proposal: Proposal,
        on_run: Callable[[Proposal, int], object],
        on_images: Callable[[float], object],
        stop: Stop | None,
    ) -> Trial:
        """Returns the trial of a proposal."""
        trial = Trial(number=proposal.number, settings=proposal.values)
        try:
            run = self.tune.run(proposal.values)
            if earlier := self._same(run):
                return replace(earlier, number=trial.number, settings=trial.settings, same=earlier.number)
            session = open_session(run, self.networks)
            cost = self.prices.of(session)
        except InputError as error:
            return replace(trial, reason=str(error))
        trial = replace(trial, cost=cost.value, evaluations=cost.evaluations, passes=cost.passes)
        if (budget := self.bounds.budget) is not None and cost.value > budget:
            return replace(trial, reason=f"an image must cost at most budget, {budget:g}, got {cost.value:g}")
        count, folder = run.num * len(session.targets), self.out / "trials" / f"{trial.number:04d}"
        on_run(proposal, count)
        summary = generate_until_stopped(session, folder, on_images=on_images, stop=stop)
        figures = self.measure(session, folder)
        accuracy, distance = figures[ACCURACY].value, figures[DISTANCE]
        if accuracy is None or distance.value is None:
            return replace(trial, reason="fewer than two images of a target are finite")
        right = round(accuracy * (count - len(summary.lost)))
        return replace(trial, accuracy=share(right, count), distance=distance)

    def _same(self, run: Run) -> Trial | None:
        """Returns the trial that was drawn with the settings of a run."""
        settings = _settings(run)
        return next((trial for trial in self.drawn if _settings(self.tune.run(trial.settings)) == settings), None)


def _record(tune: Tune, run: Run) -> dict[str, Any]:
    """Returns the content of ``tune.yaml``."""
    shared = run.record()
    versions, _ = shared.pop("versions"), shared.pop("recipe")
    record = {"recipes": tune.recipes, "changes": tune.changes, "space": tune.searched, "reference": tune.reference}
    record |= {"features": tune.features, "resamples": tune.resamples, "seed": tune.seed}
    return json.loads(json.dumps(record | {"versions": versions, "shared": shared}))  # in the types that are read again


def _settings(run: Run) -> str:
    """Returns all settings that the images depend on; the name of the recipe is none."""
    record = run.record()
    return repr(record | {"recipe": record["recipe"]["settings"]})


def resumed(space: Space, journal: Path, points: Sequence[Mapping[str, Any]], seed: int) -> tuple[Search, list[Trial]]:
    """Returns the search in a journal with its finished trials; a new one if there is no journal."""
    with about("tune", journal):
        search = Search(space, file=journal, larger=LARGER, points=points, seed=seed)
        return search, [typed("", row, Trial) for row in search.rows()]


def choose(trials: Iterable[Trial], bounds: Bounds) -> Trial:
    """Returns the trial whose settings become the recipe.

    Within all bounds, that is the cheapest; with a budget and no bound on the distance, the one with the least
    distance. Without any bound, a trial must reach the lower end of the most accurate trial's interval.
    """
    kept = [trial for trial in trials if trial.drawn]
    if not kept:
        raise InputError("none of the trials could be drawn; search a space in which some can")
    least = bounds.accuracy
    if bounds == Bounds():
        surest = max(kept, key=lambda trial: (trial.objectives[0], -trial.objectives[2]))
        least = surest.accuracy.low
    limits = {"accuracy": least, "distance": bounds.distance, "budget": bounds.budget}
    for index, (name, limit) in enumerate(limits.items()):
        if limit is None:
            continue
        sign = -1 if LARGER[index] else 1
        beyond = {trial.number: sign * (trial.objectives[index] - limit) for trial in kept}
        within = [trial for trial in kept if beyond[trial.number] <= 0]
        if not within:
            nearest = min(kept, key=lambda trial: beyond[trial.number])
            accuracy, distance, cost = nearest.objectives
            raise InputError(
                f"no trial keeps to {name} {limit:g} and the other bounds; the nearest is trial {nearest.number}, "
                f"accuracy {accuracy:.1%}, distance {distance:.3g}, cost {cost:g}"
            )
        kept = within

    def order(trial: Trial) -> tuple[float, float]:
        _, distance, cost = trial.objectives
        return (distance, cost) if bounds.budget is not None and bounds.distance is None else (cost, distance)

    return min(kept, key=order)


def write_table(path: Path, trials: Sequence[Trial], front: Collection[int]) -> None:
    """Writes a row for each trial as CSV, also for those that were not drawn."""
    rows = []
    for trial in trials:
        row: dict[str, object] = {"trial": trial.number, "settings": trial.line}
        row |= {"accuracy": trial.accuracy, "distance": trial.distance, "cost": trial.cost}
        for name in COUNTED:
            row |= {f"{name} evaluations": trial.evaluations.get(name), f"{name} passes back": trial.passes.get(name)}
        row |= {"same as": trial.same, "pareto": "yes" if trial.number in front else "", "refused": trial.reason}
        rows.append(row)
    write_figures(path, rows)


def write_plots(out: Path, trials: Sequence[Trial]) -> None:
    """Plots accuracy and distance over cost, and names the trials that no other beats in the two."""
    cost = "cost of an image, in evaluations of the denoiser"
    for name, larger in (("accuracy", True), ("distance", False)):
        pairs = [Pair(name=_name(t), x=Figure(t.cost), y=getattr(t, name)) for t in trials if t.drawn]
        write_front(out / f"pareto-{name}.png", pairs, larger=larger, x=cost, y=name)


def _name(trial: Trial) -> str:
    settings = {key: trial.settings[key] for key in ("recipe", "sampling.steps", "scale") if key in trial.settings}
    return f"trial {trial.number}" + (f" ({settings_line(settings)})" if settings else "")


def write_recipe(path: Path, trial: Trial, run: Run, reference: str) -> None:
    """Writes a trial's settings as a recipe, with its figures and what they were measured on."""
    accuracy, distance = as_text(ACCURACY, trial.accuracy), as_text(DISTANCE, trial.distance)
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
    write_yaml(path, content, allow_unicode=True, width=120)
