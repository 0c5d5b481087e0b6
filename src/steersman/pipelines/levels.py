"""Where a diffusers scheduler stands at each of its calls: the levels that the step leads from and to.

A scheduler's family tells how its levels are read (`steersman.schedulers`). They are read once, before the first step
of a pipeline's call, so that no step waits for an accelerator.
"""

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float64
from torch import Tensor

from steersman.errors import unknown
from steersman.schedule import CLEAN, Level
from steersman.schedulers import FAMILIES, Family, solver_levels

__all__ = ["Place", "host", "kept", "name_of", "places_of", "start_of", "visited"]


class Kept(NamedTuple):
    """A sample that a scheduler kept from before, and goes on from in place of the one that it is given.

    Attributes:
        name: The scheduler's attribute.
        ratio: What it is multiplied with on its way to the present level, ``k`` of ``z = k z_kept + ...``.
    """

    name: str
    ratio: Float64[Tensor, ""]


class Place(NamedTuple):
    """Where a scheduler stands before a call.

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


class _Read(Protocol):
    """Returns the place of a call, by its number among the scheduler's timesteps and among the calls that are made."""

    def __call__(self, scheduler: Any, times: Tensor, position: int, call: int) -> Place: ...  # noqa: D102, ANN401


def host(value: Any) -> Float64[Tensor, "..."]:  # noqa: ANN401
    """Returns numbers in float64 on the CPU, wherever and however they are held."""
    return torch.as_tensor(value).detach().cpu().double()


def _time_at(times: Tensor, position: int) -> Float64[Tensor, ""]:
    """Returns the time of a call, and that of the clean image after the last."""
    return times[position] if position < len(times) else CLEAN.time


def _by_time(scheduler: Any, times: Tensor, position: int, call: int) -> Place:  # noqa: ANN401
    """Levels at whole times of a variance-preserving schedule, ``alpha^2 = alpha_bar``."""
    time, last = times[position], position + 1 >= len(times)

    def at(time: Tensor) -> Level:
        after = getattr(scheduler, "final_alpha_cumprod", 1.0)
        alpha_bar = host(scheduler.alphas_cumprod[int(time)] if time >= 0 else after)
        return Level(alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), time.clamp(min=0))

    match name_of(scheduler):
        case "DDPMScheduler":
            return Place(at(time), CLEAN if last else at(times[position + 1]))
        case "LCMScheduler":
            return Place(at(time), CLEAN if last else at(times[position + 1]))
        case "PNDMScheduler" if call == 1:  # its first step is made a second time, from its end
            return Place(at(time), at(time), stage=1)
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    again = name_of(scheduler) == "PNDMScheduler" and call == 0 and not last
    return Place(at(time), at(time - stride), whole=not again)


def _by_ratio(scheduler: Any, times: Tensor, position: int, call: int) -> Place:  # noqa: ANN401
    """Samples ``x / alpha`` at levels of ``sigma / alpha``, of a variance-preserving schedule."""

    def at(ratio: Any, time: Tensor) -> Level:  # noqa: ANN401
        ratio = host(ratio)
        alpha = 1 / (1 + ratio**2).sqrt()
        return Level(alpha, ratio * alpha, time)

    ratios, time, twice = scheduler.sigmas, times[position], hasattr(scheduler, "state_in_first_order")
    if not (twice and call % 2):
        level, next = at(ratios[position], time), at(ratios[position + 1], _time_at(times, position + 1))
        return Place(level, next, whole=not (twice and next.sigma > 0), held=(level.alpha, next.alpha))
    match name_of(scheduler):
        case "KDPM2DiscreteScheduler":
            between = scheduler.sigmas_interpol[position]
        case "KDPM2AncestralDiscreteScheduler":
            between = scheduler.sigmas_interpol[position - 1]
        case "DPMSolverSDEScheduler":  # in the middle of the logarithm
            between = (host(ratios[position - 1]) * host(ratios[position])).sqrt()
        case _:
            between = ratios[position]
    level, next = at(between, time), at(ratios[position], time)
    return Place(level, next, stage=1, held=(level.alpha, next.alpha))


def _by_solver(scheduler: Any, times: Tensor, position: int, call: int) -> Place:  # noqa: ANN401
    """Levels of the solvers in ``log(alpha / sigma)``: variance-preserving or flow matching."""

    def at(position: int) -> Level:
        alpha, sigma = solver_levels(scheduler, host(scheduler.sigmas[position]))
        return Level(alpha, sigma, _time_at(times, position))

    return Place(at(position), at(position + 1))


def _by_flow(scheduler: Any, times: Tensor, position: int, call: int) -> Place:  # noqa: ANN401
    """Levels of flow matching, ``alpha = 1 - sigma``."""

    def at(position: int) -> Level:
        sigma = host(scheduler.sigmas[position])
        return Level(1 - sigma, sigma, _time_at(times, position))

    twice = hasattr(scheduler, "state_in_first_order")
    if twice and call % 2:
        return Place(at(position), at(position), stage=1)
    level, next = at(position), at(position + 1)
    return Place(level, next, whole=not (twice and next.sigma > 0))


_READ: Mapping[Family, _Read] = {
    "discrete": _by_time,
    "ratio": _by_ratio,
    "solver": _by_solver,
    "flow": _by_flow,
}
KNOWN = tuple(name for name, family in FAMILIES.items() if family in _READ)
"""The schedulers of pipelines that can be steered."""


def name_of(scheduler: Any) -> str:  # noqa: ANN401
    """Returns the name of the known scheduler that this one is, or inherits from."""
    names = [each.__name__ for each in type(scheduler).__mro__]
    for name in names:
        if name in KNOWN:
            return name
    raise unknown("scheduler", names[0], KNOWN)


def places_of(scheduler: Any, start: int) -> tuple[Place, ...]:  # noqa: ANN401
    """Returns where each call of a scheduler finds it.

    Args:
        scheduler: One of those that are known, whose timesteps are set.
        start: The number of its first call among the timesteps.
    """
    read, here = _READ[FAMILIES[name_of(scheduler)]], copy.copy(scheduler)
    vars(here).update({key: host(value) for key, value in vars(scheduler).items() if isinstance(value, Tensor)})
    return tuple(read(here, here.timesteps, start + call, call) for call in range(len(here.timesteps) - start))


def visited(places: tuple[Place, ...]) -> tuple[Level, ...]:
    """Returns the levels that the steps begin from, and where the last of them leads."""
    return (*(place.level for place in places if place.stage == 0), places[-1].next)


def start_of(scheduler: Any, timestep: Any) -> int:  # noqa: ANN401
    """Returns the position at which the calls begin: not 0 for a pipeline that starts from an image."""
    for known in ("step_index", "begin_index"):
        if (position := getattr(scheduler, known, None)) is not None:
            return int(position)
    return int((host(scheduler.timesteps) == host(timestep)).nonzero()[0])


def kept(scheduler: Any, places: tuple[Place, ...], start: int, call: int) -> Kept | None:  # noqa: ANN401
    """Returns the sample that a call goes on from in place of the one that it is given, if there is one.

    UniPC's corrector computes a sample anew from the one before; a singlestep method of order m goes from the sample
    m - 1 calls before. Both multiply it with the ratio of the ``sigma``, or of the ``alpha`` where they are in terms of
    the noise; the stochastic one in terms of the image with ``(sigma / sigma_kept)^2 alpha_kept / alpha``.

    Args:
        scheduler: One of those that are known.
        places: Where its calls find it.
        start: The number of the first of them among the timesteps.
        call: The present call's among them.
    """
    match name_of(scheduler):
        case "UniPCMultistepScheduler" if scheduler.last_sample is not None:
            name, back = "last_sample", 1
            kind = "dpmsolver++" if scheduler.predict_x0 else "dpmsolver"
        case "DPMSolverSinglestepScheduler" if scheduler.order_list[start + call] > 1 and scheduler.sample is not None:
            name, back = "sample", scheduler.order_list[start + call] - 1
            kind = scheduler.config.algorithm_type
        case _:
            return None
    level, before = places[call].level, places[call - back].level
    alpha, sigma = level.alpha / before.alpha, level.sigma / before.sigma
    return Kept(name, {"dpmsolver": alpha, "dpmsolver++": sigma}.get(kind, sigma**2 / alpha))
