import math
from dataclasses import replace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from steersman.batching import broadcast
from steersman.denoise import eps_from_x0, output_for, to_x0
from steersman.errors import InputError
from steersman.guidance.step import posterior_mean, reverse_variance, transition
from steersman.recipes import load_recipe
from steersman.sampling import DDIM, DDPM, DPMpp, Heun, Recurrence, levels_of, sample
from steersman.schedule import CLEAN, EDM, VP, Flow, from_diffusers

F64 = torch.float64
NO_SIGNAL = VP.from_diffusers(DDIMScheduler(rescale_betas_zero_snr=True).config)
SCHEDULES = {"linear": VP.linear(), "cosine": VP.cosine(), "short": VP.linear(400), "no signal": NO_SIGNAL}


@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
@pytest.mark.parametrize("ends", [{}, {"beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 400}])
def test_alpha_bar_is_that_of_diffusers(betas, ends):
    scheduler = DDPMScheduler(beta_schedule=betas, **ends)
    ours = VP.from_diffusers(scheduler.config).alpha_bar
    # diffusers is in float32: each factor 1 - beta is rounded by 2^-24, relative to itself, and so is each product;
    # beta itself carries some units more, from the linspace, square or cosine that it came from.
    rounding = 2**-24 * (3 / (1 - scheduler.betas.double()) + 1).cumsum(0)
    assert ((scheduler.alphas_cumprod.double() / ours - 1).abs() < rounding).all()


@pytest.mark.parametrize("betas", ["linear", "scaled_linear"])
@pytest.mark.parametrize("make", [DDIMScheduler, DDPMScheduler])
def test_zero_terminal_snr_is_that_of_diffusers(make, betas):
    scheduler = make(beta_schedule=betas, rescale_betas_zero_snr=True)
    ours = VP.from_diffusers(scheduler.config).alpha_bar
    assert ours[-1] == 0 == scheduler.alphas_cumprod[-1]
    # float32 there: near its end, alpha is a difference of two numbers of 2^-24 each
    torch.testing.assert_close(ours.sqrt(), scheduler.alphas_cumprod.double().sqrt(), rtol=1e-4, atol=2e-7)
    given = VP.from_betas(scheduler.betas)
    torch.testing.assert_close(given.alpha_bar.sqrt(), ours.sqrt(), rtol=1e-4, atol=2e-7)
    assert given.alpha_bar.dtype == F64 and VP(alpha_bar=scheduler.alphas_cumprod).alpha_bar.dtype == F64


def test_towards_the_time_without_signal_the_signal_falls_linearly():
    end = NO_SIGNAL.at_time(999.0)
    assert (float(end.alpha), float(end.sigma), float(end.time)) == (0, 1, 999)
    before = NO_SIGNAL.at_time(998.0)
    for share in (0.0, 0.25, 0.5, 1.0):
        level = NO_SIGNAL.at_time(998 + share)
        expected = (1 - share) * before.alpha / before.sigma
        torch.testing.assert_close(level.alpha / level.sigma, expected, rtol=1e-13, atol=0)  # float64's rounding
    for given in (math.inf, 1e12):
        assert float(NO_SIGNAL.at_ratio(given).time) == pytest.approx(999, abs=1e-6)
    assert NO_SIGNAL.at_ratio(math.inf).alpha == 0


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing", "karras", "logsnr"])
def test_a_walk_from_pure_noise(spacing):
    """Ratios need an end that is finite: the noisiest time with a signal."""
    levels = NO_SIGNAL.levels(8, spacing)
    first = {"leading": 875, "karras": 998, "logsnr": 998}.get(spacing, 999)
    assert float(levels[0].time) == pytest.approx(first, abs=1e-9)
    assert all(level.alpha.isfinite() and level.sigma.isfinite() for level in levels)
    ratios = [float(level.sigma / level.alpha) for level in levels]
    assert all(ratio_max > ratio_min for ratio_max, ratio_min in zip(ratios, ratios[1:], strict=False))


@pytest.mark.parametrize(
    "alpha_bar",
    [[0.0], [0.5, 0.0, 0.0], [0.5, -0.1], [1.0, 0.5], [0.5, 0.6], [0.5, math.nan], [math.nan, 0.5], []],
)
def test_refuses_an_alpha_bar_that_does_not_fall_from_1_to_0(alpha_bar):
    with pytest.raises(InputError, match="alpha_bar, the running product .* must fall from below 1"):
        VP(alpha_bar=torch.tensor(alpha_bar))


def test_a_schedule_of_one_time():
    schedule = VP(alpha_bar=torch.tensor([0.3]))
    for level in (schedule.at_time(0.0), schedule.at_ratio(0.01), schedule.at_ratio(100.0), schedule.levels(1)[0]):
        assert float(level.time) == 0 and float(level.alpha) == pytest.approx(0.3**0.5, rel=1e-7)


def test_trained_betas_go_before_a_named_schedule():
    config = {"beta_schedule": "linear", "trained_betas": [0.1, 0.2, 0.5]}
    expected = torch.tensor([0.9, 0.72, 0.36], dtype=F64)
    # three products in float64
    torch.testing.assert_close(VP.from_diffusers(config).alpha_bar, expected, rtol=1e-15, atol=0)


def test_cosine_is_the_ratio_of_squared_cosines():
    def squared(u):
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    alpha_bar = VP.cosine().alpha_bar
    for t in (0, 1, 500, 998):  # the last beta alone is capped
        # a product of t + 1 factors, each rounded by 2^-53
        assert float(alpha_bar[t]) == pytest.approx(squared((t + 1) / 1000) / squared(0), rel=(t + 1) * 2**-51)
    assert float(alpha_bar[999] / alpha_bar[998]) == pytest.approx(0.001, rel=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_at_time_gives_the_trained_levels(name):
    schedule = SCHEDULES[name]
    times = torch.arange(len(schedule.alpha_bar), dtype=F64)
    level = schedule.at_time(times)
    assert torch.equal(level.time, times)
    # through the logarithm of the ratio, up to 20 here, and back: its rounding is 20 * 2^-52
    torch.testing.assert_close(level.alpha**2, schedule.alpha_bar, rtol=2e-14, atol=0)
    torch.testing.assert_close(level.alpha**2 + level.sigma**2, torch.ones_like(times), rtol=1e-15, atol=0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_between_two_times_the_log_ratio_is_linear(name):
    ratio_min, ratio_max = (SCHEDULES[name].at_time(time) for time in (100.0, 101.0))
    for share in (0.25, 0.5):
        level = SCHEDULES[name].at_time(100 + share)
        expected = (ratio_min.sigma / ratio_min.alpha) ** (1 - share) * (ratio_max.sigma / ratio_max.alpha) ** share
        torch.testing.assert_close(level.sigma / level.alpha, expected, rtol=1e-14, atol=0)  # float64's rounding


@pytest.mark.parametrize("name", SCHEDULES)
def test_at_ratio_is_the_inverse_of_at_time(name):
    schedule = SCHEDULES[name]
    last = len(schedule.alpha_bar) - 1
    times = torch.cat([torch.arange(last + 1, dtype=F64), torch.linspace(0.1, last - 0.1, 500, dtype=F64)])
    there = schedule.at_time(times)
    back = schedule.at_ratio(there.sigma / there.alpha)
    # a few units of float64 in a logarithm of at most 10, over its smallest slope in time, 0.004 here
    torch.testing.assert_close(back.time, times, rtol=0, atol=1e-11)
    torch.testing.assert_close(back.alpha, there.alpha, rtol=1e-14, atol=0)


def test_at_ratio_stays_within_the_trained_range():
    schedule = SCHEDULES["linear"]
    assert schedule.at_ratio(0.0).time == 0
    assert schedule.at_ratio(1e9).time == 999


def test_one_time_an_image():
    times = torch.tensor([0.0, 3.5, 999.0], dtype=F64)
    together = SCHEDULES["linear"].at_time(times)
    for row, time in enumerate(times):
        alone = SCHEDULES["linear"].at_time(time)
        assert all(torch.equal(one[row], other) for one, other in zip(together, alone, strict=True))


def times(schedule, steps, spacing):
    levels = schedule.levels(steps, spacing)
    assert len(levels) == steps + 1 and levels[-1] is CLEAN
    return [float(level.time) for level in levels[:-1]]


@pytest.mark.few(2)
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("count", [1000, 400])
def test_spacings_are_those_of_diffusers(spacing, count):
    scheduler = DDPMScheduler(num_train_timesteps=count, timestep_spacing=spacing)
    for steps in (2, 7, 10, 18, 25, 30, 50, 100, 250, 333, 400):
        scheduler.set_timesteps(steps)
        assert times(VP.linear(count), steps, spacing) == scheduler.timesteps.tolist(), steps


@pytest.mark.parametrize("count", [1000, 400])
def test_linspace_is_adms_respacing(count):
    # numbers of steps that put no time half-way between two, where ADM's running sum rounds by accident
    for steps in (2, 10, 25, 50, 100, 250, count):
        stride, place, taken = (count - 1) / (steps - 1), 0.0, []  # guided-diffusion, respace.py, space_timesteps
        for _ in range(steps):
            taken.append(round(place))
            place += stride
        assert times(VP.linear(count), steps, "linspace") == sorted(taken, reverse=True), steps


def test_a_single_step_starts_from_the_noisiest_level():
    assert times(VP.linear(), 1, "linspace") == times(VP.linear(), 1, "trailing") == [999]


def test_a_walk_goes_down():
    walks = [VP.cosine().levels(50, spacing) for spacing in ("linspace", "leading", "trailing", "karras")]
    for levels in (*walks, EDM().levels(50), EDM().levels(50, "karras")):
        ratios = [float(level.sigma / level.alpha) for level in levels]
        assert all(ratio_max > ratio_min for ratio_max, ratio_min in zip(ratios, ratios[1:], strict=False))


@pytest.mark.parametrize("steps", [2, 10, 18, 36, 256])
def test_karras_ratios_are_those_of_diffusers(steps):
    scheduler = EDMEulerScheduler()
    scheduler.set_timesteps(steps)
    *levels, last = EDM().levels(steps, "karras")
    assert last is CLEAN
    # float32 there: seventh roots and powers, 2^-24 each, seven times as much after the power
    rounding = {"rtol": 20 * 2**-24, "atol": 20 * 2**-24}
    torch.testing.assert_close(
        torch.stack([level.sigma for level in levels]), scheduler.sigmas[:-1].double(), **rounding
    )
    torch.testing.assert_close(torch.stack([level.time for level in levels]), scheduler.timesteps.double(), **rounding)


def test_karras_ratios_are_the_formula():
    """Karras et al. 2022, eq. 5, at rho = 7."""
    for schedule, ratio_min, ratio_max in ((EDM(), 0.002, 80.0), (EDM(ratio_min=0.01, ratio_max=5.0), 0.01, 5.0)):
        for i, level in enumerate(schedule.levels(18, "karras")[:-1]):
            expected = (ratio_max ** (1 / 7) + i / 17 * (ratio_min ** (1 / 7) - ratio_max ** (1 / 7))) ** 7
            assert float(level.sigma) == pytest.approx(expected, rel=1e-13)  # float64's rounding, after a power


def test_a_variance_preserving_walk_may_have_karras_ratios():
    scheduler = EulerDiscreteScheduler(use_karras_sigmas=True, beta_start=1e-4, beta_end=0.02)
    scheduler.set_timesteps(18)
    levels = VP.linear().levels(18, "karras")[:-1]
    ratios = torch.stack([level.sigma / level.alpha for level in levels])
    # alpha_bar is float32 there: 2^-24 of 1 - alpha_bar = 1e-4 at the cleanest time
    torch.testing.assert_close(ratios, scheduler.sigmas[:-1].double(), rtol=1e-3, atol=0)
    times = torch.stack([level.time for level in levels])
    torch.testing.assert_close(times, scheduler.timesteps.double(), rtol=0, atol=0.01)


def test_edm_has_levels_of_any_sigma_and_tells_their_logarithm():
    sigmas = torch.tensor([1e-3, 0.002, 0.5, 80.0, 113.0], dtype=F64)
    level = EDM().at_ratio(sigmas)
    assert torch.equal(level.sigma, sigmas) and torch.equal(level.alpha, torch.ones_like(sigmas))
    # float64's rounding, of an exponential of at most 7
    torch.testing.assert_close(
        level.time, torch.tensor([math.log(s) / 4 for s in sigmas], dtype=F64), rtol=1e-15, atol=0
    )
    torch.testing.assert_close(EDM().at_time(level.time).sigma, sigmas, rtol=1e-14, atol=0)


def test_edm_starts_from_its_largest_sigma():
    for spacing in ("linspace", "karras", "logsnr"):
        first, *_, last, _ = EDM(ratio_max=5.0).levels(10, spacing)
        assert float(first.sigma) == pytest.approx(5.0, rel=1e-14)
        assert float(last.sigma) == pytest.approx(0.002, rel=1e-13)
        assert float(EDM().levels(1, spacing)[0].sigma) == pytest.approx(80.0, rel=1e-14)
        assert EDM().start(first) == float(first.sigma)


@pytest.mark.parametrize("schedule", [VP.cosine(), EDM()], ids=["VP", "EDM"])
@pytest.mark.parametrize("spacing", ["linspace", "karras", "logsnr"])
def test_a_walk_within_a_range(schedule, spacing):
    *levels, last = schedule.levels(9, spacing, ratio_min=0.05, ratio_max=20.0)
    ratios = torch.stack([level.sigma / level.alpha for level in levels])
    # linspace takes whole times, of which a thousand lie in the range of the cosine schedule
    tolerance = 0.03 if spacing == "linspace" else 1e-9
    assert ratios[[0, -1]].tolist() == pytest.approx([20.0, 0.05], rel=tolerance)
    assert last is CLEAN
    if spacing == "logsnr":
        torch.testing.assert_close(ratios.log().diff(), torch.full((8,), math.log(0.05 / 20) / 8).double())


def test_a_range_ends_where_the_schedule_does():
    for schedule in (VP.cosine(), EDM()):
        whole, more = schedule.levels(9, "logsnr"), schedule.levels(9, "logsnr", ratio_min=1e-9, ratio_max=1e9)
        assert [float(level.sigma) for level in more] == [float(level.sigma) for level in whole]


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_diffusers_own_spacings_know_no_range(spacing):
    with pytest.raises(
        InputError,
        match=f"sampling.ratio_min and sampling.ratio_max must be 0 and inf with the spacing {spacing}, "
        "got 0.0 and 5.0",
    ):
        VP.linear().levels(10, spacing, ratio_max=5.0)


def test_edms_even_times():
    times = [float(level.time) for level in EDM().levels(10)[:-1]]
    assert times == pytest.approx(torch.linspace(math.log(80) / 4, math.log(0.002) / 4, 10, dtype=F64).tolist())


def test_broadcast_shapes_and_casts():
    like = torch.zeros(2, 3, 4, 4, dtype=torch.float16)
    assert broadcast(torch.zeros(2, dtype=F64), like).shape == (2, 1, 1, 1)
    assert broadcast(torch.zeros((), dtype=F64), like).shape == ()
    assert broadcast(torch.zeros(2, dtype=F64), like).dtype == torch.float16


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_refuses_a_number_of_steps(steps):
    with pytest.raises(InputError, match=f"steps must be between 1 and 1000, .*, got {steps}"):
        VP.linear().levels(steps)


def test_refuses_a_spacing(unchecked):
    with pytest.raises(InputError, match="unknown spacing of VP 'linspac'; did you mean 'linspace'"):
        VP.linear().levels(10, "linspac")


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_edm_refuses_a_spacing_of_discrete_times(spacing):
    with pytest.raises(InputError, match=f"unknown spacing of EDM '{spacing}'; .*known: linspace, karras, logsnr"):
        EDM().levels(10, spacing)


@pytest.mark.parametrize("steps", [0, -3])
def test_edm_refuses_a_number_of_steps(steps):
    with pytest.raises(InputError, match=f"steps must be at least 1, got {steps}"):
        EDM().levels(steps)


@pytest.mark.parametrize("ends", [{"ratio_min": 0.0}, {"ratio_min": 5.0, "ratio_max": 2.0}, {"ratio_min": 80.0}])
def test_refuses_the_ends_of_edm(ends):
    with pytest.raises(
        InputError,
        match="schedule.ratio_min and schedule.ratio_max must be finite and satisfy 0 < ratio_min < ratio_max, got",
    ):
        EDM(**ends)


def test_refuses_a_schedule_that_it_does_not_know():
    with pytest.raises(InputError, match="unknown beta_schedule 'laplace'.*known: linear, scaled_linear, squaredcos"):
        VP.from_diffusers({"beta_schedule": "laplace"})


@pytest.mark.parametrize(
    "scheduler", [FlowMatchEulerDiscreteScheduler(), EDMEulerScheduler()], ids=lambda each: type(each).__name__
)
def test_refuses_a_configuration_without_betas(scheduler):
    with pytest.raises(InputError):
        VP.from_diffusers(scheduler.config)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
@pytest.mark.parametrize("steps", [2, 10, 28])
def test_flow_levels_are_those_of_diffusers(shift, steps):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    first, *rest, last = Flow(shift=shift).levels(steps)
    assert last is CLEAN
    # float32 there, 2^-24; the first of theirs has no signal, ours a thousandth
    single = {"rtol": 4 * 2**-24, "atol": 4 * 2**-24}
    torch.testing.assert_close(torch.stack([level.sigma for level in rest]), scheduler.sigmas[1:-1].double(), **single)
    torch.testing.assert_close(torch.stack([level.time for level in rest]), scheduler.timesteps[1:].double(), **single)
    assert float(first.sigma / first.alpha) == pytest.approx(1000, rel=1e-12) and scheduler.sigmas[0] == 1


def test_flow_goes_straight_from_image_to_noise():
    ratios = torch.tensor([0.0, 1e-9, 0.25, 1.0, 4.0, 1e9, math.inf], dtype=F64)
    level = Flow().at_ratio(ratios)
    torch.testing.assert_close(level.alpha + level.sigma, torch.ones_like(ratios), rtol=1e-15, atol=0)
    torch.testing.assert_close(level.sigma / level.alpha, ratios, rtol=1e-15, atol=0)
    torch.testing.assert_close(level.time, 1000 * level.sigma, rtol=1e-15, atol=0)
    again = Flow().at_time(level.time)
    torch.testing.assert_close(again.sigma, level.sigma, rtol=1e-15, atol=0)
    assert Flow().start(Flow().at_time(700.0)) == pytest.approx(0.7)


@pytest.mark.parametrize("spacing", ["linspace", "karras", "logsnr"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flow_walk_within_a_range(spacing, shift):
    *levels, last = Flow(shift=shift).levels(9, spacing, ratio_min=0.05, ratio_max=20.0)
    ratios = [float(level.sigma / level.alpha) for level in levels]
    assert [ratios[0], ratios[-1]] == pytest.approx([20.0, 0.05], rel=1e-12) and last is CLEAN
    assert all(ratio_max > ratio_min for ratio_max, ratio_min in zip(ratios, ratios[1:], strict=False))


SAMPLERS = [DDIM(), DDIM(eta=1.0), DDPM(), DDPM(fixed="large"), Heun(), Heun(churn=5.0), DPMpp()]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_of_a_walk_from_pure_noise_the_first_step_knows_the_mean_alone(sampler, mixture):
    """Where nothing is known of the image, ``x0_hat`` is the mean of the data, and the walk goes on from there."""
    mixture, mean = replace(mixture, schedule=NO_SIGNAL), mixture.weights @ mixture.means
    reports = []
    walk = {"seeds": range(3), "steps": 6, "spacing": "trailing", "dtype": F64, "clip": False}
    x = sample(mixture, sampler, callbacks=[reports.append], **walk)
    assert x.isfinite().all() and float(x.abs().max()) < 3
    assert reports[0].step.level.alpha == 0
    torch.testing.assert_close(reports[0].x0[:, :, 0, 0], mean.expand(3, 2), rtol=0, atol=1e-14)  # float64's rounding
    again = sample(mixture, sampler, recurrence=Recurrence(times=2), **walk)
    assert again.isfinite().all() and float((again - x).abs().max()) > 1e-3


@pytest.mark.parametrize("sampler", [DDIM(), DDIM(eta=1.0), DDPM(), Heun(), Heun(churn=5.0), DPMpp()])
def test_a_flow_walk_is_edms_in_other_coordinates(sampler, mixture):
    """From ``z = x / alpha`` and ``sigma / alpha`` alike, every sampler leads to the same images."""
    walk = {"seeds": range(4), "steps": 8, "spacing": "logsnr", "ratio_min": 0.02, "ratio_max": 60.0, "dtype": F64}
    edm, flow = (sample(replace(mixture, schedule=each), sampler, **walk) for each in (EDM(), Flow()))
    torch.testing.assert_close(flow, edm, rtol=0, atol=1e-12)  # float64's rounding of z, of up to 200


def test_where_there_is_no_signal_a_step_is_finite():
    noise, next = Flow().at_time(1000.0), Flow().at_time(600.0)
    x_t, x0 = (torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(k), dtype=F64) for k in (0, 1))
    assert noise.alpha == 0 and [float(each) for each in transition(noise, next)] == [0.0, 1.0]
    torch.testing.assert_close(reverse_variance(noise, next), next.sigma**2)  # nothing is known of x_s beside x0
    torch.testing.assert_close(posterior_mean(x_t, x0, noise, next), next.alpha * x0)
    assert torch.equal(eps_from_x0(x_t, x0, noise), x_t)
    for kind in ("sample", "v_prediction", "flow_prediction"):
        torch.testing.assert_close(to_x0(kind, x_t, output_for(kind, x0, x_t, noise), noise), x0)


def test_flow_as_diffusers_configures_it():
    assert from_diffusers(FlowMatchEulerDiscreteScheduler(shift=3.0).config) == Flow(shift=3.0)
    assert from_diffusers({"_class_name": "FlowMatchHeunDiscreteScheduler", "num_train_timesteps": 50}) == Flow(
        count=50
    )
    solver = DPMSolverMultistepScheduler(use_flow_sigmas=True, flow_shift=2.0, prediction_type="flow_prediction")
    assert from_diffusers(solver.config) == Flow(shift=2.0)
    assert isinstance(from_diffusers(DDPMScheduler().config), VP)


@pytest.mark.parametrize("config", [DDPMScheduler().config, {"shift": 1.0, "use_dynamic_shifting": True}, {}])
def test_refuses_a_configuration_that_is_not_of_flow_matching(config):
    with pytest.raises(InputError, match="schedule must be (a flow-|flow ).*got"):
        Flow.from_diffusers(config)


@pytest.mark.parametrize(("kind", "mu"), [("exponential", 0.8), ("linear", 1.7)])
@pytest.mark.parametrize("steps", [1, 4, 28])
def test_flow_levels_moved_for_the_size_of_the_image_are_those_of_diffusers(kind, mu, steps):
    """As Flux's pipeline sets them."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, time_shift_type=kind)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist(), mu=mu)
    first, *rest = from_diffusers(scheduler.config, mu).levels(steps, "trailing")
    theirs = scheduler.sigmas[1:].double()
    # float32 there, 2^-24; the first of theirs has no signal, ours a thousandth
    torch.testing.assert_close(torch.stack([each.sigma for each in rest]), theirs, rtol=4 * 2**-24, atol=4 * 2**-24)
    assert float(first.sigma / first.alpha) == pytest.approx(1000, rel=1e-12) and scheduler.sigmas[0] == 1


def test_flow_by_a_size_refuses_what_it_does_not_follow():
    config = {"shift": 1.0, "use_dynamic_shifting": True, "shift_terminal": 0.02}
    with pytest.raises(InputError, match="flow matching with a shift of its own, got a scheduler with shift_terminal"):
        from_diffusers(config, 0.8)
    assert from_diffusers({"shift": 2.0}, 0.8) == Flow(shift=2.0)
    with pytest.raises(
        InputError,
        match="sampling.ratio_min and sampling.ratio_max must be 0 and inf with the spacing trailing, got 0.1 and inf",
    ):
        Flow().levels(10, "trailing", ratio_min=0.1)


def test_flow_refuses_a_spacing_of_discrete_times():
    known = "linspace, trailing, karras, logsnr"
    with pytest.raises(InputError, match=f"unknown spacing of Flow 'leading'; .*known: {known}"):
        Flow().levels(10, "leading")
    with pytest.raises(InputError, match="steps must be at least 1, got 0"):
        Flow().levels(0)


@pytest.mark.parametrize("settings", [{"shift": 0.0}, {"count": 0}, {"ratio_max": 0.0}])
def test_refuses_the_settings_of_flow(settings):
    with pytest.raises(InputError, match="schedule.(shift|ratio_max) must be .*above .*, got"):
        Flow(**settings)


@pytest.mark.parametrize("schedule", [VP.cosine(), EDM(), Flow()])
def test_steps_go_through_given_ratios_with_a_like_share_between_each_two(schedule):
    ratios = [float(level.sigma / level.alpha) for level in schedule.levels(7, (60.0, 3.0, 0.03))[:-1]]
    expected = [
        60,
        60 ** (2 / 3) * 3 ** (1 / 3),
        60 ** (1 / 3) * 3 ** (2 / 3),
        3,
        0.3 * 10 ** (1 / 3),
        0.3 * 10 ** (-1 / 3),
        0.03,
    ]
    assert ratios == pytest.approx(expected, rel=1e-6)
    assert [float(level.sigma / level.alpha) for level in schedule.levels(2, (9.0, 5.0, 1.0))[:-1]] == pytest.approx(
        [9, 1]
    )


def test_given_ratios_stay_within_the_schedule():
    schedule = EDM(ratio_min=0.1, ratio_max=10.0)
    assert [float(level.sigma) for level in schedule.levels(3, (99.0, 1.0, 0.001))] == pytest.approx([10, 1, 0.1, 0])


@pytest.mark.parametrize("ratios", [(3.0,), (1.0, 2.0), (2.0, 0.0), (math.inf, 1.0)])
def test_ratios_that_do_not_fall_are_refused(ratios):
    with pytest.raises(InputError, match="spacing must be at least two falling ratios above 0, got"):
        levels_of(DDPM(), VP.linear(), 3, ratios)
    with pytest.raises(InputError, match="sampling.spacing must be"):
        load_recipe("nrcg", {"sampling.spacing": list(ratios)})


def test_ratios_have_no_limits_beside_them():
    with pytest.raises(InputError, match="ratio_min and sampling.ratio_max must be 0 and inf with the spacing"):
        VP.linear().levels(3, (9.0, 1.0), ratio_min=0.5)
