"""Gradients through networks in float16: they do not vanish, and depend on no other image."""

import copy
import math

import pytest
import torch
from torch import nn

from accelerator import awaits_nothing
from steersman import latent
from steersman.guidance import ClassProbability
from steersman.models.classifiers import Classifier
from steersman.models.classifiers.preprocess import RAW
from steersman.models.denoisers import EDMDenoiser, NetworkDenoiser, load_denoiser
from steersman.precision import loss_scaled
from steersman.schedule import CLEAN, VP, Level

HALF, NAMES = torch.float16, ("cat", "dog", "bird")
LEVEL = Level(*(torch.tensor(each, dtype=torch.float64) for each in (0.6, 0.8, 400.0)))


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(32, 3)
    ).eval()


def sure(margin, images):
    """A classifier that finds the first class likelier than the others by that much, in each of the images or more."""
    made = network()
    with torch.no_grad():
        logits = made(images)
        made[-1].bias[0] += margin + (logits[:, 1:].amax(1) - logits[:, 0]).max()
    return made


def classifier(made, dtype):
    return Classifier(made, preprocess=RAW, names=NAMES).to(dtype=dtype)


def gradient(ask, x, v=None):
    x = x.detach().clone().requires_grad_()
    out = ask(x)
    (g,) = torch.autograd.grad(out, x, torch.ones_like(out) if v is None else v)
    return g


def likelihood(found):
    objective = ClassProbability(classifier=found)
    return lambda x: objective(x, torch.zeros(len(x), dtype=torch.int64), CLEAN)


def cosines(a, b):
    return torch.cosine_similarity(a.flatten(1).double(), b.flatten(1).double(), dim=1, eps=1e-300)


@pytest.fixture
def images():
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)


@pytest.mark.parametrize("margin", [0, 12, 40, 80])
def test_a_classifier_that_is_sure_has_a_gradient(images, margin):
    exact = gradient(likelihood(classifier(sure(margin, images), torch.float32)), images)
    half = gradient(likelihood(classifier(sure(margin, images), HALF)), images)
    assert half.dtype == torch.float32 and (half.flatten(1).abs().amax(1) > 0).all()
    assert (cosines(half, exact) > 0.98).all()
    assert half.double().norm() / exact.double().norm() == pytest.approx(
        1, abs=0.1
    )  # float16 rounds a logit of 80 to 0.06


def test_images_that_are_sure_and_unsure_share_a_batch(images):
    """The scale is each image's own: one for the batch would round the smaller gradients to zero."""
    found = classifier(sure(0, images), HALF)
    scale = torch.tensor([1.0, 1e-9, 1e-18, 1e-27])
    v = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)) * scale[:, None]
    exact = gradient(classifier(sure(0, images), torch.float32), images, v)
    assert (cosines(gradient(found, images, v), exact) > 0.98).all()


@pytest.mark.parametrize("block", [None, 4])
def test_an_image_has_the_same_gradient_to_the_bit_beside_any_other(images, block):
    found = likelihood(made := classifier(sure(20, images), HALF))
    made.block = block
    alone = torch.cat([gradient(found, each) for each in images.split(1)])
    assert (gradient(found, torch.cat([images, 2 * images]))[:4] == gradient(found, images)).all()
    assert block is None or (gradient(found, images) == alone).all()


def test_an_image_whose_gradient_is_not_finite_leaves_the_others(images):
    v = torch.ones(4, 3)
    v[1] = math.inf
    found = classifier(network(), HALF)
    g = gradient(found, images, v)
    assert not g[1].isfinite().all()
    assert (g[[0, 2, 3]] == gradient(found, images, torch.ones(4, 3))[[0, 2, 3]]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_no_other_type_is_scaled(dtype):
    def made(x):
        return x

    assert loss_scaled(made, dtype) is made


def test_the_scale_waits_for_no_device(accelerator, images):
    made = classifier(sure(40, images), HALF).to("cuda")
    x = images.to("cuda").requires_grad_()
    target = torch.zeros(4, dtype=torch.int64, device="cuda")
    likelihood = ClassProbability(classifier=made)(x, target, CLEAN)
    with awaits_nothing(accelerator):
        (g,) = torch.autograd.grad(likelihood.sum(), x)
    assert (g.cpu().flatten(1).abs().amax(1) > 0).all()


class Noise(nn.Module):
    """A small network of noise, called as diffusers' are."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1))

    def forward(self, x, time, class_labels=None):
        out = self.layers(x) + 0.001 * time[:, None, None, None].to(x.dtype)
        return type("Output", (), {"sample": out})()


def ours(dtype):
    return NetworkDenoiser(Noise(), schedule=VP.from_betas(torch.linspace(1e-4, 0.02, 1000)), shape=(3, 8, 8)).to(
        dtype=dtype
    )


def edm(dtype):
    return EDMDenoiser(Noise(), shape=(3, 8, 8)).to(dtype=dtype)


@pytest.mark.parametrize("make", [ours, edm])
@pytest.mark.parametrize("size", [1.0, 1e-8, 1e-20])
def test_a_denoiser_passes_a_small_gradient_on(images, make, size):
    v = size * torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    # What does not pass the network is exact anyway, and would hide that the rest is missing.
    made = {dtype: make(dtype) for dtype in (torch.float32, HALF)}
    exact, half = (gradient(lambda x, d=each: d(x, LEVEL).x0_hat, images, v) for each in made.values())
    straight = 1 / 0.6 if make is ours else 0.25 / (0.8**2 + 0.25)
    assert (cosines(half - straight * v, exact - straight * v) > 0.98).all()


def test_a_denoiser_that_recomputes_its_blocks_does_so_too(denoiser):
    def made(dtype, checkpoint):
        found = load_denoiser(denoiser, dtype=dtype)
        if checkpoint:
            found.network.enable_gradient_checkpointing()
        return lambda x: found(x, LEVEL, label=torch.zeros(len(x), dtype=torch.int64)).x0_hat

    x, v = torch.randn(2, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    v = 1e-9 * v
    kept, again = (gradient(made(HALF, each), x, v) for each in (False, True))
    exact = gradient(made(torch.float32, False), x, v)
    assert (kept == again).all()
    assert (cosines(again - 0.6 * v, exact - 0.6 * v) > 0.98).all()


def test_a_decoder_does_so_too(dit):
    vae = latent.frozen(copy.deepcopy(dit.vae))
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    v = 1e-9 * torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    exact = gradient(lambda x: latent.decoded(vae, x), z, v)
    vae.to(HALF)
    assert (cosines(gradient(lambda x: latent.decoded(vae, x), z, v), exact) > 0.98).all()
