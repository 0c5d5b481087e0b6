"""`Recipe.bind`: the classifier that a recipe guides by is prepared as the recipe says, whatever the caller did."""

import pytest
import torch
from torch import nn

from steersman.errors import InputError
from steersman.models.classifiers import RAW, Classifier, Preprocess, load_classifier
from steersman.recipes import load_recipe
from steersman.schedule import CLEAN

OWN = Preprocess(size=16, mean=(0.4,), std=(0.2,))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))


@pytest.fixture
def classifier():
    return Classifier(network(), preprocess=OWN, names=["cat", "dog, hound", "fox"])


def test_input_and_smoothing_of_the_recipe_reach_the_classifier(classifier):
    """EluCD's released code feeds the sample as it is, and smooths by softplus 3."""
    recipe = load_recipe(
        "elucd-ddpm", {"preprocess": {"transform": "raw"}, "smoothing": {"kind": "softplus", "beta": 3.0}}
    )
    guides = recipe.bind(classifier)
    used = guides[0].objective.classifier
    assert (used.softplus, used.smoothed, used.preprocess) == (3.0, 1, RAW)
    assert guides.classifier is used
    image = torch.rand(2, 3, 12, 12) * 2 - 1
    expected = Classifier(network(), preprocess=RAW, names="abc").smooth(3.0)(image)
    assert torch.equal(used(image), expected)
    assert (classifier.softplus, classifier.preprocess) == (None, OWN)  # the caller's own stays as it is


def test_what_is_prepared_already_is_taken_as_it_is(classifier):
    recipe = load_recipe("nrcg", {"smoothing": {"kind": "softplus", "beta": 3.0}})
    bound = recipe.bind(classifier).classifier
    assert recipe.bind(bound).classifier is bound
    plain = load_recipe("nrcg", {"smoothing": "none"})
    assert plain.bind(classifier).classifier is classifier
    with pytest.raises(
        InputError, match="asked for, but the classifier 'Sequential' is smoothed by softplus 3 already"
    ):
        load_recipe("nrcg", {"smoothing": {"kind": "softplus", "beta": 8.0}}).bind(bound)


def test_a_text_is_loaded_as_the_recipe_says():
    recipe = load_recipe("default")
    bound = recipe.bind("zoo:sportballs-mobilenet").classifier
    loaded = load_classifier("zoo:sportballs-mobilenet", **recipe.classifier_settings())
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    assert torch.equal(bound(image), loaded(image))


def test_everything_else_that_the_recipe_says_comes_along(classifier):
    guides = load_recipe("fk-steering", scale=0.5).bind(classifier)
    assert guides.particles.count > 1
    assert guides.sampling["particles"] == guides.particles
    assert guides.recipe.resolved()["scale"] == {"value": 0.5}


def test_several_classifiers_share_classes_by_their_names(classifier):
    other = Classifier(network(), preprocess=RAW, names=["wolf", "fox", "Dog"])
    recipe, image = load_recipe("nrcg", {"smoothing": "none"}), torch.rand(1, 3, 8, 8) * 2 - 1
    both, first, second = (recipe.bind(*each)[0].objective for each in ((classifier, other), (classifier,), (other,)))
    for target, there in ((1, 2), (2, 1)):
        expected = first(image, torch.tensor([target]), CLEAN) + second(image, torch.tensor([there]), CLEAN)
        torch.testing.assert_close(both(image, torch.tensor([target]), CLEAN), expected)


@pytest.mark.parametrize("given", [network(), lambda image: image, 3])
def test_what_states_no_input_is_refused(given):
    with pytest.raises(InputError, match="classifier must be a text such as 'timm:resnet50', a folder, or a steersman"):
        load_recipe("nrcg").bind(given)


def test_scale_and_changes_by_python_values():
    recipe = load_recipe("nrcg", {"stabilizer.beta": 0.5}, scale=3)
    assert recipe.resolved()["scale"] == {"value": 3.0}
    assert recipe.resolved()["stabilizer"]["beta"] == 0.5
    assert load_recipe(recipe, scale=4).resolved()["scale"] == {"value": 4.0}
    with pytest.raises(InputError, match="unknown axis 'scales'"):
        load_recipe("nrcg", {"scales": 1})
