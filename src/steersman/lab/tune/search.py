"""The search: what it chooses from, and an Optuna study that proposes settings and is given their results.

A space says which values each setting may take:

    KEY: LOW..HIGH                a number in a range; an integer if both ends are; by its logarithm if the ends are
                                  positive and at least a factor of 10 apart
    KEY: {any: [A, B, …]}         one of several values; {any: {NAME: A, …}} with names
    case: {any: {NAME: {KEY: VALUE, …}, …}}      several settings together
    KEY: VALUE                    a fixed value

Ranges and choices may be anywhere inside a value; those inside a choice are searched if it is chosen. The keys are
those of `steersman sweep --vary`. Without a space, the space `around` the recipes is searched.

Proposals come from a tree-structured Parzen estimator for several objectives (Ozaki et al. 2020). The n-th proposal
depends on the results of the first n and on the seed alone, so that a search that was stopped repeats the proposal that
was not finished.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import BaseTrial, FrozenTrial, TrialState

from steersman.errors import InputError
from steersman.files import read_bytes
from steersman.lab.report.tables import in_a_line
from steersman.lab.sweep import varied
from steersman.lab.sweep.cells import CASE, NAME, RECIPE, flattened
from steersman.recipes import Recipe
from steersman.typed import finite

__all__ = [
    "ANY",
    "TRIED",
    "Proposal",
    "Range",
    "Search",
    "Space",
    "around",
    "check",
    "chosen",
    "options",
    "placed",
    "space_of",
]

ANY = "any"
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"\s*({NUMBER})\.\.({NUMBER})\s*")
DECADE = 10.0
DIGITS = 3  # of a number that is searched, for readable recipes
MISSING = object()
ROW = "row"  # the attribute of a finished trial of Optuna that holds its row

Space = Mapping[str, Any]

TRIED = ("default", "freedom", "dsg", "nrcg/ema90", "universal", "elucd-ddpm")
"""The recipes for off-the-shelf classifiers that are worth a try, from `docs/choosing.md`."""

SPREAD = 30.0  # a scale is searched this factor below and above the recipe's own
GATES = ("interval", "every")
SAMPLERS: dict[str, Any] = {
    "ddpm": {"kind": "ddpm", "fixed": "small"},
    "ddim": {"kind": "ddim", "eta": 0.0},
    "ddim-noise": {"kind": "ddim", "eta": 1.0},
    "dpmpp": {"kind": "dpmpp"},
}
TOGETHER: dict[str, Any] = {
    "sampling.steps": "6..50",
    "sampling.spacing": {ANY: ["linspace", "logsnr"]},
    "sampling.ratio_min": "0.01..0.3",
    "sampling.ratio_max": "20.0..200.0",
    "preprocess.size": {ANY: [None, 64, 128]},
    "sampler": {ANY: SAMPLERS},
    "recurrence": {
        ANY: {"once": {"times": 1}, "repeated": {"times": "2..8", "ratio_min": "0.1..5.0", "ratio_max": "2.0..60.0"}}
    },
}
"""The settings that are searched for all recipes together."""


@dataclass(frozen=True, kw_only=True)
@finite
class Range:
    """The numbers from ``low`` to ``high``; ``integer`` for integers only."""

    low: float
    high: float
    integer: bool

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise InputError(f"search: a range must be LOW..HIGH with LOW < HIGH, got {self.low:g}..{self.high:g}")

    @property
    def by_decades(self) -> bool:
        """Whether it is searched by the logarithm."""
        return self.low > 0 and self.high >= DECADE * self.low

    def nearest(self, number: float) -> float:
        """Returns the nearest number in the range, with few digits."""
        near = min(max(number, self.low), self.high)
        return round(near) if self.integer else min(max(float(f"{near:.{DIGITS}g}"), self.low), self.high)

    def suggested(self, trial: BaseTrial, name: str) -> float:
        """Returns the number that a trial is to try."""
        if self.integer:
            return self.nearest(trial.suggest_int(name, int(self.low), int(self.high), log=self.by_decades))
        return self.nearest(trial.suggest_float(name, self.low, self.high, log=self.by_decades))


def space_of(given: Iterable[str]) -> dict[str, Any]:
    """Returns the space of texts ``KEY=LOW..HIGH`` or ``KEY=A,B,C``; refuses what `varied` and `check` refuse."""
    space = {key: values[0] if len(values) == 1 else {ANY: values} for key, values in varied(given).items()}
    check(space)
    return space


def check(pattern: object) -> None:
    """Refuses a range in the wrong order, and a choice of nothing or with the same name twice."""
    choices, _ = _choices(pattern), _range(pattern)
    inside = pattern if choices is None else choices
    if isinstance(inside, Mapping):
        inside = list(inside.values())
    for part in inside if isinstance(inside, list) else []:
        check(part)


def options(pattern: object) -> list[Any]:
    """Returns the options of a choice; a fixed value alone; nothing for None."""
    choices = _choices(pattern)
    return [] if pattern is None else [pattern] if choices is None else list(choices.values())


def chosen(space: Space, trial: BaseTrial) -> dict[str, Any]:
    """Returns the value of each setting that a trial is to try, those of a case in its place."""
    return flattened({key: _chosen(pattern, trial, key) for key, pattern in space.items()})


def _chosen(pattern: Any, trial: BaseTrial, path: str) -> Any:  # noqa: ANN401
    if (choices := _choices(pattern)) is not None:
        name = trial.suggest_categorical(path, list(choices))
        return _chosen(choices[name], trial, f"{path}={name}")
    if isinstance(pattern, Mapping):
        return {key: _chosen(part, trial, f"{path}.{key}") for key, part in pattern.items()}
    if isinstance(pattern, list):
        return [_chosen(part, trial, f"{path}.{i}") for i, part in enumerate(pattern)]
    range = _range(pattern)
    return pattern if range is None else range.suggested(trial, path)


def placed(space: Space, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the choices that give known settings, as far as these are in the space.

    A number outside its range becomes the nearest in it; a setting that matches nothing is left out.
    """
    found: dict[str, Any] = {}
    for key, pattern in space.items():
        found |= _placed(pattern, settings if key == CASE else _at(settings, key), key) or {}
    return found


def _placed(pattern: Any, own: Any, path: str) -> dict[str, Any] | None:  # noqa: ANN401
    """Returns the choices in a pattern that give a value; None if it does not match."""
    if own is MISSING:
        return None
    if (choices := _choices(pattern)) is not None:
        for name, option in choices.items():
            if (inside := _placed(option, own, f"{path}={name}")) is not None:
                return {path: name, **inside}
        return None
    if isinstance(pattern, Mapping):
        parts = [(part, _at(own, str(key)), f"{path}.{key}") for key, part in pattern.items() if key != NAME]
    elif isinstance(pattern, list):
        if not isinstance(own, list) or len(own) != len(pattern):
            return None
        parts = [(part, value, f"{path}.{i}") for i, (part, value) in enumerate(zip(pattern, own, strict=True))]
    else:
        return _placed_value(pattern, own, path)
    found: dict[str, Any] = {}
    for part in parts:
        inside = _placed(*part)
        if inside is None:
            return None
        found |= inside
    return found


def _placed_value(pattern: object, own: object, path: str) -> dict[str, Any] | None:
    if isinstance(own, Mapping):  # a bare value stands for the kind, or for the first setting
        own = own.get("kind", next(iter(own.values())))
    if (range := _range(pattern)) is None:
        return {} if own == pattern else None
    if isinstance(own, bool) or not isinstance(own, int | float) or math.isnan(own):
        return None
    return {path: range.nearest(own)}


def _at(settings: Any, key: str) -> Any:  # noqa: ANN401
    """Returns the setting at ``axis.option`` or ``extra_guides.N.axis``, or `MISSING`."""
    for part in key.split("."):
        if isinstance(settings, list) and part.isdecimal() and int(part) < len(settings):
            settings = settings[int(part)]
        elif isinstance(settings, Mapping) and part in settings:
            settings = settings[part]
        else:
            return MISSING
    return settings


def _choices(pattern: object) -> dict[str, Any] | None:
    """Returns the options of a choice by their names; None for any other pattern."""
    if not isinstance(pattern, Mapping) or set(pattern) != {ANY}:
        return None
    given = pattern[ANY]
    if isinstance(given, Mapping):
        return {str(name): option for name, option in given.items()}
    if not isinstance(given, list) or not given:
        form = "{any: [A, B, …]} or {any: {NAME: A, …}}"
        raise InputError(f"search: a choice must be {form}, got {in_a_line(pattern)}")
    names = [str(each[NAME]) if isinstance(each, Mapping) and NAME in each else in_a_line(each) for each in given]
    if len(set(names)) < len(names):
        raise InputError(f"search: each value of a choice may be given only once, got {', '.join(names)}")
    return dict(zip(names, given, strict=True))


def _range(pattern: object) -> Range | None:
    """Returns the range of a text ``LOW..HIGH``; None for any other pattern."""
    if not isinstance(pattern, str) or (match := RANGE.fullmatch(pattern)) is None:
        return None
    low, high = match.groups()
    integer = all(re.fullmatch(r"[-+]?\d+", end) for end in (low, high))
    return Range(low=float(low), high=float(high), integer=integer)


def around(recipes: Sequence[Recipe]) -> dict[str, Any]:
    """Returns the space around recipes: a case for each, with its own scales and counts, and `TOGETHER`."""
    cases = {recipe.name: {RECIPE: recipe.name, **_own(recipe.resolved())} for recipe in recipes}
    return {CASE: {ANY: cases}, **TOGETHER}


def _own(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns what is searched for one recipe: scales, wrt, weight, and counts up to the recipe's own."""
    guides = {"": settings} | {f"extra_guides.{i}.": guide for i, guide in enumerate(settings["extra_guides"])}
    found: dict[str, Any] = {}
    for prefix, guide in guides.items():
        if own := guide["scale"]["value"]:
            found[f"{prefix}scale"] = f"{own / SPREAD:#.3g}..{own * SPREAD:#.3g}"
        if (ascents := guide["wrt"].get("ascents", 1)) > 1:
            found[f"{prefix}wrt.ascents"] = f"1..{ascents}"
        elif not prefix:
            found["wrt"] = {ANY: ["x0_hat", "x_t"]}
    found["weight"] = _weights(settings["weight"])
    for key in ("particles.count", "smoothing.copies", "input.evaluations"):
        axis, _, option = key.partition(".")
        if isinstance(settings[axis], dict) and (count := settings[axis].get(option, 1)) > 1:
            found[key] = f"1..{count}"
    if settings["input"]["kind"] == "lookahead":
        found["input"] = {ANY: {"lookahead": settings["input"], "denoised": {"kind": "denoised", "clip": True}}}
    return found


def _weights(own: Any) -> dict[str, Any]:  # noqa: ANN401
    """Returns a weight in all steps, in an interval, at every k-th step, and both."""
    base = [each for each in (own if isinstance(own, list) else [own]) if each["kind"] not in GATES]
    interval = {"kind": "interval", "ratio_min": "0.03..2.0", "ratio_max": "2.5..100.0"}
    every = {"kind": "every", "k": "2..4"}
    gated = {"interval": [*base, interval], "every": [*base, every], "both": [*base, interval, every]}
    return {ANY: {"always": base[0] if len(base) == 1 else base, **gated} if base else gated}


class Proposal(NamedTuple):
    """Settings to try, with the number of the trial, from 0."""

    number: int
    values: Mapping[str, Any]


class Search:
    """A search that is written to a journal at each step.

    ``larger`` says of each objective whether a larger value is better. The points are the first proposals, as `placed`
    returns them; what they leave out is proposed.
    """

    def __init__(
        self,
        space: Space,
        *,
        file: Path,
        larger: Sequence[bool],
        points: Sequence[Mapping[str, Any]] = (),
        seed: int = 0,
    ) -> None:
        self.space, self.points, self.seed = space, points, seed
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        _mend(file)
        self.study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(file))),
            study_name="steersman",
            directions=["maximize" if each else "minimize" for each in larger],
            load_if_exists=True,
        )

    def ask(self) -> Proposal:
        """Returns the next proposal; the same one again until `tell`."""
        number = len(self._finished())
        for trial in self._trials(TrialState.RUNNING):  # of a process that was killed; it is proposed again
            self.study.tell(trial.number, state=TrialState.FAIL)
        if number < len(self.points) and not self._trials(TrialState.WAITING):
            self.study.enqueue_trial(dict(self.points[number]))
        # A new one, without the state that earlier proposals would leave in it
        self.study.sampler = TPESampler(seed=self.seed + number)
        self._asked = self.study.ask()
        return Proposal(number, chosen(self.space, self._asked))

    def tell(self, values: Sequence[float] | None, row: Mapping[str, Any]) -> None:
        """Finishes the last proposal, with a value for each objective, and a row that is written down.

        None instead of values says that it cannot be tried, which makes similar proposals less likely.
        """
        self._asked.set_user_attr(ROW, dict(row))
        self.study.tell(self._asked.number, values, state=TrialState.PRUNED if values is None else None)

    def rows(self) -> list[dict[str, Any]]:
        """Returns the rows of the finished proposals, in their order."""
        return [trial.user_attrs[ROW] for trial in self._finished()]

    def front(self) -> list[int]:
        """Returns the numbers of the proposals that no other beats in all objectives."""
        best = {trial.number for trial in self.study.best_trials}
        return [number for number, trial in enumerate(self._finished()) if trial.number in best]

    def _finished(self) -> list[FrozenTrial]:
        return self._trials(TrialState.COMPLETE, TrialState.PRUNED)

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states)


def _mend(file: Path) -> None:
    """Removes what a process that was killed left in a journal: its lock, and half a line."""
    file.with_name(f"{file.name}.lock").unlink(missing_ok=True)
    if file.exists() and not (content := read_bytes(file)).endswith(b"\n"):
        with file.open("r+b") as journal:
            journal.truncate(content.rfind(b"\n") + 1)
