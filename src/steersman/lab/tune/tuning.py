"""A tune at work: what is proposed is drawn and measured, until there are enough trials; then one is chosen.

    OUT/tune.yaml                    what is searched, and what all trials share
    OUT/trials/0007/                 a run each, with its evaluation.json
    OUT/study.log                    Optuna's journal, with the figures of each trial
    OUT/prices.json                  the measured times of the networks
    OUT/tune.csv                     a row a trial
    OUT/pareto-accuracy.png, …       accuracy and distance over cost
    OUT/recipe.yaml                  the chosen one

A tune that was stopped goes on where it was; a finished trial is never drawn again, and neither are settings that an
earlier one had.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from steersman.errors import InputError, about
from steersman.files import replacing, writing_to
from steersman.lab.generate import generate_until_stopped, open_session
from steersman.lab.generate.processes import locked
from steersman.lab.metrics.features import DEFAULT
from steersman.lab.metrics.intervals import RESAMPLES, share
from steersman.lab.run import Run, other_settings
from steersman.lab.session import Networks, Session
from steersman.lab.speed.placement import shared_placement
from steersman.lab.stop import Stop
from steersman.lab.sweep import Sweep
from steersman.lab.sweep.cells import CASE, RECIPE
from steersman.lab.sweep.measure import Measure
from steersman.lab.tune.around import TRIED, around
from steersman.lab.tune.price import Prices
from steersman.lab.tune.search import Proposal, Search
from steersman.lab.tune.space import Space, check, options, placed
from steersman.lab.tune.trials import LARGER, Bounds, Trial, objectives
from steersman.recipes import load_recipe
from steersman.typed import finite

__all__ = ["Tune", "Tuning"]

ACCURACY, DISTANCE = "accuracy/judge", "cfid"
REFUSED = 100  # proposals in a row that cannot be drawn, after which none is expected that can


@dataclass(frozen=True, kw_only=True)
@finite
class Tune:
    """What is searched, for which networks and targets.

    Attributes:
        recipes: Whose settings are tried first. Without a space, around which it is; with one, the first is what all
            trials start from.
        changes: Changes of their settings, each ``axis.option=value``.
        settings: What else makes the runs, fields of `steersman.lab.run.Run`.
        space: What is searched; none for the space around the recipes.
        reference: The images that the samples are compared with, as `steersman evaluate` takes them.
        features: The network in whose features, likewise.
        resamples: Random halves that each distance's interval is from.
        seed: Of the search.
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
        """The space.

        Raises:
            InputError: A recipe that cannot be loaded, or a space from which no value can be taken.
        """
        if self.space is None:
            return around([load_recipe(name, self.changes) for name in dict.fromkeys(self.recipes)])
        if "denoiser" in self.space:
            raise InputError("search: denoiser cannot be searched, as costs are measured in its evaluations")
        check(self.space)
        return self.space

    @property
    def sweep(self) -> Sweep:
        """What makes a run of the values of a trial, and what measures it."""
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
        """Returns what is tried first: each recipe's own settings, as far as they lie in the space."""
        space, found = self.searched, []
        cases = [case for case in options(space.get(CASE)) if isinstance(case, Mapping)]
        named = [name for each in (space, *cases) for name in options(each.get(RECIPE))]
        for name in dict.fromkeys([*named, *self.recipes]):
            point = placed(space, {"recipe": name, **load_recipe(name, self.changes).resolved()})
            if point and point not in found:
                found.append(point)
        return found


class Tuning:
    """A tune whose settings are checked, with the networks loaded; nothing is written before it is `begun`.

    Args:
        tune: The tune.
        out: Its folder.
        bounds: What the chosen trial must keep to; a trial beyond the budget is not drawn.

    Raises:
        InputError: The recipe, the targets or the reference cannot be used, or the folder holds another tune.
    """

    def __init__(self, tune: Tune, out: Path, bounds: Bounds | None = None) -> None:
        if placed := shared_placement(tune.sweep.run({}), out / "tune.yaml"):
            tune = replace(tune, settings={**tune.settings, "placed": placed})
        self.tune, self.out, self.bounds = tune, out, bounds or Bounds()
        self.space, self.sweep, self.points = tune.searched, tune.sweep, tune.points()
        first = self.sweep.run({})
        self.record = self._record(first)
        self._check_folder()
        self.networks, self.measure = Networks(), Measure(self.sweep, num=first.num, device=first.device)
        session = open_session(first, self.networks)
        self._check(session)

    @contextmanager
    def begun(self) -> Iterator[list[Trial]]:
        """Makes the folder its own, and yields the trials that are finished in it.

        Raises:
            InputError: The folder cannot be written to, or another tune is at work in it.
        """
        with writing_to(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        with locked(self.out, 0):
            with writing_to(self.out):
                with replacing(self.out / "tune.yaml") as path:
                    path.write_text(yaml.safe_dump(self.record, sort_keys=False), encoding="utf-8")
                self.prices, journal = Prices(self.out / "prices.json"), self.out / "study.log"
                self.search, self.trials = begun(self.space, journal, self.points, self.tune.seed)
            yield self.trials

    def _check(self, session: Session) -> None:
        """Refuses what cannot be judged or compared."""
        judge, wanted = session.judge, session.targets
        if judge is None:
            raise InputError("judge must be given: a network that says whether an image shows its target")
        if lacking := [target.name for target in wanted if target.judge is None]:
            raise InputError(f"judge must know each target, but {session.run.judge!r} lacks {', '.join(lacking)}")
        if session.run.num < 2:
            raise InputError(f"num must be at least 2 to measure a distance, got {session.run.num}")
        if self.measure.rehearse(session)[DISTANCE].value is None:
            names = ", ".join(target.name for target in wanted)
            raise InputError(
                f"reference must have images of the classes {names}, but {self.tune.reference!r} has no classes"
            )

    def _record(self, run: Run) -> dict[str, Any]:
        """Returns what ``tune.yaml`` holds."""
        tune, shared = self.tune, run.record()
        record = {
            "recipes": list(tune.recipes),
            "changes": list(tune.changes),
            "space": dict(self.space),
            "reference": tune.reference,
            "features": tune.features,
            "resamples": tune.resamples,
            "seed": tune.seed,
            "versions": shared.pop("versions"),
            "shared": {key: value for key, value in shared.items() if key != "recipe"},
        }
        return json.loads(json.dumps(record))

    def _check_folder(self) -> None:
        other = other_settings(self.out / "tune.yaml", self.record, "tune")
        if other:
            raise InputError(
                f"out: {str(self.out)!r} holds a tune with other settings ({', '.join(other)}); use another folder, "
                "or its settings"
            )

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
        """Draws until there are so many trials, once it is `begun`; those that cannot be drawn do not count.

        Args:
            trials: How many there are to be, with those of before.
            on_run: Called before each that is drawn, with how many images it has.
            on_images: Called with how many more there are, in fractions while they are drawn.
            on_trial: Called after each that is finished, drawn or refused.
            stop: What waits for signals while images are drawn.

        Returns:
            All trials, in their order.

        Raises:
            InputError: Nothing that is proposed can be drawn.
            Stopped: A signal has come; what is finished is written.
        """
        refused = 0
        while len(self.drawn) < trials:
            proposal = self.search.ask()
            trial = self._tried(proposal, on_run, on_images, stop)
            self.search.tell(objectives(trial) if trial.drawn else None, trial.row())
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
        """Returns what came of a proposal."""
        found = Trial(number=proposal.number, settings=proposal.values)
        try:
            run = self.run_of(proposal.values)
            if (earlier := self._same(run)) is not None:
                return replace(earlier, number=found.number, settings=found.settings, same=earlier.number)
            session = open_session(run, self.networks)
            cost = self.prices.of(session)
        except InputError as error:
            return replace(found, reason=str(error))
        found = replace(found, cost=cost.value, evaluations=cost.evaluations, passes=cost.passes)
        if self.bounds.budget is not None and cost.value > self.bounds.budget:
            limit = self.bounds.budget
            return replace(found, reason=f"an image must cost at most budget, {limit:g}, got {cost.value:g}")
        on_run(proposal, run.num * len(session.targets))
        generate_until_stopped(session, self.folder(found.number), on_images=on_images, stop=stop)
        return self._measured(found, session)

    def _measured(self, trial: Trial, session: Session) -> Trial:
        """Returns a trial with the figures of its images."""
        folder = self.folder(trial.number)
        figures = self.measure(session, folder)
        right, distance, images = figures[ACCURACY].value, figures[DISTANCE], self.measure.images(folder)
        if right is None or distance.value is None or images is None:
            return replace(trial, reason="fewer than two images of a target are finite")
        asked = session.run.num * len(session.targets)
        return replace(trial, accuracy=share(round(right * len(images)), asked), distance=distance)

    def _same(self, run: Run) -> Trial | None:
        """Returns the trial that was drawn with the settings of a run."""
        record = _images_of(run)
        alike = (trial for trial in self.drawn if _images_of(self.run_of(trial.settings)) == record)
        return next(alike, None)

    def run_of(self, values: Mapping[str, Any]) -> Run:
        """Returns the run of the values of a trial.

        Raises:
            InputError: They do not suit one another.
        """
        return self.sweep.run(values)


def _images_of(run: Run) -> str:
    """Returns all that the images depend on, in one text; a recipe's name is no part of it."""
    record = run.record()
    return repr(record | {"recipe": record["recipe"]["settings"]})


def begun(space: Space, journal: Path, points: Sequence[Mapping[str, Any]], seed: int) -> tuple[Search, list[Trial]]:
    """Returns the search that a journal holds, and its finished trials; a new one where there is no journal.

    Args:
        space: What is searched.
        journal: The file.
        points: What is tried first.
        seed: Of the proposals.

    Raises:
        InputError: The journal is damaged.
    """
    with about("tune", journal):
        search = Search(space, file=journal, larger=LARGER, points=points, seed=seed)
        return search, [Trial.of(row) for row in search.rows()]
