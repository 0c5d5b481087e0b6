"""Any diffusers scheduler as a sampler.

A scheduler holds a sample ``z = a x_0 + s eps`` of its own, ``x_t = c z`` (`steersman.schedulers`), and steps by what a
network put out.

The guided ``(x0_hat, eps_hat)`` becomes the output of the scheduler's prediction type, and the sample that the two
describe, ``(alpha x0_hat + sigma eps_hat) / c``, is what it steps from: ``x_t`` itself, unless a denoised-image
injection parted them; so that injection does what it does to DDIM, ``x_s = alpha_s x0_hat + sigma_s eps_hat``. What a
scheduler draws of `torch.randn` or `torch.randn_like` are the images' own draws.

A step from one level to the next is as many of the scheduler's calls as it takes: two of Heun's, four of PNDM's
Runge-Kutta. Guides act at each, as at the stages of `Heun`; those that enter the mean do so at the end of the last.
"""

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from steersman.batching import each_tensor, send
from steersman.denoise import output_for
from steersman.errors import InputError, unknown
from steersman.guidance.injection import Estimate
from steersman.guidance.step import FixedVariance, Step
from steersman.sampling.sampler import Draw, Move, Predict
from steersman.schedule import CLEAN, Level, Schedule, Spacing, broadcast
from steersman.schedulers import FAMILIES, Family, solver_levels
from steersman.typed import check_finite

__all__ = ["KNOWN", "DiffusersSampler"]

LEAST_ALPHA = 2.0**-12
"""What diffusers' schedulers take for no signal where they need a finite ``sigma / alpha``."""

Scheduler = Any
"""A diffusers scheduler; the package is not imported for its name alone."""


class _Known(NamedTuple):
    """What is known of a scheduler: its prediction types, settings of a step, and whether it may begin anew."""

    kinds: tuple[str, ...]
    settings: tuple[str, ...] = ()
    anew: bool = True


_TWO = ("epsilon", "v_prediction")
_THREE = (*_TWO, "sample")
_FOUR = (*_THREE, "flow_prediction")
_CHURN = ("s_churn", "s_tmin", "s_tmax", "s_noise")

KNOWN: Mapping[str, _Known] = {
    "DDIMScheduler": _Known(_THREE, ("eta", "use_clipped_model_output")),
    "DDPMScheduler": _Known(_THREE),
    "DEISMultistepScheduler": _Known(_FOUR),
    "DPMSolverMultistepScheduler": _Known(_FOUR),
    "EDMDPMSolverMultistepScheduler": _Known(_TWO),
    "EDMEulerScheduler": _Known(_TWO, _CHURN),
    "EulerAncestralDiscreteScheduler": _Known(_TWO),
    "EulerDiscreteScheduler": _Known(_THREE, _CHURN),
    "FlowMatchEulerDiscreteScheduler": _Known(("flow_prediction",)),
    "FlowMatchHeunDiscreteScheduler": _Known(("flow_prediction",)),
    "HeunDiscreteScheduler": _Known(_THREE),
    "KDPM2AncestralDiscreteScheduler": _Known(_TWO),
    "KDPM2DiscreteScheduler": _Known(_TWO),
    "LMSDiscreteScheduler": _Known(_THREE, ("order",), anew=False),
    "PNDMScheduler": _Known(_TWO, anew=False),
    "UniPCMultistepScheduler": _Known(_FOUR),
}
"""The schedulers that can be samplers."""


class _Place(NamedTuple):
    """Where one call of a scheduler finds it: the level, and ``c`` of ``x_t = c z``."""

    level: Level
    scale: float


@dataclass(frozen=True)
class _Walk:
    """A scheduler between two steps, without the tensors of its history, and the places of all its calls.

    Attributes:
        scheduler: It is never changed; a step goes on with a copy.
        places: Those of its calls, and then where the last one leads.
        starts: The number of the first call of each step, and then how many calls there are.
    """

    scheduler: Scheduler
    places: tuple[_Place, ...]
    starts: tuple[int, ...]


class DiffusersSampler:
    """A diffusers scheduler, stepping as it is configured.

    It has timesteps of its own: `sample` takes how many, and neither spacing nor range. Repeated steps begin without a
    history, as a walk that begins there would.

    Args:
        scheduler: The scheduler; copied.
        settings: What its ``step`` takes beside output, time and sample, such as DDIM's ``eta`` or Euler's ``s_churn``.

    Raises:
        InputError: A scheduler, prediction type or setting that is not known here, or one that needs to be told more
            than an estimate.
    """

    def __init__(self, scheduler: Scheduler, **settings: float) -> None:
        name = type(scheduler).__name__
        if name not in KNOWN:
            raise unknown("scheduler", name, KNOWN, most=len(KNOWN))
        self.known = known = KNOWN[name]
        self.family: Family = FAMILIES[name]
        for setting in settings:
            if setting not in known.settings:
                raise unknown(f"setting of {name}", setting, known.settings or ("none",))
            check_finite(setting, settings[setting], inspect.signature(scheduler.step).parameters[setting].default)
        config = scheduler.config
        self.kind = config.get("prediction_type", "flow_prediction")
        if self.kind not in known.kinds:
            raise unknown(f"prediction_type of {name}", self.kind, known.kinds)
        _check(config)
        self.scheduler, self.settings = copy.deepcopy(scheduler), settings

    @property
    def fixed(self) -> FixedVariance:
        """``large`` where the scheduler's variance is, else ``small``."""
        return "large" if self.scheduler.config.get("variance_type") == "fixed_large" else "small"

    @property
    def noisy(self) -> None:
        """None: a scheduler tells when it draws."""
        return None

    def levels(
        self, schedule: Schedule, steps: int, spacing: Spacing, ratio_min: float, ratio_max: float
    ) -> tuple[Level, ...]:
        """Returns the levels that the scheduler's timesteps visit, and the last where it ends.

        Args:
            schedule: The denoiser's, which must have these levels at these times.
            steps: How many steps.
            spacing: Only ``linspace``, which is the default; the scheduler's configuration has its own.
            ratio_min: Only 0.
            ratio_max: Only infinity.

        Raises:
            InputError: Another spacing or range, a number of steps that the scheduler cannot do, a scheduler that is
                not on the denoiser's schedule, or one of ``epsilon`` at a level without signal.
        """
        if spacing != "linspace" or ratio_min > 0 or ratio_max != float("inf"):
            raise InputError(
                "sampling.spacing, sampling.ratio_min and sampling.ratio_max must be linspace, 0 and inf, as a "
                f"scheduler has its own timesteps, got {spacing}, {ratio_min} and {ratio_max}"
            )
        walk = self._walk(steps)
        for place in walk.places[:-1]:
            _check_level(type(self.scheduler).__name__, place.level, schedule)
            if self.kind == "epsilon" and place.level.alpha == 0:
                raise InputError(
                    "scheduler: its prediction_type must be v_prediction or sample where it begins without signal "
                    "(rescale_betas_zero_snr), got epsilon"
                )
        return tuple(walk.places[start].level for start in walk.starts)

    def init(self, x: Float[Tensor, "B C H W"]) -> tuple:
        """Returns no state; after a step it is the scheduler, its history, and where its sample was left."""
        return ()

    def step(
        self, x_t: Float[Tensor, "B C H W"], step: Step, predict: Predict, draw: Draw, state: tuple
    ) -> tuple[Move, tuple]:
        """Returns the scheduler's step, what it drew told apart from the rest.

        Raises:
            InputError: A repeated step of a scheduler that cannot begin in the middle of its walk.
        """
        walk, history, left = state if state and not step.repeat else (self._begun(step), (), None)
        scheduler = copy.deepcopy(walk.scheduler)
        for name, value in history:
            setattr(scheduler, name, value)
        first, last = walk.starts[step.index : step.index + 2]
        before, call, x_s, noise = scheduler, None, x_t, None
        for stage, index in enumerate(range(first, last)):
            level = walk.places[index].level if stage else step.level
            estimate = predict(x_s, level, stage)
            call = _Call(self, walk.places, index, estimate, level)
            if stage == 0 and left is not None:
                call.correct(scheduler, left)
            before, scheduler = scheduler, copy.deepcopy(scheduler)
            x_s, noise = call(scheduler, draw)
        assert call is not None, "a step has at least one call"
        move = Move(x_s)
        if noise is not None and (b := call.deviation(before)):
            move = Move(x_s - b * noise, b * noise, torch.tensor(b**2, dtype=torch.float64))
        history = _history(scheduler)
        for name, _ in history:
            setattr(scheduler, name, None)
        return move, (_Walk(scheduler, walk.places, walk.starts), history, x_s)

    def _walk(self, steps: int) -> _Walk:
        """Returns the scheduler before its first step, of so many."""
        name = type(self.scheduler).__name__
        most = len(self.scheduler.alphas_cumprod) if hasattr(self.scheduler, "alphas_cumprod") else None
        if steps < 1 or (most and steps > most):
            raise InputError(f"steps must be {f'between 1 and {most}' if most else 'at least 1'}, got {steps}")
        scheduler = copy.deepcopy(self.scheduler)
        try:
            scheduler.set_timesteps(steps)
        except (ValueError, IndexError, RuntimeError) as error:
            raise InputError(
                f"steps must be a number that {name} can do, got {steps} ({str(error).splitlines()[0]})"
            ) from error
        if hasattr(scheduler, "is_scale_input_called"):
            scheduler.is_scale_input_called = True  # the loop has scaled it
        sizes = _sizes(scheduler, steps)
        if sum(sizes) != len(scheduler.timesteps):
            raise InputError(
                f"steps must be a number that the configuration of {name} can do, got {steps}, for which it has "
                f"{len(scheduler.timesteps)} timesteps instead of {sum(sizes)}"
            )
        starts = tuple(sum(sizes[:each]) for each in range(steps + 1))
        return _Walk(scheduler, _places(scheduler, self.family), starts)

    def _begun(self, step: Step) -> _Walk:
        """Returns the scheduler before a step, without a history."""
        name = type(self.scheduler).__name__
        if (step.index or step.repeat) and not self.known.anew:
            raise InputError(
                f"recurrence must be off with {name}, which cannot repeat a step without its history; set "
                "recurrence.times=1"
            )
        walk = self._walk(step.count)
        if hasattr(walk.scheduler, "set_begin_index"):
            walk.scheduler.set_begin_index(walk.starts[step.index])
        return walk


@dataclass(frozen=True)
class _Call:
    """One call of a scheduler, of which everything is known but the scheduler and the noise."""

    sampler: DiffusersSampler
    places: tuple[_Place, ...]
    index: int
    estimate: Estimate
    level: Level

    @property
    def sample(self) -> Float[Tensor, "B C H W"]:
        """The sample that the estimate describes, as the scheduler has it."""
        x0, eps = self.estimate.x0, self.estimate.eps
        x_t = broadcast(self.level.alpha, x0) * x0 + broadcast(self.level.sigma, eps) * eps
        return x_t / self.places[self.index].scale

    def __call__(self, scheduler: Scheduler, draw: Draw) -> tuple[Float[Tensor, "B C H W"], Tensor | None]:
        """Returns where the call leads, and what it drew; the scheduler goes on by one."""
        sample, time = self.sample, scheduler.timesteps[self.index]
        with _OnTheHost(draw) as drawing:
            z = scheduler.step(self._output(scheduler), time, sample, return_dict=False, **self.sampler.settings)[0]
        return z * self.places[self.index + 1].scale, drawing.noise

    def deviation(self, scheduler: Scheduler) -> float:
        """Returns ``b``, where the call leads to ``mean + b noise``: to b itself from nothing but a noise of one.

        Of the scheduler's own numbers on the host, so that no device is asked whether there is any noise.
        """
        nothing = torch.zeros([1] * self.estimate.x0.ndim, dtype=self.estimate.x0.dtype)
        alone = replace(self, estimate=Estimate(nothing, nothing, self.estimate.variance))
        scheduler = copy.copy(scheduler)
        for name, value in _history(scheduler):
            setattr(scheduler, name, each_tensor(value, lambda _: nothing))
        z, _ = alone(copy.deepcopy(scheduler), lambda: torch.ones_like(nothing))
        return float(z)

    def _output(self, scheduler: Scheduler) -> Float[Tensor, "B C H W"]:
        """Returns what a network of the scheduler's prediction type would have put out."""
        x0, eps, _ = self.estimate
        if self.sampler.family != "edm":
            return output_for(self.sampler.kind, x0, eps, self.level)
        zero, one = (torch.tensor(each, dtype=torch.float64) for each in (0.0, 1.0))  # x0 = skip z + out F
        sigma = scheduler.sigmas[self.index]
        skip, out = scheduler.precondition_outputs(one, zero, sigma), scheduler.precondition_outputs(zero, one, sigma)
        return (x0 - skip.to(x0.dtype) * self.sample) / out.to(x0.dtype)

    def correct(self, scheduler: Scheduler, left: Float[Tensor, "B C H W"]) -> None:
        """Keeps what guides did to a sample since the scheduler left it, where that goes back to the one before.

        UniPC's corrector computes the sample anew as ``k z_u + ...`` from the one before, ``k`` the ratio of their
        ``s`` or ``a``; so that one is moved by as much, divided by ``k``.
        """
        if getattr(scheduler, "last_sample", None) is None:
            return
        here, past = (self.places[self.index - back].level for back in (0, 1))
        k = here.sigma / past.sigma if scheduler.predict_x0 else here.alpha / past.alpha
        scheduler.last_sample = scheduler.last_sample + (self.sample - left) / float(k)


class _OnTheHost(TorchFunctionMode):
    """A scheduler's call, in this thread alone: it draws our noise, and its own numbers stay on the host.

    Where it asks for a number on the samples' device, the host would wait for the copy; so the number stays on the CPU
    and is computed with there. A vector of numbers that meets samples is sent to them, which nobody waits for.

    Attributes:
        noise: The last draw, None where there was none.
    """

    def __init__(self, draw: Draw) -> None:
        super().__init__()
        self.draw = draw
        self.noise: Tensor | None = None

    def __torch_function__(
        self,
        func: Callable,
        types: Any,  # noqa: ANN401
        args: tuple = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Returns what the function would have, or a draw."""
        named: dict[str, Any] = dict(kwargs or {})
        if func in (torch.randn, torch.randn_like):
            self.noise = self.draw()
            return self.noise.to(dtype=args[0].dtype if func is torch.randn_like else named.get("dtype"))
        devices: list[torch.device] = []
        each_tensor((args, named), lambda x: devices.append(x.device) or x)
        elsewhere = next((device for device in devices if device.type != "cpu"), None)
        if elsewhere is None:
            args = tuple("cpu" if isinstance(each, torch.device) else each for each in args)
            named |= {"device": "cpu"} if "device" in named else {}
        else:
            args, named = each_tensor((args, named), lambda x: send(x, elsewhere) if x.ndim else x)
        return func(*args, **named)


def _history(scheduler: Scheduler) -> tuple[tuple[str, Any], ...]:
    """Returns what a scheduler keeps of the samples that it has seen, by name."""
    return tuple((name, value) for name, value in vars(scheduler).items() if _has_rows(value))


def _has_rows(value: object) -> bool:
    """Whether it holds images, of which there is one a row of the batch."""
    if isinstance(value, list | tuple):
        return any(map(_has_rows, value))
    return isinstance(value, Tensor) and value.ndim == 4


def _sizes(scheduler: Scheduler, steps: int) -> tuple[int, ...]:
    """Returns how many calls each step takes."""
    if type(scheduler).__name__ != "PNDMScheduler":
        return (*[scheduler.order] * (steps - 1), 1)  # the last goes to the clean image, by the first order
    if scheduler.config.skip_prk_steps:  # the first of linear multistep has two, of which the second improves it
        return (2, *[1] * (steps - 2), 1)[-steps:]
    return (4, 4, 4, *[1] * (steps - 3))


def _places(scheduler: Scheduler, family: Family) -> tuple[_Place, ...]:
    """Returns where each call finds the scheduler, and where the last one leads.

    The numbers are those that it computes with itself, in float32, so that an ``x0_hat`` reaches it as it is.
    """
    times = scheduler.timesteps
    match family:
        case "discrete":
            end = getattr(scheduler, "final_alpha_cumprod", 1.0)
            bars = torch.cat([scheduler.alphas_cumprod[times.long()], torch.as_tensor(end).reshape(1)])
            alphas, sigmas = bars**0.5, (1 - bars) ** 0.5
        case "solver":
            alphas, sigmas = solver_levels(scheduler, scheduler.sigmas)
        case "flow":
            alphas, sigmas = 1 - scheduler.sigmas.double(), scheduler.sigmas
        case "ratio" | "edm":
            alphas, sigmas = torch.ones_like(scheduler.sigmas), scheduler.sigmas[: len(times) + 1].clone()
            alphas = alphas[: len(times) + 1]
            if hasattr(scheduler, "sigmas_interpol"):  # KDPM2's second call is between the levels
                back = int(hasattr(scheduler, "sigmas_down"))
                sigmas[1:-1:2] = scheduler.sigmas_interpol[1 - back : len(times) - back : 2]
    alphas, sigmas = (torch.as_tensor(each).double() for each in (alphas, sigmas))
    scales = (1 + sigmas**2) ** -0.5 if family == "ratio" else torch.ones_like(sigmas)
    scales[-1] = 1.0
    calls = zip(alphas[:-1], sigmas[:-1], times.double(), scales[:-1], strict=True)
    return (
        *(_Place(Level(c * a, c * s, time), float(c)) for a, s, time, c in calls),
        _Place(CLEAN if sigmas[-1] == 0 else Level(alphas[-1], sigmas[-1], CLEAN.time), 1.0),
    )


def _check(config: Mapping[str, Any]) -> None:
    """Refuses configurations that need to be told more than an estimate, or that diffusers itself gets wrong."""
    if config.get("variance_type") not in (None, "fixed_small", "fixed_small_log", "fixed_large"):
        raise InputError(
            "variance_type must be fixed_small, fixed_small_log or fixed_large, got "
            f"{config['variance_type']}; for a learned variance use the sampler ddpm"
        )
    if config.get("prediction_type") == "flow_prediction" and not config.get("use_flow_sigmas"):
        raise InputError(
            "use_flow_sigmas must be true with the prediction_type flow_prediction, got a scheduler without"
        )
    if config.get("predict_x0") is False and config.get("final_sigmas_type") == "zero":
        raise InputError(
            "final_sigmas_type must be sigma_min where predict_x0 is False, as that update has no value at sigma = 0, "
            "got zero"
        )
    for key in ("use_dynamic_shifting", "invert_sigmas"):
        if config.get(key):
            raise InputError(f"{key} must be false, got {config[key]!r}; use a scheduler without it")


def _check_level(name: str, level: Level, schedule: Schedule) -> None:
    """Refuses a level that is not the schedule's own; times may be rounded to whole ones.

    Of a schedule that ends without signal, the schedulers that hold ``sigma / alpha`` have a little at that time.
    """
    if schedule.at_time(level.time).alpha == 0 and level.alpha <= LEAST_ALPHA:
        return
    theirs = schedule.at_ratio(level.sigma / level.alpha)
    near = abs(float(theirs.alpha - level.alpha)) <= 0.01 * float(level.alpha)
    if not (near and abs(float(theirs.time - level.time)) <= 1):
        ours, theirs = (", ".join(f"{float(each):.4g}" for each in given) for given in (level, theirs))
        raise InputError(
            f"scheduler must be configured as the denoiser's own, got {name} with alpha, sigma, time = {ours}, where "
            f"the denoiser's schedule has {theirs}"
        )
