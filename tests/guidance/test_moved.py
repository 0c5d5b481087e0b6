"""How far an update moves an image is one quantity, in the units of a sample, whatever the injection."""

import pytest
import torch

from steersman.batching import rms
from steersman.guidance import (
    ClassProbability,
    Constant,
    DenoisedImage,
    Deviation,
    Guide,
    Mean,
    NoisePrediction,
    Noisy,
    Product,
    Relative,
    Sample,
    Spherical,
    Variance,
)
from steersman.mixture import Mixture
from steersman.sampling import DDIM, DDPM, DPMpp, Recurrence, sample
from steersman.sampling.watch import Watch

F64 = torch.float64
SETTINGS = {"target": 2, "clip": False, "dtype": F64}


def drawn(mixture, posterior, sampler, images=100, **choices):
    """Guided samples, the same without guides, and how far each was moved by what was reported."""
    settings = SETTINGS | {"steps": choices.pop("steps", 12), "recurrence": choices.pop("recurrence", None)}
    settings["seeds"] = range(images)
    guide = Guide(objective=ClassProbability(classifier=posterior), input=Noisy(), **choices)
    watch = Watch(lambda _: None)
    guided = sample(mixture, sampler, guides=[guide], callbacks=[watch], **settings)
    return guided, sample(mixture, sampler, **settings), torch.tensor(watch.moved(images), dtype=F64)


@pytest.mark.parametrize(
    "injection", [Mean(), NoisePrediction(), DenoisedImage(), DenoisedImage(keeps="sample")], ids=repr
)
def test_a_step_into_the_clean_image_moves_it_by_the_change_of_the_image(mixture, posterior, injection):
    guided, unguided, moved = drawn(
        mixture, posterior, DDIM(), injection=injection, weight=Constant(), scale=1e-5, steps=1
    )
    assert moved.min() > 0
    torch.testing.assert_close(moved, rms(guided - unguided).flatten(), rtol=1e-6, atol=1e-15)


def test_before_the_denoiser_is_asked_it_is_the_change_of_what_it_predicts(posterior):
    """Of data of unit variance, whose denoised image is ``alpha / (alpha^2 + sigma^2) x_t``."""
    one = torch.ones(1, dtype=F64)
    normal = Mixture(weights=one, means=torch.zeros(1, 2, dtype=F64), covariances=torch.eye(2, dtype=F64)[None])
    guided, unguided, moved = drawn(
        normal, posterior, DDIM(), injection=Sample(), weight=Constant(), scale=0.1, steps=1
    )
    torch.testing.assert_close(moved, rms(guided - unguided).flatten(), rtol=1e-6, atol=1e-12)


WAYS = {
    "mean": {"injection": Mean(), "weight": Variance(), "scale": 0.3},
    "noise": {"injection": NoisePrediction(), "weight": Constant(), "scale": 0.1},
    "denoised": {"injection": DenoisedImage(), "weight": Constant(), "scale": 0.003},
    "denoised, sample kept": {"injection": DenoisedImage(keeps="sample"), "weight": Constant(), "scale": 0.01},
    "sample": {"injection": Sample(), "weight": Constant(), "scale": 0.003},
    "spherical": {"injection": Spherical(), "weight": Product([Deviation(), Relative()]), "scale": 0.05},
}


@pytest.mark.parametrize("sampler", [DDPM(), DDIM(eta=0.5), DPMpp()], ids=lambda sampler: type(sampler).__name__)
@pytest.mark.parametrize("name", WAYS)
def test_over_a_trajectory_it_is_about_how_far_the_image_ends_from_the_unguided_one(mixture, posterior, sampler, name):
    """Within a factor of about three: the data vary less than they are taken to, so that later steps undo a part."""
    if name == "spherical" and sampler == DPMpp():
        pytest.skip("its steps end without noise")
    guided, unguided, moved = drawn(mixture, posterior, sampler, **WAYS[name])
    change = rms(guided - unguided).flatten()
    assert 0.5 < float(moved.mean() / change.mean()) < 3.2
    assert 0.01 < float(change.mean()) < 0.3


def test_repeated_steps_count_each_time(mixture, posterior):
    once = drawn(mixture, posterior, DDPM(), **WAYS["mean"])[2].mean()
    twice = drawn(mixture, posterior, DDPM(), recurrence=Recurrence(times=2), **WAYS["mean"])[2].mean()
    assert 1.5 < float(twice / once) < 2.5
