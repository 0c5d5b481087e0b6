"""A diffusers scheduler by its name, made for the denoiser's own schedule.

    VP      discrete, solver, ratio    its betas, ``beta_t = 1 - alpha_bar_t / alpha_bar_{t-1}``
    EDM     edm                        its range of sigma
    Flow    flow, solver               its shift; solvers by their flow sigmas

So the same choice serves every model of a family that the scheduler is made for (`steersman.schedulers`).
"""  # noqa: D205, D415

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from jaxtyping import Float
from torch import Tensor

from steersman.errors import InputError, unknown
from steersman.guidance.step import FixedVariance, Step
from steersman.sampling.diffusers import KNOWN, DiffusersSampler
from steersman.sampling.sampler import Draw, Move, Predict, Sampler
from steersman.schedule import EDM, VP, Flow, Level, Schedule, Spacing
from steersman.schedulers import FAMILIES, Family
from steersman.typed import check_finite, typed

__all__ = ["NamedScheduler"]

_END = "Scheduler"
_SERVED: Mapping[type, tuple[Family, ...]] = {
    VP: ("discrete", "solver", "ratio"),
    EDM: ("edm",),
    Flow: ("flow", "solver"),
}
# Decided by the denoiser's schedule, by how a sampler is told of it, or by the walk, which clips.
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
        object.__setattr__(self, "settings", _checked(_class_name(self.scheduler), self.settings))
        served = next(made for made in (VP.linear(), EDM(), Flow()) if self._serves(made))
        self.on(served)

    @staticmethod
    def filled(scheduler: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the same with every setting that the scheduler has."""
        name = _class_name(scheduler)
        defaults = {key: parameter.default for key, parameter in _parameters(name).items()}
        return {"scheduler": name.removesuffix(_END), "settings": defaults | _checked(name, settings)}

    @property
    def fixed(self) -> FixedVariance:
        """``large`` where the scheduler's variance is, else ``small``."""
        return "large" if self.settings.get("variance_type") == "fixed_large" else "small"

    def on(self, schedule: Schedule) -> DiffusersSampler:
        """Returns the sampler for a denoiser's schedule.

        Raises:
            InputError: The scheduler is made for others, or refuses a setting.
        """
        import diffusers

        name = _class_name(self.scheduler)
        if not self._serves(schedule):
            suited = [each.removesuffix(_END) for each in KNOWN if FAMILIES[each] in _SERVED.get(type(schedule), ())]
            raise InputError(
                f"sampler.scheduler must be for the denoiser's schedule, {type(schedule).__name__}, got {name}; use "
                f"{', '.join(suited) or 'another sampler'}"
            )
        made = getattr(diffusers, name)
        of_step = {key: value for key, value in self.settings.items() if key in KNOWN[name].settings}
        given = {key: value for key, value in self.settings.items() if key not in of_step}
        accepted = _signature(name)
        unclipped = {"clip_sample": False} if "clip_sample" in accepted else {}
        decided = _of(schedule, FAMILIES[name])
        if not all(key in accepted for key in decided):
            able = [each for each in KNOWN if "rescale_betas_zero_snr" in _signature(each)]
            raise InputError(
                f"sampler.scheduler must be one that can begin without signal, as the denoiser's schedule does (zero "
                f"terminal SNR), got {name}; choose one of {', '.join(each.removesuffix(_END) for each in able)}"
            )
        try:
            scheduler = made(**given, **unclipped, **decided)
        except (ValueError, NotImplementedError, ImportError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"sampler.settings: {given} given, which {name} refuses ({reason})") from error
        return DiffusersSampler(scheduler, **of_step)

    def _serves(self, schedule: Schedule) -> bool:
        return FAMILIES[_class_name(self.scheduler)] in _SERVED.get(type(schedule), ())

    def levels(
        self, schedule: Schedule, steps: int, spacing: Spacing, ratio_min: float, ratio_max: float
    ) -> tuple[Level, ...]:
        """Returns the levels that the scheduler's timesteps visit, as `DiffusersSampler.levels` does."""
        return self.on(schedule).levels(schedule, steps, spacing, ratio_min, ratio_max)

    def step(
        self, x_t: Float[Tensor, "B C H W"], step: Step, predict: Predict, draw: Draw, state: tuple
    ) -> tuple[Move, tuple]:
        """Returns the scheduler's step; the state is the sampler that was made for the denoiser, and its own."""
        sampler, held = state or (self.on(predict.schedule), ())
        move, held = sampler.step(x_t, step, predict, draw, held)
        return move, (sampler, held)


def _of(schedule: Schedule, family: Family) -> dict[str, Any]:
    """Returns what a scheduler of a family is told of the denoiser's schedule."""
    match schedule:
        case VP():
            betas = {"num_train_timesteps": len(schedule.alpha_bar), "trained_betas": schedule.betas.tolist()}
            # Without signal, epsilon says nothing of x0, so that the scheduler could not be told it.
            no_signal = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
            return betas if schedule.alpha_bar[-1] > 0 else betas | no_signal
        case EDM(ratio_min=ratio_min, ratio_max=ratio_max):
            return {"sigma_min": ratio_min, "sigma_max": ratio_max}
        case Flow(shift=shift, count=count) if family == "flow":
            return {"num_train_timesteps": count, "shift": shift}
        case Flow(shift=shift, count=count):
            flows = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
            return {"num_train_timesteps": count, "flow_shift": shift, **flows}
    raise AssertionError("a schedule that is not served was refused before")


def _signature(name: str) -> Mapping[str, inspect.Parameter]:
    """Returns what a scheduler's constructor takes."""
    import diffusers

    return inspect.signature(getattr(diffusers, name).__init__).parameters


def _class_name(name: str) -> str:
    """Returns the class's name.

    Raises:
        InputError: There is no such scheduler, or one that cannot be a sampler.
    """
    full = name.removesuffix(_END) + _END
    if full not in KNOWN:
        raise unknown("scheduler", name, [each.removesuffix(_END) for each in KNOWN], most=len(KNOWN))
    return full


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    """Returns the settings that a scheduler has, its ``step``'s among them, by its own signature.

    Raises:
        InputError: The scheduler needs a package that is not there.
    """
    import diffusers

    made = getattr(diffusers, name)
    if lacking := [each for each in getattr(made, "_backends", ()) if each != "torch"]:
        raise InputError(f"sampler.scheduler: {name} needs {' and '.join(lacking)}; install it, or take another")
    of_step = inspect.signature(made.step).parameters
    own = _signature(name)
    found = {key: own[key] for key in own if key != "self" and key not in _DECIDED}
    return found | {key: of_step[key] for key in KNOWN[name].settings}


def _checked(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings as the scheduler's signature wants them.

    Raises:
        InputError: One that it does not have, or whose value is of another type.
    """
    import diffusers

    known, made = _parameters(name), getattr(diffusers, name)
    hints = get_type_hints(made.__init__) | get_type_hints(made.step)
    checked = {}
    for key, value in settings.items():
        if key not in known:
            raise unknown(f"setting of {name}", key, known or ("none",), most=len(known))
        check_finite(f"sampler.settings.{key}", value, known[key].default)
        is_default = value == known[key].default
        checked[key] = value if is_default else typed(f"sampler.settings.{key}", value, hints[key])
    return checked
