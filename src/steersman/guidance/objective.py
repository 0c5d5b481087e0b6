"""Objectives: the log-likelihood l of a target, from a classifier's logits f.

    class       log p(y|x) = tau1 f_y - log sum_i exp(tau2 f_i)     joint and marginal temperature (EluCD eq. 2-4)
    logit       f_y                                                 the joint direction alone (nrCG's released code)
    binary      log sigmoid(f) for target 1, log sigmoid(-f) for 0  a classifier with one logit (nrCG, CelebA)

``tau1 = tau2 = 1`` is the log-softmax; ``tau2 < tau1`` strengthens the joint direction against the marginal. Where the
classifier says that its head is a sigmoid, with the target's log-odds ``o = f`` or ``-f`` for the two classes of one
logit and ``o = f_y`` for one of several labels, a target and its absence are two classes with the logits ``o / 2`` and
``-o / 2``: class is ``log sigmoid(tau2 o) + (tau1 - tau2) o / 2``, logit ``o``, binary ``log sigmoid(o)``.

A set S of classes is their union. Of a softmax it has ``log sum_{y in S} exp(tau1 f_y)`` in place of ``tau1 f_y``; with
tau1 = tau2 = 1, class is ``log sum_{y in S} p(y|x)``. Labels are independent of one another, so that the odds of having
any in S are ``exp(o) = prod_{y in S} (1 + exp(f_y)) - 1``.

Averages over several versions of an image, whose draws follow from the level's time alone and are shared by the batch:

    augment     (1 / n) sum_k log p(y | T_k x)           T_k a random turn, zoom and shift        (Shen et al. 2024)
    montecarlo  log (1 / n) sum_k p(y | x + r sigma_t z_k)                                (LGD-MC, Song et al. 2023)

Losses, ``sign(l) F(|l|)``, whose gradient grows as the target nears:

    root        sqrt(|l|); for ``l = -|r|^2``, the norm of the residual r                   (DPS, Chung et al. 2023)
    log         log(|l|)                                                   (DPS in the code of TFG, Ye et al. 2024)

A cone's gradient is not that of its value: of the gradients v and w of two objectives, with their components along v
and across it, it is w where ``angle(v, w) <= a``, and else its projection onto the cone around v of that angle,

    cone        u max(0, <u, w>),  u = cos(a) v / |v| + sin(a) w_across / |w_across|   (DVCE, Augustin et al. 2022)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, logsigmoid

from steersman.batching import broadcast, expand, logsumexp, norm, send, total
from steersman.errors import InputError
from steersman.guidance.step import Batch, Classes, PerImage, Targets
from steersman.guidance.target import Target, class_rows, encode, of_each
from steersman.names import each_class
from steersman.schedule import Level
from steersman.typed import finite

__all__ = ["Augmented", "BinaryProbability", "ClassProbability", "Cone", "Log", "Logits", "MonteCarlo", "Objective"]
__all__ += ["Root", "Sum", "Switch", "TargetLogit", "Toward", "Translated", "target_logit"]


@runtime_checkable
class Logits(Protocol):
    """A classifier: images in [-1, 1] to logits; see `steersman.Classifier`."""

    def __call__(self, image: Batch, level: Level | None = None) -> Float[Tensor, "B K"]:
        """Returns the logits; the level is for classifiers of noisy images."""
        ...


@runtime_checkable
class Objective(Protocol):
    """What guidance maximises.

    Targets are classes, unless there is a method ``encode_target(target)``, which returns the tensor, or tuple or
    dictionary of tensors, that a target is for it.
    """

    def __call__(self, image: Batch, target: Targets, level: Level) -> PerImage:
        """Returns the log-likelihood of each image's target, up to a constant; images are in [-1, 1]."""
        ...


def _head(classifier: Logits) -> Literal["binary", "labels", "softmax"]:
    """Returns how a classifier's logits become probabilities: by one sigmoid, one for each label, or a softmax."""
    if getattr(classifier, "binary", False):
        return "binary"
    return "labels" if getattr(classifier, "multilabel", False) else "softmax"


def target_logit(head: str, logits: Float[Tensor, "B K"], target: Classes) -> PerImage:
    """Returns each target's logit; of a set that of its union; with a sigmoid, log-odds."""
    if head == "binary":
        if target.ndim > 1:
            raise InputError("target must be one of two classes to a binary classifier, got a set of classes")
        return logits[:, 0] * (2 * target - 1)
    if target.device.type == "cpu" and bool((target >= logits.shape[1]).any()):  # an accelerator would be awaited
        last, given = logits.shape[1] - 1, int(target.max())
        raise InputError(f"target must be 0 to {last}, a class of the classifier, got {given}")
    if target.ndim == 1:
        return logits.gather(1, target[:, None])[:, 0]
    members = of_each(logits, target)
    if head == "softmax":
        return logsumexp(members)
    odds, *others = members.unbind(1)
    for other in others:  # (1 + a) (1 + b) - 1 = a + b + a b
        odds = torch.logaddexp(torch.logaddexp(odds, other), odds + other)
    return odds


@dataclass(frozen=True, kw_only=True)
@finite
class ClassProbability:
    """``tau1 f_y - log sum_i exp(tau2 f_i)`` (EluCD eq. 4); of a set of classes, the log-probability of its union.

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

    def __call__(self, image: Batch, target: Classes, level: Level) -> PerImage:
        logits, head = self.classifier(image, level), _head(self.classifier)
        if head == "softmax" and logits.shape[1] == 1 and self.joint == self.marginal:
            raise InputError(
                "objective class needs two classes or more, got one, whose probability is always 1; use objective logit"
            )
        if head == "softmax":
            return target_logit(head, self.joint * logits, target) - logsumexp(self.marginal * logits)
        value = target_logit(head, logits, target)
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

    def __call__(self, image: Batch, target: Classes, level: Level) -> PerImage:
        return target_logit(_head(self.classifier), self.classifier(image, level), target)


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

    def __call__(self, image: Batch, target: Classes, level: Level) -> PerImage:
        logits, head = self.classifier(image, level), _head(self.classifier)
        if head == "softmax" and logits.shape[1] == 1 and not hasattr(self.classifier, "binary"):
            head = "binary"  # a plain function cannot say what its one logit means
        if head == "softmax":
            raise InputError(
                "objective binary needs a classifier with one logit for two classes, or with several labels, got a "
                f"softmax over {logits.shape[1]}; use objective class or logit"
            )
        return logsigmoid(target_logit(head, logits, target))


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
class Cone:
    """One objective, whose gradient is that of another within an angle of its own (DVCE, Augustin et al. 2022).

    With a plain classifier's objective around which the cone is, and a robust one's within, the update follows the
    robust gradient, which shows the class, and yet raises what the plain classifier sees. The cone is that of the
    classifier's image, before a denoiser or decoder is differentiated.

    Attributes:
        around: The objective whose gradient is the cone's axis, and whose value counts.
        within: The objective whose gradient is projected onto the cone.
        angle: The largest angle between the two, in degrees, from 0 to 90; 30 in the paper.
    """

    around: Objective
    within: Objective
    angle: float = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.angle <= 90:
            raise InputError(f"ensemble.angle must be between 0 and 90, got {self.angle}")

    def __call__(self, image: Batch, target: Targets, level: Level) -> PerImage:
        if not (torch.is_grad_enabled() and image.requires_grad):
            return self.around(image, target, level)
        shown = image.detach().requires_grad_()
        value = self.around(shown, target, level)
        v, w = (torch.autograd.grad(each.sum(), shown)[0] for each in (value, self.within(shown, target, level)))
        return value.detach() + total(self._projected(w, v) * (image - shown.detach()))

    def _projected(self, w: Batch, v: Batch) -> Batch:
        cos, sin = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        v = _unit(v)
        along = _dot(v, w)
        u = cos * v + sin * _unit(w - along * v)
        return torch.where(along >= cos * norm(w), w, u * _dot(u, w).clamp(min=0))


def _unit(x: Batch) -> Batch:
    size = norm(x)
    return x / torch.where(size > 0, size, 1)


def _dot(x: Batch, y: Batch) -> Float[Tensor, "B *ones"]:
    return total(x * y).reshape(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True, kw_only=True)
@finite
class Toward:
    """An objective with a target of its own, whatever the images' targets are.

    Attributes:
        objective: The objective.
        target: The target: the index of a class in the vocabulary of that objective, a set, or what else it takes.
    """

    objective: Objective
    target: Target
    _rows: dict[torch.device, Targets] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.target, int) and self.target < 0:
            raise InputError(f"objective.target must be at least 0, got {self.target}")

    def __call__(self, image: Batch, target: Targets, level: Level) -> PerImage:
        if image.device not in self._rows:
            self._rows[image.device] = expand(encode([self.objective], self.own_targets()), 1, image.device)
        return self.objective(image, expand(self._rows[image.device], len(image), image.device), level)

    def own_targets(self, targets: Sequence[Target] = ()) -> list[Target]:
        """Returns the target in place of those of the images."""
        return [self.target]


@dataclass(frozen=True, kw_only=True)
class Translated:
    """An objective whose classes have other indices than the targets.

    Attributes:
        objective: The objective.
        classes: The index there of each target that it knows, or the indices of a set of classes.
    """

    objective: Objective
    classes: Mapping[int, int | Sequence[int]]
    _tables: dict[torch.device, Classes] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, image: Batch, target: Classes, level: Level) -> PerImage:
        if target.device.type == "cpu":  # targets on an accelerator are not read; `check_targets` has seen them
            self.own_targets([[y for y in row if y >= 0] for row in target.reshape(len(target), -1).tolist()])
        if target.device not in self._tables:
            indices = [self.classes.get(y, -1) for y in range(max(self.classes, default=0) + 1)]
            self._tables[target.device] = send(class_rows(indices), target.device)
        table = self._tables[target.device]
        found = table[target.clamp(0, len(table) - 1)]
        if target.ndim > 1 or table.ndim > 1:
            known = ((target >= 0) & (target < len(table))).reshape(*target.shape, *[1] * (table.ndim - 1))
            found = torch.where(known, found, -1).flatten(1).sort(1, descending=True).values
            twice = found[:, 1:] == found[:, :-1]  # two classes may be the same one here
            found = torch.cat([found[:, :1], torch.where(twice, -1, found[:, 1:])], 1)
        return self.objective(image, found, level)

    def own_targets(self, targets: Sequence[Target]) -> list[tuple[int, ...]]:
        """Returns the classes of targets there; refuses targets of which the objective has none."""
        return [self._own(each_class(target)) for target in targets]

    def _own(self, indices: Sequence[int | str]) -> tuple[int, ...]:
        own = sorted({there for y in indices if y in self.classes for there in each_class(self.classes[y])})
        if not own:
            raise InputError(
                f"target must be one of {sorted(self.classes)}, as the objective has no other, got "
                f"{', '.join(map(str, indices))}"
            )
        return tuple(own)
