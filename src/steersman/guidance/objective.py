"""Objectives: the log-likelihood l of a target, from a classifier's logits f.

    class       log p(y|x) = tau1 f_y - log sum_i exp(tau2 f_i)     joint and marginal temperature (EluCD eq. 2-4)
    logit       f_y                                                 the joint direction alone (nrCG's released code)
    binary      log sigmoid(f) for target 1, log sigmoid(-f) for 0  a classifier with one logit (nrCG, CelebA)

``tau1 = tau2 = 1`` is the log-softmax; ``tau2 < tau1`` strengthens the joint direction against the marginal. Where the
classifier says that its head is a sigmoid, with the target's log-odds ``o = f`` or ``-f`` for the two classes of one
logit and ``o = f_y`` for one of several labels, a target and its absence are two classes with the logits ``o / 2`` and
``-o / 2``: class is ``log sigmoid(tau2 o) + (tau1 - tau2) o / 2``, logit ``o``, binary ``log sigmoid(o)``.

Averages over several versions of an image, whose draws follow from the level's time alone and are shared by the batch:

    augment     (1 / n) sum_k log p(y | T_k x)           T_k a random turn, zoom and shift        (Shen et al. 2024)
    montecarlo  log (1 / n) sum_k p(y | x + r sigma_t z_k)                                (LGD-MC, Song et al. 2023)

Losses, ``sign(l) F(|l|)``, whose gradient grows as the target nears:

    root        sqrt(|l|); for ``l = -|r|^2``, the norm of the residual r                   (DPS, Chung et al. 2023)
    log         log(|l|)                                                   (DPS in the code of TFG, Ye et al. 2024)
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, logsigmoid

from steersman.batching import broadcast, logsumexp, send, total
from steersman.errors import InputError
from steersman.guidance.step import Batch, PerImage, Targets
from steersman.names import each_class
from steersman.schedule import Level
from steersman.typed import finite

if TYPE_CHECKING:
    from steersman.guidance.guide import Guide

__all__ = ["Augmented", "BinaryProbability", "ClassProbability", "Log", "Logits", "MonteCarlo", "Objective", "Root"]
__all__ += ["Sum", "Switch", "Target", "TargetLogit", "Toward", "Translated", "check_targets", "resolve_targets"]

Target = int | str | np.integer | np.ndarray | Tensor
"""A class: its index, as a number of Python, NumPy or torch, or its name; an array holds one class an image."""


@runtime_checkable
class Logits(Protocol):
    """A classifier: images in [-1, 1] to logits; see `steersman.Classifier`."""

    def __call__(self, image: Batch, level: Level | None = None) -> Float[Tensor, "B K"]:
        """Returns the logits; the level is for classifiers of noisy images."""
        ...


@runtime_checkable
class Objective(Protocol):
    """What guidance maximises."""

    def __call__(self, image: Batch, target: Targets, level: Level) -> PerImage:
        """Returns the log-likelihood of each image's target, up to a constant; images are in [-1, 1]."""
        ...


def _head(classifier: Logits) -> Literal["binary", "labels", "softmax"]:
    """Returns how a classifier's logits become probabilities: by one sigmoid, one for each label, or a softmax."""
    if getattr(classifier, "binary", False):
        return "binary"
    return "labels" if getattr(classifier, "multilabel", False) else "softmax"


def _target_logit(head: str, logits: Float[Tensor, "B K"], target: Targets) -> PerImage:
    """Returns each target's logit; with a sigmoid, its log-odds."""
    if head == "binary":
        return logits[:, 0] * (2 * target - 1)
    if target.device.type == "cpu" and bool((target >= logits.shape[1]).any()):  # an accelerator would be awaited
        last, given = logits.shape[1] - 1, int(target.max())
        raise InputError(f"target must be 0 to {last}, a class of the classifier, got {given}")
    return logits.gather(1, target[:, None])[:, 0]


@dataclass(frozen=True, kw_only=True)
@finite
class ClassProbability:
    """``tau1 f_y - log sum_i exp(tau2 f_i)`` (EluCD eq. 4).

    Attributes:
        classifier: The classifier with the logits ``f``.
        joint: The joint temperature ``tau1``.
        marginal: The marginal temperature ``tau2``; at 0 only the target's logit counts.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> objective = sm.ClassProbability(classifier=lambda image, level: torch.tensor([[2.0, 0.0, 0.0]]))
        >>> image, level = torch.zeros(1, 3, 8, 8), sm.VP.linear().at_time(0)
        >>> [round(objective(image, torch.tensor([target]), level).exp().item(), 2) for target in range(3)]
        [0.79, 0.11, 0.11]
    """

    classifier: Logits
    joint: float = 1.0
    marginal: float = 1.0

    def __call__(self, image: Batch, target: Targets, level: Level) -> PerImage:
        logits, head = self.classifier(image, level), _head(self.classifier)
        if head == "softmax" and logits.shape[1] == 1 and self.joint == self.marginal:
            raise InputError(
                "objective class needs two classes or more, got one, whose probability is always 1; use objective logit"
            )
        value = _target_logit(head, logits, target)
        if head == "softmax":
            return self.joint * value - logsumexp(self.marginal * logits)
        return logsigmoid(self.marginal * value) + (self.joint - self.marginal) / 2 * value


@dataclass(frozen=True, kw_only=True)
class TargetLogit:
    """The target's logit ``f_y``, or its log-odds for a classifier with a sigmoid.

    Attributes:
        classifier: The classifier with the logits ``f``.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> objective = sm.TargetLogit(classifier=lambda image, level: torch.tensor([[4.0, -1.0]]))
        >>> objective(torch.zeros(1, 3, 8, 8), torch.tensor([1]), sm.VP.linear().at_time(0)).item()
        -1.0
    """

    classifier: Logits

    def __call__(self, image: Batch, target: Targets, level: Level) -> PerImage:
        return _target_logit(_head(self.classifier), self.classifier(image, level), target)


@dataclass(frozen=True, kw_only=True)
class BinaryProbability:
    """``log sigmoid(o)``: for one logit f, ``o = f`` for target 1 and ``-f`` for target 0; for several labels, ``f_y``.

    Attributes:
        classifier: The classifier with one logit, or with one logit a label.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> objective = sm.BinaryProbability(classifier=lambda image, level: torch.tensor([[2.0]]))
        >>> image, level = torch.zeros(1, 3, 8, 8), sm.VP.linear().at_time(0)
        >>> [round(objective(image, torch.tensor([target]), level).exp().item(), 2) for target in (0, 1)]
        [0.12, 0.88]
    """

    classifier: Logits

    def __call__(self, image: Batch, target: Targets, level: Level) -> PerImage:
        logits, head = self.classifier(image, level), _head(self.classifier)
        if head == "softmax" and logits.shape[1] == 1 and not hasattr(self.classifier, "binary"):
            head = "binary"  # a plain function cannot say what its one logit means
        if head == "softmax":
            raise InputError(
                "objective binary needs a classifier with one logit for two classes, or with several labels, got a "
                f"softmax over {logits.shape[1]}; use objective class or logit"
            )
        return logsigmoid(_target_logit(head, logits, target))


def _generator(level: Level) -> torch.Generator:
    """Returns a generator that depends on the level's time, to a thousandth."""
    return torch.Generator().manual_seed(round(1000 * float(level.time.max())))


@dataclass(frozen=True, kw_only=True)
@finite
class Augmented:
    """The mean log-likelihood over random similarity transforms of the image.

    Attributes:
        objective: The objective to average.
        copies: The number of transforms; the first shows the image as it is.
        zoom: The largest share by which a copy is enlarged or reduced, in [0, 1).
        shift: The largest shift, as a share of the image's side, in [0, 1].
        turn: The largest angle, in degrees.
    """

    objective: Objective
    copies: int = 4
    zoom: float = 0.3
    shift: float = 0.1
    turn: float = 180.0

    def __post_init__(self) -> None:
        if self.copies < 1:
            raise InputError(f"smoothing.copies must be at least 1, got {self.copies}")
        if not (0 <= self.zoom < 1 and 0 <= self.shift <= 1 and 0 <= self.turn <= 180):
            raise InputError(
                "smoothing.zoom must be at least 0 and below 1, smoothing.shift between 0 and 1 and smoothing.turn "
                f"between 0 and 180, got {self.zoom}, {self.shift} and {self.turn}"
            )

    def __call__(self, image: Float[Tensor, "B C H W"], target: Targets, level: Level) -> PerImage:
        unit = torch.rand(self.copies - 1, 4, generator=_generator(level), dtype=torch.float64) * 2 - 1
        size, angle = (1 + self.zoom) ** unit[:, 0], unit[:, 1] * math.radians(self.turn)
        cos, sin = size * angle.cos(), size * angle.sin()
        x, y = 2 * self.shift * unit[:, 2], 2 * self.shift * unit[:, 3]
        maps = torch.stack([torch.stack([cos, -sin, x], 1), torch.stack([sin, cos, y], 1)], 1)
        copies = [image]
        for matrix in send(maps.to(image.dtype), image.device):
            # One grid for all images: it is a product of matrices, which is rounded by how many there are.
            grid = affine_grid(matrix[None], [1, *image.shape[1:]], align_corners=False)
            grid = grid.expand(len(image), *grid.shape[1:])
            copies.append(grid_sample(image, grid, padding_mode="border", align_corners=False))
        values = [self.objective(copy, target, level) for copy in copies]
        return total(torch.stack(values, 1)) / self.copies


@dataclass(frozen=True, kw_only=True)
@finite
class MonteCarlo:
    """The log of the mean likelihood over noisy copies of the image (LGD-MC).

    Attributes:
        objective: The log-likelihood to average.
        copies: The number of copies.
        radius: ``r``: the noise's deviation is ``r sigma_t``.
    """

    objective: Objective
    copies: int = 4
    radius: float = 1.0

    def __post_init__(self) -> None:
        if self.copies < 1 or self.radius < 0:
            raise InputError(
                "smoothing.copies must be at least 1 and smoothing.radius at least 0, got "
                f"{self.copies} and {self.radius}"
            )

    def __call__(self, image: Batch, target: Targets, level: Level) -> PerImage:
        noise = torch.randn(self.copies, *image.shape[1:], generator=_generator(level)).to(image.dtype)
        deviation = self.radius * broadcast(level.sigma, image)
        copies = (image + deviation * z for z in send(noise, image.device))
        values = torch.stack([self.objective(copy, target, level) for copy in copies], 1)
        return logsumexp(values) - math.log(self.copies)


@dataclass(frozen=True, kw_only=True)
class _Loss:
    """``sign(l) F(|l|)``, and l itself where it is zero, since F has no slope there.

    Attributes:
        objective: The objective with the log-likelihood l.
    """

    rise: ClassVar[Callable[[Tensor], Tensor]]
    objective: Objective

    def __call__(self, image: Batch, target: Targets, level: Level) -> PerImage:
        value = self.objective(image, target, level)
        size = torch.where(value == 0, 1, value.abs())
        return torch.where(value == 0, value, value.sign() * self.rise(size))


class Root(_Loss):
    """``sign(l) sqrt(|l|)``: the norm of a residual, where the log-likelihood l is minus its square."""

    rise = staticmethod(torch.sqrt)


class Log(_Loss):
    """``sign(l) log(|l|)``: a gradient relative to the log-likelihood l, as in the code of TFG for DPS."""

    rise = staticmethod(torch.log)


@dataclass(frozen=True)
@finite
class Sum:
    """``sum_k w_k log p_k``, the weighted sum of several objectives: a product of experts.

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

    def __call__(self, image: Batch, target: Targets, level: Level) -> PerImage:
        return total(torch.stack([weight * term(image, target, level) for weight, term in self.terms], 1))


@dataclass(frozen=True, kw_only=True)
@finite
class Switch:
    """One objective at high noise, another at low noise (EluCD, Table 2); only the one is evaluated.

    Attributes:
        above: The objective where the noise-to-signal ratio ``sigma / alpha`` is above the switch.
        below: The objective elsewhere.
        at: The ratio, at least 0.
    """

    above: Objective
    below: Objective
    at: float

    def __post_init__(self) -> None:
        if not self.at >= 0:
            raise InputError(f"objective.at must be at least 0, got {self.at}")

    def __call__(self, image: Batch, target: Targets, level: Level) -> PerImage:
        objective = self.above if float(level.sigma / level.alpha) > self.at else self.below
        return objective(image, target, level)


@dataclass(frozen=True, kw_only=True)
@finite
class Toward:
    """An objective with a class of its own, whatever the images' targets are.

    Attributes:
        objective: The objective.
        target: The class's index in the vocabulary of that objective.
    """

    objective: Objective
    target: int

    def __post_init__(self) -> None:
        if self.target < 0:
            raise InputError(f"objective.target must be at least 0, got {self.target}")

    def __call__(self, image: Batch, target: Targets, level: Level) -> PerImage:
        return self.objective(image, torch.full_like(target, self.target), level)


@dataclass(frozen=True, kw_only=True)
class Translated:
    """An objective whose classes have other indices than the targets.

    Attributes:
        objective: The objective.
        classes: The index there of each target that it knows.
    """

    objective: Objective
    classes: Mapping[int, int]
    _tables: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, image: Batch, target: Targets, level: Level) -> PerImage:
        if target.device.type == "cpu":  # targets on an accelerator are not read; `check_targets` has seen them
            self.check(target.tolist())
        if target.device not in self._tables:
            indices = [self.classes.get(y, 0) for y in range(max(self.classes, default=0) + 1)]
            self._tables[target.device] = send(torch.tensor(indices), target.device)
        return self.objective(image, self._tables[target.device][target], level)

    def check(self, targets: Iterable[int]) -> None:
        """Refuses targets that the objective has no class for."""
        for y in targets:
            if y not in self.classes:
                raise InputError(
                    f"target must be one of {sorted(self.classes)}, as the objective has no other, got {y}"
                )


def resolve_targets(guides: "Sequence[Guide]", target: Target | Iterable[Target] | None) -> Int[Tensor, " N"]:
    """Returns the indices of a target, or of one an image, as the guides' classifiers know them."""
    if target is None:
        if guides:
            raise InputError("target must be a class for all images, or one for each, as there are guides; got none")
        return torch.zeros(1, dtype=torch.int64)
    indices = [_index(guides, given) for given in each_class(target, "target")]
    if not indices:
        raise InputError("target must be a class for all images, or one for each, got an empty list")
    for guide in guides:
        check_targets(guide.objective, indices)
    return torch.tensor(indices)


def _index(guides: "Sequence[Guide]", target: int | str) -> int:
    indices = {classifier.resolve(target) for guide in guides for classifier in _vocabularies(guide.objective)}
    if len(indices) > 1:
        raise InputError(
            f"target must be the same class for all classifiers, got {target!r}, which is class "
            f"{' and '.join(map(str, sorted(indices)))} of them; use objectives that are Translated"
        )
    if indices:
        return indices.pop()
    if isinstance(target, str) or target < 0:
        raise InputError(
            f"target must be an index of at least 0, as no classifier of the guides has names, got {target!r}"
        )
    return target


def check_targets(part: object, targets: Sequence[int]) -> None:
    """Refuses targets that a part of an objective has no class for, before any of them is on an accelerator."""
    if callable(resolve := getattr(part, "resolve", None)):
        for y in targets:
            resolve(y)
        return
    if isinstance(part, Translated):
        part.check(targets)
        targets = [part.classes[y] for y in targets]
    elif isinstance(part, Toward):
        targets = [part.target]
    for inner in _parts(part):
        check_targets(inner, targets)


def _vocabularies(part: object) -> Iterator[Any]:
    """Yields the classifiers in an objective whose classes are the targets themselves."""
    if callable(getattr(part, "resolve", None)):
        yield part
    elif not isinstance(part, Toward | Translated):
        for inner in _parts(part):
            yield from _vocabularies(inner)


def _parts(part: object) -> Iterator[object]:
    """Yields the parts of an objective: of a dataclass its fields, of a list its items."""
    if isinstance(part, tuple | list):
        yield from part
    elif is_dataclass(part) and not isinstance(part, type):
        yield from (getattr(part, each.name) for each in fields(part))
