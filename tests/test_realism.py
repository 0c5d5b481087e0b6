"""A denoiser knows its own images from noise and from burnt ones."""

import json

import pytest
import torch

from steersman.batching import broadcast
from steersman.denoise import Prediction
from steersman.lab.evaluation import noise_error, noise_error_limit
from steersman.models.denoisers import load_denoiser
from steersman.sampling import DDIM, sample
from steersman.schedule import VP


class Passes:
    """A denoiser that takes all that it is shown for the image."""

    schedule, shape, classes = VP.linear(), (3, 8, 8), ()

    def __call__(self, x_t, level):
        return Prediction(x_t / broadcast(level.alpha, x_t))

    def decode(self, x0):
        return x0


def test_a_denoiser_that_knows_nothing_has_an_error_of_one():
    x0 = torch.linspace(-1, 1, 64 * 64 * 3 * 2).reshape(2, 3, 64, 64)
    assert noise_error(Passes(), x0, [0, 1]) == pytest.approx(1, abs=0.02)  # the noise's own size, of 12,288 values


def test_the_noise_follows_from_the_seed_alone():
    x0 = torch.zeros(3, 3, 8, 8)
    first, second = noise_error(Passes(), x0, [5, 6, 7]), noise_error(Passes(), x0[:1], [6])
    assert first[1] == second[0]
    assert first[0] != first[1]


@pytest.mark.long
def test_the_bundled_denoiser_knows_its_own_images_from_noise_and_from_grain():
    denoiser = load_denoiser("zoo:sportballs")
    own = sample(denoiser, DDIM(), seeds=range(3), steps=12).clamp(-1, 1)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(own.shape, generator=generator)
    unguided = noise_error(denoiser, own, range(3)).tolist()
    assert max(unguided) < noise_error_limit(unguided)
    assert min(noise_error(denoiser, noise.clamp(-1, 1), range(3))) > 1
    assert min(noise_error(denoiser, (own + 0.15 * noise).clamp(-1, 1), range(3))) > noise_error_limit(unguided)


def test_the_limit_lies_between_clear_and_useless():
    assert noise_error_limit([0.1]) == 0.3
    assert noise_error_limit([0.2, 0.4]) == pytest.approx(0.6)
    assert noise_error_limit([1.0]) == noise_error_limit([]) == 0.8


@pytest.mark.long
def test_static_is_not_reported_as_a_success(call, tmp_path):
    """A scale far too large draws noise in which guide and judge see what they are asked for."""
    settings = "--num 2 --steps 6 --recipe elucd-ddpm --classifier zoo:sportballs-mobilenet --target volleyball"
    code, said, _ = call("sample", *settings.split(), "--scale", 200, "--out", tmp_path / "static")
    assert code == 1
    assert "2 of the images look burnt or are noise" in " ".join(said.split())
    assert "Try --scale 20." in said
    assert "none of the images in" in said
    metrics = json.loads((tmp_path / "static" / "metrics.json").read_text())
    assert metrics["noise_error"]["broken"] == ["volleyball 0", "volleyball 1"]
    code, said, _ = call("sample", *settings.split(), "--scale", 1, "--out", tmp_path / "balls")
    assert code == 0
    assert "burnt" not in said
    code, said, _ = call("report", tmp_path / "static")
    assert code == 0
    assert "look burnt or are noise" in next((tmp_path / "static").glob("*.html")).read_text()
