"""A pipeline with guides: they meet its calls and its scheduler's while they are attached.

The steps themselves are `PipelineTrajectory`'s, a new one for each of the pipeline's calls.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steersman.batching import row_count, take
from steersman.denoise import Parameterization
from steersman.errors import InputError, unknown
from steersman.guidance.guide import Guide, after_decoding
from steersman.guidance.objective import Objective
from steersman.guidance.step import Lookahead, Targets
from steersman.guidance.target import Target, resolve_targets
from steersman.pipelines.network import PACKED
from steersman.pipelines.recording import Recording, Turn, original
from steersman.pipelines.trajectory import PipelineTrajectory, Plan
from steersman.sampling.loop import Recurrence
from steersman.sampling.particles import Particles
from steersman.sampling.scheduler import FAMILIES, SCHEDULERS, Adapter, Scheduler, host
from steersman.sampling.watch import Changes
from steersman.schedule import VP, Flow, Level, Schedule

__all__ = ["MEMORYLESS", "SteeredPipeline"]

MEMORYLESS = tuple(name for name, known in SCHEDULERS.items() if known.memoryless)
"""The schedulers whose step follows from the sample and the output alone, so that it can be made again."""

_NETWORKS = ("unet", "transformer")
_VAES = ("vae", "vqvae", "movq")
_SOUNDS = ("vocoder", "audio_vae")


class SteeredPipeline:
    """Guides attached to a pipeline; the arguments are those of `steersman.steer`.

    Attributes:
        networks: The networks that predict the noise.
        network: The name of the first one's class, which identifies the family.
        vae: The decoder of its latents, or None where it draws images.
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
        modules = _modules(pipe)
        self.pipe, self.scheduler, self.adapter = pipe, pipe.scheduler, Adapter(pipe.scheduler)
        self.name = self.adapter.name
        self.networks = tuple(modules[key] for key in sorted(modules) if key.startswith(_NETWORKS))
        self.network = type(original(self.networks[0])).__name__
        self.vae: Any = next((modules[key] for key in _VAES if key in modules), None)
        guides = [_over_frames(guide, frames) for guide in guides]
        self.guides = tuple(guides if self.vae is None else map(after_decoding, guides))
        self.through = any(guide.scale and guide.differentiates_denoiser for guide in guides)
        self.asks = (
            recurrence.times > 1
            or particles.count > 1
            or any(isinstance(guide.input, Lookahead) or guide.injection.point == "sample" for guide in guides)
        )
        self._check_scheduler()
        self._check_modules()
        self._check_repeats(recurrence, particles)
        weights = self.networks[0].parameters()
        self.plan = Plan(
            adapter=self.adapter,
            network=self.network,
            computes=next((weight.dtype for weight in weights if weight.is_floating_point()), torch.float32),
            vae=self.vae,
            schedule=_schedule_of(self.scheduler),
            guides=self.guides,
            targets=resolve_targets(self.guides, target),
            recurrence=recurrence,
            particles=particles,
            frames=frames,
        )
        # A VAE is not called itself, but through its decode.
        parts = [part for part in modules.values() if not any(part is network for network in self.networks)]
        called = [each for part in parts for each in (part.children() if hasattr(part, "decode") else [part])]
        self.recording = Recording(self.networks, called, self._due)
        self.trajectory: PipelineTrajectory | None = None
        self.generator: Any = None
        self.guided = False
        self._ended: list[tuple[Changes, int]] = []  # of each call that made all its steps, with its samples

    @property
    def moved(self) -> list[float | None]:
        """How far guidance moved each sample of each call that made all its steps; None where no guide was active."""
        return [change for changes, count in self._ended for change in changes.moved(count)]

    def _check_scheduler(self) -> None:
        """Refuses schedulers and injections that the guides cannot work with."""
        config, kind, family = self.scheduler.config, self.adapter.kind, self.adapter.known.family
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
        if self.network == "DiTTransformer2DModel" and family == "ratio":
            raise InputError(
                f"scheduler: DiTPipeline hands its {self.name} a sample that is scaled already; use one that does not "
                "scale, such as DDIMScheduler"
            )

    def _check_modules(self) -> None:
        """Refuses networks and a VAE that cannot be differentiated or asked again as the guides need."""
        if (self.through or self.asks) and any(
            getattr(network, "_compiled_call_impl", None) is not None for network in self.networks
        ):
            raise InputError(
                "pipe: its network is compiled in place, so that what enters it is not seen here; use "
                "torch.compile(network) instead, or the gradient with respect to x0_hat (wrt x0_hat) without "
                "lookahead, recurrence and particles"
            )
        differentiated = [*(self.networks if self.through else ()), *([] if self.vae is None else [self.vae])]
        if self.through and any(_moves(module) for part in differentiated for module in part.modules()):
            raise InputError(
                "gradient with respect to x_t: the pipeline's weights are offloaded, cast or cached between calls, and "
                "the gradient needs them as they were; take it with respect to x0_hat (wrt x0_hat), or keep the "
                "pipeline on one device"
            )
        if any(weight.is_inference() for part in differentiated for weight in part.parameters()):
            raise InputError(
                "pipe: its weights were made in torch.inference_mode(), so that no gradient can pass them; load the "
                "pipeline outside of it"
            )
        takes = inspect.signature(original(self.networks[0]).forward).parameters
        packs = any("unpack_latents" in name for name in dir(type(self.pipe)))
        if packs and not any(name in takes for name in PACKED):
            raise InputError(
                f"pipe: {type(self.pipe).__name__} packs its latents in a way that is not known here; use a pipeline "
                "of docs/models.md"
            )
        if self.vae is not None:
            # Older versions of diffusers hide decode behind a wrapper of any arguments.
            needed = _required(self.vae.decode) or _required(self.vae.decoder.forward)
            if len(needed) > 1:
                raise InputError(
                    f"pipe: its {type(self.vae).__name__} must decode by the latents alone, but needs "
                    f"{', '.join(needed[1:])} too; use a pipeline of docs/models.md"
                )

    def _check_repeats(self, recurrence: Recurrence, particles: Particles) -> None:
        """Refuses recurrence and particles that the scheduler or the guides cannot follow."""
        for setting, wanted in (("recurrence", recurrence.times > 1), ("particles", particles.count > 1)):
            if wanted and self.name not in MEMORYLESS:
                raise InputError(
                    f"{setting}: {self.name} keeps samples or outputs from step to step, so that a step cannot be made "
                    f"again; use one of {', '.join(MEMORYLESS)}, or leave {setting} out"
                )
        if particles.count > 1 and not any(guide.weighs for guide in self.guides):
            raise InputError(f"particles.count must be 1 without a guide that weighs them, got {particles.count}")
        if particles.retries:
            raise InputError(
                "particles.retries must be 0 in a pipeline, whose steps cannot be taken back, got "
                f"{particles.retries}; of the recipe default, use default/once"
            )
        if particles.count > 1 and particles.corrected:
            raise InputError("particles.corrected must be false in a pipeline, whose unguided step is not known")

    def attach(self, stack: ExitStack) -> None:
        """Attaches the guides until the stack unwinds."""
        stack.enter_context(torch.set_grad_enabled(torch.is_grad_enabled()))
        stack.enter_context(_around_calls(self.pipe, self._around))
        for name, wrapper in (
            ("step", self._step),
            ("set_timesteps", self._set_timesteps),
            ("scale_model_input", self._scale_model_input),
        ):
            if (own := getattr(self.scheduler, name, None)) is not None:
                setattr(self.scheduler, name, functools.wraps(own)(functools.partial(wrapper, own)))
                stack.callback(delattr, self.scheduler, name)
        stack.enter_context(self.recording.listened())
        for network in self.networks if self.through else ():
            stack.enter_context(_frozen(network))
        if self.vae is not None:
            stack.enter_context(_frozen(self.vae))
            stack.enter_context(_recomputed(self.vae))
            self.plan = replace(self.plan, vae=_exact(self.vae))
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
            if self.trajectory.ended:
                self._ended.append((self.trajectory.changes, self.trajectory.rows))
        self.recording.forget()
        self.recording.idle = self.trajectory.ended
        return outcome


def _modules(pipe: Any) -> dict[str, nn.Module]:  # noqa: ANN401
    """Returns the modules of a pipeline by name; refuses one without a denoising network, or that makes sounds."""
    components = getattr(pipe, "components", None)
    named: Mapping[str, Any] = components if isinstance(components, Mapping) else getattr(pipe, "__dict__", {})
    modules = {key: part for key, part in named.items() if isinstance(part, nn.Module)}
    if getattr(pipe, "scheduler", None) is None or not any(key.startswith(_NETWORKS) for key in modules):
        raise InputError(
            f"pipe must be a pipeline with a scheduler and a unet or transformer, got {type(pipe).__name__}"
        )
    if sounds := [key for key in _SOUNDS if key in modules]:
        raise InputError(
            f"pipe must draw images or videos, got {type(pipe).__name__}, which makes sounds by its {sounds[0]}"
        )
    return modules


def _required(call: Callable[..., object]) -> list[str]:
    """Returns the names of the arguments without which a function cannot be called."""
    parameters = inspect.signature(call).parameters.items()
    return [key for key, each in parameters if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD]


def _moves(module: nn.Module) -> bool:
    """Whether accelerate or diffusers does something to a module's weights or values between its calls."""
    return hasattr(module, "_hf_hook") or bool(getattr(getattr(module, "_diffusers_hook", None), "hooks", None))


def _exact(vae: Any) -> Any:  # noqa: ANN401
    """Returns the VAE, or a copy in float32 where it overflows in half precision."""
    if vae.dtype != torch.float16 or not vae.config.get("force_upcast"):
        return vae
    if any(hasattr(module, "_hf_hook") for module in vae.modules()):
        raise InputError("pipe: its VAE is offloaded, and overflows in float16; use a VAE in float32 or bfloat16")
    return copy.deepcopy(vae).float()


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Leaves the weights without gradients."""
    trained = [name for name, weight in module.named_parameters() if weight.requires_grad]
    module.requires_grad_(False)
    try:
        yield
    finally:
        weights = dict(module.named_parameters())  # by name: offloading puts others in their place
        for name in trained:
            weights[name].requires_grad_(True)


@contextmanager
def _recomputed(vae: Any) -> Iterator[None]:  # noqa: ANN401
    """Recomputes the activations of the VAE's blocks in the backward pass, where it can."""
    supported = not getattr(vae, "is_gradient_checkpointing", True)
    try:
        if supported:
            vae.enable_gradient_checkpointing()
    except ValueError:  # of a VAE without a block that can, which refuses to disable it as well
        supported = False
    try:
        yield
    finally:
        if supported:
            vae.disable_gradient_checkpointing()


@contextmanager
def _around_calls(pipe: object, around: Callable[[Mapping[str, Any]], AbstractContextManager[None]]) -> Iterator[None]:
    """Runs each call of a pipeline inside the context that ``around`` returns for its arguments.

    Python looks ``pipe(...)`` up in the class; so the pipeline gets a class of its own for the while, which inherits
    from its class and has its name. A pipeline that cannot be called is left alone.
    """
    kind: Any = type(pipe)
    if not callable(pipe):
        yield
        return
    own = kind.__call__

    @functools.wraps(own)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if self is not pipe:  # a copy of it, which keeps the class
            return own(self, *args, **kwargs)
        with around(inspect.signature(own).bind_partial(self, *args, **kwargs).arguments):
            return own(self, *args, **kwargs)

    names = {key: getattr(kind, key) for key in ("__module__", "__qualname__", "__doc__")}
    steered: Any = pipe
    steered.__class__ = type(kind.__name__, (kind,), {"__call__": call, **names})
    try:
        yield
    finally:
        steered.__class__ = kind


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

    def __call__(self, image: Float[Tensor, "N C H W"], target: Targets, level: Level) -> Float[Tensor, " B"]:
        videos = row_count(target)
        frames = image.unflatten(0, (videos, -1))
        if self.frames is not None:
            count = frames.shape[1]
            for index in self.frames:
                if not -count <= index < count:
                    raise InputError(f"frames must be {-count} to {count - 1}, got {index}")
            frames = torch.stack([frames[:, index] for index in self.frames], dim=1)
        count = frames.shape[1]
        rows = torch.arange(videos * count, device=image.device) // count
        values = self.objective(frames.flatten(0, 1), take(target, rows), level)
        return values.unflatten(0, (-1, count)).mean(1)


def _over_frames(guide: Guide, frames: Sequence[int] | None) -> Guide:
    """Returns the same guide for batches of videos, whose frames come one after the other; an image is one frame."""
    chosen = None if frames is None else tuple(frames)
    return replace(guide, objective=_OverFrames(objective=guide.objective, frames=chosen))
