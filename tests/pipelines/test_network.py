"""Gradients through a pipeline's network, whatever it runs in."""

import copy

import pytest
import torch

import steersman
from pipelines.families import FAMILIES, draw, embeds, make, reaching, wide
from steersman import batching as rows
from steersman.errors import InputError
from steersman.guidance import Chain, ClassProbability, Constant, Identity, Interval, Rms
from steersman.schedule import CLEAN


class Seen(Identity):
    """Keeps the gradients that went through it."""

    def __init__(self):
        self.gradients = []

    def update(self, g, state):
        self.gradients.append(g)
        return super().update(g, state)


HALF = ("bfloat16", "float16")
NEW = ("Chroma", "FLUX.2", "Qwen-Image", "Z-Image", "Kandinsky 2.2", "Wan", "LTX", "CogVideoX")
SLOPES = {
    "SD": ("DDIM", {"clip_sample": False, "timestep_spacing": "trailing"}, (2, 4, 8, 8)),
    "SDXL": ("Euler", {"timestep_spacing": "trailing"}, (2, 4, 8, 8)),
    "SD3": ("FlowMatchEuler", {}, (2, 16, 8, 8)),
    "Flux": ("FlowMatchEuler", {}, (2, 24, 16)),
    "FluxCFG": ("FlowMatchEuler", {}, (2, 24, 16)),
    "PixArt": ("DPMSolverMultistep", {}, (2, 4, 8, 8)),
}


@pytest.mark.parametrize("name", wide(SLOPES, ["SDXL", "FluxCFG"]))
def test_the_gradient_through_a_pipeline_is_its_slope(name, guide, classifier):
    scheduler, settings, shape = SLOPES[name]
    pipe = make(name, scheduler, **settings).to(torch.float64)
    more = {key: each.double() if torch.is_tensor(each) else each for key, each in FAMILIES[name].call().items()}
    objective = ClassProbability(classifier=copy.deepcopy(classifier).double())
    start, along = embeds(2, *shape).double() / 2

    def of(latents):
        """The log-likelihood of what the only step leads to, ``x0_hat``."""
        x0 = (draw(pipe, name, 1, **more, latents=latents, output_type="latent") + 1) / 2
        if x0.ndim == 3:
            x0 = pipe._unpack_latents(x0, 16, 24, pipe.vae_scale_factor)
        config = pipe.vae.config
        if config.latents_mean:
            mean, deviation = (
                torch.tensor(each).reshape(1, -1, 1, 1) for each in (config.latents_mean, config.latents_std)
            )
            x0 = x0 * deviation + mean * config.scaling_factor
        with torch.no_grad():
            image = pipe.vae.decode(x0 / config.scaling_factor + (config.shift_factor or 0)).sample
            return objective(image, torch.ones(2, dtype=torch.int64), CLEAN)

    seen = Seen()
    with steersman.steer(pipe, guide(objective=objective, wrt="x_t", stabilizer=seen, scale=1e-30), target=1):
        draw(pipe, name, 1, **more, latents=start)
    (g,) = seen.gradients
    g = pipe._pack_latents(g, *g.shape) if start.ndim == 3 else g
    if scheduler == "Euler":  # it starts from sigma z, and x_t = alpha sigma z
        g = g * pipe.scheduler.init_noise_sigma / (1 + pipe.scheduler.init_noise_sigma**2) ** 0.5
    slope = (of(start + 1e-4 * along) - of(start - 1e-4 * along)) / 2e-4
    assert (slope.abs() > 0.01).all()
    assert ((g * along).flatten(1).sum(1) - slope).abs().max() < 1e-3


@pytest.mark.parametrize(("name", "scheduler"), [("DDPM", "DDPM"), ("SD", "Euler")])
def test_only_the_route_through_differentiates_the_network(name, scheduler, guide):
    pipe = make(name, scheduler)
    seen = []
    hook = pipe.unet.register_forward_hook(lambda module, inputs, output: seen.append(torch.is_grad_enabled()))
    late = Interval(ratio_max=0.2)  # the first step's network is asked before its level is known
    for wrt, weight, expected in (
        ("x0_hat", Constant(), [False] * 3),
        ("x_t", Constant(), [True] * 3),
        ("x_t", late, [True, False, True]),
    ):
        seen.clear()
        with steersman.steer(pipe, guide(wrt=wrt, weight=weight), target=1):
            draw(pipe, name)
        assert seen == expected
    hook.remove()


@pytest.mark.long
@pytest.mark.parametrize("wrt", ["x0_hat", "x_t"])
def test_a_compiled_network_is_steered_as_well(wrt, guide):
    pipe = make("SD")
    with steersman.steer(pipe, guide(wrt=wrt), target=1):
        expected = draw(pipe, "SD")
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    with steersman.steer(pipe, guide(wrt=wrt), target=1):
        found = draw(pipe, "SD")
    assert (found - expected).abs().max() < 1e-4


@pytest.mark.long
def test_a_network_compiled_in_place_is_steered_without_its_gradient(guide):
    pipe = make("SD")
    with steersman.steer(pipe, guide(), target=1):
        expected = draw(pipe, "SD")
    pipe.unet.compile(backend="eager")
    with steersman.steer(pipe, guide(), target=1):
        assert (draw(pipe, "SD") - expected).abs().max() < 1e-4
    with pytest.raises(InputError, match="compiled in place"), steersman.steer(pipe, guide(wrt="x_t"), target=1):
        pass


def test_inference_mode_does_not_matter(guide):
    pipe = make("SD", "Euler")
    with steersman.steer(pipe, guide(), target=1):
        expected = draw(pipe, "SD")
        with torch.inference_mode():
            assert torch.equal(draw(pipe, "SD"), expected)


HALVES = [(name, dtype, wrt) for name in ("SD", "Flux") for dtype in HALF for wrt in ("x0_hat", "x_t")]
HALVES += [(name, "bfloat16", "x_t") for name in NEW]


@pytest.mark.parametrize(
    ("name", "dtype", "wrt"),
    wide(HALVES, [("SD", "bfloat16", "x0_hat"), ("Flux", "float16", "x_t"), ("FLUX.2", "bfloat16", "x_t")]),
)
def test_half_precision_is_steered_in_float32(name, dtype, wrt, guide, likelihood):
    pipe, dtype = make(name).to(getattr(torch, dtype)), getattr(torch, dtype)
    more = {key: rows.each_tensor(each, lambda x: cast(x, dtype)) for key, each in FAMILIES[name].call().items()}
    plain = draw(pipe, name, **more).float()
    seen = Seen()
    settings = reaching(name, wrt=wrt, stabilizer=Chain((Rms(), seen)))
    with steersman.steer(pipe, guide(**settings), target=1):
        steered = draw(pipe, name, **more).float()
    assert {g.dtype for g in seen.gradients} == {torch.float32}
    assert (likelihood(steered, 1) > likelihood(plain, 1) + FAMILIES[name].margin).all()


def cast(x, dtype):
    return x.to(dtype) if x.is_floating_point() else x
