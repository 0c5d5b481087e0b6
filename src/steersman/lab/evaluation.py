"""What the networks of a run say of finished images.

Guide and judge, the network that steered and one that never does: whether an image shows its target, and with which
probability, among the classes that the network has. With several labels each has its own sigmoid.

The denoiser: how well it recognizes noise that is added to a finished sample ``x_0``,

    x_t = alpha x_0 + sigma eps,    sigma / alpha = 0.1
    e   = rms(eps_hat - eps) = rms(x0_hat - x_0) alpha / sigma

A denoiser that takes all of ``x_t`` for the image has ``e = 1``. On images like those it was trained on, ``e`` is well
below (the bundled one: .17 to .26 on its data, 1.6 on static), the less texture they have the further.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.batching import rms
from steersman.denoise import Denoiser
from steersman.guidance.target import class_rows, of_each
from steersman.lab.metrics.classification import correct, target_probability
from steersman.models.classifiers import Classifier, TextClassifier
from steersman.precision import ieee
from steersman.sampling.samplers import SeededNoise
from steersman.schedule import noised

__all__ = ["CLEAR", "USELESS", "Evaluation", "evaluate_images", "mean_evaluations", "noise_error", "noise_error_limit"]

RATIO = 0.1  # sigma / alpha of the noise that is added: about 13 of 255 grey levels
USELESS = 0.8  # a noise error that no texture explains: the denoiser recognizes next to nothing of the noise
CLEAR = 0.3  # a noise error that is low enough whatever that of unguided images is
BURNT = 1.5  # factor on the largest noise error of unguided images, beyond which an image is unlike them


class Evaluation(NamedTuple):
    """What a classifier says of one image; None where the classifier cannot say it."""

    accuracy: float | None = None  # 1 where the target is the likeliest class, or a label likelier than not; else 0
    probability: float | None = None  # of the target
    similarity: float | None = None  # the cosine of image and text, of a set that of the nearest; for texts alone


def evaluate_images(
    classifier: Classifier, images: Float[Tensor, "B C H W"], targets: Sequence[int | Sequence[int]]
) -> list[Evaluation]:
    """Returns what a classifier says of each image in [-1, 1], given the class of its target, or the set of them."""
    logits = classifier(images).cpu()  # few numbers; the float64 below exists on no MPS device
    target = class_rows(targets)
    accuracy: Sequence[float | None] = [None] * len(images)
    probability, similarity = accuracy, accuracy
    if len(classifier.names) > 1 or classifier.multilabel:
        accuracy = correct(logits, target, multilabel=classifier.multilabel).double().tolist()
        probability = target_probability(logits, target, multilabel=classifier.multilabel).tolist()
    if isinstance(classifier, TextClassifier):
        similarity = (of_each(logits, target).amax(1) / classifier.sharpness).tolist()
    return [Evaluation(*row) for row in zip(accuracy, probability, similarity, strict=True)]


def mean_evaluations(evaluations: Sequence[Mapping[str, Evaluation | None]]) -> dict[str, Any]:
    """Returns the means over images whose ``guide`` and ``judge`` are given, by figure and network."""
    return {
        figure: {
            network: _mean([getattr(evaluation[network], figure, None) for evaluation in evaluations])
            for network in ("guide", "judge")
        }
        for figure in Evaluation._fields
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 4) if known else None


@torch.no_grad()
@ieee()
def noise_error(
    denoiser: Denoiser,
    x0: Float[Tensor, "B *shape"],
    seeds: Sequence[int],
    **condition: Any,  # noqa: ANN401
) -> Float[Tensor, " B"]:
    """Returns the error ``e`` of the noise prediction on finished samples, whose noise follows from their seeds."""
    level = denoiser.schedule.at_ratio(RATIO)
    eps = SeededNoise(seeds, tuple(x0.shape[1:]), x0.device, x0.dtype)("check")
    return rms(denoiser(noised(x0, eps, level), level, **condition).x0_hat - x0).flatten() / RATIO


def noise_error_limit(unguided: Sequence[float]) -> float:
    """Returns the noise error beyond which an image is burnt or noise, given those of some unguided images, if any."""
    return max(CLEAR, min(USELESS, BURNT * max(unguided, default=USELESS)))
