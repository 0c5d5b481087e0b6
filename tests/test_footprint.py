"""What `benchmarks/footprint.py` counts: by hand, the same of shapes as of values, as published, and as allocated."""

from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from steersman.models.classifiers import Classifier
from steersman.models.classifiers.preprocess import Preprocess
from steersman.models.denoisers import DiffusersDenoiser
from steersman.schedule import VP

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
ROUTES = (None, "x0_hat", "x_t")


@pytest.fixture(scope="module")
def footprint():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import footprint

        yield footprint


@pytest.fixture(scope="module")
def shapes(footprint):
    """Gives networks shapes in place of values."""
    import footprint_networks

    return lambda network: footprint_networks.bare(deepcopy(network), torch.float32)


def network(channels):
    """A U-Net with an attention."""
    return UNet2DModel(
        sample_size=16,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


def coder():
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
    )


@pytest.fixture(scope="module", params=["pixels", "latents"])
def parts(request):
    """A denoiser's network, its VAE if it has one, and a classifier's network."""
    classifier = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)
    )
    return (network(3), None, classifier) if request.param == "pixels" else (network(4), coder(), classifier)


def pair(unet, vae, classifier):
    preprocess = Preprocess(mean=(0.5,) * 3, std=(0.2,) * 3, size=24, interpolation="bilinear", crop=0.8)
    return (
        DiffusersDenoiser(unet, schedule=VP.linear(), vae=vae),
        Classifier(classifier, preprocess=preprocess, names="abcde"),
    )


def test_what_is_alive_by_hand(footprint):
    weight, x = torch.ones(3, 4), torch.zeros(1000)
    with footprint.Counting([weight]) as counting:
        a = x.exp()
        b = a.view(10, 100).exp()  # 8000 bytes, the view none
        del a
        c = b.exp()
        assert (counting.alive, counting.peak) == (8000, 8000)
        d = b.exp()
        del b, c
        assert (counting.alive, counting.peak) == (4000, 12000)
        assert counting.flop == 0
        d = torch.ones(2, 3) @ weight
        assert counting.flop == 2 * 2 * 3 * 4
        d = weight.T
        assert counting.alive == 0 and d.shape == (4, 3)


def test_what_is_kept_for_the_gradient_is_alive(footprint):
    x = torch.zeros(1000, requires_grad=True)
    with footprint.Counting([]) as counting:
        y = x.exp().exp().exp().sum()  # each exp keeps what it put out
        assert counting.alive == 3 * 4000 + 4
        torch.autograd.grad(y, x)
    with torch.no_grad(), footprint.Counting([]) as counting:
        x.exp().exp().exp().sum()
        assert counting.peak == 2 * 4000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
@pytest.mark.parametrize("real", [True, False])
def test_attention_by_hand(footprint, real, backend, dtype):
    """2 x 3 heads, 5 queries and 7 keys of size 4: two products, four for the gradient, one recomputed if fused."""
    with nullcontext() if real else footprint.SHAPES:
        held = [torch.ones(2, 3, length, 4, dtype=dtype, requires_grad=True) for length in (5, 7, 7)]
    product = 2 * 2 * 3 * 5 * 7 * 4
    with sdpa_kernel(backend), footprint.Counting(held) as counting:
        out = scaled_dot_product_attention(*held)
        assert counting.flop == 2 * product
        torch.autograd.grad(out.sum(), held)
    assert counting.flop == (2 + 4 + (backend is SDPBackend.FLASH_ATTENTION)) * product


class Untracked:
    """In place of the counter's tracker of modules, which cannot follow `torch.autograd.grad` to a module's input."""

    parents = ("Global",)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


@pytest.fixture(scope="module")
def counts(footprint, shapes, parts):
    """What networks of shapes take, unguided, direct and through."""
    empty = pair(*(part and shapes(part) for part in parts))
    return {wrt: footprint.count(*empty, wrt, {}) for wrt in ROUTES}


@pytest.mark.long
def test_shapes_count_as_values_do(footprint, parts, counts):
    real = pair(*parts)
    found = {wrt: footprint.count(*real, wrt, {}) for wrt in ROUTES}
    assert [each.flop for each in counts.values()] == [each.flop for each in found.values()]
    for wrt in ROUTES:  # torch 2.7 computes shapes of a gradient with a copy more
        assert counts[wrt].peak == pytest.approx(found[wrt].peak, rel=0.12)


@pytest.mark.long
def test_arithmetic_is_what_torch_counts(footprint, parts, counts):
    flops = FlopCounterMode(display=False)
    flops.mod_tracker = Untracked()
    with flops:
        footprint.step(*pair(*parts), "x_t", {})
    assert counts["x_t"].flop == flops.get_total_flops() > 0


@pytest.mark.few(2)
def test_guiding_takes_more_and_through_the_denoiser_most(counts):
    none, direct, through = (counts[wrt] for wrt in ROUTES)
    assert none.flop < direct.flop < through.flop
    assert none.peak <= direct.peak < through.peak


@pytest.mark.long
def test_the_vae_recomputes_its_blocks(footprint, shapes):
    empty = pair(shapes(network(4)), shapes(coder()), nn.Sequential(nn.Flatten(), nn.Linear(3 * 24**2, 5)))
    kept = footprint.count(*empty, "x0_hat", {})
    empty[0].vae.disable_gradient_checkpointing()
    again = footprint.count(*empty, "x0_hat", {})
    assert again.peak > kept.peak and again.flop < kept.flop


@pytest.mark.few(3)
@pytest.mark.parametrize(("name", "published"), [("ADM 256", 554), ("DiT-XL/2 256", 675)])
def test_published_sizes(footprint, name, published):
    (found, *_) = (pair for pair in footprint.PAIRS if pair.denoiser == name)
    denoiser, classifier = found.build(torch.bfloat16)
    count = footprint.parameters(denoiser.network) / 1e6
    if name.startswith("DiT"):
        count -= footprint.REPEATED / 1e6
        forward = footprint.count(denoiser, classifier, None, found.condition).flop / 2e9
        assert forward == pytest.approx(118.64, abs=0.05)
    assert round(count) == published
    assert footprint.size(denoiser.network) == pytest.approx(2 * footprint.parameters(denoiser.network), rel=0.01)


@pytest.mark.long
@pytest.mark.parametrize("wrt", [None, "x_t"])
def test_as_much_as_is_allocated(footprint, wrt):
    measured, counted = footprint.measured(wrt)
    assert counted <= measured < 1.3 * counted  # the difference is what operations take for themselves
