import inspect
from dataclasses import replace

import diffusers
import pytest
import torch

from steersman.errors import InputError
from steersman.guidance import ClassProbability, Ema, Guide, Noisy
from steersman.lab.train.denoiser import unet
from steersman.models.denoisers import DiffusersDenoiser
from steersman.sampling import DiffusersSampler, NamedScheduler, Particles, Recurrence, sample
from steersman.sampling.diffusers import SAMPLERS
from steersman.sampling.scheduler import FAMILIES
from steersman.schedule import EDM, VP, Flow, from_diffusers

F64 = torch.float64
BETAS = torch.linspace(0.03**0.5, 0.16**0.5, 60, dtype=F64) ** 2  # neither diffusers' defaults nor 1000 times
SINGLE = 1e-5
"""alpha_bar is a product of float32 numbers here, 2^-24 each, of 60 betas that went through float64's products."""


def by_hand(name):
    """A schedule, and a scheduler on it that is made without it."""
    made, family = getattr(diffusers, name), FAMILIES[name]
    clip = {"clip_sample": False} if "clip_sample" in inspect.signature(made).parameters else {}
    if family in ("discrete", "ratio", "solver"):
        yield VP.from_betas(BETAS), made(num_train_timesteps=60, trained_betas=BETAS.tolist(), **clip)
    if family == "solver":
        flows = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 2.5}
        yield Flow(shift=2.5, count=500), made(num_train_timesteps=500, **flows)
    if family == "flow":
        yield Flow(shift=2.5, count=500), made(num_train_timesteps=500, shift=2.5)
    if family == "edm":
        yield EDM(ratio_min=0.01, ratio_max=30.0), made(sigma_min=0.01, sigma_max=30.0)


CASES = [
    pytest.param(name, *each, id=f"{name} {type(each[0]).__name__}") for name in SAMPLERS for each in by_hand(name)
]


def walk(mixture, schedule, sampler, **changes):
    settings = {"seeds": range(5), "steps": 7, "clip": False, "dtype": F64}
    return sample(replace(mixture, schedule=schedule), sampler, **settings | changes)


def distance(x, y):
    return float((x - y).abs().max())


@pytest.mark.few(4)
@pytest.mark.parametrize(("name", "schedule", "scheduler"), CASES)
def test_is_the_scheduler_made_by_hand(name, schedule, scheduler, mixture, posterior):
    guide = Guide(objective=ClassProbability(classifier=posterior), input=Noisy(), stabilizer=Ema(beta=0.5), scale=0.3)
    steered = {"guides": [guide], "target": [2, 0, 1, 1, 2]}
    named = NamedScheduler(scheduler=name.removesuffix("Scheduler"))
    for settings in ({}, steered):
        x, y = (walk(mixture, schedule, each, **settings) for each in (named, DiffusersSampler(scheduler)))
        assert x.isfinite().all()
        assert distance(x, y) < SINGLE
    assert distance(x, walk(mixture, schedule, named)) > 1e-3


@pytest.mark.few(2)
@pytest.mark.parametrize("scheduler", ["UniPCMultistep", "KDPM2AncestralDiscrete", "DDPM"])
def test_repeats_and_chooses_as_the_scheduler_made_by_hand(scheduler, mixture, posterior):
    guide = Guide(objective=ClassProbability(classifier=posterior), input=Noisy(), scale=0.3)
    schedule, theirs = next(by_hand(scheduler + "Scheduler"))
    steered = {"guides": [guide], "target": 1, "recurrence": Recurrence(times=2), "particles": Particles(count=3)}
    x, y = (
        walk(mixture, schedule, each, **steered)
        for each in (NamedScheduler(scheduler=scheduler), DiffusersSampler(theirs))
    )
    assert distance(x, y) < SINGLE


SETTINGS = {
    "DDIM": {"eta": 0.8, "timestep_spacing": "trailing"},
    "DDPM": {"variance_type": "fixed_large"},
    "DPMSolverMultistep": {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "use_karras_sigmas": True},
    "EulerDiscrete": {"s_churn": 2.0, "use_karras_sigmas": True},
    "LMSDiscrete": {"order": 2},
}


@pytest.mark.few(3)
@pytest.mark.parametrize("name", SETTINGS)
def test_settings_reach_the_class_and_its_step(name, mixture):
    made, settings = getattr(diffusers, f"{name}Scheduler"), SETTINGS[name]
    named = NamedScheduler(scheduler=name, settings=settings)
    own = {key: value for key, value in settings.items() if key in inspect.signature(made).parameters}
    clip = {"clip_sample": False} if "clip_sample" in inspect.signature(made).parameters else {}
    scheduler = made(num_train_timesteps=60, trained_betas=BETAS.tolist(), **own, **clip)
    theirs = DiffusersSampler(scheduler, **{key: value for key, value in settings.items() if key not in own})
    schedule = VP.from_betas(BETAS)
    assert named.fixed == theirs.fixed
    x = walk(mixture, schedule, named)
    assert distance(x, walk(mixture, schedule, theirs)) < SINGLE
    assert distance(x, walk(mixture, schedule, NamedScheduler(scheduler=name))) > 1e-3


@pytest.mark.parametrize("name", ["DDPM", "DPMSolverMultistep", "DEISMultistep"])
def test_is_diffusers_own_pipeline(name, monkeypatch):
    """From the same draws, unguided, on a network: the pipeline's loop with a scheduler on a cosine schedule."""
    torch.manual_seed(0)
    network = unet(8, 0, widths=(8, 16)).eval()
    clip = {"clip_sample": False} if name == "DDPM" else {}
    scheduler = getattr(diffusers, f"{name}Scheduler")(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", **clip
    )
    pipe = diffusers.DDPMPipeline(network, scheduler)
    pipe.set_progress_bar_config(disable=True)
    if name == "DEISMultistep":  # whose step takes no generator
        own = scheduler.step
        monkeypatch.setattr(scheduler, "step", lambda *args, generator=None, **more: own(*args, **more))
    generator = torch.Generator().manual_seed(3)
    theirs = torch.from_numpy(pipe(num_inference_steps=8, output_type="np", generator=generator).images) * 2 - 1
    generator.manual_seed(3)
    draws = [torch.randn(1, 3, 8, 8, generator=generator) for _ in range(9)]
    ours = DiffusersDenoiser(network, schedule=from_diffusers(scheduler.config), parameterization="v_prediction")
    x = sample(ours, NamedScheduler(scheduler=name), steps=8, clip=False, noise=iter(draws))
    # Where alpha is 5e-5, epsilon, in which the scheduler is told, is an x0 that is 2e4 times as large: 2^-24 of that.
    assert distance(x.clamp(-1, 1), theirs.permute(0, 3, 1, 2)) < 2e-3
    assert 0.1 < float(x.std()) < 2


ABLE = ("DDIM", "DDPM", "DPMSolverMultistep", "EulerAncestralDiscrete", "EulerDiscrete", "UniPCMultistep")


@pytest.mark.few(4)
@pytest.mark.parametrize("name", [each.removesuffix("Scheduler") for each in SAMPLERS if "Flow" not in each])
def test_on_a_schedule_that_ends_without_signal(name, mixture, posterior):
    """Those that diffusers lets begin there do, told v; the others are refused, and those for EDM as before."""
    schedule = VP.from_diffusers({"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True})
    guide = Guide(objective=ClassProbability(classifier=posterior), input=Noisy(), scale=0.3)
    for spacing in ({}, {"timestep_spacing": "trailing"}):
        if name not in ABLE:
            with pytest.raises(InputError, match="sampler.scheduler"):
                walk(mixture, schedule, NamedScheduler(scheduler=name))
            continue
        sampler = NamedScheduler(scheduler=name, settings=spacing)
        x = walk(mixture, schedule, sampler, guides=[guide], target=[2, 0, 1, 1, 2])
        assert x.isfinite().all() and float(x.abs().max()) < 3


def test_names_may_lack_their_end():
    short, full = (NamedScheduler.filled(name, {}) for name in ("DDIM", "DDIMScheduler"))
    assert short == full
    assert short["scheduler"] == "DDIM"


@pytest.mark.few(4)
@pytest.mark.parametrize("name", SAMPLERS)
def test_filled_settings_are_the_same_sampler(name, mixture):
    schedule, _ = next(by_hand(name))
    filled = NamedScheduler.filled(name, {})
    x, y = (walk(mixture, schedule, each) for each in (NamedScheduler(**filled), NamedScheduler(scheduler=name)))
    assert torch.equal(x, y)
    assert NamedScheduler.filled(**filled) == filled


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "UniPCMultistp",
            {},
            "unknown scheduler 'UniPCMultistp'; did you mean 'UniPCMultistep'.*known: DDIM, DDPM, DEIS",
        ),
        ("DDIM", {"etaa": 1.0}, "unknown setting of DDIMScheduler 'etaa'.*known: .*timestep_spacing.*, eta"),
        ("DDIM", {"beta_start": 1.0}, "unknown setting of DDIMScheduler 'beta_start'"),
        ("DDIM", {"eta": "much"}, "sampler.settings.eta must be a valid number, got 'much'"),
        ("DEISMultistep", {"solver_order": "x"}, "sampler.settings.solver_order must be a valid integer, got 'x'"),
        (
            "DDIM",
            {"timestep_spacing": "x"},
            "sampler.settings.timestep_spacing must be 'leading', 'trailing' or 'linspace', got 'x'",
        ),
        (
            "DPMSolverMultistep",
            {"use_karras_sigmas": True, "use_lu_lambdas": True, "use_beta_sigmas": True},
            "given, which DPMSolverMultistepScheduler refuses",
        ),
        ("DDPM", {"variance_type": "learned"}, "variance_type must be fixed_small.*, got learned"),
    ],
)
def test_refuses_when_it_is_made(name, settings, message, unchecked):
    with pytest.raises(InputError, match=message) as error:
        NamedScheduler(scheduler=name, settings=settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "schedule", "suited"),
    [
        ("FlowMatchEulerDiscrete", VP.linear(), "DDIM, DDPM"),
        ("EDMEuler", VP.linear(), "DDIM, DDPM"),
        ("DDIM", EDM(), "EDMDPMSolverMultistep, EDMEuler$"),
        ("EulerDiscrete", Flow(), "DEISMultistep, DPMSolverMultistep, FlowMatchEulerDiscrete"),
    ],
)
def test_refuses_a_schedule_that_it_is_not_made_for(name, schedule, suited, mixture):
    with pytest.raises(InputError, match=f"must be for the denoiser's schedule, .*, got {name}Scheduler; use {suited}"):
        walk(mixture, schedule, NamedScheduler(scheduler=name))


def test_a_scheduler_whose_package_is_not_there_is_refused(monkeypatch):
    class Dummy:
        _backends = ["torch", "scipy"]

    monkeypatch.setattr(diffusers, "LMSDiscreteScheduler", Dummy)
    with pytest.raises(InputError, match="LMSDiscreteScheduler needs scipy"):
        NamedScheduler(scheduler="LMSDiscrete")
