"""Combinations: objectives made of others.

    sum           sum_k w_k log p_k(y_k | x)                     a product of experts; a negative weight steers away
    switch        log p_above where sigma / alpha > at, else log p_below          (EluCD's combined classifier, Table 2)
    toward        log p(c | x)                                   whatever the image's target is
    translated    log p(c_y | x)                                 target y is class c_y of another vocabulary

Each part holds its own classifier. A blend of targets is a sum of `Toward`; classifiers of different vocabularies stand
together as `Translated`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.errors import InputError
from steersman.guidance.objective import Objective
from steersman.schedule import Level

__all__ = ["Sum", "Switch", "Toward", "Translated"]


@dataclass(frozen=True)
class Sum:
    """``sum_k w_k log p_k``, the weighted sum of several objectives.

    Attributes:
        terms: Pairs of weight and objective; where the weight is negative, guidance steers away.
    """

    terms: Sequence[tuple[float, Objective]]

    def __post_init__(self) -> None:
        if not self.terms:
            raise InputError("objective.terms: none given; allowed: one and more")
        for weight, _ in self.terms:
            if not math.isfinite(weight):
                raise InputError(f"objective.terms: weight {weight} given; allowed: any finite number")

    def __call__(self, image: Float[Tensor, "B C H W"], target: Int[Tensor, " B"], level: Level) -> Float[Tensor, " B"]:
        """Returns the sum."""
        return torch.stack([weight * objective(image, target, level) for weight, objective in self.terms]).sum(0)


@dataclass(frozen=True, kw_only=True)
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
            raise InputError(f"objective.at: {self.at} given; allowed: 0 and more")

    def __call__(self, image: Float[Tensor, "B C H W"], target: Int[Tensor, " B"], level: Level) -> Float[Tensor, " B"]:
        """Returns the value of the one whose level it is."""
        objective = self.above if float(level.sigma / level.alpha) > self.at else self.below
        return objective(image, target, level)


@dataclass(frozen=True, kw_only=True)
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
            raise InputError(f"objective.target: {self.target} given; allowed: 0 and more")

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
    known: list[tuple[Tensor, Tensor]] = field(default_factory=list, init=False, repr=False, compare=False)

    def __call__(self, image: Float[Tensor, "B C H W"], target: Int[Tensor, " B"], level: Level) -> Float[Tensor, " B"]:
        """Returns the log-likelihood of each target's own class.

        Raises:
            InputError: A target that has none.
        """
        return self.objective(image, self._translated(target), level)

    def _translated(self, target: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """Returns the targets' own classes; the last ones are kept, so that a device is read once a walk."""
        for given, found in self.known:
            if given is target:
                return found
        for y in (numbers := target.tolist()):
            if y not in self.classes:
                raise InputError(f"target: {y} given; the objective has a class for {sorted(self.classes)}")
        found = target.new_tensor([self.classes[y] for y in numbers])
        self.known[:] = [(target, found)]
        return found
