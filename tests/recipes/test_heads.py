"""Whatever a recipe's objective is, it follows the classifier's head: a sigmoid of one logit, or of several labels."""

import pytest
import torch
from torch import nn

from steersman.errors import InputError, Notice
from steersman.models.classifiers import RAW, Classifier
from steersman.recipes import load_recipe, recipe_names
from steersman.schedule import VP


class Means(nn.Module):
    """Logits that rise with some channels of the image."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, image):
        return 3 * image.mean((2, 3))[:, self.channels]


def slopes(recipe, classifier, target):
    """The gradient of a recipe's objective on its target, channel by channel."""
    level = VP.cosine().at_time(torch.tensor(300))
    image = torch.full((1, 3, 8, 8), 0.1, requires_grad=True)
    guides = load_recipe(recipe).bind_prepared(classifier)
    for guide in guides:
        value = guide.objective(image, torch.tensor([target]), level)
        (g,) = torch.autograd.grad(value.sum(), image)
        yield g.sum((0, 2, 3))


@pytest.mark.few(3)
@pytest.mark.parametrize("name", recipe_names())
def test_either_class_of_one_logit_is_guided_its_own_way(name, recwarn):
    classifier = Classifier(Means([0]), preprocess=RAW, names=["dark", "red"], binary=True)
    for target, sign in (("dark", -1), ("red", 1)):
        for g in slopes(name, classifier, classifier.resolve(target)):
            assert g[0] * sign > 0 and not g[1:].any()
    assert any("the classifier is binary" in str(each.message) for each in recwarn)


@pytest.mark.few(3)
@pytest.mark.parametrize("name", recipe_names())
def test_no_other_label_is_pushed(name, recwarn):
    classifier = Classifier(Means([0, 1, 2]), preprocess=RAW, names=["red", "green", "blue"], multilabel=True)
    for target in range(3):
        for g in slopes(name, classifier, target):
            assert g[target] > 0 and g.count_nonzero() == 1
    assert any("the classifier is multi-label" in str(each.message) for each in recwarn)


def test_the_objective_binary_is_refused_for_a_softmax():
    classifier = Classifier(Means([0, 1]), preprocess=RAW, names=["red", "green"])
    with pytest.raises(
        InputError, match="objective binary needs .* got a softmax over 2; use objective class or logit"
    ):
        list(slopes("nrcg/celeba", classifier, 0))


def test_a_softmax_is_guided_without_a_notice():
    import warnings

    classifier = Classifier(Means([0, 1]), preprocess=RAW, names=["red", "green"])
    with warnings.catch_warnings(action="error", category=Notice):
        assert [bool(g[0] > 0) for g in slopes("default", classifier, 0)] == [True, True]
