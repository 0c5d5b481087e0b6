"""What guide and judge say of images, by what their heads mean."""

import math

import pytest
import torch
from torch import nn

from steersman.lab.evaluation import evaluate_images
from steersman.models.classifiers import RAW, Classifier


class Channels(nn.Module):
    """The mean of each channel is a logit."""

    def __init__(self, count):
        super().__init__()
        self.count = count

    def forward(self, image):
        return image.mean((2, 3))[:, : self.count]


def images(*logits):
    return torch.tensor(logits)[:, :, None, None].expand(-1, -1, 2, 2)


SHOWN = images([math.log(3), 3.0, -2.0], [-math.log(3), -3.0, -2.0])


@pytest.mark.parametrize(
    ("settings", "targets", "right", "probabilities"),
    [
        ({"names": "abc", "multilabel": True}, [0, 0], [1, 0], [0.75, 0.25]),
        ({"names": "abc"}, [0, 0], [0, 1], [3 / (3 + math.exp(3) + math.exp(-2)), None]),
        ({"names": "ab", "binary": True}, [0, 1], [0, 0], [0.25, 0.25]),
        ({"names": "ab", "binary": True}, [1, 0], [1, 1], [0.75, 0.75]),
        ({"names": "a", "multilabel": True}, [0, 0], [1, 0], [0.75, 0.25]),
        ({"names": "a"}, [0, 0], [None, None], [None, None]),
    ],
)
def test_a_evaluation_follows_the_head(settings, targets, right, probabilities):
    count = 1 if settings.get("binary") else len(settings["names"])
    said = evaluate_images(Classifier(Channels(count), preprocess=RAW, **settings), SHOWN, targets)
    assert [each.accuracy for each in said] == right
    for evaluation, expected in zip(said, probabilities, strict=True):
        assert expected is None or evaluation.probability == pytest.approx(expected)
