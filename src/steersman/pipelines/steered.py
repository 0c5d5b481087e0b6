"""Guides that have joined a pipeline: what is known before its calls, and how its calls and its scheduler's are met.

The steps themselves are `steersman.pipelines.trajectory`'s, a new one for each of the pipeline's calls.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from steersman.errors import InputError
from steersman.guidance.decoded import after_decoding
from steersman.guidance.guide import Guide
from steersman.guidance.injection import Moment
from steersman.guidance.input import Lookahead
from steersman.guidance.targets import Target, resolved
from steersman.pipelines.calls import around_calls
from steersman.pipelines.levels import host, name_of
from steersman.pipelines.parts import Parts, exact, frozen, recomputed
from steersman.pipelines.recording import Recording, Turn
from steersman.pipelines.samples import over_frames
from steersman.pipelines.trajectory import Plan, Trajectory
from steersman.sampling.loop import Recurrence
from steersman.sampling.particles import Particles
from steersman.schedule import VP, Flow, Schedule
from steersman.schedulers import FAMILIES

__all__ = ["Steered"]

MEMORYLESS = (
    "CogVideoXDDIMScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "LCMScheduler",
)
"""The schedulers whose step follows from the sample and the output alone, so that it can be made again."""


class Steered:
    """Guides at work in a pipeline's calls.

    Args:
        pipe: The pipeline.
        guides: The guides.
        target: Their target, or one an image.
        recurrence: How often steps are repeated.
        particles: How many candidates an image has, and which of them go on.
        frames: Which frames of a video the classifiers see, None for all.

    Attributes:
        guided: Whether guides pushed or weighed anything in any call.
    """

    def __init__(
        self,
        pipe: Any,  # noqa: ANN401
        guides: Sequence[Guide],
        target: Target | Iterable[Target] | None,
        *,
        recurrence: Recurrence,
        particles: Particles,
        frames: Sequence[int] | None,
    ) -> None:
        self.pipe, self.parts = pipe, Parts.of(pipe)
        self.scheduler: Any = pipe.scheduler
        self.name = name_of(self.scheduler)
        guides = [over_frames(guide, frames) for guide in guides]
        self.guides = guides if self.parts.vae is None else [after_decoding(guide) for guide in guides]
        self.recurrence, self.particles, self.frames = recurrence, particles, frames
        self.through = any(guide.scale and guide.differentiates_denoiser for guide in guides)
        again = recurrence.times > 1 or particles.count > 1
        self.asks = again or any(
            isinstance(each.input, Lookahead) or each.injection.moment == "sample" for each in guides
        )
        self._check()
        self.targets = resolved(self.guides, target)
        self.recording = Recording(self.parts.networks, self.parts.others, self._due)
        self.trajectory: Trajectory | None = None
        self.generator: Any = None
        self.guided = False

    def _check(self) -> None:
        config = self.scheduler.config
        for guide in self.guides:
            if (moment := guide.injection.moment) not in (allowed := self._moments()):
                raise InputError(
                    f"injection: with a pipeline's {self.name} it must enter at the {', '.join(allowed)}, got "
                    f"{type(guide.injection).__name__}, which enters at the {moment}"
                )
        if self.name == "PNDMScheduler" and not config.skip_prk_steps:
            raise InputError("scheduler: PNDM must have skip_prk_steps=True, got Runge-Kutta steps")
        if config.get("invert_sigmas"):
            raise InputError("scheduler: flow matching must go from noise to image, got invert_sigmas=True")
        kind = config.get("prediction_type", "flow_prediction")
        if kind not in ("epsilon", "sample", "v_prediction", "flow_prediction"):
            raise InputError(f"scheduler.prediction_type must be epsilon, sample, v or flow, got {kind}")
        if "step" in vars(self.scheduler):
            raise InputError("pipe: its scheduler's step is replaced already; give all guides to one steer")
        self.parts.check(self.pipe, through=self.through, asks=self.asks)
        if self.parts.name == "DiTTransformer2DModel" and FAMILIES[self.name] == "ratio":
            raise InputError(
                f"scheduler: DiTPipeline hands its {self.name} a sample that is scaled already; use one that does not "
                "scale, such as DDIMScheduler"
            )
        for asked, more in (("recurrence", self.recurrence.times > 1), ("particles", self.particles.count > 1)):
            if more and self.name not in MEMORYLESS:
                raise InputError(
                    f"{asked}: {self.name} keeps samples or outputs from step to step, so that a step cannot be made "
                    f"again; use one of {', '.join(MEMORYLESS)}, or leave {asked} out"
                )
        if self.particles.count > 1 and not self.guides:
            raise InputError(f"particles.count must be 1 without a guide that weighs them, got {self.particles.count}")
        if self.particles.count > 1 and self.particles.corrected:
            raise InputError("particles.corrected must be false in a pipeline, whose unguided step is not known")

    def _moments(self) -> tuple[Moment, ...]:
        match self.name:
            case "DDPMScheduler" if not self.scheduler.config.thresholding:
                return ("sample", "estimate", "mean", "deviation")
            case "DDIMScheduler":
                return ("sample", "estimate", "mean", "deviation")
        return ("sample", "estimate", "mean")

    def _schedule(self) -> Schedule:
        if (alpha_bar := getattr(self.scheduler, "alphas_cumprod", None)) is None:
            return Flow(count=self.scheduler.config.num_train_timesteps)
        alpha_bar = host(alpha_bar).clone()
        if self.scheduler.config.get("rescale_betas_zero_snr"):
            alpha_bar[-1] = 0  # some schedulers have 2^-24 there, which may be above what comes before
        return VP(alpha_bar=alpha_bar)

    def attach(self, stack: ExitStack) -> None:
        """Joins the pipeline until the stack unwinds."""
        stack.enter_context(torch.set_grad_enabled(torch.is_grad_enabled()))
        stack.enter_context(around_calls(self.pipe, self._around))
        for name, wrapper in (
            ("step", self._step),
            ("set_timesteps", self._set_timesteps),
            ("scale_model_input", self._scale_model_input),
        ):
            if (own := getattr(self.scheduler, name, None)) is not None:
                setattr(self.scheduler, name, functools.wraps(own)(functools.partial(wrapper, own)))
                stack.callback(delattr, self.scheduler, name)
        stack.enter_context(self.recording.listened())
        for network in self.parts.networks if self.through else ():
            stack.enter_context(frozen(network))
        if (vae := self.parts.vae) is not None:
            stack.enter_context(frozen(vae))
            stack.enter_context(recomputed(vae))
        self.plan = Plan(
            scheduler=self.scheduler,
            name=self.name,
            network=self.parts.name,
            dtype=self.parts.dtype,
            vae=None if vae is None else exact(vae),
            schedule=self._schedule(),
            guides=tuple(self.guides),
            targets=self.targets,
            recurrence=self.recurrence,
            particles=self.particles,
            frames=self.frames,
        )
        if self.through or self.asks:  # by the pipeline's call, or by a loop of the user's own
            stack.enter_context(self.recording)

    @contextmanager
    def _around(self, arguments: Mapping[str, Any]) -> Iterator[None]:
        """The context of a pipeline's call: what a gradient passes is not made in inference mode."""
        self._begin()
        self.generator = arguments.get("generator")
        try:
            with torch.inference_mode(False):
                yield
            if self.trajectory is not None:
                self.trajectory.check_end()
        finally:
            self._begin()

    def _begin(self) -> None:
        """Forgets the call before."""
        self.trajectory = None
        self.recording.forget()

    def _set_timesteps(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        self._begin()
        with self.recording.paused():
            return own(*args, **kwargs)

    def _scale_model_input(self, own: Callable[..., Any], sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        with self.recording.paused():
            scaled = own(sample, *args, **kwargs)
        if scaled is not sample and self.recording.entered:
            self.recording.add(self._scaled, (sample,), {}, scaled)
        return scaled

    def _scaled(self, sample: Tensor) -> Tensor:
        """Returns what the network is shown of a sample where the trajectory asks it."""
        assert self.trajectory is not None, "only a trajectory asks again"
        return sample * self.trajectory.shown

    def _due(self) -> bool:
        """Whether the coming step differentiates the network; of the first, little is known before it comes."""
        return self.through and (self.trajectory is None or self.trajectory.differentiates_next)

    def _step(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """The scheduler's step, with the guides' updates."""
        call = inspect.signature(own).bind(*args, **kwargs)
        with self.recording.paused(), torch.inference_mode(False), torch.no_grad():
            if self.trajectory is None:
                self.trajectory = Trajectory(self.plan, call.arguments, self.recording.given, self.generator)
            self.trajectory.check(call.arguments["timestep"])
            turn = Turn(
                self.recording,
                sample=call.arguments["sample"],
                time=call.arguments["timestep"],
                output=call.arguments["model_output"],
                returned=self.trajectory.returned,
            )
            outcome = self.trajectory.make(own, call, turn)
            self.guided |= self.trajectory.guided
        self.recording.forget()
        self.recording.idle = self.trajectory.ended
        return outcome
