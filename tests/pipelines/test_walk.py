"""The guides in a scheduler's steps: pixel by pixel what our own samplers do, in whatever coordinates it steps."""

import functools
import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import steersman
from pipelines.families import MILD, draw, draws, embeds, make, unet2d, wide
from steersman.guidance import (
    Denoised,
    DenoisedImage,
    Ema,
    Identity,
    Interval,
    Mean,
    NoisePrediction,
    Noisy,
    Signal,
    Spherical,
    Transition,
    Variance,
)
from steersman.models.denoisers import DiffusersDenoiser
from steersman.sampling import DDIM, DDPM, DiffusersSampler, sample
from steersman.schedule import VP

diffusers = pytest.importorskip("diffusers")


def ours(network, **settings):
    """The pixel pipeline's weights and noise as a denoiser of ours."""
    config = diffusers.DDPMScheduler(**{**MILD, **settings}).config
    return DiffusersDenoiser(network, schedule=VP.from_diffusers(config))


def noise(steps):
    """What a pixel pipeline draws from its generators, in order."""
    generators = draws()
    return [torch.cat([torch.randn(1, 3, 16, 16, generator=each) for each in generators]) for _ in range(steps + 1)]


INJECTIONS = {type(each).__name__: each for each in (Mean(), NoisePrediction(), DenoisedImage(), Spherical())}
THREE = list(INJECTIONS)[:3]


def few(*axes, quick):
    """All combinations of names, of which only the quick ones are no long tests."""
    return wide(list(itertools.product(*axes)), quick)


DDPMS = few(
    ["fixed_small", "fixed_large", "learned_range"],
    INJECTIONS,
    ["x0_hat", "x_t"],
    quick=[
        ("fixed_small", "Spherical", "x0_hat"),
        ("fixed_large", "NoisePrediction", "x_t"),
        ("learned_range", "Mean", "x_t"),
        ("learned_range", "DenoisedImage", "x0_hat"),
    ],
)


@pytest.mark.few(2)
@pytest.mark.parametrize(("variance", "injection", "wrt"), DDPMS)
def test_ddpm_is_our_own(variance, injection, wrt, guide):
    injection = INJECTIONS[injection]
    network = unet2d(6 if variance == "learned_range" else 3)
    settings = {"clip_sample": False, "variance_type": variance, "timestep_spacing": "leading"}
    pipe = diffusers.DDPMPipeline(network, diffusers.DDPMScheduler(**MILD, **settings))
    pipe.set_progress_bar_config(disable=True)
    steering = [
        guide(wrt=wrt, injection=injection, weight=Variance(), stabilizer=Ema(beta=0.5), scale=20.0),
        guide(wrt=wrt, input=Noisy()),
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
        noise=iter(noise(5)),
    )
    assert (expected.clamp(-1, 1) - images).abs().max() < 1e-5
    assert (expected.clamp(-1, 1) - draw(pipe, "DDPM", 5)).abs().max() > 0.05


def test_ddpm_that_clips_is_our_own(guide):
    pipe = make("DDPM")
    steering = guide(input=Denoised())
    with steersman.steer(pipe, steering, target=0):
        images = draw(pipe, "DDPM", 5)
    expected = sample(
        ours(unet2d()),
        DDPM(),
        guides=[steering],
        target=0,
        seeds=[0, 1],
        steps=5,
        spacing="leading",
        noise=iter(noise(5)),
    )
    assert (expected.clamp(-1, 1) - images).abs().max() < 1e-5


DDIMS = few([0.0], THREE, ["x0_hat", "x_t"], quick=[(0.0, "NoisePrediction", "x0_hat")])
DDIMS += few([0.5], INJECTIONS, ["x0_hat", "x_t"], quick=[(0.5, "Mean", "x_t"), (0.5, "Spherical", "x0_hat")])


@pytest.mark.parametrize(("eta", "injection", "wrt"), DDIMS)
def test_ddim_is_our_own(eta, injection, wrt, guide):
    injection = INJECTIONS[injection]
    pipe = make("DDIM", "DDIM", clip_sample=False)
    steering = guide(wrt=wrt, injection=injection, stabilizer=Ema(beta=0.5), scale=1.0)
    with steersman.steer(pipe, steering, target=[1, 2]):
        images = draw(pipe, "DDIM", 5, eta=eta)
    settings = {"seeds": [0, 1], "steps": 5, "spacing": "leading", "clip": False, "noise": iter(noise(5))}
    expected = sample(ours(unet2d()), DDIM(eta=eta), guides=[steering], target=[1, 2], **settings)
    assert (expected.clamp(-1, 1) - images).abs().max() < 1e-5
    assert (expected.clamp(-1, 1) - draw(pipe, "DDIM", 5, eta=eta)).abs().max() > 0.01


# DDIM by other names: in x / alpha, and by the solver's log(alpha / sigma).
SAME = {
    "Euler": ({"timestep_spacing": "leading", "steps_offset": 1}, {}),
    "DPMSolverMultistep": ({"timestep_spacing": "trailing"}, {"solver_order": 1}),
}


COORDINATES = few(
    SAME, THREE, ["x0_hat", "x_t"], quick=[("Euler", "Mean", "x_t"), ("DPMSolverMultistep", THREE[1], "x0_hat")]
)


@pytest.mark.few(2)
@pytest.mark.parametrize(("scheduler", "injection", "wrt"), COORDINATES)
def test_a_scheduler_s_coordinates_make_no_difference(scheduler, injection, wrt, guide):
    injection = INJECTIONS[injection]
    steering = guide(wrt=wrt, injection=injection, weight=Signal(), stabilizer=Identity(), scale=0.3)
    both, own = SAME[scheduler]
    images = []
    for name, settings in (("DDIM", {"clip_sample": False}), (scheduler, own)):
        pipe = make("SD", name, **both, **settings)
        with steersman.steer(pipe, steering, target=[1, 2]):
            images.append(draw(pipe, "SD", 4))
    assert (images[0] - images[1]).abs().max() < 1e-4  # float32 over four steps of random networks
    assert (images[0] - draw(pipe, "SD", 4)).abs().max() > 0.01


def same_levels(scheduler, own, steps, device=None):
    own(steps, device=device)
    scheduler.sigmas = torch.tensor([0.95, 0.8, 0.6, 0.3, 0.0])
    scheduler.timesteps = scheduler.sigmas[:-1] * 1000


@pytest.mark.parametrize(("injection", "wrt"), few(THREE, ["x0_hat", "x_t"], quick=[("DenoisedImage", "x_t")]))
def test_flow_matching_is_the_same_by_two_schedulers(injection, wrt, guide):
    injection = INJECTIONS[injection]
    steering = guide(wrt=wrt, injection=injection, weight=Signal(), stabilizer=Identity(), scale=0.1)
    images = []
    for name, settings in (("FlowMatchEuler", {}), ("DPMSolverMultistep", {"solver_order": 1})):
        pipe = make("Sana", name, **settings)
        pipe.scheduler.set_timesteps = functools.partial(same_levels, pipe.scheduler, pipe.scheduler.set_timesteps)
        with steersman.steer(pipe, steering, target=[1, 2]):
            images.append(draw(pipe, "Sana", 4))
    assert (images[0] - images[1]).abs().max() < 1e-4
    assert (images[0] - draw(pipe, "Sana", 4)).abs().max() > 0.01


class Noting(Transition):
    """Keeps the weight of each step's first stage."""

    def __call__(self, step, x_t, prediction, g):
        weight = super().__call__(step, x_t, prediction, g)
        if step.stage == 0:
            WEIGHTS.append(float(weight))
        return weight


WEIGHTS = []


@pytest.mark.parametrize(
    "scheduler", wide(["DDIM", "PNDM", "Euler", "Heun", "KDPM2", "DPMSolverMultistep"], ["PNDM", "KDPM2"])
)
def test_a_step_knows_the_levels_of_the_whole_walk(scheduler, guide):
    """A strength whose mean over the walk is 1, whichever levels the scheduler visits, and how often."""
    WEIGHTS.clear()
    pipe = make("SD", scheduler)
    with steersman.steer(pipe, guide(weight=Noting(rising=False)), target=1):
        draw(pipe, "SD", steps=6)
    assert len(WEIGHTS) >= 6
    assert sum(WEIGHTS) / len(WEIGHTS) == pytest.approx(1, abs=1e-6)
    assert max(WEIGHTS) - min(WEIGHTS) > 0.1


class Corrected(diffusers.UniPCMultistepScheduler):
    """UniPC for a pipeline that passes a generator on."""

    def step(self, model_output, timestep, sample, return_dict=True, generator=None):
        return super().step(model_output, timestep, sample, return_dict)


@pytest.mark.parametrize(
    ("predict_x0", "injection"), few([True, False], THREE, quick=[(True, "Mean"), (False, THREE[1])])
)
def test_a_corrector_does_not_undo_a_push(predict_x0, injection, guide):
    injection = INJECTIONS[injection]
    """UniPC computes a sample anew from the one before, which moves along: as in a sampler of ours."""
    settings = {"predict_x0": predict_x0, "final_sigmas_type": "zero" if predict_x0 else "sigma_min"}
    scheduler = Corrected(**MILD, **settings)
    pipe = diffusers.DDPMPipeline(unet2d(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    steering = guide(injection=injection, scale=1.0, weight=Interval(ratio_max=2.0))
    with steersman.steer(pipe, steering, target=[1, 2]):
        images = draw(pipe, "DDPM", 6)
    theirs = diffusers.UniPCMultistepScheduler(**MILD, **settings)
    expected = sample(
        ours(unet2d()),
        DiffusersSampler(theirs),
        guides=[steering],
        target=[1, 2],
        seeds=[0, 1],
        steps=6,
        clip=False,
        noise=iter(noise(0)),
    )
    assert (expected.clamp(-1, 1) - images).abs().max() < 1e-3  # float32, over a first alpha of 0.6
    assert (expected.clamp(-1, 1) - draw(pipe, "DDPM", 6)).abs().max() > 0.05


class Direction:
    """An objective with the same gradient everywhere."""

    def __call__(self, image, target, level):
        return image.sum((1, 2, 3))


UNIPC, SINGLE = diffusers.UniPCMultistepScheduler, diffusers.DPMSolverSinglestepScheduler
KEEPING = {
    "UniPC": (UNIPC, {}, "++"),
    "UniPC eps": (UNIPC, {"predict_x0": False}, ""),
    "UniPC third": (UNIPC, {"solver_order": 3}, "++"),
    "multistep": (diffusers.DPMSolverMultistepScheduler, {}, "++"),
    "singlestep": (SINGLE, {}, "++"),
    "singlestep eps": (SINGLE, {"algorithm_type": "dpmsolver"}, ""),
    "singlestep sde": (SINGLE, {"algorithm_type": "sde-dpmsolver++"}, "sde"),
    "singlestep third": (SINGLE, {"solver_order": 3}, "++"),
    "singlestep third eps": (SINGLE, {"solver_order": 3, "algorithm_type": "dpmsolver"}, ""),
}


@pytest.mark.parametrize("case", KEEPING)
def test_a_push_is_carried_on_from_a_sample_that_a_scheduler_keeps(case, guide):
    """With outputs that do not depend on it, a push at level i arrives as ``k p``, by the step's linear part alone."""
    build, settings, kind = KEEPING[case]
    output = "epsilon" if kind == "" else "sample"
    scheduler = build(final_sigmas_type="sigma_min", prediction_type=output, **settings)
    pipe = SimpleNamespace(scheduler=scheduler, unet=nn.Identity())

    def walked(guides):
        with steersman.steer(pipe, guides, target=0):
            scheduler.set_timesteps(8)
            z = embeds(2, 3, 4, 4).double()
            for time in scheduler.timesteps:
                torch.manual_seed(int(time))
                drawn = torch.randn(2, 3, 4, 4).double()
                z = scheduler.step(drawn, time, z).prev_sample
        return z

    pushing = guide(objective=Direction(), input=Noisy(), stabilizer=Identity(), scale=0.01)
    alpha, sigma = (each.double() for each in scheduler_levels(scheduler))
    k = {"": alpha[-1] / alpha[1:], "++": sigma[-1] / sigma[1:]}
    k = k.get(kind, (sigma[-1] / sigma[1:]) ** 2 * alpha[1:] / alpha[-1])
    shift = walked([pushing]) - walked([])
    # levels are float32 in the scheduler: 2^-24 of an alpha that comes out of 1 - sigma^2 near 5e-3
    torch.testing.assert_close(shift, torch.full_like(shift, 0.01 * float(k.sum())), rtol=1e-4, atol=1e-7)


def scheduler_levels(scheduler):
    """``alpha`` and ``sigma`` of a walk of eight steps, its end included."""
    scheduler.set_timesteps(8)
    return scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas)
