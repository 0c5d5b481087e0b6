"""Where a diffusers scheduler stands: the levels that its step leads from and to, and how it holds the sample.

A scheduler's family tells how its levels are read (`steersman.schedulers`).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from steersman.errors import unknown
from steersman.schedule import CLEAN, Level
from steersman.schedulers import FAMILIES, Family

__all__ = ["Place", "kept", "name_of", "number", "place_of", "start_of", "time_at"]


class Kept(NamedTuple):
    """A sample that a scheduler kept from before, and goes on from in place of the one that it is given.

    Attributes:
        name: The scheduler's attribute.
        ratio: What it is multiplied with on its way to the present level, ``k`` of ``z = k z_kept + ...``.
    """

    name: str
    ratio: Float64[Tensor, ""]


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


def _by_ratio(scheduler: Any, time: Tensor, position: int) -> Place:  # noqa: ANN401
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


_PLACES: Mapping[Family, Callable[[Any, Tensor, int], Place]] = {
    "discrete": _by_time,
    "ratio": _by_ratio,
    "solver": _by_solver,
    "flow": _by_flow,
}
KNOWN = tuple(name for name, family in FAMILIES.items() if family in _PLACES)
"""The schedulers of pipelines that can be steered."""


def name_of(scheduler: Any) -> str:  # noqa: ANN401
    """Returns the name of the known scheduler that this one is, or inherits from."""
    names = [each.__name__ for each in type(scheduler).__mro__]
    for name in names:
        if name in KNOWN:
            return name
    raise unknown("scheduler", names[0], KNOWN)


def place_of(scheduler: Any, time: Tensor, position: int) -> Place:  # noqa: ANN401
    """Returns where a scheduler stands before a call.

    Args:
        scheduler: One of those that are known.
        time: What the call is told.
        position: The call's number among the scheduler's timesteps.
    """
    return _PLACES[FAMILIES[name_of(scheduler)]](scheduler, time, position)


def start_of(scheduler: Any, timestep: Any) -> int:  # noqa: ANN401
    """Returns the position at which a walk begins: not 0 for a pipeline that starts from an image."""
    for known in ("step_index", "begin_index"):
        if (position := getattr(scheduler, known, None)) is not None:
            return int(position)
    return int((scheduler.timesteps == timestep).nonzero()[0])


def kept(scheduler: Any, level: Level, position: int) -> Kept | None:  # noqa: ANN401
    """Returns the sample that a call goes on from in place of the one that it is given, if there is one.

    UniPC's corrector computes a sample anew from the one before; a singlestep method of order m goes from the sample
    m - 1 calls before. Both multiply it with the ratio of the ``sigma``, or of the ``alpha`` where they are in terms of
    the noise; the stochastic one in terms of the image with ``(sigma / sigma_kept)^2 alpha_kept / alpha``.

    Args:
        scheduler: One of those that are known.
        level: Where the call is.
        position: The call's number among the scheduler's timesteps.
    """
    match name_of(scheduler):
        case "UniPCMultistepScheduler" if scheduler.last_sample is not None:
            name, back = "last_sample", 1
            kind = "dpmsolver++" if scheduler.predict_x0 else "dpmsolver"
        case "DPMSolverSinglestepScheduler" if scheduler.order_list[position] > 1 and scheduler.sample is not None:
            name, back = "sample", scheduler.order_list[position] - 1
            kind = scheduler.config.algorithm_type
        case _:
            return None
    before = place_of(scheduler, time_at(scheduler, position - back), position - back).level
    alpha, sigma = level.alpha / before.alpha, level.sigma / before.sigma
    return Kept(name, {"dpmsolver": alpha, "dpmsolver++": sigma}.get(kind, sigma**2 / alpha))
