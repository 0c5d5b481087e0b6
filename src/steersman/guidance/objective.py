"""Objectives: the log-likelihood of a target, from a classifier's logits f.

    class     log p(y|x) = tau1 f_y - log sum_i exp(tau2 f_i)     joint and marginal temperature (EluCD eq. 2-4)
    logit     f_y                                                 the joint direction alone (nrCG's released code)
    binary    log sigmoid(f) for target 1, log sigmoid(-f) for 0  a classifier with one logit (nrCG, CelebA)

``tau1 = tau2 = 1`` is the ordinary log-softmax; ``tau2 < tau1`` strengthens the joint direction against the marginal.

That is for a softmax over classes. Where the classifier says that its head is a sigmoid, each objective follows it.
With the log-odds of the target, ``o = f`` or ``-f`` for the two classes of one logit, ``o = f_y`` for one of several
labels, the target and its absence are two classes with the logits ``o / 2`` and ``-o / 2``, so that

    class     tau1 o/2 - log[exp(tau2 o/2) + exp(-tau2 o/2)] = log sigmoid(tau2 o) + (tau1 - tau2) o / 2
    logit     o
    binary    log sigmoid(o)

and no objective of a label updates any other label. These are symmetric: a target and its absence are guided alike.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from steersman.batching import logsumexp
from steersman.errors import InputError
from steersman.schedule import Level
from steersman.typed import finite

__all__ = ["BinaryProbability", "ClassProbability", "Logits", "Objective", "TargetLogit"]


@runtime_checkable
class Logits(Protocol):
    """A classifier: images in [-1, 1] to logits; see `steersman.models.classifiers.Classifier`."""

    def __call__(self, image: Float[Tensor, "B C H W"], level: Level | None = None) -> Float[Tensor, "B K"]:
        """Returns the logits; the level is for classifiers that are told it."""
        ...


@runtime_checkable
class Objective(Protocol):
    """What guidance makes larger."""

    def __call__(self, image: Float[Tensor, "B C H W"], target: Int[Tensor, " B"], level: Level) -> Float[Tensor, " B"]:
        """Returns each image's log-likelihood of its target, up to a constant.

        Args:
            image: Images in [-1, 1].
            target: A class each.
            level: The noise level of the step.
        """
        ...


def _of_target(logits: Float[Tensor, "B K"], target: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    if target.device.type == "cpu" and bool((target >= logits.shape[1]).any()):  # elsewhere it would wait
        last, given = logits.shape[1] - 1, int(target.max())
        raise InputError(f"target must be 0 to {last}, a class of the classifier, got {given}")
    return logits.gather(1, target[:, None])[:, 0]


def _log_odds(
    classifier: Logits, logits: Float[Tensor, "B K"], target: Int[Tensor, " B"]
) -> Float[Tensor, " B"] | None:
    """Returns each target's log-odds where the classifier's head is a sigmoid, None for a softmax."""
    if getattr(classifier, "binary", False):
        return logits[:, 0] * (2 * target - 1)
    return _of_target(logits, target) if getattr(classifier, "multilabel", False) else None


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

    def __call__(self, image: Float[Tensor, "B C H W"], target: Int[Tensor, " B"], level: Level) -> Float[Tensor, " B"]:
        """Returns the log-probability, with its temperatures.

        Raises:
            InputError: A softmax of one logit is given, and ``tau1 = tau2``, which has the same value for all images.
        """
        logits = self.classifier(image, level)
        odds = _log_odds(self.classifier, logits, target)
        if odds is not None:
            return logsigmoid(self.marginal * odds) + (self.joint - self.marginal) / 2 * odds
        if logits.shape[1] == 1 and self.joint == self.marginal:
            raise InputError(
                "objective class needs two classes or more, got one, whose probability is always 1; use objective logit"
            )
        return self.joint * _of_target(logits, target) - logsumexp(self.marginal * logits)


@dataclass(frozen=True, kw_only=True)
class TargetLogit:
    """The target's logit ``f_y``, or its log-odds for a classifier with a sigmoid.

    Attributes:
        classifier: The classifier with the logits ``f``.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> objective = sm.TargetLogit(classifier=lambda image, level: torch.tensor([[4.0, -1.0]]))
        >>> image, level = torch.zeros(1, 3, 8, 8), sm.VP.linear().at_time(0)
        >>> [objective(image, torch.tensor([target]), level).item() for target in (0, 1)]
        [4.0, -1.0]
    """

    classifier: Logits

    def __call__(self, image: Float[Tensor, "B C H W"], target: Int[Tensor, " B"], level: Level) -> Float[Tensor, " B"]:
        """Returns the target's logit."""
        logits = self.classifier(image, level)
        odds = _log_odds(self.classifier, logits, target)
        return _of_target(logits, target) if odds is None else odds


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

    def __call__(self, image: Float[Tensor, "B C H W"], target: Int[Tensor, " B"], level: Level) -> Float[Tensor, " B"]:
        """Returns the log-probability.

        Raises:
            InputError: The classifier has a softmax over classes.
        """
        logits = self.classifier(image, level)
        odds = _log_odds(self.classifier, logits, target)
        if odds is None and logits.shape[1] == 1 and not hasattr(self.classifier, "binary"):
            odds = logits[:, 0] * (2 * target - 1)  # of a plain function, which cannot say what its one logit means
        if odds is None:
            raise InputError(
                "objective binary needs a classifier with one logit for two classes, or with several labels, got a "
                f"softmax over {logits.shape[1]}; use objective class or logit"
            )
        return logsigmoid(odds)
