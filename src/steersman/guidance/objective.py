"""Objectives: the log-likelihood of a target, from a classifier's logits f.

    class     log p(y|x) = tau1 f_y - log sum_i exp(tau2 f_i)     joint and marginal temperature (EluCD eq. 2-4)
    logit     f_y                                                 the joint direction alone (nrCG's released code)
    binary    log sigmoid(f) for target 1, log sigmoid(-f) for 0  a classifier with one logit (nrCG, CelebA)

``tau1 = tau2 = 1`` is the ordinary log-softmax; ``tau2 < tau1`` strengthens the joint direction against the marginal.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.errors import InputError
from steersman.schedule import Level

__all__ = ["BinaryProbability", "ClassProbability", "Logits", "Objective", "TargetLogit"]


@runtime_checkable
class Logits(Protocol):
    """A classifier: images in [-1, 1] to logits; see `steersman.classifiers.Classifier`."""

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
    return logits.gather(1, target[:, None])[:, 0]


@dataclass(frozen=True, kw_only=True)
class ClassProbability:
    """``tau1 f_y - log sum_i exp(tau2 f_i)`` (EluCD eq. 4).

    Attributes:
        classifier: It gives f.
        joint: ``tau1``.
        marginal: ``tau2``; 0 leaves the target's logit alone.
    """

    classifier: Logits
    joint: float = 1.0
    marginal: float = 1.0

    def __call__(self, image: Float[Tensor, "B C H W"], target: Int[Tensor, " B"], level: Level) -> Float[Tensor, " B"]:
        """Returns it.

        Raises:
            InputError: The classifier has one logit, and ``tau1 = tau2``: the value would be the same for all images.
        """
        logits = self.classifier(image, level)
        if logits.shape[1] == 1 and self.joint == self.marginal:
            raise InputError(
                "objective: class, of which one alone has always the probability 1; allowed: logit, or more classes"
            )
        return self.joint * _of_target(logits, target) - (self.marginal * logits).logsumexp(1)


@dataclass(frozen=True, kw_only=True)
class TargetLogit:
    """``f_y``.

    Attributes:
        classifier: It gives f.
    """

    classifier: Logits

    def __call__(self, image: Float[Tensor, "B C H W"], target: Int[Tensor, " B"], level: Level) -> Float[Tensor, " B"]:
        """Returns it."""
        return _of_target(self.classifier(image, level), target)


@dataclass(frozen=True, kw_only=True)
class BinaryProbability:
    """``log sigmoid(f)`` for target 1, ``log sigmoid(-f)`` for target 0.

    Attributes:
        classifier: It gives the one logit f.
    """

    classifier: Logits

    def __call__(self, image: Float[Tensor, "B C H W"], target: Int[Tensor, " B"], level: Level) -> Float[Tensor, " B"]:
        """Returns it.

        Raises:
            InputError: The classifier has more than one logit, or says that it is not binary.
        """
        logits = self.classifier(image, level)
        if logits.shape[1] != 1:
            raise InputError(f"objective: binary, but the classifier has {logits.shape[1]} logits; allowed: one logit")
        if not getattr(self.classifier, "binary", True):
            raise InputError("objective: binary, but the one logit is of one class, not of two; allowed: logit")
        return torch.nn.functional.logsigmoid(logits[:, 0] * (2 * target - 1))
