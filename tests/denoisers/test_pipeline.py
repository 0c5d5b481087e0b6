"""Text pipelines as denoisers: theirs and ours draw the same; what is told once; what is refused."""

from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from denoisers.texts import SIZES, TEXTS, make
from steersman.errors import InputError
from steersman.guidance import ClassProbability, Constant, Denoised, Guide, Rms
from steersman.models.denoisers import load_denoiser
from steersman.models.denoisers.pipeline import PipelineDenoiser
from steersman.sampling import DDIM, sample
from steersman.sampling.particles import Particles
from steersman.schedule import CLEAN, Flow, Level

W = 2.5
F64 = torch.float64


@dataclass(frozen=True, kw_only=True)
class Theirs(DDIM):
    """DDIM, which is Euler's method for flow matching, at a pipeline's own levels."""

    own: tuple = field(default=())

    def levels(self, *_):
        return self.own


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    @cache
    def saved(name):
        path = tmp_path_factory.mktemp(name)
        made(name).save_pretrained(path)
        return path

    return saved


@cache
def made(name):
    return make(name)


@pytest.fixture(scope="module")
def denoiser(folder):
    @cache
    def loaded(name):
        size = "?height={}&width={}".format(*SIZES[name]) if name in SIZES else ""
        return load_denoiser(f"{folder(name)}{size}")

    return loaded


def walked(pipe, schedule):
    times = pipe.scheduler.timesteps.to(F64)
    if not isinstance(schedule, Flow):
        return (*map(schedule.at_time, times), CLEAN)
    sigmas = pipe.scheduler.sigmas.to(F64)[:-1]
    return (*(Level(1 - sigma, sigma, time) for sigma, time in zip(sigmas, times, strict=True)), CLEAN)


def theirs(pipe, ours, latents, **call):
    """What the pipeline itself draws of the latents, in [-1, 1]."""
    scale = call.pop("scale", 1.0)
    call |= {ours.scale: scale}
    if scale != 1 and ours.scale == "true_cfg_scale":
        call = {"negative_prompt": "", **call}
    if ours.size:
        call |= dict(zip(("height", "width"), ours.size, strict=True))
    if "use_resolution_binning" in ours.parameters:
        call["use_resolution_binning"] = False
    held = ours.layout.pack(latents)
    settings = {"num_images_per_prompt": len(latents), "num_inference_steps": 3, "output_type": "pt"}
    return pipe(prompt="a ball", latents=held, **settings, **call).images * 2 - 1


CALLS = {
    "plain": ({}, {}),
    "guided": ({"scale": W}, {"cfg_scale": W}),
    "negative": (
        {"scale": W, "negative_prompt": "a dab bed"},
        {"cfg_scale": W, "negative_prompt": "a dab bed"},
    ),
}


@pytest.mark.few(6)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", TEXTS)
def test_an_unguided_walk_is_the_pipelines_own(name, call, denoiser):
    pipe, ours = made(name), denoiser(name)
    latents = torch.randn(2, *ours.shape, generator=torch.Generator().manual_seed(0))
    given, condition = CALLS[call]
    wanted = theirs(pipe, ours, latents, **given)
    sampler = Theirs(own=walked(pipe, ours.schedule))
    condition = {"prompt": "a ball", **condition}
    found = sample(ours, sampler, seeds=[0, 1], steps=3, noise=[latents], condition=condition)
    images = ours.decode(found).clamp(-1, 1)
    torch.testing.assert_close(images, wanted, atol=1e-5, rtol=0)
    assert images.abs().max() > 0.05 and not torch.allclose(images[0], images[1], atol=1e-2)
    if isinstance(ours.schedule, Flow):  # the first level has no signal there, ours a thousandth
        levels = ours.schedule.levels(3, "trailing" if name == "Flux" else "linspace")
        own = torch.stack([level.sigma for level in levels[1:]])
        torch.testing.assert_close(own, pipe.scheduler.sigmas[1:].to(F64), atol=1e-6, rtol=0)


def test_every_image_of_a_batch_is_told_the_same(denoiser, draw):
    """A batch of any size, in blocks of any size, at a level each."""
    ours = denoiser("Flux")
    x_t, condition = draw(3, *ours.shape), {"prompt": "a ball", "cfg_scale": W}
    each = [ours.schedule.at_time(time) for time in (900, 500, 100)]
    level = Level(*map(torch.stack, zip(*each, strict=True)))
    whole = ours(x_t, level, **condition)
    ours.block = 2
    blocks = ours(x_t, level, **condition)
    ours.block = None
    for row in range(3):
        one = ours(x_t[row : row + 1], each[row], **condition)
        for found in (whole, blocks):
            torch.testing.assert_close(found.x0_hat[row], one.x0_hat[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(found.unconditional[row], one.unconditional[0], atol=1e-5, rtol=0)
    assert (whole.x0_hat - whole.unconditional).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["SD", "Flux"])
def test_a_prompt_is_encoded_once_and_the_pipeline_stays_as_it_was(name, denoiser, draw):
    ours = denoiser(name)
    state = torch.random.get_rng_state()
    before = dict(vars(ours.pipe)), dict(vars(ours.pipe.scheduler))
    encoded, asked = [], []
    handles = [
        ours.pipe.text_encoder.register_forward_hook(lambda *_: encoded.append(1)),
        ours.network.register_forward_hook(lambda *_: asked.append(1)),
    ]
    level, x_t = ours.schedule.at_time(500), draw(2, *ours.shape)
    first = ours(x_t, level, prompt="dab dab", cfg_scale=W).x0_hat
    count = len(encoded)
    again = ours(x_t, level, prompt="dab dab", cfg_scale=3.0).x0_hat
    for handle in handles:
        handle.remove()
    assert count == len(encoded) > 0 and len(asked) == 2
    assert (first - again).abs().max() > 1e-4
    assert (first - ours(x_t, level, prompt="a bed", cfg_scale=W).x0_hat).abs().max() > 1e-4
    assert (dict(vars(ours.pipe)), dict(vars(ours.pipe.scheduler))) == before
    assert torch.equal(torch.random.get_rng_state(), state)


def test_what_is_kept_of_prompts_has_an_end(denoiser, draw):
    ours = denoiser("SD")
    for number in range(20):
        ours(draw(1, *ours.shape), ours.schedule.at_time(1), prompt="a" * number)
    assert len(ours.cache) == 16 and ("a" * 19, None, False) in ours.cache


def test_moved_to_another_type_it_is_told_anew(folder, draw):
    ours = load_denoiser(str(folder("SD")))
    x_t, level = draw(2, *ours.shape), ours.schedule.at_time(500)
    exact = ours(x_t, level, prompt="a ball").x0_hat
    assert ours.to(dtype=torch.bfloat16) is ours
    assert {part.dtype for part in (ours.network, ours.vae, ours.pipe.text_encoder)} == {torch.bfloat16}
    half = ours(x_t, level, prompt="a ball").x0_hat
    assert half.dtype == F64
    torch.testing.assert_close(half, exact, atol=0.1, rtol=0)


def test_a_learned_variance_is_dropped_as_the_pipeline_drops_it(denoiser, draw):
    ours = denoiser("PixArt")
    assert ours.network.config.out_channels == 8
    assert ours(draw(1, *ours.shape), ours.schedule.at_time(5), prompt="").variance_fraction is None


@pytest.mark.few(4)
@pytest.mark.parametrize("wrt", ["x0_hat", "x_t"])
@pytest.mark.parametrize("name", TEXTS)
def test_guides_of_both_routes(name, wrt, denoiser):
    ours = denoiser(name)
    torch.manual_seed(1)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 2))
    settings = {"stabilizer": Rms(), "weight": Constant(), "input": Denoised(clip=False), "scale": 0.3}
    guide = Guide(
        objective=ClassProbability(classifier=lambda image, level=None: network(image.float())),
        wrt=wrt,
        **settings,
    )
    given = {"steps": 2, "seeds": [0, 1], "condition": {"prompt": "a ball", "cfg_scale": W}}
    plain = sample(ours, DDIM(), **given)
    found = sample(ours, DDIM(), guides=[guide], target=[0, 1], **given)
    assert found.isfinite().all()
    target = torch.tensor([[0], [1]])
    likely, unlikely = (network(ours.decode(x)).log_softmax(1).gather(1, target) for x in (found, plain))
    assert (likely > unlikely).all()


def test_the_gradient_through_the_pipelines_network(denoiser, draw):
    """Against a difference in float64, with classifier-free guidance."""
    ours = denoiser("Flux").to(dtype=F64)
    x_t, direction, weights = draw(2, *ours.shape), draw(2, *ours.shape), draw(2, *ours.shape)
    level = ours.schedule.at_time(600)

    def value(x):
        return (weights * ours(x, level, prompt="a ball", cfg_scale=W).x0_hat).sum()

    (g,) = torch.autograd.grad(value(x_t.requires_grad_()), x_t)
    x_t, step = x_t.detach(), 1e-3
    slope = (value(x_t + step * direction) - value(x_t - step * direction)) / (2 * step)
    ours.to(dtype=torch.float32)
    torch.testing.assert_close((g * direction).sum(), slope, rtol=1e-4, atol=0)


def test_candidates_of_an_image_are_told_the_same(denoiser):
    ours = denoiser("SD")
    guide = Guide(objective=ClassProbability(classifier=lambda image, level=None: image.float().mean((2, 3))))
    swarm = Particles(count=2)
    found = sample(
        ours, DDIM(eta=1.0), guides=[guide], target=1, seeds=[0, 1], steps=2, particles=swarm, condition=CONDITION
    )
    assert found.shape == (2, *ours.shape) and found.isfinite().all()


CONDITION = {"prompt": "a ball", "cfg_scale": W, "negative_prompt": "a bed"}


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({}, "prompt must be a text, which may be empty, got none"),
        ({"prompt": "a", "label": torch.tensor([0])}, "trained without labels"),
        ({"prompt": "a", "negative_prompt": "b"}, "negative_prompt must come with a cfg_scale other than 1, got 'b'"),
        ({"promt": "a"}, "unknown condition 'promt'; did you mean 'prompt'"),
    ],
)
def test_conditions_that_cannot_be_followed(condition, message, denoiser, draw):
    ours = denoiser("SD")
    with pytest.raises(InputError, match=message):
        ours(draw(1, *ours.shape), ours.schedule.at_time(5), **condition)


def test_a_distilled_model_has_no_unconditional_row(draw):
    """An LCM's network is told the scale, and the pipeline asks it for the prompt alone."""
    pipe = made("SD")
    network = type(pipe.unet).from_config({**pipe.unet.config, "time_cond_proj_dim": 8, "_use_default_values": []})
    ours = PipelineDenoiser(type(pipe)(**{**pipe.components, "unet": network}, requires_safety_checker=False))
    x_t, level = draw(1, *ours.shape), ours.schedule.at_time(5)
    assert ours(x_t, level, prompt="a").x0_hat.isfinite().all()
    with pytest.raises(InputError, match="as StableDiffusionPipeline has no unconditional"):
        ours(x_t, level, prompt="a", cfg_scale=2.0)
