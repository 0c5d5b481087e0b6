import copy
import threading
from dataclasses import replace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from steersman.batching import take
from steersman.denoise import output_for
from steersman.errors import InputError
from steersman.guidance import (
    ClassProbability,
    Constant,
    DenoisedImage,
    Ema,
    Guide,
    Interval,
    Lookahead,
    NoisePrediction,
    Noisy,
    Rms,
    Signal,
    Spherical,
)
from steersman.sampling import (
    DDIM,
    DDPM,
    DiffusersSampler,
    DPMpp,
    Heun,
    Particles,
    Recurrence,
    SeededNoise,
    sample,
)
from steersman.sampling.scheduler import Adapter
from steersman.schedule import EDM, VP, Flow, Level, from_diffusers

F64 = torch.float64
STEPS = 7
SEEDS = [11, 3, 8, 0, 5]
TARGETS = [2, 0, 1, 1, 2]

EXACT = 1e-13
"""Float64's rounding, 1e-16, of the noise predicted; over the noisiest level's alpha, 6e-3."""
SINGLE = 2e-6
"""The scheduler computes in float32, or scales the network's input so: 2^-24, relative to the sample. A walk takes the
sample down with its noise, so that errors do not add up beyond some tens of that."""

OF_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
UNCLIPPED = {"clip_sample": False}
EPS, V, X0 = ({"prediction_type": kind} for kind in ("epsilon", "v_prediction", "sample"))
NO_SIGNAL = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
CASES = {
    "DDPM": (DDPMScheduler, [{**UNCLIPPED, **kind} for kind in (EPS, V, X0)], EXACT),
    "DDPM large": (
        DDPMScheduler,
        [{**UNCLIPPED, "variance_type": "fixed_large", "timestep_spacing": "trailing"}],
        EXACT,
    ),
    "DDPM clipped": (DDPMScheduler, [V], EXACT),
    "DDPM without signal": (DDPMScheduler, [{**UNCLIPPED, **NO_SIGNAL, **kind} for kind in (V, X0)], EXACT),
    "DDIM without signal": (DDIMScheduler, [{**UNCLIPPED, **NO_SIGNAL, **kind} for kind in (V, X0)], EXACT),
    "DDIM": (DDIMScheduler, [{**UNCLIPPED, **kind} for kind in (EPS, V, X0)], EXACT),
    "DDIM to the first time": (DDIMScheduler, [{**UNCLIPPED, "set_alpha_to_one": False, "steps_offset": 1}], EXACT),
    "PNDM": (PNDMScheduler, [{"skip_prk_steps": skip, **kind} for skip in (True, False) for kind in (EPS, V)], EXACT),
    "DPMSolverMultistep": (
        DPMSolverMultistepScheduler,
        [EPS, V, X0, {"solver_order": 3}, {"use_karras_sigmas": True}, {"final_sigmas_type": "sigma_min"}, OF_FLOW]
        + [{"algorithm_type": "sde-dpmsolver++", **kind} for kind in (EPS, V, X0, OF_FLOW)]
        + [{**NO_SIGNAL, **V}],
        SINGLE,
    ),
    "UniPC": (
        UniPCMultistepScheduler,
        [EPS, V, X0, {"solver_order": 3}, {"predict_x0": False, "final_sigmas_type": "sigma_min"}, OF_FLOW],
        EXACT,
    ),
    "DEIS": (DEISMultistepScheduler, [EPS, V, X0], EXACT),
    "LMS": (LMSDiscreteScheduler, [EPS, V, X0], SINGLE),
    "Euler": (
        EulerDiscreteScheduler,
        [EPS, V, X0, {"use_karras_sigmas": True}, {"timestep_spacing": "leading"}, {**NO_SIGNAL, **V}],
        SINGLE,
    ),
    "EulerAncestral": (EulerAncestralDiscreteScheduler, [EPS, V, {**NO_SIGNAL, **V}], SINGLE),
    "Heun": (HeunDiscreteScheduler, [EPS, V, X0], SINGLE),
    "KDPM2": (KDPM2DiscreteScheduler, [EPS, V], SINGLE),
    "KDPM2Ancestral": (KDPM2AncestralDiscreteScheduler, [EPS, V], SINGLE),
    "EDMEuler": (EDMEulerScheduler, [EPS, V, {"sigma_schedule": "exponential"}], SINGLE),
    "EDMDPMSolverMultistep": (
        EDMDPMSolverMultistepScheduler,
        [EPS, V, {"solver_order": 3}, {"algorithm_type": "sde-dpmsolver++"}],
        SINGLE,
    ),
    "FlowMatchEuler": (FlowMatchEulerDiscreteScheduler, [{}, {"shift": 3.0}, {"stochastic_sampling": True}], SINGLE),
    "FlowMatchHeun": (FlowMatchHeunDiscreteScheduler, [{}, {"shift": 3.0}], SINGLE),
}
CHOICES = [
    pytest.param(make, config, bound, id=" ".join([name, *map(str, config.values())]))
    for name, (make, configs, bound) in CASES.items()
    for config in configs
]
EACH = [pytest.param(make, configs[0], id=name) for name, (make, configs, _) in CASES.items()]
SETTINGS = {EulerDiscreteScheduler: {"s_churn": 2.0, "s_noise": 1.1}, EDMEulerScheduler: {"s_churn": 2.0}}
SETTINGS[DDIMScheduler] = {"eta": 0.7}


def made(make, config):
    if make is LMSDiscreteScheduler:
        pytest.importorskip("scipy", reason="diffusers integrates its coefficients with it")
    return make(**config)


def schedule_for(scheduler):
    return EDM() if type(scheduler).__name__.startswith("EDM") else from_diffusers(scheduler.config)


@pytest.fixture
def on(mixture):
    """The mixture on the schedule that a scheduler belongs to."""
    return lambda scheduler: replace(mixture, schedule=schedule_for(scheduler))


def noise_of(seeds=SEEDS, steps=20):
    noise = SeededNoise(seeds, (2, 1, 1), "cpu", F64)
    return [noise(purpose) for purpose in ("start", *["step"] * steps)]


class Loop:
    """diffusers' own loop, with the mixture for a network, written in each family's own terms."""

    def __init__(self, scheduler, mixture, monkeypatch):
        self.scheduler, self.mixture, self.monkeypatch = copy.deepcopy(scheduler), mixture, monkeypatch
        self.name, self.config = type(scheduler).__name__, scheduler.config
        self.kind = scheduler.config.get("prediction_type", "flow_prediction")

    def sigma(self, t):
        """Of the scheduler's own sample: the sigma that its step will use."""
        if not hasattr(self.scheduler, "step_index"):
            return None
        if self.scheduler.step_index is None:
            self.scheduler._init_step_index(t)
        index, between = self.scheduler.step_index, not getattr(self.scheduler, "state_in_first_order", True)
        if between and self.name == "KDPM2DiscreteScheduler":
            return self.scheduler.sigmas_interpol[index]
        if between and self.name == "KDPM2AncestralDiscreteScheduler":
            return self.scheduler.sigmas_interpol[index - 1]
        return self.scheduler.sigmas[index]

    def level(self, t):
        """Of what the network is shown."""
        sigma, time = self.sigma(t), t.double()
        if sigma is None:
            bar = self.scheduler.alphas_cumprod[t]
            return Level((bar**0.5).double(), ((1 - bar) ** 0.5).double(), time)
        if self.name.startswith("EDM"):
            return Level(torch.ones((), dtype=F64), sigma.double(), time)
        if self.name.startswith("FlowMatch"):
            return Level(1 - sigma.double(), sigma.double(), time)
        if hasattr(self.scheduler, "_sigma_to_alpha_sigma_t"):
            alpha, sigma = self.scheduler._sigma_to_alpha_sigma_t(sigma)
            return Level(alpha.double(), sigma.double(), time)
        alpha = 1 / (1 + sigma.double() ** 2).sqrt()
        return Level(alpha, sigma.double() * alpha, time)

    def __call__(self, steps, draws, **settings):
        start, *rest = draws
        rest = iter(rest)
        self.monkeypatch.setattr(torch, "randn", lambda *_, dtype=None, **__: next(rest).to(dtype))
        self.monkeypatch.setattr(torch, "randn_like", lambda sample: next(rest).to(sample.dtype))
        self.scheduler.set_timesteps(steps)
        z = None
        for t in self.scheduler.timesteps:
            level = self.level(t)
            by_sigma = "Scheduler" in self.name and hasattr(self.scheduler, "is_scale_input_called")
            by_sigma = by_sigma or self.name.startswith(("Heun", "KDPM2"))
            if z is None:
                x = start * self.mixture.schedule.start(level)
                z = x / level.alpha if by_sigma and not self.name.startswith("EDM") else x
            shown = z
            if hasattr(self.scheduler, "scale_model_input"):
                shown = self.scheduler.scale_model_input(z, t)
            if self.name.startswith("EDM"):
                half = self.config["sigma_data"]
                shown = shown * (level.sigma**2 + half**2).sqrt()
            x0 = self.mixture(shown, level).x0_hat
            eps = (shown - level.alpha * x0) / level.sigma
            if self.name.startswith("EDM"):
                skip = half**2 / (level.sigma**2 + half**2)
                out = level.sigma * half / (level.sigma**2 + half**2).sqrt()
                output = (x0 - skip * z) / (out if self.kind == "epsilon" else -out)
            else:
                output = output_for(self.kind, x0, eps, level)
            z = self.scheduler.step(output, t, z, return_dict=False, **settings)[0]
        self.monkeypatch.undo()
        return z


def ours(mixture, sampler, noise=None, **changes):
    """Ours, with as many of the draws as are used."""
    settings = {"seeds": SEEDS, "steps": STEPS, "clip": False, "dtype": F64}
    return sample(mixture, sampler, noise=noise and iter(noise), **settings | changes)


def distance(x, y):
    return float((x - y).abs().max())


@pytest.mark.few(6)
@pytest.mark.parametrize(("make", "config", "bound"), CHOICES)
@pytest.mark.parametrize("steps", [1, STEPS, pytest.param(16, marks=pytest.mark.long)])
def test_is_diffusers_own_loop(make, config, bound, steps, on, monkeypatch):
    scheduler = made(make, config)
    if steps == 1 and make is PNDMScheduler and not config["skip_prk_steps"]:
        pytest.skip("has four timesteps or more")
    settings = SETTINGS.get(make, {})
    theirs = Loop(scheduler, on(scheduler), monkeypatch)(steps, noise_of(), **settings)
    assert theirs.isfinite().all()
    x = ours(on(scheduler), DiffusersSampler(scheduler, **settings), steps=steps)
    assert distance(x, theirs) < bound


@pytest.mark.few(4)
@pytest.mark.parametrize(("make", "config"), EACH)
def test_a_wrong_prediction_type_is_noticed(make, config, on, monkeypatch):
    scheduler = made(make, config)
    sampler = DiffusersSampler(scheduler)
    theirs = Loop(scheduler, on(scheduler), monkeypatch)(STEPS, noise_of())
    if isinstance(scheduler, EDMEulerScheduler | EDMDPMSolverMultistepScheduler):
        monkeypatch.setattr(DiffusersSampler, "_output", lambda self, _, __, estimate, ___: estimate.eps)
    else:
        sampler.kind = "v_prediction" if sampler.kind == "sample" else "sample"
    assert distance(ours(on(scheduler), sampler), theirs) > 1e-2


@pytest.mark.parametrize("make", [EulerDiscreteScheduler, HeunDiscreteScheduler, KDPM2DiscreteScheduler])
def test_an_unscaled_sample_is_noticed(make, on, monkeypatch):
    scheduler = make()
    theirs = Loop(scheduler, on(scheduler), monkeypatch)(STEPS, noise_of())
    positions = Adapter.positions

    def unscaled(self):
        return tuple(each._replace(scale=1.0, next_scale=1.0) for each in positions(self))

    monkeypatch.setattr(Adapter, "positions", unscaled)
    assert distance(ours(on(scheduler), DiffusersSampler(scheduler)), theirs) > 1e-2


@pytest.mark.parametrize("back", [0, 2])
def test_a_level_between_that_is_not_the_schedulers_is_noticed(back, on, monkeypatch):
    """KDPM2's second call is at a level of its own; its neighbours are not it."""
    scheduler = KDPM2DiscreteScheduler()
    theirs = Loop(scheduler, on(scheduler), monkeypatch)(STEPS, noise_of())
    positions_of = Adapter.positions

    def moved(self):
        positions = list(positions_of(self))
        positions[3] = positions[3]._replace(level=positions[2 + back].level)
        return tuple(positions)

    monkeypatch.setattr(Adapter, "positions", moved)
    assert distance(ours(on(scheduler), DiffusersSampler(scheduler)), theirs) > 1e-3


@pytest.fixture
def guide(posterior):
    return Guide(objective=ClassProbability(classifier=posterior), input=Noisy(), stabilizer=Ema(beta=0.5), scale=0.5)


@pytest.mark.few(7)
@pytest.mark.parametrize(("make", "config"), EACH)
def test_an_image_depends_on_its_seed_and_target_alone(make, config, on, guide):
    scheduler = made(make, config)
    sampler = DiffusersSampler(scheduler, **SETTINGS.get(make, {}))
    together = ours(on(scheduler), sampler, guides=[guide], target=TARGETS)
    assert together.isfinite().all()
    for row, (seed, target) in enumerate(zip(SEEDS, TARGETS, strict=True)):
        alone = ours(on(scheduler), sampler, guides=[guide], seeds=[seed], target=target)
        assert distance(alone, together[row : row + 1]) < SINGLE


@pytest.mark.few(7)
@pytest.mark.parametrize(("make", "config"), EACH)
def test_one_sampler_serves_many_walks(make, config, on):
    """One after the other, of other lengths in between, and at once; the scheduler that was given stays as it was."""
    scheduler = made(make, config)
    before = repr(sorted(vars(scheduler).items()))
    sampler = DiffusersSampler(scheduler, **SETTINGS.get(make, {}))
    first = ours(on(scheduler), sampler)
    ours(on(scheduler), sampler, steps=5, seeds=[7])
    found = {}
    threads = [
        threading.Thread(target=lambda seed=seed: found.update({seed: ours(on(scheduler), sampler, seeds=[seed])}))
        for seed in SEEDS[:3]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for row, seed in enumerate(SEEDS[:3]):
        assert distance(found[seed], first[row : row + 1]) < SINGLE
    assert torch.equal(ours(on(scheduler), sampler), first)
    assert repr(sorted(vars(scheduler).items())) == before


@pytest.mark.few(7)
@pytest.mark.parametrize(("make", "config"), EACH)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_float32_is_float64_up_to_a_grey_level(make, config, device, on, guide):
    """From the same draws, within 1/255 of the range, as a picture would show; on every device."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("compares with an accelerator")
    scheduler = made(make, config)
    sampler = DiffusersSampler(scheduler, **SETTINGS.get(make, {}))
    walk = {"guides": [guide], "target": TARGETS}
    single, double = (
        ours(on(scheduler), sampler, noise=noise_of(), dtype=dtype, device=place, **walk)
        for dtype, place in ((torch.float32, device), (F64, "cpu"))
    )
    assert single.dtype == torch.float32 and single.device.type == device
    assert distance(single.double().cpu(), double) < 1 / 255


class At:
    """Our own sampler at the levels of a scheduler."""

    def __init__(self, sampler, theirs):
        self.fixed, self.noisy, self.init, self.step = sampler.fixed, sampler.noisy, sampler.init, sampler.step
        self.levels = theirs.levels


PAIRS = {
    "DDIM": (DDIM(), DDIMScheduler(timestep_spacing="trailing", clip_sample=False), {}),
    "DDIM drawing": (DDIM(eta=0.7), DDIMScheduler(timestep_spacing="trailing", clip_sample=False), {"eta": 0.7}),
    "DDPM": (DDPM(), DDPMScheduler(clip_sample=False), {}),
    "Euler": (DDIM(), EulerDiscreteScheduler(), {}),
    "EulerAncestral": (DDIM(eta=1.0), EulerAncestralDiscreteScheduler(prediction_type="v_prediction"), {}),
    "Heun": (Heun(), HeunDiscreteScheduler(prediction_type="sample", use_karras_sigmas=True), {}),
    "EDM": (DDIM(), EDMEulerScheduler(), {}),
    "DPMpp": (DPMpp(), DPMSolverMultistepScheduler(), {}),
    "EDM DPMpp": (DPMpp(), EDMDPMSolverMultistepScheduler(), {}),
    "flow": (DDIM(), FlowMatchEulerDiscreteScheduler(), {}),
    "flow DPMpp": (DPMpp(), DPMSolverMultistepScheduler(**OF_FLOW), {}),
}
INJECTIONS = {
    "none": {"scale": 0.0},
    "mean": {},
    "noise": {"injection": NoisePrediction(), "weight": Interval(ratio_min=0.1, ratio_max=5.0), "scale": 0.5},
    "denoised": {"injection": DenoisedImage(), "weight": Constant(), "scale": 0.05},
    "spherical": {"injection": Spherical(), "weight": Constant(), "stabilizer": Rms(), "scale": 0.02},
}


@pytest.mark.few(3)
@pytest.mark.parametrize("injection", INJECTIONS)
@pytest.mark.parametrize("pair", PAIRS)
def test_steers_as_our_own_sampler_does(pair, injection, on, guide):
    """From the same levels and draws: what differs is the order of float32's operations there."""
    own, scheduler, settings = PAIRS[pair]
    if injection == "denoised" and pair == "DDPM":
        pytest.skip("steps from the sample that the pushed estimate describes, and ours from the one before")
    if injection == "spherical" and pair not in ("DDPM", "DDIM drawing", "EulerAncestral"):
        pytest.skip("draws nothing to turn")
    theirs = DiffusersSampler(scheduler, **settings)
    walk = {
        "guides": [replace(guide, **INJECTIONS[injection])],
        "target": TARGETS,
        "steps": 10,
        "noise": noise_of(),
        "clip": True,
    }
    x, y = (ours(on(scheduler), sampler, **walk) for sampler in (At(own, theirs), theirs))
    # alpha_bar in float32: 2^-24 relative to a beta of 1e-4 there, so that the first level's variance is 6e-4 off
    assert distance(x, y) < 1e-4
    assert x.isfinite().all()
    if injection != "none":
        assert distance(x, ours(on(scheduler), theirs, **walk | {"guides": [], "noise": noise_of()})) > 1e-2


@pytest.mark.few(3)
@pytest.mark.parametrize("pair", ["DDIM", "DDPM", "Euler", "Heun", "EDM", "DPMpp"])
@pytest.mark.parametrize("how", ["recurrence", "particles"])
def test_repeats_and_chooses_as_our_own_sampler_does(pair, how, on, guide):
    own, scheduler, settings = PAIRS[pair]
    theirs = DiffusersSampler(scheduler, **settings)
    walk = {"guides": [guide], "target": TARGETS, "steps": 10, "clip": True}
    walk[how] = (
        Recurrence(times=3, ratio_min=0.2, ratio_max=3.0) if how == "recurrence" else Particles(count=4, ratio_max=5.0)
    )
    x, y = (ours(on(scheduler), sampler, **walk) for sampler in (At(own, theirs), theirs))
    assert distance(x, y) < 1e-4


@pytest.mark.few(4)
@pytest.mark.parametrize(("make", "config"), EACH)
def test_particles_take_their_history_along(make, config, on, guide):
    """Candidates that are copies of one another from the start go on as one would."""
    scheduler = made(make, config)
    sampler = DiffusersSampler(scheduler, **SETTINGS.get(make, {}))
    first, *rest = noise_of(steps=40)
    turn = torch.tensor([3, 0, 4, 1, 2])

    class Turning:
        """A sampler whose batch is turned over before a step."""

        fixed, noisy, levels, init = sampler.fixed, sampler.noisy, sampler.levels, sampler.init

        def step(self, x_t, step, predict, draw, state):
            if step.index != 3:
                return sampler.step(x_t, step, predict, draw, state)
            back = turn.argsort()
            move, state = sampler.step(x_t[turn], step, predict, lambda: draw()[turn], take(state, turn))
            return take((move, state), back)

    x, y = (ours(on(scheduler), each, noise=[first, *rest]) for each in (sampler, Turning()))
    assert distance(x, y) < SINGLE


@pytest.mark.parametrize("make", [LMSDiscreteScheduler, PNDMScheduler])
def test_a_scheduler_that_cannot_begin_in_the_middle_refuses_recurrence(make, on):
    scheduler = made(make, {})
    with pytest.raises(
        InputError, match="recurrence must be off with .*, which cannot repeat a step without its history"
    ):
        ours(on(scheduler), DiffusersSampler(scheduler), recurrence=Recurrence(times=2))


def test_a_corrector_does_not_undo_a_push(on, guide, monkeypatch):
    """UniPC computes a sample anew from the one before it: what a guide did to the mean is to stay."""
    plain, corrected = (UniPCMultistepScheduler(disable_corrector=which) for which in (list(range(10)), []))
    walk = {"target": TARGETS, "steps": 10}

    def shift(scheduler):
        free, steered = (
            ours(on(scheduler), DiffusersSampler(scheduler), guides=guides, **walk) for guides in ([], [guide])
        )
        return steered - free

    kept, wanted = shift(corrected), shift(plain)
    assert float((kept - wanted).norm() / wanted.norm()) < 0.15
    monkeypatch.setattr(Adapter, "move_kept_sample", lambda *_: None)
    assert float((shift(corrected) - wanted).norm() / wanted.norm()) > 0.5


def test_draws_are_the_images_own_and_no_others(on):
    """A scheduler draws what the walk was given, in order, and leaves torch's own generator alone."""
    scheduler = EulerAncestralDiscreteScheduler()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    x = ours(on(scheduler), DiffusersSampler(scheduler), noise=noise_of(steps=STEPS))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(x, ours(on(scheduler), DiffusersSampler(scheduler)))
    with pytest.raises(InputError, match="no draw left for the step"):
        ours(on(scheduler), DiffusersSampler(scheduler), noise=noise_of(steps=STEPS - 1))


def test_a_large_variance_is_told():
    assert DiffusersSampler(DDPMScheduler(variance_type="fixed_large")).fixed == "large"
    assert DiffusersSampler(DDPMScheduler()).fixed == DiffusersSampler(EulerDiscreteScheduler()).fixed == "small"


@pytest.mark.parametrize(
    "choices",
    [{"injection": NoisePrediction(), "weight": Constant()}, {"weight": Signal()}],
    ids=["noise", "signal"],
)
def test_guides_that_divide_by_the_signal_rest_at_pure_noise(on, guide, choices):
    """Their push of the first step is 0 / 0: there is no signal, so the noise says nothing of the target."""
    scheduler, reports = FlowMatchEulerDiscreteScheduler(), []
    settings = {"target": TARGETS, "callbacks": [reports.append]}
    guided = ours(on(scheduler), DiffusersSampler(scheduler), guides=[replace(guide, **choices)], **settings)
    assert guided.isfinite().all()
    assert [report.updates[0] is None for report in reports] == [True] + [False] * (STEPS - 1)
    assert (guided - ours(on(scheduler), DiffusersSampler(scheduler))).abs().max() > 1e-3


def test_a_view_from_further_on_begins_at_pure_noise(on, guide):
    scheduler = FlowMatchEulerDiscreteScheduler()
    ahead = replace(guide, input=Lookahead(evaluations=3))
    assert ours(on(scheduler), DiffusersSampler(scheduler), guides=[ahead], target=TARGETS).isfinite().all()


@pytest.mark.parametrize(
    ("make", "config", "settings", "message"),
    [
        (DPMSolverSinglestepScheduler, {}, {}, "unknown scheduler 'DPMSolverSinglestepScheduler'; did you mean"),
        (
            HeunDiscreteScheduler,
            {},
            {"s_churn": 1.0},
            "unknown setting of HeunDiscreteScheduler 's_churn'; known: none",
        ),
        (DDIMScheduler, {}, {"generator": 1.0}, "unknown setting of DDIMScheduler 'generator'; .*known: eta"),
        (PNDMScheduler, {"prediction_type": "sample"}, {}, "unknown prediction_type of PNDMScheduler 'sample'"),
        (DDPMScheduler, {"variance_type": "learned_range"}, {}, "variance_type must be fixed.*, got learned_range"),
        (UniPCMultistepScheduler, {"prediction_type": "flow_prediction"}, {}, "use_flow_sigmas must be true"),
        (UniPCMultistepScheduler, {"predict_x0": False}, {}, "final_sigmas_type must be sigma_min"),
        (FlowMatchEulerDiscreteScheduler, {"use_dynamic_shifting": True}, {}, "use_dynamic_shifting must be false"),
    ],
)
def test_refuses_when_it_is_made(make, config, settings, message):
    with pytest.raises(InputError, match=message):
        DiffusersSampler(make(**config), **settings)


@pytest.mark.parametrize(
    ("scheduler", "schedule"),
    [
        (DDIMScheduler(), VP.cosine()),
        (DDIMScheduler(beta_schedule="scaled_linear"), VP.linear()),
        (EulerDiscreteScheduler(), EDM()),
        (EDMEulerScheduler(), VP.linear()),
        (EDMEulerScheduler(), Flow()),
        (FlowMatchEulerDiscreteScheduler(), VP.linear()),
        (DDPMScheduler(num_train_timesteps=400), VP.linear()),
        (EulerDiscreteScheduler(use_karras_sigmas=True, sigma_max=300.0), VP.linear()),
    ],
)
def test_refuses_a_schedule_that_is_not_the_denoisers(scheduler, schedule, mixture):
    with pytest.raises(
        InputError, match="the denoiser's own, got .* with alpha, sigma, time = .*, where the denoiser's schedule has"
    ):
        ours(replace(mixture, schedule=schedule), DiffusersSampler(scheduler))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"spacing": "karras"},
            "sampling.spacing, sampling.ratio_min and sampling.ratio_max must be linspace, .*, got karras, 0.0 and inf",
        ),
        (
            {"ratio_min": 0.1},
            "sampling.spacing, sampling.ratio_min and sampling.ratio_max must be .*, got linspace, 0.1 and inf",
        ),
        ({"steps": 0}, "steps must be between 1 and 1000, got 0"),
        ({"steps": 1001}, "steps must be between 1 and 1000, got 1001"),
    ],
)
def test_refuses_a_walk_that_is_not_the_schedulers(changes, message, on):
    scheduler = DDIMScheduler()
    with pytest.raises(InputError, match=message):
        ours(on(scheduler), DiffusersSampler(scheduler), **changes)


@pytest.mark.parametrize("make", [DDIMScheduler, DDPMScheduler])
def test_refuses_to_tell_the_noise_where_there_is_no_signal(make, on):
    scheduler = make(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(InputError, match="prediction_type must be v_prediction or sample .*, got epsilon"):
        ours(on(scheduler), DiffusersSampler(scheduler))
    leading = make(rescale_betas_zero_snr=True, timestep_spacing="leading")
    assert ours(on(leading), DiffusersSampler(leading)).isfinite().all()


def test_refuses_fewer_steps_than_rungekutta_takes(on):
    scheduler = PNDMScheduler()
    with pytest.raises(InputError, match="steps must be .*, got 3"):
        ours(on(scheduler), DiffusersSampler(scheduler), steps=3)
