"""Combinations: objectives made of others.

    sum           sum_k w_k log p_k(y_k | x)                     a product of experts; a negative weight steers away
    switch        log p_above where sigma / alpha > at, else log p_below          (EluCD's combined classifier, Table 2)
    toward        log p(c | x)                                   whatever the image's target is
    translated    log p(c_y | x)                                 target y is class c_y of another vocabulary

Each part holds its own classifier. A blend of targets is a sum of `Toward`; classifiers of different vocabularies stand
together as `Translated`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.batching import send, total
from steersman.errors import InputError
from steersman.guidance.objective import Objective
from steersman.schedule import Level
from steersman.typed import finite

__all__ = ["Sum", "Switch", "Toward", "Translated", "check_targets", "vocabularies"]


@dataclass(frozen=True)
@finite
class Sum:
    """``sum_k w_k log p_k``, the weighted sum of several objectives.

    Attributes:
        terms: Pairs of weight and objective. A negative weight steers away from the target.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> one = sm.TargetLogit(classifier=lambda image, level: torch.tensor([[4.0, -1.0]]))
        >>> two = sm.TargetLogit(classifier=lambda image, level: torch.tensor([[3.0, 5.0]]))
        >>> objective = sm.Sum([(1.0, one), (-0.5, two)])
        >>> objective(torch.zeros(1, 3, 8, 8), torch.tensor([0]), sm.VP.linear().at_time(0)).item()
        2.5
    """

    terms: Sequence[tuple[float, Objective]]

    def __post_init__(self) -> None:
        if not self.terms:
            raise InputError("objective.terms must hold at least one, got none")

    def __call__(self, image: Float[Tensor, "B C H W"], target: Int[Tensor, " B"], level: Level) -> Float[Tensor, " B"]:
        """Returns the sum."""
        return total(torch.stack([weight * term(image, target, level) for weight, term in self.terms], 1))


@dataclass(frozen=True, kw_only=True)
@finite
class Switch:
    """One objective at high noise, another at low noise; only the one is asked.

    Attributes:
        above: Serves the levels whose noise-to-signal ratio ``sigma / alpha`` is above the switch.
        below: Serves the others.
        at: The ratio, 0 and more.
    """

    above: Objective
    below: Objective
    at: float

    def __post_init__(self) -> None:
        if not self.at >= 0:
            raise InputError(f"objective.at must be at least 0, got {self.at}")

    def __call__(self, image: Float[Tensor, "B C H W"], target: Int[Tensor, " B"], level: Level) -> Float[Tensor, " B"]:
        """Returns the value of the one whose level it is."""
        objective = self.above if float(level.sigma / level.alpha) > self.at else self.below
        return objective(image, target, level)


@dataclass(frozen=True, kw_only=True)
@finite
class Toward:
    """An objective with a class of its own, whatever the images' targets are.

    Attributes:
        objective: Whose class it is.
        target: The class's number in that objective's vocabulary.
    """

    objective: Objective
    target: int

    def __post_init__(self) -> None:
        if self.target < 0:
            raise InputError(f"objective.target must be at least 0, got {self.target}")

    def __call__(self, image: Float[Tensor, "B C H W"], target: Int[Tensor, " B"], level: Level) -> Float[Tensor, " B"]:
        """Returns the log-likelihood of the one class."""
        return self.objective(image, torch.full_like(target, self.target), level)


@dataclass(frozen=True, kw_only=True)
class Translated:
    """An objective whose classes have other numbers than the targets.

    Attributes:
        objective: Whose classes they are.
        classes: ``c``: the number there of each target that it knows.
    """

    objective: Objective
    classes: Mapping[int, int]
    _sent: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, image: Float[Tensor, "B C H W"], target: Int[Tensor, " B"], level: Level) -> Float[Tensor, " B"]:
        """Returns the log-likelihood of each target's own class.

        Raises:
            InputError: A target that has none. Targets on an accelerator are not read: `check_targets` is for these.
        """
        if target.device.type == "cpu":
            self.check(target.tolist())
        return self.objective(image, self._table(target.device)[target], level)

    def check(self, targets: Iterable[int]) -> None:
        """Refuses targets without a class.

        Raises:
            InputError: There is one.
        """
        for y in targets:
            if y not in self.classes:
                raise InputError(
                    f"target must be one of {sorted(self.classes)}, as the objective has no other, got {y}"
                )

    def _table(self, device: torch.device) -> Int[Tensor, " Y"]:
        """Returns the class of each target, in the place that the target numbers."""
        if device not in self._sent:
            known = [self.classes.get(y, 0) for y in range(max(self.classes, default=0) + 1)]
            self._sent[device] = send(torch.tensor(known), device)
        return self._sent[device]


def vocabularies(part: object) -> Iterator[Any]:
    """Yields the classifiers in an objective whose classes are the targets themselves.

    Args:
        part: The objective, or anything in it. `Toward` has a class of its own and `Translated` other numbers.
    """
    if callable(getattr(part, "resolve", None)):
        yield part
    elif isinstance(part, tuple | list):
        for each in part:
            yield from vocabularies(each)
    elif is_dataclass(part) and not isinstance(part, type | Toward | Translated):
        for each in fields(part):
            yield from vocabularies(getattr(part, each.name))


def check_targets(objective: object, targets: Sequence[int]) -> None:
    """Refuses targets that a part of an objective has no class for, before any of them is on an accelerator.

    Raises:
        InputError: There is one.
    """
    if isinstance(objective, Translated):
        objective.check(targets)
        check_targets(objective.objective, [objective.classes[y] for y in targets])
    elif isinstance(objective, Toward):
        check_targets(objective.objective, [objective.target])
    elif callable(resolve := getattr(objective, "resolve", None)):
        for y in targets:
            resolve(y)
    elif isinstance(objective, tuple | list):
        for part in objective:
            check_targets(part, targets)
    elif is_dataclass(objective) and not isinstance(objective, type):
        for each in fields(objective):
            check_targets(getattr(objective, each.name), targets)
