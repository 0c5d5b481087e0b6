import copy
import functools
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import nn

import steersman
from steersman.classifiers import Classifier
from steersman.classifiers.preprocess import RAW
from steersman.denoisers import DiffusersDenoiser
from steersman.errors import InputError
from steersman.guidance import (
    Ahead,
    Chain,
    ClassProbability,
    Constant,
    Denoised,
    DenoisedImage,
    Ema,
    Guide,
    Identity,
    Interval,
    Mean,
    NoisePrediction,
    Noisy,
    Normalise,
    Sample,
    Signal,
    Sine,
    Spherical,
    Sum,
    Toward,
    Translated,
    Variance,
)
from steersman.sample import DDIM, DDPM, sample
from steersman.schedule import CLEAN, VP

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

NAMES = ("red", "green", "blue")
# Networks with random weights are no denoisers: where alpha nears 0, what they make of x_t is beyond any image.
MILD = {"beta_start": 1e-4, "beta_end": 2e-3}


@dataclass
class Family:
    """A pipeline in its own format, with what it is called with.

    Attributes:
        build: Makes it, with random weights.
        call: The arguments of a call for two images of three steps.
        schedulers: Which of its schedulers are tried, the first its own.
        flow: Whether it is trained by flow matching.
    """

    build: object
    call: object
    schedulers: tuple
    flow: bool = False


def seeded(build):
    torch.manual_seed(0)
    return build()


@cache
def unet2d(channels=3):
    return seeded(
        lambda: diffusers.UNet2DModel(
            sample_size=16,
            out_channels=channels,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=8,
        )
    ).eval()


def vae(channels=4, **config):
    return seeded(
        lambda: diffusers.AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=channels,
            norm_num_groups=4,
            sample_size=32,
            **config,
        )
    ).eval()


def text_config(size=32, **config):
    return transformers.CLIPTextConfig(
        hidden_size=size,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=20,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        **config,
    )


def tokenizer():
    letters = [letter + end for letter in "abdel" for end in ("", "</w>")]
    vocab = {token: place for place, token in enumerate(["<|startoftext|>", "<|endoftext|>", *letters])}
    return transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def draws():
    return [torch.Generator().manual_seed(seed) for seed in (0, 1)]


def embeds(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def ddpm():
    return diffusers.DDPMPipeline(unet2d(), diffusers.DDPMScheduler(**MILD))


def ddim():
    return diffusers.DDIMPipeline(unet2d(), diffusers.DDIMScheduler(**MILD))


def ldm():
    unet = seeded(
        lambda: diffusers.UNet2DModel.from_config(unet2d().config, sample_size=8, in_channels=4, out_channels=4)
    )
    latent = seeded(
        lambda: diffusers.VQModel(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            num_vq_embeddings=512,
            lookup_from_codebook=False,
        )
    )
    nn.init.normal_(latent.quantize.embedding.weight)
    return diffusers.LDMPipeline(latent.eval(), unet.eval(), diffusers.DDIMScheduler(**MILD))


def dit():
    transformer = seeded(
        lambda: diffusers.DiTTransformer2DModel(
            sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=2, out_channels=8
        )
    ).eval()
    return diffusers.DiTPipeline(transformer, vae(), diffusers.DDIMScheduler(**MILD))


def conditional(**config):
    return seeded(
        lambda: diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            **config,
        )
    ).eval()


def stable_diffusion():
    unet = conditional(cross_attention_dim=32, attention_head_dim=8)
    encoder = seeded(lambda: transformers.CLIPTextModel(text_config())).eval()
    scheduler = diffusers.PNDMScheduler(skip_prk_steps=True, beta_schedule="scaled_linear", steps_offset=1, **MILD)
    return diffusers.StableDiffusionPipeline(
        vae(), encoder, tokenizer(), unet, scheduler, None, None, requires_safety_checker=False
    )


def stable_diffusion_xl():
    unet = conditional(
        cross_attention_dim=64,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=80,
    )
    scheduler = diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", **MILD)
    return diffusers.StableDiffusionXLPipeline(
        vae(scaling_factor=0.13, latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 1.1, 1.2, 1.3]),
        *[None] * 4,
        unet,
        scheduler,
        add_watermarker=False,
    )


def stable_diffusion_3():
    transformer = seeded(
        lambda: diffusers.SD3Transformer2DModel(
            sample_size=8,
            patch_size=1,
            in_channels=16,
            out_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pooled_projection_dim=64,
        )
    ).eval()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    latent = vae(16, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.5, shift_factor=0.06)
    return diffusers.StableDiffusion3Pipeline(transformer, scheduler, latent, *[None] * 6)


def flux():
    transformer = seeded(
        lambda: diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        )
    ).eval()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    latent = vae(4, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.36, shift_factor=0.12)
    return diffusers.FluxPipeline(scheduler, latent, None, None, None, None, transformer)


def pixart():
    transformer = seeded(
        lambda: diffusers.PixArtTransformer2DModel(
            sample_size=8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=32,
            cross_attention_dim=16,
            out_channels=8,
            use_additional_conditions=False,
        )
    ).eval()
    return diffusers.PixArtSigmaPipeline(None, None, vae(), transformer, diffusers.DPMSolverMultistepScheduler(**MILD))


def sana():
    transformer = seeded(
        lambda: diffusers.SanaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=4,
            num_cross_attention_heads=2,
            cross_attention_head_dim=4,
            cross_attention_dim=8,
            caption_channels=32,
            sample_size=8,
        )
    ).eval()
    latent = seeded(
        lambda: diffusers.AutoencoderDC(
            in_channels=3,
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            scaling_factor=0.41,
        )
    ).eval()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return diffusers.SanaPipeline(None, None, latent, transformer, scheduler)


COMMON = ("DDIM", "Euler", "EulerAncestral", "DPMSolverMultistep", "UniPC")
FAMILIES = {
    "DDPM": Family(ddpm, lambda: {"batch_size": 2}, ("DDPM", "DDIM", "DPMSolverMultistep")),
    "DDIM": Family(ddim, lambda: {"batch_size": 2, "eta": 0.5}, ("DDIM",)),
    "LDM": Family(ldm, lambda: {"batch_size": 2}, ("DDIM", "DPMSolverMultistep")),
    "DiT": Family(dit, lambda: {"class_labels": [1, 2]}, ("DDIM", "DDPM", "DPMSolverMultistep", "UniPC")),
    "SD": Family(
        stable_diffusion,
        lambda: {"prompt": ["a ball", "a dab"], "height": 16, "width": 16},
        (
            "PNDM",
            "DDPM",
            *COMMON,
            "Heun",
            "LMS",
            "KDPM2",
            "KDPM2Ancestral",
            "DEIS",
            "DPMSolverSinglestep",
            "LCM",
        ),
    ),
    "SDXL": Family(
        stable_diffusion_xl,
        lambda: {
            "prompt_embeds": embeds(2, 7, 64),
            "negative_prompt_embeds": embeds(2, 7, 64) * 0,
            "pooled_prompt_embeds": embeds(2, 32),
            "negative_pooled_prompt_embeds": embeds(2, 32) * 0,
            "height": 16,
            "width": 16,
        },
        ("Euler", *COMMON),
    ),
    "SD3": Family(
        stable_diffusion_3,
        lambda: {
            "prompt_embeds": embeds(2, 7, 32),
            "negative_prompt_embeds": embeds(2, 7, 32) * 0,
            "pooled_prompt_embeds": embeds(2, 64),
            "negative_pooled_prompt_embeds": embeds(2, 64) * 0,
            "height": 16,
            "width": 16,
        },
        ("FlowMatchEuler", "FlowMatchHeun"),
        flow=True,
    ),
    "Flux": Family(
        flux,
        lambda: {
            "prompt_embeds": embeds(2, 7, 32),
            "pooled_prompt_embeds": embeds(2, 32),
            "height": 16,
            "width": 24,
        },
        ("FlowMatchEuler",),
        flow=True,
    ),
    "FluxCFG": Family(
        flux,
        lambda: {
            "prompt_embeds": embeds(2, 7, 32),
            "pooled_prompt_embeds": embeds(2, 32),
            "negative_prompt_embeds": embeds(2, 7, 32) * 0,
            "negative_pooled_prompt_embeds": embeds(2, 32) * 0,
            "true_cfg_scale": 3.0,
            "height": 16,
            "width": 24,
        },
        ("FlowMatchEuler",),
        flow=True,
    ),
    "PixArt": Family(
        pixart,
        lambda: {
            "prompt_embeds": embeds(2, 7, 32),
            "prompt_attention_mask": torch.ones(2, 7),
            "negative_prompt": None,
            "negative_prompt_embeds": embeds(2, 7, 32) * 0,
            "negative_prompt_attention_mask": torch.ones(2, 7),
            "height": 16,
            "width": 16,
            "use_resolution_binning": False,
        },
        ("DPMSolverMultistep", *COMMON),
    ),
    "Sana": Family(
        sana,
        lambda: {
            "prompt_embeds": embeds(2, 7, 32),
            "prompt_attention_mask": torch.ones(2, 7),
            "negative_prompt": None,
            "negative_prompt_embeds": embeds(2, 7, 32) * 0,
            "negative_prompt_attention_mask": torch.ones(2, 7),
            "height": 32,
            "width": 32,
            "use_resolution_binning": False,
        },
        ("FlowMatchEuler", "DPMSolverMultistep"),
        flow=True,
    ),
}


def with_scheduler(pipe, name, **settings):
    """The pipeline with another scheduler of the same noise; flow matching stays flow matching."""
    if name == "LMS":
        pytest.importorskip("scipy", reason="diffusers integrates its coefficients with it")
    if name.startswith("DPMSolver") and type(pipe.scheduler).__name__.startswith("Flow"):
        settings |= {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
    kind = next(
        getattr(diffusers, name + end)
        for end in ("Scheduler", "DiscreteScheduler", "MultistepScheduler")
        if hasattr(diffusers, name + end)
    )
    if type(pipe.scheduler) is not kind or settings:
        pipe.scheduler = kind.from_config(pipe.scheduler.config, **settings)
    return pipe


def make(name, scheduler=None, **settings):
    pipe = FAMILIES[name].build()
    pipe.set_progress_bar_config(disable=True)
    return with_scheduler(pipe, scheduler or FAMILIES[name].schedulers[0], **settings)


def draw(pipe, name, steps=3, **more):
    """Two images in [-1, 1], from the same noise every time."""
    settings = {"num_inference_steps": steps, "generator": draws(), "output_type": "pt"}
    if name == "DiT":
        settings["generator"] = torch.Generator().manual_seed(0)
    call = {**FAMILIES[name].call(), **settings, **more}
    torch.manual_seed(1)  # for the schedulers that a pipeline gives no generator
    images = pipe(**call).images
    if name == "LDM" and call["output_type"] == "pt":  # it knows no tensors
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
    return images * 2 - 1


@pytest.fixture(scope="module")
def classifier():
    """Tells apart by the mean colours of sixteen places."""
    torch.manual_seed(3)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, len(NAMES)))
    with torch.no_grad():
        network[2].weight *= 10
    return Classifier(network, preprocess=RAW, names=NAMES)


@pytest.fixture(scope="module")
def guide(classifier):
    """A guide of pushes that are all as long: ``guide(route="through")``."""

    def build(**settings):
        objective = ClassProbability(classifier=classifier)
        view = Denoised(clip=False)
        plain = {"objective": objective, "view": view, "stabilizer": Normalise(), "strength": Constant(), "scale": 0.5}
        return Guide(**{**plain, **settings})

    return build


@pytest.fixture(scope="module")
def likelihood(classifier):
    def of(images, target):
        target = torch.as_tensor(target).expand(len(images))
        return ClassProbability(classifier=classifier)(images, target, CLEAN)

    return of


PAIRS = [(name, scheduler) for name, family in FAMILIES.items() for scheduler in family.schedulers]
KEEPS_SAMPLE = ("UniPC", "DPMSolverSinglestep")


@pytest.mark.parametrize(("name", "scheduler"), PAIRS)
def test_without_a_push_no_bit_changes(name, scheduler, guide):
    settings = {"injection": NoisePrediction()} if scheduler in KEEPS_SAMPLE else {}
    idle = [
        guide(scale=0.0, route="through", **settings),
        guide(strength=Interval(low=1e6, high=1e7), **settings),
    ]
    pipe = make(name, scheduler)
    plain = draw(pipe, name)
    for each in (*idle, idle):
        with steersman.steer(pipe, each, target=1):
            assert torch.equal(draw(pipe, name), plain)


@pytest.mark.parametrize(
    ("route", "injection"),
    [("direct", Mean()), ("direct", DenoisedImage()), ("through", NoisePrediction())],
    ids=["direct-mean", "direct-denoised", "through-noise"],
)
@pytest.mark.parametrize(("name", "scheduler"), PAIRS)
def test_images_go_where_they_are_steered(name, scheduler, injection, route, guide, likelihood):
    if scheduler in KEEPS_SAMPLE and injection == Mean():
        pytest.skip("mean injection is refused with a scheduler that keeps its own sample; another test sees that")
    pipe = make(name, scheduler)
    plain = draw(pipe, name)
    with steersman.steer(pipe, guide(route=route, injection=injection), target="green"):
        steered = draw(pipe, name)
    assert steered.isfinite().all()
    assert (likelihood(steered, 1) > likelihood(plain, 1) + 0.01).all()
    assert torch.equal(draw(pipe, name), plain)


def ours(network, **settings):
    """The pixel pipeline's weights and noise as a denoiser of ours."""
    config = diffusers.DDPMScheduler(**{**MILD, **settings}).config
    return DiffusersDenoiser(network, schedule=VP.from_diffusers(config))


def noise(steps):
    """What a pixel pipeline draws from its generators, in order."""
    generators = draws()
    return [torch.cat([torch.randn(1, 3, 16, 16, generator=each) for each in generators]) for _ in range(steps + 1)]


INJECTIONS = [Mean(), NoisePrediction(), DenoisedImage(), Spherical()]


@pytest.mark.parametrize("route", ["direct", "through"])
@pytest.mark.parametrize("injection", INJECTIONS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_ddpm_is_our_own(variance, injection, route, guide):
    network = unet2d(6 if variance == "learned_range" else 3)
    settings = {"clip_sample": False, "variance_type": variance, "timestep_spacing": "leading"}
    pipe = diffusers.DDPMPipeline(network, diffusers.DDPMScheduler(**MILD, **settings))
    pipe.set_progress_bar_config(disable=True)
    steering = [
        guide(route=route, injection=injection, strength=Variance(), stabilizer=Ema(beta=0.5), scale=20.0),
        guide(route=route, view=Noisy()),
    ]
    with steersman.steer(pipe, steering, target=[1, 2]):
        images = draw(pipe, "DDPM", 5)
    expected = sample(
        ours(network),
        DDPM(fixed="large" if variance == "fixed_large" else "small"),
        guides=steering,
        target=[1, 2],
        seeds=[0, 1],
        steps=5,
        spacing="leading",
        clip=False,
        noise=noise(5),
    )
    assert (expected.clamp(-1, 1) - images).abs().max() < 1e-5
    assert (expected.clamp(-1, 1) - draw(pipe, "DDPM", 5)).abs().max() > 0.05


def test_ddpm_that_clips_is_our_own(guide):
    pipe = make("DDPM")
    steering = guide(view=Denoised())
    with steersman.steer(pipe, steering, target=0):
        images = draw(pipe, "DDPM", 5)
    expected = sample(
        ours(unet2d()), DDPM(), guides=[steering], target=0, seeds=[0, 1], steps=5, spacing="leading", noise=noise(5)
    )
    assert (expected.clamp(-1, 1) - images).abs().max() < 1e-5


@pytest.mark.parametrize("route", ["direct", "through"])
@pytest.mark.parametrize("injection", INJECTIONS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_ddim_is_our_own(eta, injection, route, guide):
    if injection == Spherical() and not eta:
        pytest.skip("mean injection is refused with a scheduler that keeps its own sample; another test sees that")
    pipe = make("DDIM", "DDIM", clip_sample=False)
    steering = guide(route=route, injection=injection, stabilizer=Ema(beta=0.5), scale=1.0)
    with steersman.steer(pipe, steering, target=[1, 2]):
        images = draw(pipe, "DDIM", 5, eta=eta)
    settings = {"seeds": [0, 1], "steps": 5, "spacing": "leading", "clip": False, "noise": noise(5)}
    expected = sample(ours(unet2d()), DDIM(eta=eta), guides=[steering], target=[1, 2], **settings)
    assert (expected.clamp(-1, 1) - images).abs().max() < 1e-5
    assert (expected.clamp(-1, 1) - draw(pipe, "DDIM", 5, eta=eta)).abs().max() > 0.01


# DDIM by other names: in x / alpha, and by the solver's log(alpha / sigma).
SAME = {
    "Euler": ({"timestep_spacing": "leading", "steps_offset": 1}, {}),
    "DPMSolverMultistep": ({"timestep_spacing": "trailing"}, {"solver_order": 1}),
}


@pytest.mark.parametrize("route", ["direct", "through"])
@pytest.mark.parametrize("injection", INJECTIONS[:3], ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("scheduler", SAME)
def test_a_scheduler_s_coordinates_make_no_difference(scheduler, injection, route, guide):
    steering = guide(route=route, injection=injection, strength=Signal(), stabilizer=Identity(), scale=0.3)
    both, own = SAME[scheduler]
    images = []
    for name, settings in (("DDIM", {"clip_sample": False}), (scheduler, own)):
        pipe = make("SD", name, **both, **settings)
        with steersman.steer(pipe, steering, target=[1, 2]):
            images.append(draw(pipe, "SD", 4))
    assert (images[0] - images[1]).abs().max() < 1e-4  # float32 over four steps of random networks
    assert (images[0] - draw(pipe, "SD", 4)).abs().max() > 0.01


@pytest.mark.parametrize("route", ["direct", "through"])
@pytest.mark.parametrize("injection", INJECTIONS[:3], ids=lambda each: type(each).__name__)
def test_flow_matching_is_the_same_by_two_schedulers(injection, route, guide):
    steering = guide(route=route, injection=injection, strength=Signal(), stabilizer=Identity(), scale=0.1)
    images = []
    for name, settings in (("FlowMatchEuler", {}), ("DPMSolverMultistep", {"solver_order": 1})):
        pipe = make("Sana", name, **settings)
        pipe.scheduler.set_timesteps = functools.partial(same_levels, pipe.scheduler, pipe.scheduler.set_timesteps)
        with steersman.steer(pipe, steering, target=[1, 2]):
            images.append(draw(pipe, "Sana", 4))
    assert (images[0] - images[1]).abs().max() < 1e-4
    assert (images[0] - draw(pipe, "Sana", 4)).abs().max() > 0.01


def same_levels(scheduler, own, steps, device=None):
    own(steps, device=device)
    scheduler.sigmas = torch.tensor([0.95, 0.8, 0.6, 0.3, 0.0])
    scheduler.timesteps = scheduler.sigmas[:-1] * 1000


class Seen(Identity):
    """Keeps the gradients that went through it."""

    def __init__(self):
        self.gradients = []

    def update(self, g, state):
        self.gradients.append(g)
        return super().update(g, state)


SLOPES = {
    "SD": ("DDIM", {"clip_sample": False, "timestep_spacing": "trailing"}, (2, 4, 8, 8)),
    "SDXL": ("Euler", {"timestep_spacing": "trailing"}, (2, 4, 8, 8)),
    "SD3": ("FlowMatchEuler", {}, (2, 16, 8, 8)),
    "Flux": ("FlowMatchEuler", {}, (2, 24, 16)),
    "FluxCFG": ("FlowMatchEuler", {}, (2, 24, 16)),
    "PixArt": ("DPMSolverMultistep", {}, (2, 4, 8, 8)),
}


@pytest.mark.parametrize("name", SLOPES)
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
    with steersman.steer(pipe, guide(objective=objective, route="through", stabilizer=seen, scale=1e-30), target=1):
        draw(pipe, name, 1, **more, latents=start)
    (g,) = seen.gradients
    g = pipe._pack_latents(g, *g.shape) if start.ndim == 3 else g
    if scheduler == "Euler":  # it starts from sigma z, and x_t = alpha sigma z
        g = g * pipe.scheduler.init_noise_sigma / (1 + pipe.scheduler.init_noise_sigma**2) ** 0.5
    slope = (of(start + 1e-4 * along) - of(start - 1e-4 * along)) / 2e-4
    assert (slope.abs() > 0.01).all()
    assert ((g * along).flatten(1).sum(1) - slope).abs().max() < 1e-3


@pytest.mark.parametrize("route", ["direct", "through"])
@pytest.mark.parametrize("name", ["DDPM", "DiT", "SD", "Flux"])
def test_the_pipeline_is_left_as_it_was(name, route, guide):
    pipe = make(name)
    draw(pipe, name)
    before = state_of(pipe)
    with steersman.steer(pipe, guide(route=route), target=1):
        assert state_of(pipe) != before
        draw(pipe, name)
    assert state_of(pipe) == before

    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    calls = []
    network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    with pytest.raises(Stop), steersman.steer(pipe, guide(route=route), target=1):
        hook = network.register_forward_hook(lambda *_: calls.append(0) or (stop() if len(calls) == 2 else None))
        draw(pipe, name)
    hook.remove()
    assert len(calls) == 2
    assert state_of(pipe) == before
    assert torch.is_grad_enabled()


def state_of(pipe):
    """Everything that steering could leave behind."""
    modules = [each for each in pipe.components.values() if isinstance(each, nn.Module)]
    parts = [part for module in modules for part in module.modules()]
    return (
        {key for key in vars(pipe.scheduler)},
        [(sorted(vars(part)), getattr(part, "gradient_checkpointing", None)) for part in parts],
        [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in parts],
        [weight.requires_grad for module in modules for weight in module.parameters()],
        [weight.grad is None for module in modules for weight in module.parameters()],
        dict(vars(pipe)).keys(),
    )


@pytest.mark.parametrize(("name", "scheduler"), [("DDPM", "DDPM"), ("SD", "Euler")])
def test_only_the_route_through_differentiates_the_network(name, scheduler, guide):
    pipe = make(name, scheduler)
    seen = []
    hook = pipe.unet.register_forward_hook(lambda module, inputs, output: seen.append(torch.is_grad_enabled()))
    late = Interval(high=0.2)  # the first step's network is asked before its level is known
    for route, strength, expected in (
        ("direct", Constant(), [False] * 3),
        ("through", Constant(), [True] * 3),
        ("through", late, [True, False, True]),
    ):
        seen.clear()
        with steersman.steer(pipe, guide(route=route, strength=strength), target=1):
            draw(pipe, name)
        assert seen == expected
    hook.remove()


@pytest.mark.parametrize("name", ["DDPM", "SD"])
def test_every_call_is_a_walk_of_its_own(name, guide):
    pipe = make(name)
    steering = guide(stabilizer=Ema(beta=0.9), strength=Sine(gamma=0.3))
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


@pytest.mark.parametrize("name", ["DDPM", "SD", "Flux"])
def test_each_image_has_its_own_target(name, guide):
    pipe, images = make(name), {}
    for target in (0, 2, [0, 2]):
        with steersman.steer(pipe, guide(), target=target):
            images[str(target)] = draw(pipe, name)
    expected = torch.stack([images["0"][0], images["2"][1]])
    assert (images["[0, 2]"] - expected).abs().max() < 1e-5
    with pytest.raises(InputError, match="3 given for 2 images"), steersman.steer(pipe, guide(), target=[0, 1, 2]):
        draw(pipe, name)


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
    with steersman.steer(pipe, guide(strength=Noted(note)), target=1):
        steered = pipe(**call, generator=draws()).images * 2 - 1
    assert steps == [(0, 3, 0), (1, 3, 0), (2, 3, 0)]
    assert (likelihood(steered, 1) > likelihood(plain, 1) + 0.01).all()


class Noted(Constant):
    """Tells at which steps it was asked."""

    def __init__(self, note):
        object.__setattr__(self, "note", note)

    def __call__(self, step, x_t, prediction, g):
        self.note(step)
        return super().__call__(step, x_t, prediction, g)


def test_a_view_that_clips_does_so_after_the_decoder(guide, classifier):
    class Range:
        def __call__(self, image, target, level):
            ranges.append((image.shape, float(image.detach().abs().max())))
            return ClassProbability(classifier=classifier)(image, target, level)

    pipe, ranges = make("SD"), []
    with steersman.steer(pipe, guide(objective=Range(), view=Denoised()), target=1):
        draw(pipe, "SD")
    assert [shape for shape, _ in ranges] == [
        (2, 3, 16, 16)
    ] * 3  # once a step, though PNDM's first has two evaluations
    assert max(largest for _, largest in ranges) == 1


@pytest.mark.parametrize("route", ["direct", "through"])
def test_a_compiled_network_is_steered_as_well(route, guide):
    pipe = make("SD")
    with steersman.steer(pipe, guide(route=route), target=1):
        expected = draw(pipe, "SD")
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    with steersman.steer(pipe, guide(route=route), target=1):
        found = draw(pipe, "SD")
    assert (found - expected).abs().max() < 1e-4


def test_a_network_compiled_in_place_is_steered_without_its_gradient(guide):
    pipe = make("SD")
    with steersman.steer(pipe, guide(), target=1):
        expected = draw(pipe, "SD")
    pipe.unet.compile(backend="eager")
    with steersman.steer(pipe, guide(), target=1):
        assert (draw(pipe, "SD") - expected).abs().max() < 1e-4
    with pytest.raises(InputError, match="compiled in place"), steersman.steer(pipe, guide(route="through"), target=1):
        pass


def test_an_offloaded_pipeline_is_steered_without_its_gradient(guide):
    accelerate = pytest.importorskip("accelerate")
    pipe = make("SD")
    with steersman.steer(pipe, guide(), target=1):
        expected = draw(pipe, "SD")
    for module in (pipe.text_encoder, pipe.unet, pipe.vae):
        accelerate.cpu_offload(module, torch.device("cpu"))
    with steersman.steer(pipe, guide(), target=1):
        assert (draw(pipe, "SD") - expected).abs().max() < 1e-5
    with pytest.raises(InputError, match="offloaded"), steersman.steer(pipe, guide(route="through"), target=1):
        pass


def test_inference_mode_does_not_matter(guide):
    pipe = make("SD", "Euler")
    with steersman.steer(pipe, guide(), target=1):
        expected = draw(pipe, "SD")
        with torch.inference_mode():
            assert torch.equal(draw(pipe, "SD"), expected)


@pytest.mark.parametrize("route", ["direct", "through"])
@pytest.mark.parametrize("name", ["SD", "Flux"])
def test_half_precision_is_steered_in_float32(name, route, guide, likelihood):
    pipe = make(name).to(torch.bfloat16)
    more = {key: each.bfloat16() if torch.is_tensor(each) else each for key, each in FAMILIES[name].call().items()}
    plain = draw(pipe, name, **more).float()
    seen = Seen()
    with steersman.steer(pipe, guide(route=route, stabilizer=Chain((Normalise(), seen))), target=1):
        steered = draw(pipe, name, **more).float()
    assert {g.dtype for g in seen.gradients} == {torch.float32}
    assert (likelihood(steered, 1) > likelihood(plain, 1) + 0.01).all()


def test_a_vae_that_overflows_in_half_precision_decodes_in_single(guide):
    pipe = make("SDXL")
    pipe.vae.half()
    pipe.vae.register_to_config(force_upcast=True)
    draw(pipe, "SDXL")
    before = state_of(pipe)
    with steersman.steer(pipe, guide(), target=1):
        images = draw(pipe, "SDXL")
    assert images.isfinite().all()
    assert pipe.vae.dtype == torch.float16
    assert state_of(pipe) == before


def test_a_target_is_what_all_classifiers_say(classifier, guide):
    other = Classifier(nn.Linear(4, 2), preprocess=RAW, names=("blue", "red"))
    both = Sum(((1.0, ClassProbability(classifier=classifier)), (1.0, ClassProbability(classifier=other))))
    pipe = make("DDPM")
    with pytest.raises(InputError, match="0 and 2 of the classifiers"):
        with steersman.steer(pipe, guide(objective=both), target="blue"):
            pass
    for part in (
        Toward(objective=ClassProbability(classifier=other), target=0),
        Translated(objective=ClassProbability(classifier=other), classes={0: 1, 2: 0}),
    ):
        both = Sum(((1.0, ClassProbability(classifier=classifier)), (0.0, part)))
        with steersman.steer(pipe, guide(objective=both), target="blue"):
            pass


class Unnamed:
    def __call__(self, image, target, level):
        return image.mean((1, 2, 3))


def other_scheduler(name):
    pipe = make("SD")
    pipe.scheduler = getattr(diffusers, name)()
    return pipe


REFUSED = {
    "no pipeline": (lambda guide: (nn.Linear(1, 1), guide(), 1), "a pipeline with a scheduler"),
    "scheduler": (lambda guide: (other_scheduler("KarrasVeScheduler"), guide(), 1), "unknown scheduler"),
    "no target": (lambda guide: (make("DDPM"), guide(), None), "target: none given"),
    "name": (lambda guide: (make("DDPM"), guide(), "purple"), "unknown class"),
    "no names": (lambda guide: (make("DDPM"), guide(objective=Unnamed()), "red"), "has names"),
    "negative": (lambda guide: (make("DDPM"), guide(objective=Unnamed()), -1), "0 and more"),
    "ahead": (lambda guide: (make("DDPM"), guide(view=Ahead()), 1), "ahead given"),
    "sample": (lambda guide: (make("DDPM"), guide(injection=Sample()), 1), "enters at the sample"),
    "no noise": (lambda guide: (make("SD", "Euler"), guide(injection=Spherical()), 1), "enters at the deviation"),
    "corrected": (lambda guide: (make("SD", "UniPC"), guide(), 1), "allowed: estimate"),
    "Runge-Kutta": (lambda guide: (make("SD", "PNDM", skip_prk_steps=False), guide(), 1), "skip_prk_steps=True"),
    "backwards": (lambda guide: (make("SD3", invert_sigmas=True), guide(), 1), "invert_sigmas"),
    "scaled twice": (lambda guide: (make("DiT", "Euler"), guide(), 1), "scaled already"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_steered_is_refused_at_once(case, guide, unchecked):
    build, message = REFUSED[case]
    pipe, steering, target = build(guide)
    with pytest.raises(InputError, match=message), steersman.steer(pipe, steering, target=target):
        pass
    assert "step" not in vars(getattr(pipe, "scheduler", pipe))


def test_what_shows_only_later_is_refused_then(guide):
    pipe = make("SD", "Euler")
    pipe.vae = None
    with pytest.raises(InputError, match="4 channels and no VAE"), steersman.steer(pipe, guide(), target=1):
        pipe.scheduler.set_timesteps(3)
        pipe.scheduler.step(embeds(2, 4, 8, 8), pipe.scheduler.timesteps[0], embeds(2, 4, 8, 8))
    pipe = make("DDIM", clip_sample=False)
    with pytest.raises(InputError, match="noise"), steersman.steer(pipe, guide(injection=Spherical()), target=1):
        draw(pipe, "DDIM", eta=0.0)
    through = guide(route="through")
    with pytest.raises(InputError, match="another than the sample"), steersman.steer(pipe, through, target=1):
        output = pipe.unet(torch.randn(2, 3, 16, 16), 0).sample
        pipe.scheduler.step(output, pipe.scheduler.timesteps[0], torch.zeros(2, 3, 16, 16))
    with pytest.raises(InputError, match="no gradient leads"), steersman.steer(pipe, through, target=1):
        pipe.scheduler.step(output.detach(), pipe.scheduler.timesteps[0], torch.zeros(2, 3, 16, 16))
    with pytest.raises(InputError, match="replaced while steering"), steersman.steer(pipe, guide(), target=1):
        pipe.scheduler = diffusers.DDIMScheduler()
    with steersman.steer(pipe, guide(), target=1):
        with pytest.raises(InputError, match="all guides in one"), steersman.steer(pipe, guide(), target=1):
            pass
        draw(pipe, "DDIM")
    assert "step" not in vars(pipe.scheduler)
