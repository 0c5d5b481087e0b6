"""The guided steps of one call of a pipeline.

From the output u that the scheduler is given, its sample z and its level, with ``x_t = c z``, ``x0_hat = x0(u, x_t)``,
the guides make their updates, which enter through what goes into ``step`` and what comes out of it:

    sample       z += p / c, of which the network is asked again
    estimate     (x0, eps) moved by (d0, de):   u += output(d0, de),   z += (alpha d0 + sigma de) / c
    mean         the next z += p / c_s
    deviation    the next z, less the mean that it was drawn around

The output of ``(d0, de)`` is linear in them, so that a zero update changes no bit. Recurrence and particles happen
inside the pipeline's step, by asking its network again. The pipeline itself draws an image's first particle; K - 1 more
batches are kept here. Particles change places within their image alone, so that each keeps its conditioning.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float, Int
from torch import Tensor

from steersman.batching import broadcast, take
from steersman.denoise import Prediction, output_for, to_x0
from steersman.errors import InputError
from steersman.guidance.guide import Guide
from steersman.guidance.step import Estimate, Step, Targets, reverse_variance
from steersman.guidance.target import for_images
from steersman.latent import channels, decoded
from steersman.pipelines.network import layout_of
from steersman.pipelines.recording import Turn
from steersman.precision import loss_scaled
from steersman.sampling.loop import GuidedDenoiser, Recurrence, renoised
from steersman.sampling.particles import ParticleFilter, Particles
from steersman.sampling.scheduler import Adapter, Position, SchedulerNumbers, host, visited
from steersman.sampling.watch import Changes
from steersman.schedule import CLEAN, Level, Schedule

__all__ = ["PipelineTrajectory", "Plan"]

Held = Float[Tensor, "_ _ ..."]  # samples of the scheduler or outputs of the network: for each particle, a batch


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What all calls of a pipeline have in common.

    Attributes:
        network: The name of its network's class.
        computes: The dtype that the network computes in.
        vae: The decoder of its latents, None where it draws images.
        targets: One target, or one for each image.
    """

    adapter: Adapter
    network: str
    computes: torch.dtype
    vae: Any
    schedule: Schedule
    guides: tuple[Guide, ...]
    targets: Targets
    recurrence: Recurrence
    particles: Particles
    frames: Sequence[int] | None


class PipelineTrajectory:
    """The steps of one call of a pipeline, and the pipeline as the denoiser that guides ask.

    A batch of the scheduler's has a row for each image, or two; with K particles there are K such batches, in one
    tensor. As samples ``x_t`` they are one batch, ``(B K, C, H, W)`` or ``(B K, C, T, H, W)``, image by image, each
    with its particles.

    Attributes:
        shown: The factor from a sample to what the network is given now.
        guided: Whether any guide was active.
        returned: What the scheduler's last step returned to the pipeline, None before the first.
    """

    shape: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()

    def __init__(
        self, plan: Plan, given: Mapping[str, Any], conditioning: Mapping[str, Any], generator: object
    ) -> None:
        sample = given["sample"]
        self.plan, self.schedule, self.adapter = plan, plan.schedule, plan.adapter
        self.scheduler = plan.adapter.scheduler
        self.start = self.adapter.start(given["timestep"])
        self.positions = self.adapter.positions(self.start)
        self.times, self.levels = host(self.scheduler.timesteps)[self.start :], visited(self.positions)
        self.layout = layout_of(
            plan.network, sample, conditioning, None if plan.vae is None else channels(plan.vae.config)
        )
        self.rows = len(sample) // self.layout.copies
        self.dtype = torch.promote_types(sample.dtype, torch.float32)
        self.computes = torch.float16 if torch.float16 in (plan.computes, sample.dtype) else plan.computes
        if plan.frames is not None and self.layout.unpack(sample).ndim == 4:
            raise InputError("frames must be None for a pipeline that draws images")
        self.generator: Any = given.get("generator") or generator
        self.particles = ParticleFilter(plan.particles, self.rows, sample.device)
        self.denoiser = GuidedDenoiser(
            self,
            plan.guides,
            for_images(plan.targets, self.rows, sample.device),
            self.particles.rows,
            fixed=self.adapter.fixed,
            dtype=self.dtype,
        )
        self.steering = self.denoiser.steering
        self.calls, self.guided, self.shown = 0, False, 1.0
        self.changes = Changes()
        self.returned: Tensor | None = None
        self.others: Tensor | None = None  # the particles beside the pipeline's own, as the last step left them
        self.late: Tensor | None = None  # by how much the last step's end was moved

    @property
    def ended(self) -> bool:
        """Whether all steps are made."""
        return self.calls == len(self.positions)

    @property
    def differentiates_next(self) -> bool:
        """Whether the coming call differentiates the network."""
        if self.ended:
            return False
        step = self._step_at(self.positions[self.calls])
        return any(self.steering.differentiates_denoiser(step, before=before) for before in (False, True))

    def check(self, timestep: Any) -> None:  # noqa: ANN401
        """Refuses a step that is not the next one, as a loop of the user's own may make."""
        if self.ended:
            count = len(self.positions)
            raise InputError(f"scheduler.set_timesteps must be called before each loop, got a step after all {count}")
        on_host = not isinstance(timestep, Tensor) or timestep.device.type == "cpu"  # else reading it would wait
        if on_host and float(timestep) != (due := float(self.times[self.calls])):
            raise InputError(
                f"scheduler.step must be called for its timesteps one after the other, got {float(timestep):g} where "
                f"{due:g} is next"
            )

    def check_end(self) -> None:
        """Refuses a call that has ended before one of the particles was chosen."""
        if self.particles.count > 1:
            raise InputError(
                f"particles: the pipeline ended after {self.calls} of {len(self.positions)} steps, when each image "
                f"still had {self.particles.count}; let it make all steps, or give particles.ratio_min a level that it "
                "reaches"
            )

    def step(self, own: Callable[..., Any], call: inspect.BoundArguments, turn: Turn) -> Any:  # noqa: ANN401
        """Makes the scheduler's own step, given its arguments, with the guides' updates, and returns its outcome."""
        self.turn, self.position = turn, self.positions[self.calls]
        z, output = self._began(call.arguments["sample"]), call.arguments["model_output"]
        history = dict(vars(self.scheduler))
        repeats = self.plan.recurrence.at(self.position.level) if self.position.stage == 0 else 1
        for repeat in range(repeats):
            z, outputs = self._guided(z, output, repeat)
            calls = [_replaced(call, sample=each, model_output=u) for each, u in zip(z, outputs, strict=True)]
            outcomes = []
            for particle, each in enumerate(calls):
                if particle or repeat:
                    vars(self.scheduler).update(history)
                outcomes.append(own(*each.args, **each.kwargs))
            z = self._guided_end(torch.stack([_sample_of(outcome) for outcome in outcomes]), own, calls)
            updates = self.steering.updates
            self.changes.add(take(updates, self.particles.leaders) if self.particles.count > 1 else updates)
            if repeat + 1 < repeats:
                z, output = self._renoised(z), None
        self.calls += 1
        if self.ended and self.particles.weighs(CLEAN, self.position.step + 1):
            x = self._images(z, self.position.next_scale)
            z = self._rows(z, self._choose(self.steering.log_likelihood(x, Prediction(x), CLEAN), CLEAN))
        self.returned, self.others = z[0], z[1:]
        del self.turn  # and the graphs that it holds
        # LCM's last sample is the denoised image as well, which it returns beside it.
        return _with_sample(outcomes[0], self.returned, denoised=self.ended and self.adapter.name == "LCMScheduler")

    def __call__(self, x_t: Float[Tensor, "N *shape"], level: Level, **_: Any) -> Prediction:  # noqa: ANN401
        """Returns what the network predicts with the conditioning that the pipeline gave it in this step."""
        here, linked = level is self.position.level, torch.is_grad_enabled()
        ratio = self.adapter.known.family == "ratio"
        scale = self.position.scale if here else float(level.alpha) if ratio else 1.0
        self.shown = scale
        time = None if here else self.turn.time_of(float(level.time))

        def answers(x_t: Tensor) -> Held:
            z = self._held(x_t, scale, self.z.dtype) if linked or not here else self.z
            known = here and self.output is not None  # what the pipeline made of its own particle
            first = [self.turn.linked(z[0]) if linked else self.output] if known else []
            return torch.stack([*first, *(self.turn(each, time) for each in z[len(first) :])])

        def images(x_t: Tensor) -> Tensor:
            outputs = answers(x_t)
            if here:
                self.outputs = outputs.detach()
            return self._images(outputs, 1.0)

        raw, fraction = loss_scaled(images, self.computes)(x_t), None
        if raw.shape[1] == 2 * x_t.shape[1]:
            raw, learned = raw.chunk(2, dim=1)
            fraction = (learned + 1) / 2 if self.scheduler.config.get("variance_type") == "learned_range" else None
        return Prediction(to_x0(self.adapter.kind, x_t, raw, level), fraction)

    def decode(self, x0: Float[Tensor, "B *shape"]) -> Float[Tensor, "N C H W"]:
        """Returns the images, or all frames of the first video, then of the second and so on."""
        if self.plan.vae is None:
            if x0.shape[1] not in (1, 3):
                raise InputError(f"pipe: without a VAE, samples must be images of 1 or 3 channels, got {x0.shape[1]}")
            return x0
        images = decoded(self.plan.vae, x0)
        return images if images.ndim == 4 else images.transpose(1, 2).flatten(0, 1)

    def _began(self, sample: Tensor) -> Held:
        """Returns the samples that the step begins from: the pipeline's, and those of the particles beside it."""
        if self.others is not None:
            return torch.stack([sample, *map(self.turn.sample_from, self.others)])
        if self.particles.count > 1 and self.start:
            raise InputError("particles must begin from noise, got a pipeline that begins from an image")
        x = self._images(sample[None], 1.0)
        noise = [self._noise(x) for _ in range(self.particles.count - 1)]
        scale = 1 / float(getattr(self.scheduler, "init_noise_sigma", 1.0))
        return torch.stack([sample, *(self._held(each, scale, sample.dtype)[0] for each in noise)])

    def _step_at(self, position: Position, repeat: int = 0) -> Step:
        """Returns the step of a position; a second evaluation keeps the variance of its step."""
        if position.stage:
            return self.denoiser.step._replace(level=position.level, stage=position.stage)
        variance = reverse_variance(position.level, position.next, fixed=self.denoiser.fixed)
        peak = torch.maximum(self.denoiser.peak, variance.to(self.dtype))
        count, (level, next) = len(self.levels) - 1, (position.level, position.next)
        return Step(position.step, count, repeat, 0, level, next, variance, peak, self.levels)

    def _guided(self, z: Held, output: Tensor | None, repeat: int) -> tuple[Held, Held]:
        """Returns samples and outputs for the scheduler, changed by the updates that enter there.

        ``output`` is what the pipeline made of its own sample, None if the network is to be asked again.
        """
        position, began = self.position, z
        self.z, self.output = z, output
        # Some pipelines end with a step from the clean image to itself: no noise is left, and nothing to guide.
        self.steering.paused = not position.level.sigma > 0
        x = self._images(z, position.scale)
        if position.stage == 0:
            self.denoiser.step = self._step_at(position, repeat)
            moved = self.denoiser.before(x) if self.denoiser.enters_sample else x
            if self._active("sample"):
                self.z, self.output = z + self._held(moved - x, position.scale, z.dtype), None
                x = self._images(self.z, position.scale)
            if self.particles.weighs(position.level, position.step):
                rows = self._choose(self.denoiser.log_likelihood(x), position.level)
                x = self.denoiser.take(x, rows)
                self.z, self.outputs = self._rows(self.z, rows), self._rows(self.outputs, rows)
        estimate = self.denoiser(x, position.level, position.stage)
        z, outputs = self.z, self.outputs
        if estimate is not self.denoiser.unguided and not self.steering.paused:
            z, outputs = self._changed(z, outputs, self.denoiser.unguided, estimate)
        self.guided |= any(update is not None for update in self.steering.updates)
        if z is not began or self.late is not None:
            change = z[0] - began[0]
            change = change if self.late is None else change + self.late
            self.adapter.move_kept_sample(self.positions, position, change)
        self.late = None
        return z, outputs

    def _active(self, *points: str) -> bool:
        """Whether a guide whose updates enter at one of these points was active."""
        updates = zip(self.plan.guides, self.steering.updates, strict=True)
        return any(update is not None and guide.injection.point in points for guide, update in updates)

    def _changed(self, z: Held, outputs: Held, before: Estimate, after: Estimate) -> tuple[Held, Held]:
        """Returns samples and outputs moved by what guides changed in the estimate."""
        x0, eps, level = after.x0 - before.x0, after.eps - before.eps, self.position.level
        alpha, sigma = (broadcast(value, x0) for value in (level.alpha, level.sigma))
        if self.adapter.name in ("DDPMScheduler", "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"):
            eps = -alpha / sigma * x0  # their step is made from x_t and x0 alone
        more = output_for(self.adapter.kind, x0, eps, level)
        if outputs.ndim == 5 and (rest := outputs.shape[2] - more.shape[1]):  # a learned variance stays
            more = torch.cat([more, more.new_zeros(len(more), rest, *more.shape[2:])], dim=1)
        moved = self._held(alpha * x0 + sigma * eps, self.position.scale, z.dtype)
        return z + moved, outputs + self._held(more, 1.0, outputs.dtype)

    def _guided_end(self, z: Held, own: Callable[..., Any], calls: Sequence[inspect.BoundArguments]) -> Held:
        """Returns the next samples moved by the updates that enter at the end of the step."""
        position = self.position
        if not position.last or not self._active("mean", "deviation"):
            return z
        x_s = self._images(z, position.next_scale)
        deviation = variance = None
        share = 1.0 if self.adapter.name == "DDPMScheduler" else calls[0].arguments.get("eta", 0.0)
        if self._active("deviation") and position.next.sigma > 0 and share:
            with SchedulerNumbers(lambda: torch.zeros_like(z[0])):
                still = [_replaced(call, generator=None, variance_noise=None) for call in calls]
                means = torch.stack([_sample_of(own(*call.args, **call.kwargs)) for call in still])
            deviation = x_s - self._images(means, position.next_scale)
            variance = share**2 * self.denoiser.step.variance
        rotated = self.steering.deviation(deviation, variance, self.denoiser.step)
        change = self.steering.mean(x_s) - x_s
        if rotated is not None and deviation is not None:
            change = change + rotated - deviation
        moved = z + self._held(change, position.next_scale, z.dtype)
        self.late = moved[0] - z[0]
        return moved

    def _renoised(self, z: Held) -> Held:
        """Returns the samples one step back."""
        level, next = self.position.level, self.position.next
        x_s = self._images(z, self.position.next_scale).unflatten(0, (self.rows, -1))
        x_t = [renoised(x, level, next, self._noise(x)) for x in x_s.unbind(1)]
        return self._held(torch.stack(x_t, dim=1).flatten(0, 1), self.position.scale, z.dtype)

    def _noise(self, like: Float[Tensor, "B *shape"]) -> Float[Tensor, "B *shape"]:
        """Returns a normal draw for each image, of the pipeline's generators where it has some."""
        several = isinstance(self.generator, list)
        generator = None if several and len(self.generator) != len(like) else self.generator
        return randn_tensor(like.shape, generator=generator, device=like.device, dtype=like.dtype)

    def _choose(self, log_likelihood: Float[Tensor, " N"], level: Level) -> Int[Tensor, " M"]:
        """Returns the rows of the particles that survive."""
        self.guided = True
        generators = self.generator if isinstance(self.generator, list) else [self.generator]
        if len(generators) not in (1, self.rows):
            generators = [None]
        count = self.rows // len(generators)
        draws = [
            torch.rand(count, generator=one, dtype=torch.float64, device="cpu" if one is None else one.device).cpu()
            for one in generators
        ]
        return self.particles.choose(log_likelihood, level, torch.cat(draws))

    def _rows(self, held: Held, rows: Int[Tensor, " M"]) -> Held:
        """Returns the batches of the particles that survive."""
        batch = (rows % len(held)).reshape(self.rows, -1).repeat(self.layout.copies, 1).T
        return held[batch, torch.arange(held.shape[1], device=held.device)]

    def _images(self, held: Held, scale: float) -> Float[Tensor, "N *shape"]:
        """Returns what a batch for each particle holds as one batch ``x = c z``, image by image."""
        x = self.layout.unpack(held[:, : self.rows].flatten(0, 1)).to(self.dtype)
        return x.unflatten(0, (len(held), -1)).transpose(0, 1).flatten(0, 1) * scale

    def _held(self, x: Float[Tensor, "N *shape"], scale: float, dtype: torch.dtype) -> Held:
        """Returns ``z = x / c`` as the scheduler holds it."""
        rows = self.layout.pack(x / scale).to(dtype)
        return rows.unflatten(0, (self.rows, -1)).transpose(0, 1).repeat(1, self.layout.copies, *[1] * (rows.ndim - 1))


def _sample_of(outcome: Any) -> Tensor:  # noqa: ANN401
    """Returns the next sample in what a scheduler's step returned: a tuple, or an output with names."""
    return outcome[0] if isinstance(outcome, tuple) else outcome.prev_sample


def _with_sample(outcome: Any, sample: Tensor, *, denoised: bool) -> Any:  # noqa: ANN401
    """Returns the same outcome with another sample, and with it as the denoised image where it is that too."""
    if isinstance(outcome, tuple):
        return (sample, sample, *outcome[2:]) if denoised else (sample, *outcome[1:])
    outcome.prev_sample = sample
    if denoised:
        outcome.denoised = sample
    return outcome


def _replaced(call: inspect.BoundArguments, **changes: Any) -> inspect.BoundArguments:  # noqa: ANN401
    """Returns a call with other values of those arguments that it takes."""
    known = {key: value for key, value in changes.items() if key in call.signature.parameters}
    arguments: Any = {**call.arguments, **known}
    return inspect.BoundArguments(call.signature, arguments)
