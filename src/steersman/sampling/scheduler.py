"""diffusers' schedulers: how each holds its sample z, ``x_t = alpha x_0 + sigma eps = c z``, and at which levels.

    discrete    whole times of a variance-preserving schedule, c = 1               DDPM, DDIM, PNDM, LCM, CogVideoX
    solver      any sigma of it, or of flow matching, c = 1                        DPMSolver, UniPC, DEIS
    ratio       z = x_0 + s eps, of which the network is shown c z,
                c = alpha = 1 / sqrt(1 + s^2)                                      Euler, Heun, KDPM2, LMS, ancestral
    edm         z = x_0 + s eps, EDM's own, c = 1                                  EDMEuler, EDMDPMSolverMultistep
    flow        z = (1 - s) x_0 + s eps, flow matching, c = 1                      FlowMatchEuler, FlowMatchHeun

A step from one level to the next is one or several calls of the scheduler: two of Heun's, four of PNDM's Runge-Kutta.
"""

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from steersman.batching import each_tensor, send, tensors
from steersman.denoise import Parameterization
from steersman.errors import unknown
from steersman.guidance.step import FixedVariance
from steersman.sampling.samplers import Draw
from steersman.schedule import CLEAN, Level

__all__ = [
    "FAMILIES",
    "SCHEDULERS",
    "Adapter",
    "Family",
    "Position",
    "Scheduler",
    "SchedulerNumbers",
    "host",
    "visited",
]

Family = Literal["discrete", "solver", "ratio", "edm", "flow"]
Scheduler = Any  # diffusers' schedulers have no class of their own in common that types their steps


class _Known(NamedTuple):
    """What is known of a scheduler.

    Attributes:
        family: How it holds its sample.
        types: Its prediction types as a sampler; none where it cannot be one.
        settings: The settings of its ``step``.
        restarts: Whether it can begin in the middle of a trajectory.
        memoryless: Whether its step follows from the sample and the output alone, so that it can be made again.
    """

    family: Family
    types: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    restarts: bool = True
    memoryless: bool = False


_TWO = ("epsilon", "v_prediction")
_THREE = (*_TWO, "sample")
_FOUR = (*_THREE, "flow_prediction")
_CHURN = ("s_churn", "s_tmin", "s_tmax", "s_noise")

SCHEDULERS: Mapping[str, _Known] = {
    "CogVideoXDDIMScheduler": _Known("discrete", memoryless=True),
    "CogVideoXDPMScheduler": _Known("discrete"),
    "DDIMScheduler": _Known("discrete", _THREE, ("eta", "use_clipped_model_output"), memoryless=True),
    "DDPMScheduler": _Known("discrete", _THREE, memoryless=True),
    "DEISMultistepScheduler": _Known("solver", _FOUR),
    "DPMSolverMultistepScheduler": _Known("solver", _FOUR),
    "DPMSolverSDEScheduler": _Known("ratio"),
    "DPMSolverSinglestepScheduler": _Known("solver"),
    "EDMDPMSolverMultistepScheduler": _Known("edm", _TWO),
    "EDMEulerScheduler": _Known("edm", _TWO, _CHURN),
    "EulerAncestralDiscreteScheduler": _Known("ratio", _TWO, memoryless=True),
    "EulerDiscreteScheduler": _Known("ratio", _THREE, _CHURN, memoryless=True),
    "FlowMatchEulerDiscreteScheduler": _Known("flow", ("flow_prediction",), memoryless=True),
    "FlowMatchHeunDiscreteScheduler": _Known("flow", ("flow_prediction",)),
    "HeunDiscreteScheduler": _Known("ratio", _THREE),
    "KDPM2AncestralDiscreteScheduler": _Known("ratio", _TWO),
    "KDPM2DiscreteScheduler": _Known("ratio", _TWO),
    "LCMScheduler": _Known("discrete", memoryless=True),
    "LMSDiscreteScheduler": _Known("ratio", _THREE, ("order",), restarts=False),
    "PNDMScheduler": _Known("discrete", _TWO, restarts=False),
    "UniPCMultistepScheduler": _Known("solver", _FOUR),
}

FAMILIES: Mapping[str, Family] = {name: known.family for name, known in SCHEDULERS.items()}


class Position(NamedTuple):
    """Where a scheduler stands before one of its calls.

    Attributes:
        index: The call's index among the timesteps.
        step: The index of its step.
        level: The level of the sample that the call is given.
        next: The level that the step leads to.
        stage: The index of the call within its step.
        last: Whether the call ends its step.
        scale: ``c`` of the sample that the call is given.
        next_scale: ``c`` of the sample that it returns.
    """

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]
    step: int
    level: Level
    next: Level
    stage: int
    last: bool
    scale: float
    next_scale: float


def host(value: Any, dtype: torch.dtype | None = torch.float64) -> Tensor:  # noqa: ANN401
    """Returns numbers on the CPU, in float64 or as they are."""
    return torch.as_tensor(value).detach().to("cpu", dtype)


def visited(positions: tuple[Position, ...]) -> tuple[Level, ...]:
    """Returns the levels that the steps begin from, and where the last of them leads."""
    return (*(position.level for position in positions if position.stage == 0), positions[-1].next)


class Adapter:
    """A scheduler, and what is known of it.

    Attributes:
        name: The name of the known scheduler that it is or inherits from.
        known: What is known of that scheduler.
        kind: The prediction type of the network outputs that it expects.
        fixed: The reverse variance of its steps where the network learned none.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        names = [base.__name__ for base in type(scheduler).__mro__]
        known = next((name for name in names if name in SCHEDULERS), None)
        if known is None:
            raise unknown("scheduler", names[0], SCHEDULERS)
        self.scheduler, self.name, self.known, config = scheduler, known, SCHEDULERS[known], scheduler.config
        flow = self.known.family == "flow"
        self.kind: Parameterization = "flow_prediction" if flow else config.get("prediction_type", "flow_prediction")
        large = known == "DDPMScheduler" and str(config.get("variance_type")).startswith("fixed_large")
        self.fixed: FixedVariance = "large" if large else "small"

    def copied(self, history: Mapping[str, Any] = MappingProxyType({})) -> "Adapter":
        """Returns the adapter of a copy, with another history; lists are copied too, as steps change them in place."""
        scheduler = copy.copy(self.scheduler)
        for key, value in {**vars(self.scheduler), **history}.items():
            vars(scheduler)[key] = list(value) if isinstance(value, list) else value
        return Adapter(scheduler)

    @property
    def history(self) -> dict[str, Any]:
        """The attributes in which it keeps earlier samples or outputs, by name; its own numbers are vectors."""
        return {key: value for key, value in vars(self.scheduler).items() if any(x.ndim > 1 for x in tensors(value))}

    def start(self, timestep: Any) -> int:  # noqa: ANN401
        """Returns the index of the first call among the timesteps: not 0 for a pipeline that starts from an image."""
        for known in ("step_index", "begin_index"):
            if (index := getattr(self.scheduler, known, None)) is not None:
                return int(index)
        return int((host(self.scheduler.timesteps) == host(timestep)).nonzero()[0])

    def positions(self, start: int = 0) -> tuple[Position, ...]:
        """Returns where it stands at each of its calls, from the one at index ``start`` of its timesteps on.

        They are read at once, so that no step waits for an accelerator. The numbers are those that the scheduler
        computes with itself, in float32, so that an ``x0_hat`` reaches it as it is.
        """
        family, times = self.known.family, host(self.scheduler.timesteps)
        count = len(times)
        alphas, sigmas = (values.double() for values in self._alphas_and_sigmas(times))
        scales = (1 + sigmas**2) ** -0.5 if family == "ratio" else torch.ones_like(sigmas)
        scales[-1] = 1.0
        levels = [Level(*row) for row in zip(scales * alphas, scales * sigmas, [*times, CLEAN.time], strict=True)]
        if sigmas[-1] == 0:
            levels[-1] = CLEAN
        stages, positions = self._stages(count - start), []
        for index, stage in enumerate(stages, start):
            following = next((i for i in range(index + 1, count) if stages[i - start] == 0), count)
            strided = family == "discrete" and self.name not in ("DDPMScheduler", "LCMScheduler") and stage == 0
            positions.append(
                Position(
                    index=index,
                    step=stages[: index - start + 1].count(0) - 1,
                    level=levels[index],
                    next=self._strided(times[index]) if strided else levels[following],
                    stage=stage,
                    last=index + 1 == following,
                    scale=float(scales[index]),
                    next_scale=float(scales[index + 1]),
                )
            )
        return tuple(positions)

    def _alphas_and_sigmas(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``a`` and ``s`` of ``z = a x_0 + s eps`` at each call, and where the last one leads."""
        scheduler, name, family, count = self.scheduler, self.name, self.known.family, len(times)
        if family == "discrete":
            end = 1.0 if name == "LCMScheduler" else getattr(scheduler, "final_alpha_cumprod", 1.0)
            bars = torch.cat([host(scheduler.alphas_cumprod, None)[times.long()], host(end, None).reshape(1)])
            return bars**0.5, (1 - bars) ** 0.5
        sigmas = host(scheduler.sigmas, None)[: count + 1].clone()
        if family == "flow":
            return 1 - sigmas.double(), sigmas
        if family == "solver":  # diffusers' own arithmetic, to the last bit
            alphas = 1 / ((sigmas**2 + 1) ** 0.5)
            return (1 - sigmas, sigmas) if scheduler.config.get("use_flow_sigmas") else (alphas, sigmas * alphas)
        if name.startswith("KDPM2"):  # whose second call is between the levels
            back = int(name == "KDPM2AncestralDiscreteScheduler")
            sigmas[1:-1:2] = host(scheduler.sigmas_interpol, None)[1 - back : count - back : 2]
        if name == "DPMSolverSDEScheduler":  # in the middle of the logarithm
            sigmas[1:-1:2] = (sigmas[:-2:2] * sigmas[1:-1:2]).sqrt()
        return torch.ones_like(sigmas), sigmas

    def _strided(self, time: Tensor) -> Level:
        """Returns the level that a step leads to where it is a fixed number of times on, whatever the next timestep."""
        time = time - self.scheduler.config.num_train_timesteps // self.scheduler.num_inference_steps
        alpha_bar = host(self.scheduler.alphas_cumprod[int(time)] if time >= 0 else self.scheduler.final_alpha_cumprod)
        return Level(alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), time.clamp(min=0))

    def _stages(self, calls: int) -> list[int]:
        """Returns the index of each call within its step."""
        if getattr(self.scheduler, "order", 1) == 2:  # the last step goes to the clean image, by the first order
            return [call % 2 for call in range(calls)]
        if self.name == "PNDMScheduler" and not self.scheduler.config.skip_prk_steps:
            return [call % 4 if call < 12 else 0 for call in range(calls)]
        if self.name == "PNDMScheduler":  # the second call improves the first step of linear multistep
            return [int(call == 1) for call in range(calls)]
        return [0] * calls

    def move_kept_sample(self, positions: tuple[Position, ...], position: Position, change: Tensor) -> None:
        """Moves the sample that the scheduler kept from before, where it goes on from that one, not from the given one.

        UniPC's corrector computes a sample anew from the one before, ``z = k z_kept + ...``, and a singlestep method of
        order m goes on from the sample m - 1 calls before. So what changed z changes the kept sample by ``change / k``.
        The ratio k is that of the ``sigma``, or of the ``alpha`` for methods in terms of the noise, or
        ``(sigma / sigma_kept)^2 alpha_kept / alpha`` for the stochastic one in terms of the image.
        """
        scheduler = self.scheduler
        match self.name:
            case "UniPCMultistepScheduler":
                key, back, kind = "last_sample", 1, "dpmsolver++" if scheduler.predict_x0 else "dpmsolver"
            case "DPMSolverSinglestepScheduler":
                key, back = "sample", scheduler.order_list[position.index] - 1
                kind = scheduler.config.algorithm_type
            case _:
                return
        if back == 0 or (kept := getattr(scheduler, key, None)) is None:
            return
        level, before = position.level, positions[position.index - positions[0].index - back].level
        alpha, sigma = level.alpha / before.alpha, level.sigma / before.sigma
        ratio = {"dpmsolver": alpha, "dpmsolver++": sigma}.get(kind, sigma**2 / alpha)
        setattr(scheduler, key, kept + change / float(ratio))


class SchedulerNumbers(TorchFunctionMode):
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

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Returns what the function would have returned, or a draw."""
        named: dict[str, Any] = dict(kwargs or {})
        if func in (torch.randn, torch.randn_like):
            self.noise = self.draw()
            return self.noise.to(dtype=args[0].dtype if func is torch.randn_like else named.get("dtype"))
        elsewhere = next((x.device for x in tensors((args, named)) if x.device.type != "cpu"), None)
        if elsewhere is None:
            args = tuple("cpu" if isinstance(value, torch.device) else value for value in args)
            named |= {"device": "cpu"} if "device" in named else {}
        else:
            args, named = each_tensor((args, named), lambda x: send(x, elsewhere) if x.ndim else x)
        return func(*args, **named)
