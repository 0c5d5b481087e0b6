"""Steering a pipeline: images go where they are steered, each its own way, and nothing else changes."""

import numpy as np
import pytest
import torch
from torch import nn

import steersman
from pipelines.families import FAMILIES, PAIRS, QUICK, draw, draws, make, reaching, wide
from steersman.errors import InputError, Notice
from steersman.guidance import (
    ClassProbability,
    Constant,
    Denoised,
    DenoisedImage,
    Ema,
    Interval,
    Mean,
    NoisePrediction,
    Sine,
    Sum,
    Toward,
    Translated,
)
from steersman.models.classifiers import Classifier
from steersman.models.classifiers.preprocess import RAW

diffusers = pytest.importorskip("diffusers")


@pytest.mark.parametrize(("name", "scheduler"), wide(PAIRS, QUICK))
def test_without_a_push_no_bit_changes(name, scheduler, guide):
    idle = [guide(scale=0.0, wrt="x_t"), guide(weight=Interval(ratio_min=1e6, ratio_max=1e7))]
    pipe = make(name, scheduler)
    plain = draw(pipe, name)
    with pytest.warns(UserWarning, match="no step was guided"), steersman.steer(pipe, idle, target=1):
        assert torch.equal(draw(pipe, name), plain)


@pytest.mark.parametrize(
    ("scale", "said"), [(1e-9, "^guidance hardly changed the samples, by "), (1e6, "^guidance changed the samples by ")]
)
@pytest.mark.parametrize("injection", [Mean(), NoisePrediction()], ids=["mean", "noise"])
def test_what_guidance_did_is_said_where_it_was_next_to_nothing_or_too_much(scale, said, injection, guide):
    pipe = make("DDPM", "DDPM")
    with pytest.warns(Notice, match=said), steersman.steer(pipe, guide(scale=scale, injection=injection), target=1):
        draw(pipe, "DDPM")


WAYS = {
    "direct-mean": ("x0_hat", Mean()),
    "direct-denoised": ("x0_hat", DenoisedImage()),
    "through-noise": ("x_t", NoisePrediction()),
}
EACH_WAY = [("SD", "PNDM", way) for way in WAYS] + [
    ("DDPM", "DDPM", "through-noise"),
    ("DiT", "DDIM", "direct-mean"),
    ("SD inpaint", "DDIM", "through-noise"),
    ("SD ControlNet", "DDIM", "through-noise"),
    ("SDXL Turbo", "EulerAncestral", "direct-denoised"),
    ("Flux", "FlowMatchEuler", "through-noise"),
    ("Qwen-Image", "FlowMatchEuler", "direct-denoised"),
    ("Z-Image", "FlowMatchEuler", "through-noise"),
    ("LTX", "FlowMatchEuler", "direct-mean"),
    ("CogVideoX", "CogVideoXDDIM", "direct-denoised"),
]


@pytest.mark.few(3)
@pytest.mark.parametrize(("name", "scheduler", "way"), wide([(*pair, way) for pair in PAIRS for way in WAYS], EACH_WAY))
def test_images_go_where_they_are_steered(name, scheduler, way, guide, likelihood):
    pipe = make(name, scheduler)
    plain = draw(pipe, name)
    wrt, injection = WAYS[way]
    with steersman.steer(pipe, guide(**reaching(name, wrt=wrt, injection=injection)), target="green"):
        steered = draw(pipe, name)
    assert steered.isfinite().all()
    assert (likelihood(steered, 1) > likelihood(plain, 1) + FAMILIES[name].margin).all()
    assert torch.equal(draw(pipe, name), plain)


ENDING = {"set_alpha_to_one": True, "clip_sample": False}  # the last step leads to x0_hat as it is


SEEN = [
    *((name, family.schedulers[0]) for name, family in FAMILIES.items() if family.flow),
    *((name, "DDIM") for name in ("LDM", "DiT", "SD", "SD ControlNet", "SDXL", "PixArt", "Kandinsky 2.2")),
    ("CogVideoX", "CogVideoXDDIM"),
]


@pytest.mark.parametrize(("name", "scheduler"), wide(SEEN, [("SD", "DDIM"), ("Flux", "FlowMatchEuler")]))
def test_the_classifier_sees_what_the_pipeline_draws(name, scheduler, guide, classifier):
    """Where the last step ends at ``x0_hat``, which is decoded here and there."""

    class Seeing(ClassProbability):
        def __call__(self, image, target, level):
            seen[:] = [image.detach()]
            return super().__call__(image, target, level)

    seen, pipe = [], make(name, scheduler, **(ENDING if scheduler == "DDIM" else {}))
    with steersman.steer(pipe, guide(objective=Seeing(classifier=classifier), scale=1e-30), target=1):
        drawn = draw(pipe, name)
    assert (seen[0].clamp(-1, 1) - drawn.reshape(seen[0].shape)).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["DDPM", "SD"])
def test_every_call_is_a_walk_of_its_own(name, guide):
    pipe = make(name)
    steering = guide(stabilizer=Ema(beta=0.9), weight=Sine(gamma=0.3))
    with steersman.steer(pipe, steering, target=1):
        first, second = draw(pipe, name), draw(pipe, name)
    assert torch.equal(first, second)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_dit_s_doubled_sample_is_steered_once(guidance_scale, guide, likelihood):
    pipe = make("DiT")
    call = {"guidance_scale": guidance_scale, "class_labels": [3, 3]}
    plain = draw(pipe, "DiT", **call)
    with steersman.steer(pipe, guide(), target=["red", "blue"]):
        steered = draw(pipe, "DiT", **call)
    for target in (0, 2):
        gained = likelihood(steered, target) - likelihood(plain, target)
        assert gained[target // 2] > 0.05 > gained[1 - target // 2]


@pytest.mark.few(2)
@pytest.mark.parametrize("name", ["DDPM", "SD", "Flux"])
def test_each_image_has_its_own_target(name, guide):
    pipe, images = make(name), {}
    for target in (0, 2, [0, 2]):
        with steersman.steer(pipe, guide(), target=target):
            images[str(target)] = draw(pipe, name)
    expected = torch.stack([images["0"][0], images["2"][1]])
    assert (images["[0, 2]"] - expected).abs().max() < 1e-5
    with (
        pytest.raises(InputError, match="one for each of 2 images, got 3"),
        steersman.steer(pipe, guide(), target=[0, 1, 2]),
    ):
        draw(pipe, name)


@pytest.mark.parametrize(
    "target",
    [np.int64(2), np.array(2), torch.tensor(2), np.array([2, 2]), torch.tensor([2, 2]), ["2", torch.tensor(2)]],
    ids=repr,
)
def test_a_target_is_a_number_of_any_library(target, guide):
    pipe, images = make("DDPM"), []
    for each in ("blue", target):
        with steersman.steer(pipe, guide(), target=each):
            images.append(draw(pipe, "DDPM", 1))
    assert torch.equal(*images)


class Noted(Constant):
    """Tells at which steps it was asked."""

    def __init__(self, note):
        object.__setattr__(self, "note", note)

    def __call__(self, step, x_t, prediction, g):
        self.note(step)
        return super().__call__(step, x_t, prediction, g)


def test_from_an_image_the_walk_begins_further_on(guide, likelihood):
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**make("SD", "Heun").components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    steps = []

    def note(step):
        steps.append((step.index, step.count, step.stage))

    call = {
        "prompt": ["a ball", "a dab"],
        "image": torch.zeros(2, 3, 16, 16),
        "strength": 0.5,
        "num_inference_steps": 6,
        "output_type": "pt",
    }
    plain = pipe(**call, generator=draws()).images * 2 - 1
    with steersman.steer(pipe, guide(weight=Noted(note)), target=1):
        steered = pipe(**call, generator=draws()).images * 2 - 1
    assert steps == [(0, 3, 0), (1, 3, 0), (2, 3, 0)]
    assert (likelihood(steered, 1) > likelihood(plain, 1) + 0.01).all()


def test_a_view_that_clips_does_so_after_the_decoder(guide, classifier):
    class Range:
        def __call__(self, image, target, level):
            ranges.append((image.shape, float(image.detach().abs().max())))
            return ClassProbability(classifier=classifier)(image, target, level)

    pipe, ranges = make("SD"), []
    with steersman.steer(pipe, guide(objective=Range(), input=Denoised()), target=1):
        draw(pipe, "SD")
    assert [shape for shape, _ in ranges] == [
        (2, 3, 16, 16)
    ] * 3  # once a step, though PNDM's first has two evaluations
    assert max(largest for _, largest in ranges) == 1


def test_a_target_is_what_all_classifiers_say(classifier, guide):
    other = Classifier(nn.Linear(4, 2), preprocess=RAW, names=("blue", "red"))
    both = Sum(((1.0, ClassProbability(classifier=classifier)), (1.0, ClassProbability(classifier=other))))
    pipe = make("DDPM")
    with pytest.raises(InputError, match="is class 0 and 2 of them"):
        with steersman.steer(pipe, guide(objective=both), target="blue"):
            pass
    for part in (
        Toward(objective=ClassProbability(classifier=other), target=0),
        Translated(objective=ClassProbability(classifier=other), classes={0: 1, 2: 0}),
    ):
        both = Sum(((1.0, ClassProbability(classifier=classifier)), (0.0, part)))
        with steersman.steer(pipe, guide(objective=both), target="blue"):
            pass
