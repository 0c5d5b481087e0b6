"""The search itself: a study of Optuna's in a journal, which proposes what to try next and is told what came of it.

Proposals are by a tree-structured Parzen estimator for several objectives (Ozaki et al. 2020): a setting's values in
the trials near the front against those in the others. The n-th proposal depends on the first n - 1 and on the seed
alone, so that a search which was stopped proposes what it would have proposed; the one that it was stopped at comes
first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steersman.files import read_bytes
from steersman.lab.tune.space import Range, Space, chosen

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial
    from optuna.trial import Trial as Asked

__all__ = ["Proposal", "Search"]

STUDY = "steersman"
ROW = "row"


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What is to be tried.

    Attributes:
        number: Its number, from 0.
        values: A value of each setting.
    """

    number: int
    values: Mapping[str, Any]


class Search:
    """A search that is written down at each step.

    Args:
        space: What is searched.
        file: Its journal; made if it is not there.
        larger: Of each objective, whether a larger value is a better one.
        points: What is tried first, as `lab.tune.space.placed` gives it; what one of them leaves out is proposed.
        seed: Of the proposals.
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
        self.space, self.seed, self.asked = space, seed, None
        self.storage, self.study = _study(file, larger)
        for point in points:
            self.study.enqueue_trial(dict(point), skip_if_exists=True)

    def ask(self) -> Proposal:
        """Returns the proposal that was not finished, else a new one."""
        from optuna.samplers import TPESampler
        from optuna.trial import Trial, TrialState

        done = self._trials(TrialState.COMPLETE, TrialState.PRUNED)
        self.study.sampler = TPESampler(seed=self.seed + len(done))
        begun = self._trials(TrialState.RUNNING)
        self.asked = Trial(self.study, self._id(begun[0].number)) if begun else self.study.ask()
        return Proposal(number=self.asked.number, values=chosen(self.space, _Asking(self.asked)))

    def tell(self, values: Sequence[float] | None, row: Mapping[str, Any]) -> None:
        """Finishes the proposal that was asked for last.

        Args:
            values: One an objective; None where it could not be tried, which makes others like it less likely.
            row: What else is kept of it.
        """
        from optuna.trial import TrialState

        assert self.asked is not None
        self.asked.set_user_attr(ROW, dict(row))
        self.study.tell(self.asked.number, values, state=TrialState.PRUNED if values is None else None)

    def rows(self) -> list[dict[str, Any]]:
        """Returns what was kept of each that was finished, in their order."""
        from optuna.trial import TrialState

        return [each.user_attrs[ROW] for each in self._trials(TrialState.COMPLETE, TrialState.PRUNED)]

    def front(self) -> list[int]:
        """Returns the numbers of those that no other beats in all objectives."""
        return sorted(trial.number for trial in self.study.best_trials)

    def _id(self, number: int) -> int:
        study = self.storage.get_study_id_from_name(STUDY)
        return self.storage.get_trial_id_from_study_id_trial_number(study, number)

    def _trials(self, *states: Any) -> "list[FrozenTrial]":  # noqa: ANN401
        return self.study.get_trials(deepcopy=False, states=states)


def _study(file: Path, larger: Sequence[bool]) -> "tuple[BaseStorage, Study]":
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.study import StudyDirection

    directions = [StudyDirection.MAXIMIZE if each else StudyDirection.MINIMIZE for each in larger]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    mend(file)
    storage = JournalStorage(JournalFileBackend(str(file)))
    study = optuna.create_study(storage=storage, study_name=STUDY, directions=directions, load_if_exists=True)
    return storage, study


def mend(file: Path) -> None:
    """Takes away what a process that was killed left in a journal: its lock, and half a line."""
    file.with_name(f"{file.name}.lock").unlink(missing_ok=True)
    if file.exists() and not (content := read_bytes(file)).endswith(b"\n"):
        with file.open("r+b") as journal:
            journal.truncate(content.rfind(b"\n") + 1)


class _Asking:
    """Optuna's suggestions."""

    def __init__(self, trial: "Asked") -> None:
        self.trial = trial

    def number(self, name: str, range: Range) -> float:
        suggest = self.trial.suggest_int if range.whole else self.trial.suggest_float
        return suggest(name, int(range.low) if range.whole else range.low, range.high, log=range.by_decades)  # pyright: ignore

    def one_of(self, name: str, names: Sequence[str]) -> str:
        return self.trial.suggest_categorical(name, list(names))
