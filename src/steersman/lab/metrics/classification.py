"""How often, and how surely, a classifier sees the target.

    accuracy                (1/n) sum_k 1[argmax_i f_i(x_k) = y_k]
    target probability      p(y | x) = softmax(f(x))_y

A binary classifier has one logit f, the log-odds of class 1: it stands for the two logits (0, f). Of several labels
each is such a binary question of its own: an image has its target where ``sigmoid(f_y) > 1/2``, and that sigmoid is the
target probability.

Of k successes in n trials, Wilson's (1927) interval holds every share p with ``|k/n - p| <= z sqrt(p (1 - p) / n)``: it
stays within [0, 1] and keeps its width at k = 0 and k = n, as guided images reach it.
"""

import math
from statistics import NormalDist

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steersman.errors import InputError

__all__ = ["accuracy", "confidence", "correct", "target_probability", "wilson"]


def correct(logits: Float[Tensor, "B K"], target: Int[Tensor, "B"], *, multilabel: bool = False) -> Bool[Tensor, "B"]:
    """Returns which images the classifier gives their target.

    Args:
        logits: ``f(x)``; one column for a binary classifier.
        target: A class each, in [0, K).
        multilabel: Whether each logit is of a label of its own.
    """
    classes, y = _classes(logits, target, multilabel)
    return classes.argmax(1) == y


def accuracy(logits: Float[Tensor, "B K"], target: Int[Tensor, "B"], *, multilabel: bool = False) -> float:
    """Returns the share of images that the classifier gives their target, in [0, 1]; the arguments are `correct`'s.

    Raises:
        InputError: There are no images.
    """
    if not len(logits):
        raise InputError("accuracy needs at least 1 image, got 0")
    return correct(logits, target, multilabel=multilabel).float().mean().item()


def target_probability(
    logits: Float[Tensor, "B K"], target: Int[Tensor, "B"], *, multilabel: bool = False
) -> Float[Tensor, "B"]:
    """Returns ``p(y | x)`` of each image, in [0, 1]; the arguments are `correct`'s."""
    classes, y = _classes(logits, target, multilabel)
    return classes.softmax(1).gather(1, y[:, None])[:, 0]


def confidence(
    logits: Float[Tensor, "B K"], target: Int[Tensor, "B"], *, multilabel: bool = False
) -> Float[Tensor, "B"]:
    """Returns ``max_i p(i | x)`` of each image, in the type of the logits; the arguments are `correct`'s.

    Of several labels, it is the probability of the target or that of its absence, whichever is larger.
    """
    return _classes(logits, target, multilabel)[0].softmax(1).amax(1)


def wilson(successes: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns Wilson's interval of a share.

    Args:
        successes: ``k``, from 0 to n.
        count: ``n``, 1 or more.
        confidence: How often such intervals hold the true share, in (0, 1).

    Raises:
        InputError: A number is out of its range.
    """
    if not 0 <= successes <= count or count < 1:
        raise InputError(f"wilson needs 0 to n successes of n, with n at least 1, got {successes} of {count}")
    if not 0 < confidence < 1:
        raise InputError(f"confidence must be between 0 and 1, got {confidence}")
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    centre = successes + z2 / 2
    spread = math.sqrt(z2 * (successes * (count - successes) / count + z2 / 4))
    low, high = (centre - spread) / (count + z2), (centre + spread) / (count + z2)
    return max(0.0, low), min(1.0, high)


def _classes(
    logits: Float[Tensor, "B K"], target: Int[Tensor, "B"], multilabel: bool
) -> tuple[Float[Tensor, "B C"], Int[Tensor, "B"]]:
    """Returns a logit a class, and the targets among these classes: one logit f is of two, (0, f)."""
    if multilabel:
        logits, target = logits.gather(1, target[:, None]), torch.ones_like(target)
    return torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits, target
