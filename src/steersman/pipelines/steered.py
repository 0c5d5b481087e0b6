"""A pipeline with guides: they meet its calls and its scheduler's while they are attached.

The steps themselves are `PipelineTrajectory`'s, a new one for each of the pipeline's calls.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.denoise import Parameterization
from steersman.errors import InputError, unknown
from steersman.guidance.guide import Guide, after_decoding
from steersman.guidance.input import Lookahead
from steersman.guidance.objective import Objective, Target, resolve_targets
from steersman.pipelines.parts import Parts, around_calls, exact, frozen, recomputed
from steersman.pipelines.recording import Recording, Turn
from steersman.pipelines.trajectory import PipelineTrajectory, Plan
from steersman.sampling.loop import Recurrence
from steersman.sampling.particles import Particles
from steersman.sampling.scheduler import FAMILIES, SCHEDULERS, Scheduler, host, name_of, prediction_type
from steersman.schedule import VP, Flow, Level, Schedule

__all__ = ["MEMORYLESS", "SteeredPipeline"]

MEMORYLESS = tuple(name for name, known in SCHEDULERS.items() if known.memoryless)
"""The schedulers whose step follows from the sample and the output alone, so that it can be made again."""


class SteeredPipeline:
    """Guides attached to a pipeline; the arguments are those of `steersman.steer`.

    Attributes:
        guided: Whether any guide was active in any call.
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
        self.pipe, self.parts, self.scheduler = pipe, Parts.of(pipe), pipe.scheduler
        self.name = name_of(self.scheduler)
        guides = [_over_frames(guide, frames) for guide in guides]
        self.guides = tuple(guides if self.parts.vae is None else map(after_decoding, guides))
        self.through = any(guide.scale and guide.differentiates_denoiser for guide in guides)
        self.asks = (
            recurrence.times > 1
            or particles.count > 1
            or any(isinstance(guide.input, Lookahead) or guide.injection.point == "sample" for guide in guides)
        )
        self._check_scheduler()
        self.parts.check(pipe, through=self.through, asks=self.asks)
        self._check_repeats(recurrence, particles)
        self.plan = Plan(
            scheduler=self.scheduler,
            parts=self.parts,
            schedule=_schedule_of(self.scheduler),
            guides=self.guides,
            targets=resolve_targets(self.guides, target),
            recurrence=recurrence,
            particles=particles,
            frames=frames,
        )
        self.recording = Recording(self.parts.networks, self.parts.others, self._due)
        self.trajectory: PipelineTrajectory | None = None
        self.generator: Any = None
        self.guided = False

    def _check_scheduler(self) -> None:
        """Refuses schedulers and injections that the guides cannot work with."""
        config, kind, family = self.scheduler.config, prediction_type(self.scheduler), FAMILIES[self.name]
        if family == "edm":
            raise unknown("scheduler", self.name, [name for name, known in FAMILIES.items() if known != "edm"])
        noisy = self.name in ("DDPMScheduler", "DDIMScheduler")
        allowed = ("sample", "estimate", "mean", *(("deviation",) if noisy else ()))
        for guide in self.guides:
            if (point := guide.injection.point) not in allowed:
                raise InputError(
                    f"injection: with a pipeline's {self.name} it must enter at the {', '.join(allowed)}, got "
                    f"{type(guide.injection).__name__}, which enters at the {point}"
                )
        if self.name == "PNDMScheduler" and not config.skip_prk_steps:
            raise InputError("scheduler: PNDM must have skip_prk_steps=True, got Runge-Kutta steps")
        if config.get("invert_sigmas"):
            raise InputError("scheduler: flow matching must go from noise to image, got invert_sigmas=True")
        if kind not in get_args(Parameterization):
            raise InputError(f"scheduler.prediction_type must be epsilon, sample, v or flow, got {kind}")
        if "step" in vars(self.scheduler):
            raise InputError("pipe: its scheduler's step is replaced already; give all guides to one steer")
        if self.parts.name == "DiTTransformer2DModel" and family == "ratio":
            raise InputError(
                f"scheduler: DiTPipeline hands its {self.name} a sample that is scaled already; use one that does not "
                "scale, such as DDIMScheduler"
            )

    def _check_repeats(self, recurrence: Recurrence, particles: Particles) -> None:
        """Refuses recurrence and particles that the scheduler or the guides cannot follow."""
        for setting, wanted in (("recurrence", recurrence.times > 1), ("particles", particles.count > 1)):
            if wanted and self.name not in MEMORYLESS:
                raise InputError(
                    f"{setting}: {self.name} keeps samples or outputs from step to step, so that a step cannot be made "
                    f"again; use one of {', '.join(MEMORYLESS)}, or leave {setting} out"
                )
        if particles.count > 1 and not self.guides:
            raise InputError(f"particles.count must be 1 without a guide that weighs them, got {particles.count}")
        if particles.count > 1 and particles.corrected:
            raise InputError("particles.corrected must be false in a pipeline, whose unguided step is not known")

    def attach(self, stack: ExitStack) -> None:
        """Attaches the guides until the stack unwinds."""
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
            self.plan = replace(self.plan, parts=self.parts._replace(vae=exact(vae)))
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
                self.trajectory = PipelineTrajectory(self.plan, call.arguments, self.recording.given, self.generator)
            self.trajectory.check(call.arguments["timestep"])
            turn = Turn(
                self.recording,
                sample=call.arguments["sample"],
                time=call.arguments["timestep"],
                output=call.arguments["model_output"],
                returned=self.trajectory.returned,
            )
            outcome = self.trajectory.step(own, call, turn)
            self.guided |= self.trajectory.guided
        self.recording.forget()
        self.recording.idle = self.trajectory.ended
        return outcome


def _schedule_of(scheduler: Scheduler) -> Schedule:
    """Returns the schedule that the network was trained on."""
    if (alpha_bar := getattr(scheduler, "alphas_cumprod", None)) is None:
        return Flow(count=scheduler.config.num_train_timesteps)
    alpha_bar = host(alpha_bar).clone()
    if scheduler.config.get("rescale_betas_zero_snr"):
        alpha_bar[-1] = 0  # some schedulers have 2^-24 there, which may be above what comes before
    return VP(alpha_bar=alpha_bar)


@dataclass(frozen=True, kw_only=True)
class _OverFrames:
    """The mean log-likelihood over a video's frames, or over some of them."""

    objective: Objective
    frames: tuple[int, ...] | None

    def __call__(self, image: Float[Tensor, "N C H W"], target: Int[Tensor, " B"], level: Level) -> Float[Tensor, " B"]:
        frames = image.unflatten(0, (len(target), -1))
        if self.frames is not None:
            count = frames.shape[1]
            for index in self.frames:
                if not -count <= index < count:
                    raise InputError(f"frames must be {-count} to {count - 1}, got {index}")
            frames = torch.stack([frames[:, index] for index in self.frames], dim=1)
        count = frames.shape[1]
        values = self.objective(frames.flatten(0, 1), target.repeat_interleave(count), level)
        return values.unflatten(0, (-1, count)).mean(1)


def _over_frames(guide: Guide, frames: Sequence[int] | None) -> Guide:
    """Returns the same guide for batches of videos, whose frames come one after the other; an image is one frame."""
    chosen = None if frames is None else tuple(frames)
    return replace(guide, objective=_OverFrames(objective=guide.objective, frames=chosen))
