"""`steersman.api.sample`: images by one call, from texts, paths or objects."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import steersman
from steersman.api import sample, steer
from steersman.errors import InputError, Notice
from steersman.guidance import Guide, TargetLogit
from steersman.models.classifiers import Classifier, Preprocess, load_classifier
from steersman.models.denoisers import load_denoiser
from steersman.recipes import load_recipe
from steersman.sampling import sample as sample_batch

FEW = {"steps": 2, "progress": False}
GUIDED = {"classifier": "zoo:mnist-lenet", "recipe": "nrcg", **FEW}


@pytest.fixture(scope="module")
def sevens():
    """Two images that are steered to a seven."""
    return sample("zoo:mnist", target="7", seeds=2, **GUIDED).tensor


def test_it_is_the_loop_with_a_bound_recipe():
    denoiser = load_denoiser("zoo:mnist")
    guides = load_recipe("nrcg", {"sampling.steps": 2}).bind("zoo:mnist-lenet")
    samples = sample_batch(denoiser, guides.sampler, guides=guides, target=7, seeds=[3, 5], **guides.sampling)
    result = sample("zoo:mnist", target="7", seeds=[3, 5], **GUIDED)
    torch.testing.assert_close(result.tensor, samples.clamp(-1, 1), rtol=0, atol=1e-5)
    assert (result.seeds, result.dropped) == ((3, 5), (0, 0))
    pixels = np.asarray(result.images[1])
    assert np.abs(pixels - (result.tensor[1, 0].numpy() + 1) * 127.5).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("target", [np.int64(7), ["7", torch.tensor(7)], np.array([7, 7])], ids=repr)
def test_a_target_is_a_name_or_any_integer(target, sevens):
    assert torch.equal(sample("zoo:mnist", target=target, seeds=2, **GUIDED).tensor, sevens)


def test_parts_are_texts_or_objects_alike():
    denoiser, classifier = load_denoiser("zoo:mnist"), load_classifier("zoo:mnist-lenet")
    expected = sample("zoo:mnist", target="7", seeds=1, scale=3, **GUIDED).tensor
    objects = {"classifier": classifier, "recipe": load_recipe("nrcg"), "scale": 3, **FEW}
    assert torch.equal(sample(denoiser, target=7, seeds=1, **objects).tensor, expected)
    bound = load_recipe("nrcg", {"sampling.steps": 2}, scale=3).bind(classifier)
    assert torch.equal(sample(denoiser, target=7, seeds=1, recipe=bound, progress=False).tensor, expected)


def test_targets_and_labels_follow_their_images_through_batches():
    settings = {"target": ["7", "3", "1"], "seeds": 3, "condition": {"label": ["7", "3", 1]}}
    whole = sample("zoo:mnist", **settings, **GUIDED).tensor
    parts = sample("zoo:mnist", batch_size=2, **settings, **GUIDED).tensor
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)
    alone = sample("zoo:mnist", target="1", seeds=[2], condition={"label": 1}, **GUIDED).tensor
    torch.testing.assert_close(alone, whole[2:], rtol=0, atol=1e-4)


def test_without_a_classifier_nothing_guides(sevens):
    assert not torch.equal(sample("zoo:mnist", seeds=2, **FEW).tensor, sevens)


def test_a_callback_sees_each_step_of_each_batch():
    reports = []
    sample("zoo:mnist", target="7", seeds=3, batch_size=2, callback=reports.append, **GUIDED)
    assert [(each.step.index, len(each.x0)) for each in reports] == [(0, 2), (1, 2), (0, 1), (1, 1)]
    (update,) = reports[0].updates
    assert update.gradient.shape == update.stabilized.shape == update.value.shape == (2, 1, 28, 28)
    torch.testing.assert_close(update.stabilized, 0.01 * update.gradient)  # the first step of nrCG's EMA of 0.99
    assert update.log_likelihood.shape == (2,)


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        (1e-6, r"^guidance hardly changed the samples, by \S+ in root mean square; try a scale 30 times as large$"),
        (
            1e5,
            r"^guidance changed the samples by \S+ in root mean square, where images span 2, so that they are likely",
        ),
        (0.0, None),
        (1.0, None),
    ],
)
def test_what_guidance_did_is_said_where_it_was_next_to_nothing_or_too_much(scale, said):
    warned = pytest.warns(Notice, match=said) if said else warnings.catch_warnings(action="error")
    with warned:
        sample("zoo:mnist", target="7", seeds=2, scale=scale, **GUIDED | {"recipe": "elucd-ddpm", "steps": 4})


def test_memory_that_holds_one_image_is_enough(monkeypatch):
    denoiser, sizes = load_denoiser("zoo:mnist"), []
    forward = denoiser.network.forward

    def limited(x, *args, **kwargs):
        sizes.append(len(x))
        if len(x) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return forward(x, *args, **kwargs)

    monkeypatch.setattr(denoiser.network, "forward", limited)
    assert len(sample(denoiser, seeds=3, batch_size=3, **FEW).tensor) == 3
    assert sizes[:2] == [3, 1]


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": "7"}, "target needs a classifier that steers to it, got target '7' and no classifier"),
        ({"scale": 3}, "scale needs a classifier whose gradient it scales, got scale 3 and no classifier"),
        (
            {"classifier": "zoo:mnist-lenet"},
            "target must be a class for all images, or one for each, as there are guides; got none",
        ),
        ({"classifier": "zoo:mnist-lenet", "target": "seven of nine"}, "unknown class 'seven of nine'"),
        ({"classifier": "zoo:mnist-lenet", "target": 10}, "class index must be 0 to 9, got 10"),
        (
            {"classifier": "zoo:mnist-lenet", "target": [1, 2]},
            "target must be one, or one for each of the 4 images, got 2",
        ),
        ({"seeds": []}, "seeds must hold at least one seed, got none"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"condition": {"label": 10}}, "label index must be 0 to 9, got 10"),
        ({"condition": {"label": [1, 2, 3]}}, "label must be one, or one for each of 4 images, got 3"),
        ({"condition": {"lable": 1}}, "unknown condition 'lable'"),
        ({"recipe": "nrgc"}, "unknown recipe 'nrgc'; did you mean 'nrcg'"),
    ],
)
def test_bad_input_is_one_line(changes, said):
    with pytest.raises(InputError, match=said) as error:
        sample("zoo:mnist", **{**FEW, **changes})
    assert "\n" not in str(error.value)


def test_samples_that_are_no_images_are_tensors():
    result = sample("zoo:mnist", seeds=1, **FEW)
    series = type(result)(tensor=result.tensor[:, 0], seeds=(0,), dropped=(0,))
    with pytest.raises(
        InputError, match=r"images must have 1 or 3 channels and two sides, got samples of shape \(28, 28"
    ):
        _ = series.images


NETWORK = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
CLASSIFIER = Classifier(NETWORK, preprocess=Preprocess(), names=["cat", "dog"])
OBJECTIVE = TargetLogit(classifier=CLASSIFIER)
NOT_A_GUIDE = "guide must be a steersman.Guide or a list of these, as Recipe.bind returns, got"


def steered(*arguments):
    with steer(*arguments):
        pass


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: steered(nn.Module(), CLASSIFIER, "dog"), f"{NOT_A_GUIDE} Classifier; a classifier is given as"),
        (lambda: steered(nn.Module(), [CLASSIFIER], "dog"), f"{NOT_A_GUIDE} list"),
        (lambda: steered(nn.Module(), "nrcg", "dog"), f"{NOT_A_GUIDE} str; .*, a recipe as recipe=..."),
        (lambda: steered("zoo:mnist", Guide(objective=OBJECTIVE), "dog"), "pipe must be a pipeline with a .*, got str"),
        (lambda: sample(CLASSIFIER), "denoiser must be a text .* got Classifier; a pipeline is steered by"),
        (lambda: sample("zoo:mnist", seeds=2.5), "seeds must be a number of images, .*, got 2.5"),
        (lambda: sample("zoo:mnist", condition="7"), "condition must be a mapping such as {'label': 'cat'}, got '7'"),
        (lambda: sample("zoo:mnist", device="gpu"), "device must be cpu, cuda, cuda:0, … or mps, got 'gpu'"),
        (lambda: sample("zoo:mnist", recipe=[OBJECTIVE]), "a recipe must be a name, a file or .*, got list"),
        (lambda: load_classifier(NETWORK), "loaded by a text such as 'timm:resnet50', got Sequential; a network is"),
        (lambda: load_denoiser(NETWORK), "loaded by a text such as 'zoo:sportballs', got Sequential; a pipeline is"),
        (lambda: load_recipe("nrcg").bind([CLASSIFIER]), "or a steersman.Classifier, got list"),
        (
            lambda: Guide(objective=CLASSIFIER),
            r"objective of a guide must be .*ClassProbability\(classifier=...\), got",
        ),
        (
            lambda: Guide(objective=OBJECTIVE, stabilizer="ema"),
            r"must be an object such as steersman.Ema\(\), got 'ema'",
        ),
        (lambda: Guide(objective=OBJECTIVE, scale="3"), "scale of a guide must be a number, got '3'"),
        (lambda: Classifier("resnet", preprocess=Preprocess(), names=["a", "b"]), "network of a Classifier must be a"),
        (
            lambda: Classifier(NETWORK, preprocess=len, names=["a", "b"]),
            "preprocess of a Classifier must be a steersman",
        ),
        (
            lambda: Classifier(NETWORK, preprocess=Preprocess(), names={0: "a", 1: "b"}),
            "names of a Classifier must be a list of",
        ),
    ],
)
def test_what_is_given_in_the_wrong_place_is_one_line(call, said):
    with pytest.raises(InputError, match=said) as error:
        call()
    assert "\n" not in str(error.value)


def test_what_there_is_can_be_listed():
    assert {"sample", "steer", "Guide", "load_recipe", "recipe_names", "__version__"} <= set(dir(steersman))
    assert all(hasattr(steersman, name) for name in dir(steersman))
    assert steersman.__version__ == "0.1.0"
