"""Targets: sets of classes are their union, whatever the objective; anything else is what its objective takes."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from steersman.errors import InputError
from steersman.guidance import (
    BinaryProbability,
    ClassProbability,
    Constant,
    Guide,
    NoisePrediction,
    Noisy,
    Sum,
    TargetLogit,
    Toward,
    Translated,
)
from steersman.guidance.target import class_rows, for_images, resolve_targets
from steersman.mixture import Mixture
from steersman.models.classifiers import Classifier, TextClassifier
from steersman.models.classifiers.preprocess import RAW
from steersman.names import imagenet_names
from steersman.sampling import DDIM, DDPM, Heun, sample
from steersman.schedule import CLEAN

F64 = torch.float64
ROUNDING = {"rtol": 1e-12, "atol": 1e-12}
"""Float64's, through sums of a dozen terms of order 1."""


class Labels:
    """Independent labels; a linear network."""

    multilabel = True

    def __init__(self, weights):
        self.weights = weights

    def __call__(self, image, level=None):
        return image.flatten(1) @ self.weights.T


@pytest.fixture
def weights(draw):
    return draw(7, 12)


SETS = [(0, 3), (2,), (1, 4, 5), (6, 2)]
TARGETS = class_rows(SETS)


def gradient(value, image):
    return torch.autograd.grad(value.sum(), image, retain_graph=True)[0]


def alike(objective, expected, image, targets=TARGETS):
    """The value and the gradient are those of a formula written out, one image after the other."""
    value = objective(image, targets, CLEAN)
    torch.testing.assert_close(value, expected, **ROUNDING)
    torch.testing.assert_close(gradient(value, image), gradient(expected, image), **ROUNDING)


def test_classes_are_numbers_and_sets_are_filled_up_to_a_power_of_two():
    assert class_rows([2, (0,)]).tolist() == [2, 0]
    assert TARGETS.tolist() == [[0, 3, -1, -1], [2, -1, -1, -1], [1, 4, 5, -1], [6, 2, -1, -1]]
    assert for_images(TARGETS[:1], 3, "cpu").tolist() == [[0, 3, -1, -1]] * 3


def test_a_set_has_the_log_probability_of_its_union(linear, image):
    share = linear(image).softmax(1)
    expected = torch.stack([share[row, list(indices)].sum() for row, indices in enumerate(SETS)]).log()
    alike(ClassProbability(classifier=linear), expected, image)


def test_a_set_with_temperatures(linear, image):
    f = linear(image)
    joint = torch.stack([(2.0 * f[row, list(indices)]).exp().sum().log() for row, indices in enumerate(SETS)])
    alike(ClassProbability(classifier=linear, joint=2.0, marginal=0.3), joint - (0.3 * f).exp().sum(1).log(), image)
    logits = torch.stack([f[row, list(indices)].exp().sum().log() for row, indices in enumerate(SETS)])
    alike(TargetLogit(classifier=linear), logits, image)


@pytest.mark.parametrize("kind", [ClassProbability, BinaryProbability])
def test_any_of_several_independent_labels(kind, weights, image):
    """``1 - prod (1 - sigmoid(f))``."""
    absent = 1 - Labels(weights)(image).sigmoid()
    expected = torch.stack([1 - absent[row, list(indices)].prod() for row, indices in enumerate(SETS)]).log()
    alike(kind(classifier=Labels(weights)), expected, image)


def test_the_odds_of_any_label_neither_vanish_nor_overflow():
    """``prod (1 + e^f) - 1``, of two labels as ``e^a + e^b + e^(a + b)``."""
    logits = torch.tensor([[-200.0, -201.0], [300.0, 200.0], [-90.0, 5.0]])
    value = TargetLogit(classifier=Labels(torch.eye(2)))(logits, class_rows([(0, 1)] * 3), CLEAN)
    expected = torch.tensor([-200 + np.log1p(np.exp(-1.0)), 500.0, 5.0])
    torch.testing.assert_close(value, expected.float())


@pytest.mark.parametrize("head", ["softmax", "labels"])
def test_a_row_is_bit_equal_whatever_the_others_are(head, weights, image):
    weights, image = weights.float(), image.detach().float().requires_grad_()
    network = Labels(weights) if head == "labels" else lambda image, level: image.flatten(1) @ weights.T
    objective, targets = ClassProbability(classifier=network), [(0, 3, 5), 2, tuple(range(6)), 4]
    mixed = objective(image, class_rows(targets), CLEAN)
    slopes = gradient(mixed, image)
    for row, target in enumerate(targets):
        alone = objective(image, class_rows([target] * 4), CLEAN)
        assert mixed[row] == alone[row]
        assert torch.equal(slopes[row], gradient(alone, image)[row])


@pytest.fixture
def four():
    """Four classes in the plane, of uneven weights."""
    return Mixture(
        weights=torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=F64),
        means=torch.tensor([[-0.4, -0.2], [0.4, -0.2], [0.0, 0.4], [0.5, 0.5]], dtype=F64),
        covariances=torch.stack([scale * torch.eye(2, dtype=F64) for scale in (0.06, 0.04, 0.05, 0.03)]),
    )


def part_of(mixture, indices):
    weights = mixture.weights[indices]
    return Mixture(
        weights=weights / weights.sum(), means=mixture.means[indices], covariances=mixture.covariances[indices]
    )


@pytest.mark.parametrize("sampler", [DDPM(), DDIM(), DDIM(eta=0.5), Heun()], ids=repr)
def test_guided_to_a_set_the_walk_is_that_of_the_mixture_of_its_components(sampler, four):
    """The exact p(S | x_t) of the whole makes its denoiser that of the part: image by image, from the same draws."""
    objective = ClassProbability(classifier=lambda image, level=None: four.log_posterior(image, level))
    guide = Guide(objective=objective, input=Noisy(), weight=Constant(), injection=NoisePrediction())
    settings = {"steps": 15, "clip": False, "dtype": F64}
    found = sample(four, sampler, guides=[guide], target=[(1, 3), 2, (0, 2, 3)], seeds=range(3), **settings)
    for row, indices in enumerate([[1, 3], [2], [0, 2, 3]]):
        exact = sample(part_of(four, indices), sampler, seeds=[row], **settings)
        # the first level has alpha = 5e-5, by which x0_hat is divided: 1e-16 / 5e-5 = 2e-12, through 15 steps
        torch.testing.assert_close(found[row : row + 1], exact, rtol=0, atol=1e-9)


def test_a_translation_takes_sets_and_classes_that_are_several_there_or_the_same(linear, image):
    exact = ClassProbability(classifier=linear)
    there = Translated(objective=exact, classes={0: 4, 1: (2, 5), 2: 4, 3: (5,), 7: 6})
    targets = class_rows([(0, 2), 1, (1, 3), (0, 7, 9)])
    expected = exact(image, class_rows([4, (2, 5), (2, 5), (4, 6)]), CLEAN)
    torch.testing.assert_close(there(image, targets, CLEAN), expected, **ROUNDING)
    with pytest.raises(InputError, match=r"target must be one of \[0, 1, 2, 3, 7\], .*, got 5, 9"):
        there(image, class_rows([(0, 2), 1, (5, 9), 0]), CLEAN)


def test_a_set_of_its_own(linear, image):
    exact = ClassProbability(classifier=linear)
    blend = Sum([(2.0, exact), (-1.0, Toward(objective=exact, target=(1, 6)))])
    expected = 2 * exact(image, TARGETS, CLEAN) - exact(image, class_rows([(1, 6)] * 4), CLEAN)
    torch.testing.assert_close(blend(image, TARGETS, CLEAN), expected, **ROUNDING)


# --- what users give --------------------------------------------------------------------------------------------------


def named(*names, **settings):
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 1 if settings.get("binary") else len(names)))
    return Classifier(network, preprocess=RAW, names=names, **settings)


def meant(classifier, target):
    return resolve_targets([Guide(objective=ClassProbability(classifier=classifier))], target).tolist()


BALLS = ("baseball", "basketball", "pug", "boxer")


@pytest.mark.parametrize(
    ("target", "rows"),
    [
        ("baseball|pug", [[0, 2]]),
        ({"pug", 0}, [[0, 2]]),
        (["baseball|pug", "boxer"], [[0, 2], [3, -1]]),
        ([{3, "pug"}, (np.int64(1), "1")], [[2, 3], [1, -1]]),
        (torch.tensor([[0, 1], [2, 3]]), [[0, 1], [2, 3]]),
        (("pug", "boxer"), [2, 3]),
        ("dog", [[2, 3]]),
        ("dog|baseball", [[0, 2, 3, -1]]),
        ("baseball|baseball", [0]),
    ],
)
@pytest.mark.filterwarnings("ignore:target")
def test_sets_are_given_by_names_numbers_and_pythons_sets(target, rows):
    assert meant(named(*BALLS), target) == rows


def test_a_name_of_wordnet_means_all_classes_below_it_and_says_so():
    with pytest.warns(UserWarning, match=r"target 'dog' is 2 classes of the classifier \(WordNet\): pug, boxer$"):
        assert named(*BALLS).members("dog") == (2, 3)
    with pytest.warns(UserWarning, match=r"target 'Dog' is 118 classes of ImageNet \(WordNet\): Chihuahua, "):
        assert named(*imagenet_names()).members("Dog") == tuple(range(151, 269))
    assert named("dog", *BALLS).members("dog") == (0,)  # a class's own name stays that class


REFUSED = {
    "empty": (set(), "target must hold at least one class, got an empty set"),
    "unknown part": ("pug|cat", "unknown class 'cat'"),
    "not a class": ([{0.5}], "got 0.5"),
    "all": ("baseball|basketball|pug|boxer", "target must leave out a class, got 'baseball.*every class there is"),
    "ambiguous": ("game", "class 'game' is ambiguous, as WordNet has 2 meanings of it; give 'game bird' or 'puzzle'"),
    "beyond": ([(0, 4)], "class index must be 0 to 3, got 4"),
}


@pytest.mark.parametrize("given", REFUSED)
@pytest.mark.filterwarnings("ignore:target")
def test_sets_that_there_are_not_are_refused_in_a_line(given, unchecked):
    target, message = REFUSED[given]
    with pytest.raises(InputError, match=message) as said:
        meant(named(*BALLS), target)
    assert "\n" not in str(said.value)


def test_both_of_two_classes_are_no_target():
    with pytest.raises(InputError, match="target must leave out a class"):
        meant(named("cat", "dog", binary=True), "cat|dog")
    one = BinaryProbability(classifier=named("cat", "dog", binary=True))
    with pytest.raises(InputError, match="target must be one of two classes to a binary classifier"):
        one(torch.zeros(1, 3, 2, 2), class_rows([(0, 1)]), CLEAN)


def test_of_texts_any_is_meant():
    classifier = TextClassifier(
        nn.Flatten(), encode=lambda text: torch.eye(12)[len(text)], sharpness=10.0, preprocess=RAW
    )
    assert meant(classifier, ["a cat|a dogs", "bird"]) == [[0, 1], [2, -1]]
    assert classifier.names == ("a cat", "a dogs", "bird")


# --- other targets ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Resembles:
    """Minus the squared distance from a reference, each value of it with a weight of its own."""

    def encode_target(self, target):
        return {"reference": torch.as_tensor(target, dtype=F64), "weight": torch.tensor(0.5, dtype=F64)}

    def __call__(self, image, target, level):
        return -target["weight"] * (image - target["reference"]).square().flatten(1).sum(1)


def test_a_target_is_whatever_its_objective_takes_for_each_image_its_own(four):
    """``p(x) exp(-|x - r|^2 / 2)`` of a Gaussian is a Gaussian; on the clean image the gradient is ``r - x``."""
    references = [torch.tensor([0.9, -0.3]).reshape(2, 1, 1), np.full((2, 1, 1), -0.7)]
    guide = Guide(objective=Resembles(), weight=Constant(), injection=NoisePrediction(), scale=2.0)
    settings = {"steps": 6, "dtype": F64, "clip": False, "guides": [guide]}
    updates = []
    both = sample(four, DDPM(), target=references, seeds=[0, 1], **settings, callbacks=[updates.append])
    for row, reference in enumerate(references):
        alone = sample(four, DDPM(), target=reference, seeds=[row], **settings)
        torch.testing.assert_close(both[row : row + 1], alone, rtol=0, atol=1e-10)
    assert updates[0].updates[0].log_likelihood.shape == (2,)
    blend = Toward(objective=Resembles(), target=references[0])
    found = Guide(objective=Sum([(1.0, blend)]), weight=Constant(), injection=NoisePrediction(), scale=2.0)
    fixed = sample(four, DDPM(), target=0, seeds=[0], **{**settings, "guides": [found]})
    torch.testing.assert_close(fixed, both[:1], rtol=0, atol=1e-10)


def test_targets_of_two_kinds_or_shapes_are_refused_in_a_line(linear):
    guides = [Guide(objective=Resembles()), Guide(objective=ClassProbability(classifier=named(*BALLS)))]
    with pytest.raises(InputError, match="objectives must understand the same targets, .*Resembles; give one its own"):
        resolve_targets(guides, 0)
    with pytest.raises(InputError, match="target must become tensors of the same shape for each image") as said:
        resolve_targets(guides[:1], [torch.zeros(2), torch.zeros(3)])
    assert "\n" not in str(said.value)
    with pytest.raises(InputError, match="target must be one, or one for each of 3 images, got 2"):
        for_images(resolve_targets(guides[:1], [torch.zeros(2)] * 2), 3, "cpu")
