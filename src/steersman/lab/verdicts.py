"""What guide and judge say of the images of a run.

The guide's figures are those of the network that steered; the judge is another one, which never does. Accuracy and
probability are among the classes that a network knows: for a classifier of texts, the texts of the run, and null where
there is but one; of several labels, each is measured by its own sigmoid. Similarity is the cosine of text and image,
null for other classifiers.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.lab.metrics import correct, target_probability
from steersman.models.classifiers import Classifier, TextClassifier

__all__ = ["Verdict", "figures", "judged"]


class Verdict(NamedTuple):
    """What a network says of an image, None where it says nothing.

    Attributes:
        accuracy: 1 where the target is its likeliest class, or a label likelier than not; else 0.
        probability: The target's.
        similarity: The cosine of image and target, where that is a text.
    """

    accuracy: float | None = None
    probability: float | None = None
    similarity: float | None = None


def judged(classifier: Classifier, images: Float[Tensor, "B C H W"], targets: Sequence[int]) -> list[Verdict]:
    """Returns what a classifier says of each image.

    Args:
        classifier: The guide or the judge.
        images: In [-1, 1].
        targets: A class each, in the classifier's own numbers.
    """
    logits = classifier(images).cpu()  # few numbers, read once; not every accelerator has the float64 below
    target = torch.tensor(targets)
    nothing = [None] * len(images)
    right: Sequence[float | None] = nothing
    probability: Sequence[float | None] = nothing
    similarity: Sequence[float | None] = nothing
    if len(classifier.names) > 1 or classifier.multilabel:
        head = {"multilabel": classifier.multilabel}
        right = correct(logits, target, **head).double().tolist()
        probability = target_probability(logits, target, **head).tolist()
    if isinstance(classifier, TextClassifier):
        similarity = (logits.gather(1, target[:, None])[:, 0] / classifier.sharpness).tolist()
    return [Verdict(*said) for said in zip(right, probability, similarity, strict=True)]


def figures(said: Sequence[Mapping[str, Verdict | None]]) -> dict[str, Any]:
    """Returns the means of what guide and judge say of some images, by figure and network."""
    return {
        figure: {name: _mean([getattr(each[name], figure, None) for each in said]) for name in ("guide", "judge")}
        for figure in Verdict._fields
    }


def _mean(values: Sequence[float | None]) -> float | None:
    said = [value for value in values if value is not None]
    return round(sum(said) / len(said), 4) if said else None
