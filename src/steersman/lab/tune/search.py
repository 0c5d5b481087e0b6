"""The search: an Optuna study in a journal, which proposes settings and is given their results.

Proposals come from a tree-structured Parzen estimator for several objectives (Ozaki et al. 2020). The n-th proposal
depends on the results of the first n and on the seed alone, so that a search that was stopped repeats the proposal that
was not finished.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steersman.files import read_bytes
from steersman.lab.tune.space import Range, Space, chosen

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial
    from optuna.trial import Trial as Asked

__all__ = ["Proposal", "Search"]

ROW = "row"


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Settings to try, with the number of the trial, from 0."""

    number: int
    values: Mapping[str, Any]


class Search:
    """A search that is written to a journal at each step.

    ``larger`` says of each objective whether a larger value is better. The points are the first proposals, as
    `lab.tune.space.placed` returns them; what they leave out is proposed.
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
        self.study = _study(file, larger)

    def ask(self) -> Proposal:
        """Returns the next proposal; the same one again until `tell`."""
        from optuna.samplers import TPESampler
        from optuna.trial import TrialState

        number = len(self._finished())
        for trial in self._trials(TrialState.RUNNING):  # of a process that was killed; it is proposed again
            self.study.tell(trial.number, state=TrialState.FAIL)
        if number < len(self.points) and not self._trials(TrialState.WAITING):
            self.study.enqueue_trial(dict(self.points[number]))
        self.study.sampler = TPESampler(seed=self.seed + number)
        self._asked = self.study.ask()
        return Proposal(number=number, values=chosen(self.space, _Suggestions(self._asked)))

    def tell(self, values: Sequence[float] | None, row: Mapping[str, Any]) -> None:
        """Finishes the last proposal, with a value for each objective, and a row that is written down.

        None instead of values says that it cannot be tried, which makes similar proposals less likely.
        """
        from optuna.trial import TrialState

        self._asked.set_user_attr(ROW, dict(row))
        self.study.tell(self._asked.number, values, state=TrialState.PRUNED if values is None else None)

    def rows(self) -> list[dict[str, Any]]:
        """Returns the rows of the finished proposals, in their order."""
        return [trial.user_attrs[ROW] for trial in self._finished()]

    def front(self) -> list[int]:
        """Returns the numbers of the proposals that no other beats in all objectives."""
        best = {trial.number for trial in self.study.best_trials}
        return [number for number, trial in enumerate(self._finished()) if trial.number in best]

    def _finished(self) -> "list[FrozenTrial]":
        from optuna.trial import TrialState

        return self._trials(TrialState.COMPLETE, TrialState.PRUNED)

    def _trials(self, *states: Any) -> "list[FrozenTrial]":  # noqa: ANN401
        return self.study.get_trials(deepcopy=False, states=states)


def _study(file: Path, larger: Sequence[bool]) -> "Study":
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    _mend(file)
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(file))),
        study_name="steersman",
        directions=["maximize" if each else "minimize" for each in larger],
        load_if_exists=True,
    )


def _mend(file: Path) -> None:
    """Removes what a process that was killed left in a journal: its lock, and half a line."""
    file.with_name(f"{file.name}.lock").unlink(missing_ok=True)
    if file.exists() and not (content := read_bytes(file)).endswith(b"\n"):
        with file.open("r+b") as journal:
            journal.truncate(content.rfind(b"\n") + 1)


class _Suggestions:
    """Optuna's suggestions for the choices of a space."""

    def __init__(self, trial: "Asked") -> None:
        self.trial = trial

    def number(self, name: str, range: Range) -> float:
        if range.integer:
            return self.trial.suggest_int(name, int(range.low), int(range.high), log=range.by_decades)
        return self.trial.suggest_float(name, range.low, range.high, log=range.by_decades)

    def one_of(self, name: str, names: Sequence[str]) -> str:
        return self.trial.suggest_categorical(name, list(names))
