"""How far a classifier's confidence is from its accuracy.

An image's confidence is the likeliest class's probability, ``max_i p(i | x)``. Images fall into M bins of equal width
by it, ``B_m = {k : (m - 1) / M < conf_k <= m / M}``, and

    acc(B_m) = share of B_m whose likeliest class is the target,    conf(B_m) = mean confidence in B_m,
    ECE = sum_m |B_m| / n |acc(B_m) - conf(B_m)|.

Drawn against each other, the two are the reliability diagram; the diagonal is a calibrated classifier. As ``|B_m|``
cancels, ECE is also ``(1/n) sum_m |sum_{k in B_m} (right_k - conf_k)|``, by which many columns' is found at once. A
sample's error is biased upwards, the more the fewer the images a bin holds: compare equal counts only. torchmetrics
closes the bins on the other side and so gives a confidence of exactly 1, which float32 reaches often, a bin M + 1 of
its own.

Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 2 and 3.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steersman.errors import InputError
from steersman.lab.metrics.classification import confidence, correct

__all__ = ["BINS", "Reliability", "binned", "errors", "reliability"]

BINS = 15
"""As usual; EluCD does not say how many."""


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """The reliability diagram of a classifier on some images, in float64.

    Attributes:
        count: ``|B_m|``.
        accuracy: ``acc(B_m)``, 0 in an empty bin.
        confidence: ``conf(B_m)``, likewise.
    """

    count: Int[Tensor, "M"]
    accuracy: Float[Tensor, "M"]
    confidence: Float[Tensor, "M"]

    @property
    def error(self) -> float:
        """The expected calibration error, in [0, 1]."""
        share = self.count.double() / self.count.sum()
        return float((share * (self.accuracy - self.confidence).abs()).sum())


def reliability(
    logits: Float[Tensor, "B K"], target: Int[Tensor, "B"], bins: int = BINS, *, multilabel: bool = False
) -> Reliability:
    """Returns the reliability diagram; its ``error`` is the expected calibration error.

    Args:
        logits: ``f(x)``, divided by a temperature where there is one; one column for a binary classifier.
        target: A class each, in [0, K).
        bins: ``M``, 1 or more.
        multilabel: Whether each logit is of a label of its own.

    Raises:
        InputError: There are no images, or no bins.
    """
    head = {"multilabel": multilabel}
    logits, target = logits.cpu().double(), target.cpu()
    return binned(confidence(logits, target, **head), correct(logits, target, **head), bins)


def binned(confidence: Float[Tensor, "B"], right: Bool[Tensor, "B"], bins: int = BINS) -> Reliability:
    """Returns the reliability diagram of predictions of which only this is known.

    Args:
        confidence: The likeliest class's probability, in [0, 1].
        right: Whether it is the target.
        bins: ``M``, 1 or more.

    Raises:
        InputError: There are no images, or no bins.
    """
    if not len(confidence):
        raise InputError("the calibration error needs at least 1 image, got 0")
    if bins < 1:
        raise InputError(f"bins must be at least 1, got {bins}")
    confidence, right = confidence.cpu().double(), right.cpu().double()
    place = _places(confidence, bins)
    count, sure, true = (
        torch.zeros(bins, dtype=torch.float64).index_add_(0, place, each)
        for each in (torch.ones_like(right), confidence, right)
    )
    filled = count.clamp(min=1)
    return Reliability(count=count.long(), accuracy=true / filled, confidence=sure / filled)


def errors(confidence: Float[Tensor, "B T"], right: Bool[Tensor, "B T"], bins: int = BINS) -> Float[Tensor, " T"]:
    """Returns the expected calibration error of each column: that of its `binned`, of all columns at once.

    Args:
        confidence: The likeliest class's probability, in [0, 1].
        right: Whether it is the target.
        bins: ``M``, 1 or more.
    """
    confidence, right = confidence.cpu().double(), right.cpu().double()
    sums = torch.zeros(bins, confidence.shape[1], dtype=torch.float64)
    sums.scatter_add_(0, _places(confidence, bins), right - confidence)
    return sums.abs().sum(0) / len(confidence)


def _places(confidence: Float[Tensor, "*shape"], bins: int) -> Int[Tensor, "*shape"]:
    """Returns the bin of each, from 0; a bin holds its upper edge."""
    return (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
