"""Any diffusers scheduler as a sampler.

The guided ``(x0_hat, eps_hat)`` becomes the output of the scheduler's prediction type, and the sample that the two
describe, ``(alpha x0_hat + sigma eps_hat) / c``, is what it steps from: ``x_t`` itself, unless a denoised-image
injection separated them. What a scheduler draws with `torch.randn` or `torch.randn_like` are the images' own draws.

Guides act at each call of the scheduler, as at the stages of `Heun`; those that enter the mean do so after the last.
"""

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

import torch
from torch import Tensor

from steersman.batching import each_tensor
from steersman.denoise import output_for
from steersman.errors import InputError, unknown
from steersman.guidance.step import Batch, Estimate, FixedVariance, Step
from steersman.sampling.samplers import Draw, Move, Predict, Sampler
from steersman.sampling.scheduler import (
    FAMILIES,
    SCHEDULERS,
    Adapter,
    Family,
    Position,
    Scheduler,
    SchedulerNumbers,
    visited,
)
from steersman.schedule import EDM, VP, Flow, Level, Ratios, Schedule, Spacing, noised
from steersman.typed import check_finite, typed

__all__ = ["SAMPLERS", "DiffusersSampler", "NamedScheduler"]

SAMPLERS = tuple(name for name, known in SCHEDULERS.items() if known.types)
"""The schedulers that can be samplers."""

_LEAST_ALPHA = 2.0**-12  # what diffusers' schedulers take for no signal where they need a finite sigma / alpha


@dataclass(frozen=True)
class _Run:
    """A scheduler between two steps, which is copied before a step changes it, and all of its calls."""

    adapter: Adapter
    positions: tuple[Position, ...]


class DiffusersSampler(Sampler):
    """A diffusers scheduler, stepping as it is configured.

    ``settings`` are arguments of its ``step``, such as DDIM's ``eta`` or Euler's ``s_churn``.

    It has timesteps of its own: `sample` takes how many, and neither spacing nor range. Repeated steps begin without a
    history, as a trajectory that begins there would.
    """

    def __init__(self, scheduler: Scheduler, **settings: float) -> None:
        self.name = name = type(scheduler).__name__
        if name not in SAMPLERS:
            raise unknown("scheduler", name, SAMPLERS, most=len(SAMPLERS))
        known = SCHEDULERS[name]
        for setting, value in settings.items():
            if setting not in known.settings:
                raise unknown(f"setting of {name}", setting, known.settings or ("none",))
            check_finite(setting, value, inspect.signature(scheduler.step).parameters[setting].default)
        self.adapter, self.settings = Adapter(copy.deepcopy(scheduler)), settings
        self.kind = self.adapter.kind
        if self.kind not in known.types:
            raise unknown(f"prediction_type of {name}", self.kind, known.types)
        _check_config(scheduler.config)

    @property
    def fixed(self) -> FixedVariance:
        """``large`` where the scheduler's variance is, else ``small``."""
        return self.adapter.fixed

    def levels(
        self, schedule: Schedule, steps: int, spacing: Spacing | Ratios, ratio_min: float, ratio_max: float
    ) -> tuple[Level, ...]:
        """Returns the levels that the scheduler's timesteps visit, and the last where it ends."""
        if spacing != "linspace" or ratio_min > 0 or ratio_max != float("inf"):
            raise InputError(
                "sampling.spacing, sampling.ratio_min and sampling.ratio_max must be linspace, 0 and inf, as a "
                f"scheduler has its own timesteps, got {spacing}, {ratio_min} and {ratio_max}"
            )
        positions = self._run(steps).positions
        for position in positions:
            self._check_level(position.level, schedule)
        return visited(positions)

    def step(self, x_t: Batch, step: Step, predict: Predict, draw: Draw, state: tuple) -> tuple[Move, tuple]:
        """Returns the scheduler's step, and its state: the scheduler, its history, and the sample that it returned."""
        run, history, returned = state if state and not step.repeat else (self._run(step.count, step), {}, None)
        adapter, x_s, move = run.adapter.copied(history), x_t, Move(x_t)
        for position in (each for each in run.positions if each.step == step.index):
            level = position.level if position.stage else step.level
            estimate = predict(x_s, level, position.stage)
            if position.stage == 0 and returned is not None:
                adapter.move_kept_sample(run.positions, position, _sample(estimate, level, position) - returned)
            before = adapter.copied()
            x_s, noise = self._call(adapter.scheduler, position, estimate, level, draw)
            move = Move(x_s)
            if noise is not None and position.last and (b := self._noise_scale(before, position, estimate, level)):
                move = Move(x_s - b * noise, b * noise, torch.tensor(b**2, dtype=torch.float64))
        return move, (_Run(adapter, run.positions), adapter.history, x_s)

    def _run(self, steps: int, step: Step | None = None) -> _Run:
        """Returns the scheduler before the first of its steps, or before a later one and without a history."""
        if step is not None and (step.index or step.repeat) and not self.adapter.known.restarts:
            raise InputError(
                f"recurrence must be off with {self.name}, which cannot repeat a step without its history; set "
                "recurrence.times=1 and particles.retries=0"
            )
        adapter = self.adapter.copied()
        scheduler = adapter.scheduler
        most = len(scheduler.alphas_cumprod) if hasattr(scheduler, "alphas_cumprod") else None
        if steps < 1 or (most and steps > most):
            raise InputError(f"steps must be {f'between 1 and {most}' if most else 'at least 1'}, got {steps}")
        try:
            scheduler.set_timesteps(steps)
        except (ValueError, IndexError, RuntimeError) as error:
            raise InputError(
                f"steps must be a number that {self.name} can do, got {steps} ({str(error).splitlines()[0]})"
            ) from error
        if hasattr(scheduler, "is_scale_input_called"):
            scheduler.is_scale_input_called = True  # the loop has scaled it
        positions = adapter.positions()
        if positions[-1].step + 1 != steps or not positions[-1].last:
            raise InputError(
                f"steps must be a number that the configuration of {self.name} can do, got {steps}, for which it has "
                f"{len(positions)} timesteps"
            )
        if step is not None and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(next(each.index for each in positions if each.step == step.index))
        return _Run(adapter, positions)

    def _call(
        self, scheduler: Scheduler, position: Position, estimate: Estimate, level: Level, draw: Draw
    ) -> tuple[Batch, Tensor | None]:
        """Returns where one call of the scheduler leads, and what it drew."""
        z = _sample(estimate, level, position)
        output = self._output(scheduler, position, estimate, level)
        with SchedulerNumbers(draw) as numbers:
            time = scheduler.timesteps[position.index]
            z = scheduler.step(output, time, z, return_dict=False, **self.settings)[0]
        return z * position.next_scale, numbers.noise

    def _output(self, scheduler: Scheduler, position: Position, estimate: Estimate, level: Level) -> Batch:
        """Returns what a network of the scheduler's prediction type would have put out."""
        x0, eps, _ = estimate
        if self.adapter.known.family != "edm":
            return output_for(self.kind, x0, eps, level)
        zero, one = (torch.tensor(value, dtype=torch.float64) for value in (0.0, 1.0))  # x0 = skip z + out F
        sigma = scheduler.sigmas[position.index]
        skip, out = scheduler.precondition_outputs(one, zero, sigma), scheduler.precondition_outputs(zero, one, sigma)
        return (x0 - skip.to(x0.dtype) * _sample(estimate, level, position)) / out.to(x0.dtype)

    def _noise_scale(self, adapter: Adapter, position: Position, estimate: Estimate, level: Level) -> float:
        """Returns ``b`` of a call that leads to ``mean + b noise``: where a noise of one leads to from nothing.

        It follows from the scheduler's own numbers on the host, so that no device is asked whether there is any noise.
        """
        nothing = torch.zeros([1] * estimate.x0.ndim, dtype=estimate.x0.dtype)
        scheduler = adapter.copied(each_tensor(adapter.history, lambda _: nothing)).scheduler
        alone = Estimate(nothing, nothing, estimate.variance)
        return float(self._call(scheduler, position, alone, level, lambda: torch.ones_like(nothing))[0])

    def _check_level(self, level: Level, schedule: Schedule) -> None:
        """Refuses a level that is not the denoiser's own; times may be rounded to whole ones."""
        if self.kind == "epsilon" and level.alpha == 0:
            raise InputError(
                "scheduler: its prediction_type must be v_prediction or sample where it begins without signal "
                "(rescale_betas_zero_snr), got epsilon"
            )
        # Where a schedule ends without signal, schedulers that hold sigma / alpha have a little at that time.
        if schedule.at_time(level.time).alpha == 0 and level.alpha <= _LEAST_ALPHA:
            return
        theirs = schedule.at_ratio(level.sigma / level.alpha)
        near = abs(float(theirs.alpha - level.alpha)) <= 0.01 * float(level.alpha)
        if not (near and abs(float(theirs.time - level.time)) <= 1):
            ours, theirs = (", ".join(f"{float(value):.4g}" for value in each) for each in (level, theirs))
            raise InputError(
                f"scheduler must be configured as the denoiser's own, got {self.name} with alpha, sigma, time = "
                f"{ours}, where the denoiser's schedule has {theirs}"
            )


def _sample(estimate: Estimate, level: Level, position: Position) -> Batch:
    """Returns the sample that an estimate describes, as the scheduler holds it."""
    return noised(estimate.x0, estimate.eps, level) / position.scale


def _check_config(config: Mapping[str, Any]) -> None:
    """Refuses configurations that need more than an estimate, or that diffusers itself gets wrong."""
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


_SERVED: Mapping[type, tuple[Family, ...]] = {
    VP: ("discrete", "solver", "ratio"),
    EDM: ("edm",),
    Flow: ("flow", "solver"),
}
# Settings that follow from the denoiser's schedule, or from the loop, which clips.
_DECIDED = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"),
    *("sigma_min", "sigma_max", "sigma_data", "timestep_type", "prediction_type", "solver_p"),
    *("use_flow_sigmas", "flow_shift", "shift", "shift_terminal", "invert_sigmas", "use_dynamic_shifting"),
    *("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "time_shift_type"),
    *("clip_sample", "clip_sample_range"),
)


@dataclass(frozen=True, kw_only=True)
class NamedScheduler(Sampler):
    """A diffusers scheduler by its name, made for the denoiser's own schedule.

    Attributes:
        scheduler: The name of its class, with or without "Scheduler" at the end.
        settings: Settings of the class and of its ``step``, such as ``solver_order`` or ``eta``; others keep the
            scheduler's defaults. What follows from the denoiser's schedule cannot be set here, nor can clipping, which
            is a setting of sampling.

    Raises:
        InputError: An unknown name or setting, or a value that the scheduler refuses.

    Example:
        >>> import steersman as sm
        >>> from steersman.sampling import sample
        >>> sampler = sm.NamedScheduler(scheduler="EDMDPMSolverMultistep", settings={"solver_order": 3})
        >>> sample(sm.load_denoiser("zoo:mnist"), sampler, seeds=[0, 1], steps=2).shape
        torch.Size([2, 1, 28, 28])
    """

    scheduler: str = "DPMSolverMultistep"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", _checked(_class_of(self.scheduler), self.settings))
        name = _class_of(self.scheduler).__name__
        self.on(next(schedule for schedule in (VP.linear(), EDM(), Flow()) if name in _serving(schedule)))

    @staticmethod
    def filled(scheduler: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the name and all settings, with the scheduler's defaults where none are given."""
        kind = _class_of(scheduler)
        defaults = {key: parameter.default for key, parameter in _parameters(kind).items()}
        return {"scheduler": _short(kind.__name__), "settings": defaults | _checked(kind, settings)}

    @property
    def fixed(self) -> FixedVariance:
        """``large`` where the scheduler's variance is, else ``small``."""
        return "large" if self.settings.get("variance_type") == "fixed_large" else "small"

    def on(self, schedule: Schedule) -> DiffusersSampler:
        """Returns the sampler for a denoiser's schedule."""
        kind = _class_of(self.scheduler)
        name, accepted = kind.__name__, _constructor(kind)
        if name not in (serving := _serving(schedule)):
            raise InputError(
                f"sampler.scheduler must be for the denoiser's schedule, {type(schedule).__name__}, got {name}; use "
                f"{', '.join(map(_short, serving)) or 'another sampler'}"
            )
        of_step = {key: value for key, value in self.settings.items() if key in SCHEDULERS[name].settings}
        given = {key: value for key, value in self.settings.items() if key not in of_step}
        unclipped = {"clip_sample": False} if "clip_sample" in accepted else {}
        decided = _decided(schedule, FAMILIES[name])
        if not all(key in accepted for key in decided):
            able = [each for each in SAMPLERS if "rescale_betas_zero_snr" in _constructor(_class_of(each))]
            raise InputError(
                f"sampler.scheduler must be one that can begin without signal, as the denoiser's schedule does (zero "
                f"terminal SNR), got {name}; choose one of {', '.join(map(_short, able))}"
            )
        try:
            scheduler = kind(**given, **unclipped, **decided)
        except (ValueError, NotImplementedError, ImportError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"sampler.settings: {given} given, which {name} refuses ({reason})") from error
        return DiffusersSampler(scheduler, **of_step)

    def levels(
        self, schedule: Schedule, steps: int, spacing: Spacing | Ratios, ratio_min: float, ratio_max: float
    ) -> tuple[Level, ...]:
        """Returns the levels that the scheduler's timesteps visit, as `DiffusersSampler.levels` does."""
        return self.on(schedule).levels(schedule, steps, spacing, ratio_min, ratio_max)

    def step(self, x_t: Batch, step: Step, predict: Predict, draw: Draw, state: tuple) -> tuple[Move, tuple]:
        """Returns the scheduler's step; the state is the sampler that was made for the denoiser, and its own."""
        sampler, state = state or (self.on(predict.schedule), ())
        move, state = sampler.step(x_t, step, predict, draw, state)
        return move, (sampler, state)


def _decided(schedule: Schedule, family: Family) -> dict[str, Any]:
    """Returns the settings of a scheduler that follow from the denoiser's schedule."""
    match schedule:
        case VP():
            betas = {"num_train_timesteps": len(schedule.alpha_bar), "trained_betas": schedule.betas.tolist()}
            # Without signal, epsilon says nothing of x0, so that no output for the scheduler follows from x0.
            no_signal = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
            return betas if schedule.alpha_bar[-1] > 0 else betas | no_signal
        case EDM(ratio_min=ratio_min, ratio_max=ratio_max):
            return {"sigma_min": ratio_min, "sigma_max": ratio_max}
        case Flow(shift=shift, count=count) if family == "flow":
            return {"num_train_timesteps": count, "shift": shift}
        case Flow(shift=shift, count=count):
            flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
            return {"num_train_timesteps": count, "flow_shift": shift, **flow}
    raise AssertionError("a schedule that is not served was refused before")


def _serving(schedule: Schedule) -> list[str]:
    """Returns the names of the schedulers that can be made for a denoiser's schedule."""
    return [name for name in SAMPLERS if FAMILIES[name] in _SERVED.get(type(schedule), ())]


def _short(name: str) -> str:
    return name.removesuffix("Scheduler")


def _class_of(name: str) -> type:
    """Returns the class of a scheduler, whose name has "Scheduler" at the end or has not."""
    import diffusers

    full = _short(name) + "Scheduler"
    if full not in SAMPLERS:
        raise unknown("scheduler", name, list(map(_short, SAMPLERS)), most=len(SAMPLERS))
    kind = getattr(diffusers, full)
    if missing := [package for package in getattr(kind, "_backends", ()) if package != "torch"]:
        raise InputError(f"sampler.scheduler: {full} needs {' and '.join(missing)}; install it, or take another")
    return kind


def _constructor(kind: Any) -> Mapping[str, inspect.Parameter]:  # noqa: ANN401
    return inspect.signature(kind.__init__).parameters


def _parameters(kind: Any) -> dict[str, inspect.Parameter]:  # noqa: ANN401
    """Returns the settings that can be made of a scheduler, its ``step``'s among them."""
    own, of_step = _constructor(kind), inspect.signature(kind.step).parameters
    settings = {key: parameter for key, parameter in own.items() if key not in ("self", *_DECIDED)}
    return settings | {key: of_step[key] for key in SCHEDULERS[kind.__name__].settings}


def _checked(kind: Any, settings: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ANN401
    """Returns the settings in the types of the scheduler's signature."""
    known, hints = _parameters(kind), get_type_hints(kind.__init__) | get_type_hints(kind.step)
    checked = {}
    for key, value in settings.items():
        if key not in known:
            raise unknown(f"setting of {kind.__name__}", key, known or ("none",), most=len(known))
        check_finite(f"sampler.settings.{key}", value, known[key].default)
        is_default = value == known[key].default
        checked[key] = value if is_default else typed(f"sampler.settings.{key}", value, hints[key])
    return checked
