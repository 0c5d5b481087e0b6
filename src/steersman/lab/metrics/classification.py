"""What a classifier says of images and their targets, and how far its confidence is from its accuracy.

    accuracy                (1/n) sum_k 1[argmax_i f_i(x_k) = y_k]
    target probability      p(y | x) = softmax(f(x))_y
    confidence              max_i p(i | x)
    calibration error       ECE = sum_m |B_m| / n |acc(B_m) - conf(B_m)|

A target may be a set S of classes: right is then ``argmax in S``, and ``p(S | x) = sum_{y in S} p(y | x)``. One logit f
stands for the two logits (0, f). In a multi-label classifier a label, or any of a set, is such a binary question. The
bin ``B_m`` holds the images whose confidence is in ``((m - 1) / M, m / M]``. The ECE of a sample is biased upwards,
more so for fewer images in a bin: compare equal counts only.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 2 and 3.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steersman.errors import InputError
from steersman.guidance.objective import target_logit
from steersman.guidance.step import Classes
from steersman.guidance.target import as_sets, of_each

__all__ = [
    "BINS",
    "Reliability",
    "accuracy",
    "binned",
    "confidence",
    "correct",
    "target_probability",
]

BINS = 15  # the usual number; EluCD does not state its own


def correct(logits: Float[Tensor, "B K"], target: Classes, *, multilabel: bool = False) -> Bool[Tensor, "B"]:
    """Returns whether the likeliest class of each image is its target, or in the set that is its target."""
    classes, y = _classes(logits, target, multilabel)
    return (classes.argmax(1, keepdim=True) == as_sets(y)).any(1)


def accuracy(logits: Float[Tensor, "B K"], target: Classes, *, multilabel: bool = False) -> float:
    """Returns the share of images whose likeliest class is their target. For the arguments see `correct`."""
    if not len(logits):
        raise InputError("accuracy needs at least 1 image, got 0")
    return correct(logits, target, multilabel=multilabel).float().mean().item()


def target_probability(
    logits: Float[Tensor, "B K"], target: Classes, *, multilabel: bool = False
) -> Float[Tensor, "B"]:
    """Returns ``p(y | x)`` of each image. For the arguments see `correct`."""
    classes, y = _classes(logits, target, multilabel)
    return of_each(classes.softmax(1), y, 0.0).sum(1)


def confidence(logits: Float[Tensor, "B K"], target: Classes, *, multilabel: bool = False) -> Float[Tensor, "B"]:
    """Returns ``max_i p(i | x)`` of each image; with several labels, of "has the target" and "has it not"."""
    return _classes(logits, target, multilabel)[0].softmax(1).amax(1)


def _classes(logits: Float[Tensor, "B K"], target: Classes, multilabel: bool) -> tuple[Float[Tensor, "B C"], Classes]:
    """Returns one logit for each class, and the target's indices among them."""
    if multilabel:
        logits, target = target_logit("labels", logits, target)[:, None], target.new_ones(len(target))
    return torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits, target


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """The reliability diagram of a classifier, in float64: ``|B_m|``, ``acc(B_m)`` and ``conf(B_m)``, 0 if empty."""

    count: Int[Tensor, "M *T"]
    accuracy: Float[Tensor, "M *T"]
    confidence: Float[Tensor, "M *T"]

    @property
    def error(self) -> Float[Tensor, "*T"]:
        """The expected calibration error, in [0, 1]."""
        share = self.count.double() / self.count.sum(0)
        return (share * (self.accuracy - self.confidence).abs()).sum(0)


def binned(confidence: Float[Tensor, "B *T"], right: Bool[Tensor, "B *T"], bins: int = BINS) -> Reliability:
    """Returns the reliability diagram of predictions, given their confidence and whether they are right.

    Of predictions at T levels it returns T diagrams. torchmetrics closes the bins below instead of above, so that a
    confidence of exactly 1, common in float32, gets a bin of its own.
    """
    if not len(confidence):
        raise InputError("the calibration error needs at least 1 image, got 0")
    if bins < 1:
        raise InputError(f"bins must be at least 1, got {bins}")
    confidence, right = confidence.cpu().double(), right.cpu().double()
    index = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    count, sure, true = (
        torch.zeros(bins, *confidence.shape[1:], dtype=torch.float64).scatter_add_(0, index, values)
        for values in (torch.ones_like(right), confidence, right)
    )
    nonzero = count.clamp(min=1)
    return Reliability(count=count.long(), accuracy=true / nonzero, confidence=sure / nonzero)
