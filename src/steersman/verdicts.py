"""What guide and judge say of the images of a run.

The guide's figures are those of the network that steered; the judge is another one, which never does. Accuracy and
probability are among the classes that a network knows: for a classifier of texts, the texts of the run, and null where
there is but one. Similarity is the cosine of text and image, null for other classifiers.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.classifiers import Classifier, TextClassifier
from steersman.metrics import correct, target_probability

__all__ = ["Tally", "Verdict", "figures", "judged"]

GRID = 64  # images of a target in the grid, at most


class Verdict(NamedTuple):
    """What a network says of an image, None where it says nothing.

    Attributes:
        accuracy: 1 where the target is its likeliest class, else 0.
        probability: The target's.
        similarity: The cosine of image and target, where that is a text.
    """

    accuracy: float | None = None
    probability: float | None = None
    similarity: float | None = None


def judged(classifier: Classifier, images: Float[Tensor, "B 3 H W"], targets: Sequence[int]) -> list[Verdict]:
    """Returns what a classifier says of each image.

    Args:
        classifier: The guide or the judge.
        images: In [-1, 1].
        targets: A class each, in the classifier's own numbers.
    """
    logits = classifier(images)
    target = torch.tensor(targets, device=logits.device)
    nothing = [None] * len(images)
    right: Sequence[float | None] = nothing
    probability: Sequence[float | None] = nothing
    similarity: Sequence[float | None] = nothing
    if len(classifier.names) > 1:
        right, probability = correct(logits, target).double().tolist(), target_probability(logits, target).tolist()
    if isinstance(classifier, TextClassifier):
        similarity = (logits.gather(1, target[:, None])[:, 0] / classifier.sharpness).tolist()
    return [Verdict(*said) for said in zip(right, probability, similarity, strict=True)]


class Tally:
    """What is gathered of one target's images.

    Attributes:
        verdicts: What guide and judge said.
        shown: The first images, for the grid.
    """

    def __init__(self) -> None:
        self.verdicts: dict[str, list[Verdict]] = {"guide": [], "judge": []}
        self.shown: list[Tensor] = []

    def add(self, image: Float[Tensor, "3 H W"], verdicts: Mapping[str, Verdict | None]) -> None:
        """Adds an image in [-1, 1] and what was said of it."""
        for name, verdict in verdicts.items():
            if verdict is not None:
                self.verdicts[name].append(verdict)
        if len(self.shown) < GRID:
            self.shown.append(image.cpu())


def figures(tallies: Mapping[str, Tally]) -> dict[str, Any]:
    """Returns what guide and judge say, over all targets and for each."""

    def means(chosen: Sequence[Tally]) -> dict[str, Any]:
        said = {name: [row for tally in chosen for row in tally.verdicts[name]] for name in ("guide", "judge")}
        return {
            figure: {name: _mean([getattr(row, figure) for row in rows]) for name, rows in said.items()}
            for figure in Verdict._fields
        }

    whole = means(list(tallies.values()))
    if len(tallies) > 1:
        whole["targets"] = {name: means([tally]) for name, tally in tallies.items()}
    return whole


def _mean(values: Sequence[float | None]) -> float | None:
    said = [value for value in values if value is not None]
    return round(sum(said) / len(said), 4) if said else None
