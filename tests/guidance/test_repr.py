"""A guide and a classifier in one line, whatever network they hold."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from steersman.guidance import (
    ClassProbability,
    Guide,
    Interval,
    MonteCarlo,
    NoisePrediction,
    Product,
    Sum,
    TargetLogit,
    Translated,
    Variance,
)
from steersman.models.classifiers import Classifier, Preprocess, TextClassifier
from steersman.models.denoisers import load_denoiser
from steersman.recipes import load_recipe
from steersman.schedule import VP


def network(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, classes))


def classifier(names, **settings):
    return Classifier(network(len(names)), preprocess=Preprocess(), names=names, **settings)


@dataclass(frozen=True)
class Table:
    """An objective of a table of values."""

    values: torch.Tensor

    def __call__(self, image, target, level):
        return self.values[target]


PETS = classifier(["cat, house cat", "dog", "fox"])


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (PETS, "Classifier(Sequential, 3 classes: cat, dog, fox)"),
        (classifier(list("abcde")), "Classifier(Sequential, 5 classes: a, b, c, …)"),
        (classifier(["old", "hat"], multilabel=True), "Classifier(Sequential, 2 labels: old, hat)"),
        (classifier(["smiling"], binary=True), "Classifier(Sequential, 2 classes: not smiling, smiling)"),
        (
            TextClassifier(nn.Flatten(), encode=lambda text: torch.ones(4), sharpness=1.0, preprocess=Preprocess()),
            "TextClassifier(Flatten, 0 texts)",
        ),
    ],
)
def test_a_classifier_says_its_network_and_classes(held, said):
    assert repr(held) == said


def test_a_classifier_with_long_names_is_one_short_line():
    said = repr(classifier(["word " * 100, "two\nlines", "c", "d"]))
    assert "\n" not in said
    assert len(said) < 300


def test_a_smoothed_classifier_is_called_by_its_network():
    assert repr(PETS.smooth(8.0)).endswith(", 3 classes: cat, dog, fox)")


def test_a_guide_is_its_settings_that_are_not_defaults():
    assert repr(Guide(objective=TargetLogit(classifier=PETS))) == f"Guide(objective=TargetLogit(classifier={PETS!r}))"
    guide = Guide(
        objective=ClassProbability(classifier=PETS, marginal=0.5),
        scale=30.0,
        wrt="x_t",
        weight=Product((Variance(), Interval(ratio_min=0.5))),
        injection=NoisePrediction(),
    )
    assert repr(guide) == (
        f"Guide(objective=ClassProbability(classifier={PETS!r}, marginal=0.5), scale=30.0, wrt='x_t', "
        "weight=Product(factors=[Variance(), Interval(ratio_min=0.5)]), injection=NoisePrediction())"
    )


@pytest.mark.parametrize(
    "objective",
    [
        TargetLogit(classifier=network(3)),
        Sum([(1.0, TargetLogit(classifier=network(3))), (-0.5, MonteCarlo(objective=TargetLogit(classifier=PETS)))]),
        Translated(objective=TargetLogit(classifier=PETS), classes={y: y % 3 for y in range(1000)}),
        Table(torch.eye(100)),
        lambda image, target, level: image.sum((1, 2, 3)),
    ],
    ids=["plain-network", "sum", "translated", "tensor", "function"],
)
def test_any_objective_leaves_it_one_line(objective):
    said = repr(Guide(objective=objective))
    assert said.startswith("Guide(objective=")
    assert "\n" not in said
    assert len(said) < 400


def test_models_and_recipes_are_one_line():
    assert repr(VP.linear()) == "VP(1000 times, alpha_bar 0.9999 to 4.036e-05)"
    denoiser = load_denoiser("zoo:mnist")
    assert repr(denoiser) == f"EDMDenoiser(ADMUNet, samples (1, 28, 28), {denoiser.schedule!r}, 10 labels)"
    recipe = load_recipe("interval")
    assert repr(recipe) == f"Recipe('interval', settings={recipe.settings})"
    assert not any("\n" in repr(each) for each in (denoiser, recipe))
