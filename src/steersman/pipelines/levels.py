"""Where a diffusers scheduler stands: the levels that its step leads from and to, and how it holds the sample.

A scheduler's name tells how its levels are read: by whole times, by ``sigma / alpha``, as a solver's or as flow's.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from steersman.errors import unknown
from steersman.schedule import CLEAN, Level

__all__ = ["KEEPS_SAMPLE", "PLACES", "Place", "by_ratio", "name_of", "number", "start_of", "time_at"]


class Place(NamedTuple):
    """Where in its walk a scheduler stands.

    Attributes:
        level: The level of the sample that it is given.
        next: The level that it goes to.
        stage: Which of the step's evaluations the output is from: 0, or 1 for a second.
        whole: Whether the step ends with this one.
        held: ``h``, what its samples are multiplied with to be ``x_t``, and so for the next.
    """

    level: Level
    next: Level
    stage: int = 0
    whole: bool = True
    held: tuple[Tensor, Tensor] = (CLEAN.alpha, CLEAN.alpha)


def number(value: Any) -> Float64[Tensor, ""]:  # noqa: ANN401
    """Returns a number in float64 on the CPU, wherever and however it is held."""
    return torch.as_tensor(value).detach().to("cpu", torch.float64, copy=True).reshape(())


def time_at(scheduler: Any, position: int) -> Float64[Tensor, ""]:  # noqa: ANN401
    """Returns the time of a call, and that of the clean image after the last."""
    return number(scheduler.timesteps[position]) if position < len(scheduler.timesteps) else CLEAN.time


def _by_time(scheduler: Any, time: Tensor, position: int) -> Place:  # noqa: ANN401
    """Levels at whole times of a variance-preserving schedule, ``alpha^2 = alpha_bar``."""

    def at(time: Tensor) -> Level:
        after = getattr(scheduler, "final_alpha_cumprod", 1.0)
        alpha_bar = number(scheduler.alphas_cumprod[int(time)] if time >= 0 else after)
        return Level(alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), time.clamp(min=0))

    match name_of(scheduler):
        case "DDPMScheduler":
            return Place(at(time), at(number(scheduler.previous_timestep(int(time)))))
        case "LCMScheduler":
            last = position + 1 >= len(scheduler.timesteps)
            return Place(at(time), CLEAN if last else at(time_at(scheduler, position + 1)))
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    counter = getattr(scheduler, "counter", None)
    if counter == 1:  # PNDM's first step is made a second time, from its end
        return Place(at(time), at(time), stage=1)
    whole = counter != 0 or position + 1 >= len(scheduler.timesteps)
    return Place(at(time), at(time - stride), whole=whole)


def by_ratio(scheduler: Any, time: Tensor, position: int) -> Place:  # noqa: ANN401
    """Samples ``x / alpha`` at levels of ``sigma / alpha``, of a variance-preserving schedule."""

    def at(ratio: Any, time: Tensor) -> Level:  # noqa: ANN401
        ratio = number(ratio)
        alpha = 1 / (1 + ratio**2).sqrt()
        return Level(alpha, ratio * alpha, time)

    ratios, name = scheduler.sigmas, name_of(scheduler)
    if getattr(scheduler, "state_in_first_order", True):
        level, next = at(ratios[position], time), at(ratios[position + 1], time_at(scheduler, position + 1))
        whole = not hasattr(scheduler, "state_in_first_order") or not next.sigma > 0
        return Place(level, next, whole=whole, held=(level.alpha, next.alpha))
    match name:
        case "KDPM2DiscreteScheduler":
            between = scheduler.sigmas_interpol[position]
        case "KDPM2AncestralDiscreteScheduler":
            between = scheduler.sigmas_interpol[position - 1]
        case "DPMSolverSDEScheduler":
            between = scheduler.mid_point_sigma
        case _:
            between = ratios[position]
    level, next = at(between, time), at(ratios[position], time)
    return Place(level, next, stage=1, held=(level.alpha, next.alpha))


def _by_solver(scheduler: Any, time: Tensor, position: int) -> Place:  # noqa: ANN401
    """Levels of the solvers in ``log(alpha / sigma)``: variance-preserving or flow, as the scheduler tells itself."""

    def at(position: int) -> Level:
        alpha, sigma = scheduler._sigma_to_alpha_sigma_t(number(scheduler.sigmas[position]))
        return Level(number(alpha), number(sigma), time_at(scheduler, position))

    return Place(at(position)._replace(time=time), at(position + 1))


def _by_flow(scheduler: Any, time: Tensor, position: int) -> Place:  # noqa: ANN401
    """Levels of flow matching, ``alpha = 1 - sigma``."""

    def at(position: int) -> Level:
        sigma = number(scheduler.sigmas[position])
        return Level(1 - sigma, sigma, time_at(scheduler, position))

    if getattr(scheduler, "state_in_first_order", True):
        level, next = at(position), at(position + 1)
        whole = not hasattr(scheduler, "state_in_first_order") or not next.sigma > 0
        return Place(level._replace(time=time), next, whole=whole)
    return Place(at(position)._replace(time=time), at(position), stage=1)


PLACES: Mapping[str, Callable[[Any, Tensor, int], Place]] = {
    "DDPMScheduler": _by_time,
    "DDIMScheduler": _by_time,
    "PNDMScheduler": _by_time,
    "LCMScheduler": _by_time,
    "EulerDiscreteScheduler": by_ratio,
    "EulerAncestralDiscreteScheduler": by_ratio,
    "HeunDiscreteScheduler": by_ratio,
    "LMSDiscreteScheduler": by_ratio,
    "KDPM2DiscreteScheduler": by_ratio,
    "KDPM2AncestralDiscreteScheduler": by_ratio,
    "DPMSolverSDEScheduler": by_ratio,
    "DPMSolverMultistepScheduler": _by_solver,
    "DPMSolverSinglestepScheduler": _by_solver,
    "DEISMultistepScheduler": _by_solver,
    "UniPCMultistepScheduler": _by_solver,
    "FlowMatchEulerDiscreteScheduler": _by_flow,
    "FlowMatchHeunDiscreteScheduler": _by_flow,
}

# They step from a sample that they keep, or correct the one that they are given: what is added to it is lost.
KEEPS_SAMPLE = ("DPMSolverSinglestepScheduler", "UniPCMultistepScheduler")


def name_of(scheduler: Any) -> str:  # noqa: ANN401
    """Returns the name of the known scheduler that this one is, or inherits from."""
    names = [each.__name__ for each in type(scheduler).__mro__]
    for name in names:
        if name in PLACES:
            return name
    raise unknown("scheduler", names[0], PLACES)


def start_of(scheduler: Any, timestep: Any) -> int:  # noqa: ANN401
    """Returns the position at which a walk begins: not 0 for a pipeline that starts from an image."""
    for known in ("step_index", "begin_index"):
        if (position := getattr(scheduler, known, None)) is not None:
            return int(position)
    return int((scheduler.timesteps == timestep).nonzero()[0])
