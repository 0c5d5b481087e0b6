"""How often, and how surely, a classifier sees the target.

    accuracy                (1/n) sum_k 1[argmax_i f_i(x_k) = y_k]
    target probability      p(y | x) = softmax(f(x))_y

A binary classifier has one logit f, the log-odds of class 1: it stands for the two logits (0, f).

Of k successes in n trials, Wilson's (1927) interval holds every share p with ``|k/n - p| <= z sqrt(p (1 - p) / n)``: it
stays within [0, 1] and keeps its width at k = 0 and k = n, as guided images reach it.
"""

import math
from statistics import NormalDist

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steersman.errors import InputError

__all__ = ["accuracy", "correct", "target_probability", "two_logits", "wilson"]


def correct(logits: Float[Tensor, "B K"], target: Int[Tensor, "B"]) -> Bool[Tensor, "B"]:
    """Returns which images the classifier gives their target.

    Args:
        logits: ``f(x)``; one column for a binary classifier.
        target: A class each, in [0, K).
    """
    return two_logits(logits).argmax(1) == target


def accuracy(logits: Float[Tensor, "B K"], target: Int[Tensor, "B"]) -> float:
    """Returns the share of images that the classifier gives their target, in [0, 1].

    Args:
        logits: ``f(x)``; one column for a binary classifier.
        target: A class each, in [0, K).

    Raises:
        InputError: There are no images.
    """
    if not len(logits):
        raise InputError("accuracy: 0 images given; allowed: 1 and more")
    return correct(logits, target).double().mean().item()


def target_probability(logits: Float[Tensor, "B K"], target: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """Returns ``p(y | x)`` of each image, in [0, 1].

    Args:
        logits: ``f(x)``; one column for a binary classifier.
        target: A class each, in [0, K).
    """
    return two_logits(logits).softmax(1).gather(1, target[:, None])[:, 0]


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
        raise InputError(f"wilson: {successes} of {count} given; allowed: 0 to n of n, n 1 and more")
    if not 0 < confidence < 1:
        raise InputError(f"confidence: {confidence} given; allowed: between 0 and 1")
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    centre = successes + z2 / 2
    spread = math.sqrt(z2 * (successes * (count - successes) / count + z2 / 4))
    low, high = (centre - spread) / (count + z2), (centre + spread) / (count + z2)
    return max(0.0, low), min(1.0, high)


def two_logits(logits: Float[Tensor, "B K"]) -> Float[Tensor, "B C"]:
    """Returns a column a class: a binary classifier's one logit f becomes (0, f), others stay."""
    return torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits
