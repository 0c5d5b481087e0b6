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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from steersman.errors import InputError, about
from steersman.files import replacing, writing_to
from steersman.lab.generate import generate_until_stopped, open_session
from steersman.lab.generate.store import locked
from steersman.lab.metrics.features import DEFAULT
from steersman.lab.metrics.intervals import RESAMPLES, share
from steersman.lab.placement import shared_placement
from steersman.lab.run import Run, other_settings
from steersman.lab.session import Networks, Session
from steersman.lab.stop import Stop
from steersman.lab.sweep import Sweep
from steersman.lab.sweep.cells import CASE, RECIPE
from steersman.lab.sweep.measure import Measure
from steersman.lab.tune.cost import Prices
from steersman.lab.tune.search import Proposal, Search
from steersman.lab.tune.space import TRIED, Space, around, check, options, placed
from steersman.lab.tune.trials import LARGER, Bounds, Trial
from steersman.recipes import load_recipe
from steersman.typed import finite

__all__ = ["Tune", "Tuning", "begun"]

ACCURACY, DISTANCE = "accuracy/judge", "cfid"
REFUSED = 100  # proposals in a row that cannot be drawn, after which the search is given up


@dataclass(frozen=True, kw_only=True)
@finite
class Tune:
    """What is searched, for which networks and targets.

    Attributes:
        recipes: The recipes whose settings are tried first; the space is around them, or all trials start from the
            first.
        changes: Changes of their settings, each ``axis.option=value``.
        settings: Other settings of the runs, fields of `steersman.lab.run.Run`.
        space: The space; None for the space around the recipes.
        reference: Reference images, as `steersman evaluate` takes them.
        features: Network whose features are compared.
        resamples: Random halves for the interval of a distance.
        seed: Seed of the search.
    """

    recipes: tuple[str, ...] = TRIED
    changes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    space: Space | None = None
    reference: str
    features: str = DEFAULT
    resamples: int = RESAMPLES
    seed: int = 0

    @property
    def searched(self) -> Space:
        """The space, checked."""
        if self.space is None:
            return around([load_recipe(name, self.changes) for name in dict.fromkeys(self.recipes)])
        if "denoiser" in self.space:
            raise InputError("search: denoiser cannot be searched, as costs are measured in its evaluations")
        check(self.space)
        return self.space

    @property
    def sweep(self) -> Sweep:
        """The settings that all trials share, as a sweep that varies nothing."""
        return Sweep(
            recipe=self.recipes[0],
            changes=self.changes,
            settings=self.settings,
            varied={},
            reference=self.reference,
            features=self.features,
            figures=(ACCURACY, DISTANCE),
            resamples=self.resamples,
        )

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


class Tuning:
    """A tune with checked settings and loaded networks; nothing is written before it is `begun`.

    The bounds are those of the chosen trial; a trial above the budget is not drawn.
    """

    def __init__(self, tune: Tune, out: Path, bounds: Bounds | None = None) -> None:
        if placed := shared_placement(tune.sweep.run({}), out / "tune.yaml"):
            tune = replace(tune, settings={**tune.settings, "placed": placed})
        self.tune, self.out, self.bounds = tune, out, bounds or Bounds()
        self.space, self.sweep, self.points = tune.searched, tune.sweep, tune.points()
        run = self.sweep.run({})
        self.record = self._record(run)
        if other := other_settings(out / "tune.yaml", self.record, "tune"):
            raise InputError(
                f"out: {str(out)!r} holds a tune with other settings ({', '.join(other)}); use another folder, "
                "or its settings"
            )
        self.networks, self.measure = Networks(), Measure(self.sweep, num=run.num, device=run.device)
        self._check(open_session(run, self.networks))

    def _record(self, run: Run) -> dict[str, Any]:
        """Returns the content of ``tune.yaml``."""
        tune, shared = self.tune, run.record()
        record = {key: getattr(tune, key) for key in ("recipes", "changes")} | {"space": dict(self.space)}
        record |= {key: getattr(tune, key) for key in ("reference", "features", "resamples", "seed")}
        record |= {"versions": shared.pop("versions")}
        record |= {"shared": {key: value for key, value in shared.items() if key != "recipe"}}
        return json.loads(json.dumps(record))

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
        with locked(self.out, 0):
            with writing_to(self.out):
                with replacing(self.out / "tune.yaml") as path:
                    path.write_text(yaml.safe_dump(self.record, sort_keys=False), encoding="utf-8")
                self.prices = Prices(self.out / "prices.json")
                self.search, self.trials = begun(self.space, self.out / "study.log", self.points, self.tune.seed)
            yield self.trials

    @property
    def drawn(self) -> list[Trial]:
        """The trials that were drawn."""
        return [trial for trial in self.trials if trial.drawn]

    def folder(self, number: int) -> Path:
        """Returns a trial's folder."""
        return self.out / "trials" / f"{number:04d}"

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
            run = self.sweep.run(proposal.values)
            if (earlier := self._same(run)) is not None:
                return replace(earlier, number=trial.number, settings=trial.settings, same=earlier.number)
            session = open_session(run, self.networks)
            cost = self.prices.of(session)
        except InputError as error:
            return replace(trial, reason=str(error))
        trial = replace(trial, cost=cost.value, evaluations=cost.evaluations, passes=cost.passes)
        if self.bounds.budget is not None and cost.value > self.bounds.budget:
            limit = self.bounds.budget
            return replace(trial, reason=f"an image must cost at most budget, {limit:g}, got {cost.value:g}")
        count, folder = run.num * len(session.targets), self.folder(trial.number)
        on_run(proposal, count)
        generate_until_stopped(session, folder, on_images=on_images, stop=stop)
        figures, images = self.measure(session, folder), self.measure.images(folder)
        accuracy, distance = figures[ACCURACY].value, figures[DISTANCE]
        if accuracy is None or distance.value is None or images is None:
            return replace(trial, reason="fewer than two images of a target are finite")
        return replace(trial, accuracy=share(round(accuracy * len(images)), count), distance=distance)

    def _same(self, run: Run) -> Trial | None:
        """Returns the trial that was drawn with the settings of a run."""
        settings = _settings(run)
        return next((trial for trial in self.drawn if _settings(self.sweep.run(trial.settings)) == settings), None)


def _settings(run: Run) -> str:
    """Returns all settings that the images depend on; the name of the recipe is none."""
    record = run.record()
    return repr(record | {"recipe": record["recipe"]["settings"]})


def begun(space: Space, journal: Path, points: Sequence[Mapping[str, Any]], seed: int) -> tuple[Search, list[Trial]]:
    """Returns the search in a journal with its finished trials; a new one if there is no journal."""
    with about("tune", journal):
        search = Search(space, file=journal, larger=LARGER, points=points, seed=seed)
        return search, [Trial.of(row) for row in search.rows()]
