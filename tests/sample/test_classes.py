"""Targets and labels of sampling: numbers of any library, names, and what no class answers to."""

import numpy as np
import pytest
import torch
from torch import nn

from steersman.denoise import Prediction, check_condition
from steersman.errors import InputError
from steersman.guidance import ClassProbability, Guide, Sum, TargetLogit, Toward, Translated
from steersman.models.classifiers import Classifier
from steersman.models.classifiers.preprocess import RAW
from steersman.sampling import DDIM, sample
from steersman.schedule import VP


class Labelled:
    """A denoiser of three labels, which keeps those that it was given."""

    schedule, shape, classes = VP.linear(), (3, 4, 4), ("a", "b", "c")

    def __init__(self):
        self.labels = []

    def __call__(self, x_t, level, label=None, **others):
        check_condition(label, 1, others, classes=self.classes, unconditional=False)
        self.labels.append(label)
        return Prediction(torch.zeros_like(x_t))

    def decode(self, x0):
        return x0


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), preprocess=RAW, names=("red", "green", "blue"))


def draw(denoiser=None, **settings):
    condition = {"label": 0} if "condition" not in settings else {}
    return sample(denoiser or Labelled(), DDIM(), seeds=[0, 1], steps=2, **{"condition": condition, **settings})


LABELS = {
    "number": (1, [1, 1]),
    "numpy": (np.int64(1), [1, 1]),
    "tensor": (torch.tensor([2, 0]), [2, 0]),
    "list": ([1, torch.tensor(2)], [1, 2]),
    "names": (["c", "a"], [2, 0]),
}


@pytest.mark.parametrize("given", LABELS)
def test_labels_are_numbers_of_any_library_or_names(given):
    denoiser, (label, expected) = Labelled(), LABELS[given]
    draw(denoiser, condition={"label": label})
    assert [each.tolist() for each in denoiser.labels] == [expected] * 2


REFUSED_LABELS = {
    "beyond": ([1, 7], "label index must be 0 to 2, got 7"),
    "negative": (-1, "label index must be 0 to 2, got -1"),
    "unknown": ("d", "unknown label 'd'"),
    "too many": ([1, 4, 7][:1] * 3, "label must be one, or one for each of 2 images, got 3"),
    "half": (torch.tensor([0.5, 1.0]), "label must be a class's index or name, .* got 0.5"),
}


@pytest.mark.parametrize("given", REFUSED_LABELS)
def test_labels_that_there_are_not_are_refused_in_a_line(given):
    label, message = REFUSED_LABELS[given]
    with pytest.raises(InputError, match=message) as said:
        draw(condition={"label": label})
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("target", [2, np.int64(2), torch.tensor(2), ["blue", np.array(2)], torch.tensor([2, 2])])
def test_targets_are_numbers_of_any_library_or_names(target, classifier):
    guides = [Guide(objective=ClassProbability(classifier=classifier))]
    assert torch.equal(draw(guides=guides, target=target), draw(guides=guides, target=[2, 2]))


@pytest.mark.parametrize("target", [3, np.int64(3), torch.tensor([0, 3]), -1, "purple", 0.5])
@pytest.mark.parametrize("inside", ["alone", "in a sum"])
def test_targets_that_there_are_not_are_refused_in_a_line(target, inside, classifier, unchecked):
    objective = ClassProbability(classifier=classifier)
    if inside == "in a sum":
        objective = Sum(
            terms=((1.0, objective), (-1.0, Toward(objective=TargetLogit(classifier=classifier), target=0)))
        )
    with pytest.raises(InputError, match=r"0 to 2, got|unknown class|got 0.5") as said:
        draw(guides=[Guide(objective=objective)], target=target)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("kind", [ClassProbability, TargetLogit])
def test_a_target_beyond_the_logits_of_a_bare_network_is_refused_in_a_line(kind, classifier):
    guide = Guide(objective=kind(classifier=lambda image, level: classifier.network(image)))
    with pytest.raises(InputError, match="target must be 0 to 2, a class of the classifier, got 3"):
        draw(guides=[guide], target=3)


@pytest.mark.parametrize(
    "build",
    [lambda one: Toward(objective=one, target=3), lambda one: Translated(objective=one, classes={0: 3})],
    ids=["toward", "translated"],
)
def test_a_part_of_an_objective_with_a_class_beyond_is_refused_in_a_line(build, classifier):
    guide = Guide(objective=build(TargetLogit(classifier=classifier)))
    with pytest.raises(InputError, match="class index must be 0 to 2, got 3"):
        draw(guides=[guide], target=0)
