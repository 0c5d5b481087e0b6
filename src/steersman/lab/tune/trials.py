"""What came of a trial, and which of them is the one to take.

Of the trials within all bounds it is the cheapest, or, where there is a bound of the cost and none of the distance, the
nearest. Without any bound, a trial must be as accurate as the surest may be: its accuracy is no lower than the lower
end of that one's interval.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from steersman.errors import InputError
from steersman.lab.metrics.intervals import Figure
from steersman.lab.report.tables import in_a_line, with_interval
from steersman.typed import finite

__all__ = ["LARGER", "Bounds", "Trial", "choose", "objectives"]

LARGER = (True, False, False)
"""Of accuracy, distance and cost, whether a larger one is better."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A trial that is finished.

    Attributes:
        number: Its number.
        settings: What it has of everything that is searched.
        accuracy: The share of its images in which the judge sees the target; a lost one is one in which it does not.
        distance: That of the images of a class to real ones, the mean over classes.
        cost: Of an image, in evaluations of the denoiser.
        evaluations: Of an image, of ``denoiser`` and ``classifier``, and of a latent model's ``decoder``.
        passes: How often a gradient goes back through them, likewise.
        same: The number of the earlier trial whose settings are the same, and whose images it has.
        reason: Why it was not drawn; None where it was.
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
    def name(self) -> str:
        """What it is called."""
        return f"{self.number}: {self.said}"

    @property
    def said(self) -> str:
        """Its settings in a line."""
        return ", ".join(f"{key}={in_a_line(value)}" for key, value in self.settings.items())

    @property
    def drawn(self) -> bool:
        """Whether it has all three figures."""
        return self.reason is None

    def row(self) -> dict[str, Any]:
        """Returns it as it is written down."""
        return asdict(self)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Trial":
        """Returns the trial that was written down."""
        return cls(**{**row, "accuracy": Figure(**row["accuracy"]), "distance": Figure(**row["distance"])})


@dataclass(frozen=True, kw_only=True)
@finite
class Bounds:
    """What the chosen trial must keep to, None for no bound.

    Attributes:
        accuracy: The least accuracy.
        distance: The largest distance.
        budget: The largest cost, in evaluations of the denoiser; a trial beyond it is not drawn.

    Raises:
        InputError: A bound that nothing or everything keeps to.
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
    """Returns the trial to take.

    Raises:
        InputError: None keeps to the bounds; the one that is nearest to doing so is named.
    """
    drawn = [trial for trial in trials if trial.drawn]
    if not drawn:
        raise InputError("none of the trials could be drawn; search a space in which some can")
    least = bounds.accuracy
    if bounds == Bounds():
        surest = max(drawn, key=lambda trial: (_accuracy(trial), -_cost(trial)))
        least = surest.accuracy.low
    limits = [
        ("accuracy", least, lambda trial: -_accuracy(trial), -1),
        ("distance", bounds.distance, _distance, 1),
        ("budget", bounds.budget, _cost, 1),
    ]
    for name, limit, value, sign in limits:
        if limit is None:
            continue
        kept = [trial for trial in drawn if value(trial) <= sign * limit]
        if not kept:
            best = min(drawn, key=value)
            raise InputError(f"no trial keeps to {name} {limit:g} and the other bounds; the nearest is {_said(best)}")
        drawn = kept
    nearest = bounds.budget is not None and bounds.distance is None
    order = (_distance, _cost) if nearest else (_cost, _distance)
    return min(drawn, key=lambda trial: tuple(each(trial) for each in order))


def _said(trial: Trial) -> str:
    accuracy = with_interval("accuracy/judge", trial.accuracy.value, None, None)
    return f"trial {trial.number}, accuracy {accuracy}, distance {_distance(trial):.3g}, cost {_cost(trial):g}"


def _accuracy(trial: Trial) -> float:
    assert trial.accuracy.value is not None
    return trial.accuracy.value


def _distance(trial: Trial) -> float:
    assert trial.distance.value is not None
    return trial.distance.value


def _cost(trial: Trial) -> float:
    assert trial.cost is not None
    return trial.cost


def objectives(trial: Trial) -> Sequence[float]:
    """Returns accuracy, distance, cost."""
    return _accuracy(trial), _distance(trial), _cost(trial)
