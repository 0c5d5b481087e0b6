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

from steersman.batching import broadcast, send
from steersman.denoise import Conditioned, Parameterization, Prediction, output_for, to_x0
from steersman.errors import InputError
from steersman.guidance.guide import Guide, Steering
from steersman.guidance.injection import Estimate
from steersman.guidance.step import Step, reverse_variance
from steersman.latent import channels, decoded
from steersman.pipelines.layout import layout_of
from steersman.pipelines.parts import Parts
from steersman.pipelines.recording import Turn
from steersman.precision import loss_scaled
from steersman.sampling.loop import GuidedDenoiser, Recurrence, renoised
from steersman.sampling.particles import ParticleFilter, Particles
from steersman.sampling.scheduler import (
    FAMILIES,
    Position,
    SchedulerNumbers,
    fixed_variance,
    host,
    move_kept_sample,
    name_of,
    positions_of,
    prediction_type,
    start_of,
    visited,
)
from steersman.schedule import CLEAN, Level, Schedule

__all__ = ["Plan", "PipelineTrajectory"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What all calls of a pipeline have in common; the targets are one, or one for each image."""

    scheduler: Any
    parts: Parts
    schedule: Schedule
    guides: tuple[Guide, ...]
    targets: Int[Tensor, " N"]
    recurrence: Recurrence
    particles: Particles
    frames: Sequence[int] | None


class PipelineTrajectory:
    """The steps of one call of a pipeline, and the pipeline as the denoiser that guides ask.

    A batch of the scheduler's has a row for each image, or two; with K particles there are K such batches. As samples
    ``x_t`` they are one batch, ``(B K, C, H, W)`` or ``(B K, C, T, H, W)``, image by image, each with its particles.

    Attributes:
        shown: The factor from a sample to what the network is given now.
        guided: Whether any guide was active.
    """

    shape: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()

    def __init__(
        self, plan: Plan, given: Mapping[str, Any], conditioning: Mapping[str, Any], generator: object
    ) -> None:
        sample, vae = given["sample"], plan.parts.vae
        self.plan, self.schedule = plan, plan.schedule
        self.scheduler, self.name = plan.scheduler, name_of(plan.scheduler)
        self.kind: Parameterization = prediction_type(plan.scheduler)
        self.start = start_of(plan.scheduler, given["timestep"])
        self.positions = positions_of(plan.scheduler, self.start)
        self.times, self.levels = host(plan.scheduler.timesteps)[self.start :], visited(self.positions)
        self.layout = layout_of(plan.parts.name, sample, conditioning, None if vae is None else channels(vae.config))
        self.rows = len(sample) // self.layout.copies
        self.dtype = torch.promote_types(sample.dtype, torch.float32)
        self.computes = torch.float16 if torch.float16 in (plan.parts.dtype, sample.dtype) else plan.parts.dtype
        if plan.frames is not None and self.layout.unpack(sample).ndim == 4:
            raise InputError("frames must be None for a pipeline that draws images")
        if len(plan.targets) not in (1, self.rows):
            raise InputError(f"target must be one, or one for each of {self.rows} images, got {len(plan.targets)}")
        self.generator: Any = given.get("generator") or generator
        self.particles = ParticleFilter(plan.particles, self.rows, sample.device)
        self.steering = Steering(plan.guides, send(plan.targets, sample.device).expand(self.rows), self)
        self.steering.take(self.particles.rows)
        peak = torch.zeros((), dtype=self.dtype, device=sample.device)
        self.denoiser = GuidedDenoiser(Conditioned(self, {}), self.steering, fixed_variance(plan.scheduler), peak)
        self.calls, self.index, self.guided, self.shown = 0, -1, False, 1.0
        self.samples: list[Tensor] = []
        self.late: Tensor | None = None  # by how much the last step's end was moved

    @property
    def returned(self) -> Tensor | None:
        """What the scheduler's last step returned to the pipeline."""
        return self.samples[0] if self.samples else None

    @property
    def ended(self) -> bool:
        """Whether all steps are made."""
        return self.calls == len(self.positions)

    @property
    def differentiates_next(self) -> bool:
        """Whether the coming call differentiates the network."""
        if self.ended:
            return False
        position = self.positions[self.calls]
        step = self._step_at(position, self.index + (position.stage == 0))
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
        sample, output = call.arguments["sample"], call.arguments["model_output"]
        others = [turn.sample_from(x) for x in self.samples[1:]] if self.samples else self._starts(sample)
        samples, outcomes = [sample, *others], []
        self.index += self.position.stage == 0
        history = dict(vars(self.scheduler))
        repeats = self.plan.recurrence.at(self.position.level) if self.position.stage == 0 else 1
        for repeat in range(repeats):
            samples, outputs = self._guided(samples, output, repeat)
            calls = [_replaced(call, sample=z, model_output=u) for z, u in zip(samples, outputs, strict=True)]
            outcomes = []
            for particle, each in enumerate(calls):
                if particle or repeat:
                    vars(self.scheduler).update(history)
                outcomes.append(own(*each.args, **each.kwargs))
            samples = self._guided_end([_sample_of(outcome) for outcome in outcomes], own, calls)
            if repeat + 1 < repeats:
                samples, output = self._renoised(samples), None
        self.calls += 1
        if self.ended and self.particles.weighs(CLEAN, self.index + 1):
            x = self._joined(samples, self.position.next_scale)
            samples = self._rows(samples, self._choose(self.steering.log_likelihood(x, Prediction(x), CLEAN), CLEAN))
        self.samples = samples
        del self.turn  # and the graphs that it holds
        # LCM's last sample is the denoised image as well, which it returns beside it.
        return _with_sample(outcomes[0], samples[0], denoised=self.ended and self.name == "LCMScheduler")

    def __call__(self, x_t: Float[Tensor, "N *shape"], level: Level, **_: Any) -> Prediction:  # noqa: ANN401
        """Returns what the network predicts with the conditioning that the pipeline gave it in this step."""
        here, linked = level is self.position.level, torch.is_grad_enabled()
        ratio = FAMILIES[self.name] == "ratio"
        scale = self.position.scale if here else float(level.alpha) if ratio else 1.0
        self.shown = scale
        time = None if here else self.turn.time_of(float(level.time))
        outputs = []

        def answer(x_t: Tensor) -> Tensor:
            for particle, (x, sample) in enumerate(zip(self._split(x_t), self.asked, strict=True)):
                z = self._held(x, like=sample, scale=scale) if linked or not here else sample
                if here and particle == 0 and self.output is not None:
                    outputs.append(self.turn.linked(z) if linked else self.output.detach())
                else:
                    outputs.append(self.turn(z, time))
            return self._joined(outputs, 1.0)

        raw, fraction = loss_scaled(answer, self.computes)(x_t), None
        if here:
            self.outputs = [output.detach() for output in outputs]
        if raw.shape[1] == 2 * x_t.shape[1]:
            raw, learned = raw.chunk(2, dim=1)
            fraction = (learned + 1) / 2 if self.scheduler.config.get("variance_type") == "learned_range" else None
        return Prediction(to_x0(self.kind, x_t, raw, level), fraction)

    def decode(self, x0: Float[Tensor, "B *shape"]) -> Float[Tensor, "N C H W"]:
        """Returns the images, or all frames of the first video, then of the second and so on."""
        vae = self.plan.parts.vae
        if vae is None:
            if x0.shape[1] not in (1, 3):
                raise InputError(f"pipe: without a VAE, samples must be images of 1 or 3 channels, got {x0.shape[1]}")
            return x0
        images = decoded(vae, x0)
        return images if images.ndim == 4 else images.transpose(1, 2).flatten(0, 1)

    def _step_at(self, position: Position, index: int, repeat: int = 0) -> Step:
        """Returns the step of a position; a second evaluation keeps the variance of its step."""
        if position.stage:
            return self.denoiser.step._replace(level=position.level, stage=position.stage)
        variance = reverse_variance(position.level, position.next, fixed=self.denoiser.fixed)
        peak = torch.maximum(self.denoiser.peak, variance.to(self.dtype))
        count = len(self.levels) - 1
        return Step(index, count, repeat, 0, position.level, position.next, variance, peak, self.levels)

    def _guided(self, samples: list[Tensor], output: Tensor | None, repeat: int) -> tuple[list[Tensor], list[Tensor]]:
        """Returns samples and outputs for the scheduler, changed by the updates that enter there.

        ``output`` is what the pipeline made of the first sample, None if the network is to be asked again.
        """
        position, began = self.position, samples[0]
        self.asked, self.output = samples, output
        # Some pipelines end with a step from the clean image to itself: no noise is left, and nothing to guide.
        self.steering.paused = not position.level.sigma > 0
        x = self._joined(samples, position.scale)
        if position.stage == 0:
            self.denoiser.step = self._step_at(position, self.index, repeat)
            if any(guide.injection.point == "sample" for guide in self.plan.guides):
                moved = self.denoiser.before(x) - x
                if self._active("sample"):
                    samples = self._added(samples, moved, position.scale)
                    self.asked, self.output = samples, None
                    x = self._joined(samples, position.scale)
        if position.stage == 0 and self.particles.weighs(position.level, self.index):
            rows = self._choose(self.denoiser.log_likelihood(x), position.level)
            x = self.denoiser.take(x, rows)
            samples, self.outputs = self._rows(samples, rows), self._rows(self.outputs, rows)
        estimate, outputs = self.denoiser(x, position.level, position.stage), self.outputs
        if estimate is not self.denoiser.unguided and not self.steering.paused:
            samples, outputs = self._changed(samples, outputs, self.denoiser.unguided, estimate)
        self.guided |= any(update is not None for update in self.steering.updates)
        changes = [] if self.late is None else [self.late]
        if samples[0] is not began:
            changes.append(samples[0] - began)
        if changes:
            move_kept_sample(self.scheduler, self.positions, self.calls, torch.stack(changes).sum(0))
        self.late = None
        return samples, outputs

    def _active(self, *points: str) -> bool:
        """Whether a guide whose updates enter at one of these points was active."""
        updates = zip(self.plan.guides, self.steering.updates, strict=True)
        return any(update is not None and guide.injection.point in points for guide, update in updates)

    def _changed(
        self, samples: list[Tensor], outputs: list[Tensor], before: Estimate, after: Estimate
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Returns samples and outputs moved by what guides changed in the estimate."""
        x0, eps, level = after.x0 - before.x0, after.eps - before.eps, self.position.level
        alpha, sigma = (broadcast(value, x0) for value in (level.alpha, level.sigma))
        if self.name in ("DDPMScheduler", "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"):
            eps = -alpha / sigma * x0  # their step is made from x_t and x0 alone
        more = output_for(self.kind, x0, eps, level)
        if outputs[0].ndim == 4 and (rest := outputs[0].shape[1] - more.shape[1]):  # a learned variance stays
            more = torch.cat([more, more.new_zeros(len(more), rest, *more.shape[2:])], dim=1)
        return self._added(samples, alpha * x0 + sigma * eps, self.position.scale), self._added(outputs, more, 1.0)

    def _guided_end(
        self, samples: list[Tensor], own: Callable[..., Any], calls: Sequence[inspect.BoundArguments]
    ) -> list[Tensor]:
        """Returns the next samples moved by the updates that enter at the end of the step."""
        position = self.position
        if not position.last or not self._active("mean", "deviation"):
            return samples
        x_s = self._joined(samples, position.next_scale)
        deviation = variance = None
        share = 1.0 if self.name == "DDPMScheduler" else calls[0].arguments.get("eta", 0.0)
        if self._active("deviation") and position.next.sigma > 0 and share:
            with SchedulerNumbers(lambda: torch.zeros_like(samples[0])):
                still = [_replaced(call, generator=None, variance_noise=None) for call in calls]
                means = [_sample_of(own(*call.args, **call.kwargs)) for call in still]
            deviation = x_s - self._joined(means, position.next_scale)
            variance = share**2 * self.denoiser.step.variance
        rotated = self.steering.deviation(deviation, variance, self.denoiser.step)
        change = self.steering.mean(x_s) - x_s
        if rotated is not None and deviation is not None:
            change = change + rotated - deviation
        moved = self._added(samples, change, position.next_scale)
        self.late = moved[0] - samples[0]
        return moved

    def _renoised(self, samples: list[Tensor]) -> list[Tensor]:
        """Returns the samples one step back."""
        level, next = self.position.level, self.position.next
        x_s = self._split(self._joined(samples, self.position.next_scale))
        x_t = [renoised(x, level, next, self._noise(x)) for x in x_s]
        return [self._held(x, like=z, scale=self.position.scale) for x, z in zip(x_t, samples, strict=True)]

    def _starts(self, sample: Tensor) -> list[Tensor]:
        """Returns the noise that the particles beside the pipeline's own begin from."""
        if self.particles.count > 1 and self.start:
            raise InputError("particles must begin from noise, got a pipeline that begins from an image")
        x = self._joined([sample], 1.0)
        scale = 1 / float(getattr(self.scheduler, "init_noise_sigma", 1.0))
        return [self._held(self._noise(x), like=sample, scale=scale) for _ in range(self.particles.count - 1)]

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

    def _rows(self, batches: list[Tensor], rows: Int[Tensor, " M"]) -> list[Tensor]:
        """Returns the batches of the particles that survive."""
        stacked = torch.stack(batches)
        from_batch = (rows % len(batches)).reshape(self.rows, -1).repeat(self.layout.copies, 1)
        row = torch.arange(stacked.shape[1], device=stacked.device)
        return [stacked[batch, row] for batch in from_batch.unbind(1)]

    def _joined(self, batches: list[Tensor], scale: float) -> Float[Tensor, "N *shape"]:
        """Returns the scheduler's batches, one for each particle, as one batch ``x = c z``."""
        images = [self.layout.unpack(batch[: self.rows].clone()).to(self.dtype) for batch in batches]
        joined = images[0] if len(images) == 1 else torch.stack(images, dim=1).flatten(0, 1)
        return joined * scale

    def _split(self, x: Float[Tensor, "N *shape"]) -> tuple[Float[Tensor, "B *shape"], ...]:
        """Returns a batch of all particles as one batch for each."""
        return x.unflatten(0, (self.rows, -1)).unbind(1)

    def _held(self, x: Float[Tensor, "B *shape"], *, like: Tensor, scale: float) -> Tensor:
        """Returns ``z = x / c`` as the scheduler holds it."""
        rows = self.layout.pack(x / scale).to(like.dtype)
        return rows if self.layout.copies == 1 else torch.cat([rows] * self.layout.copies)

    def _added(self, batches: list[Tensor], change: Float[Tensor, "N *shape"], scale: float) -> list[Tensor]:
        """Returns the scheduler's batches with a change of ``x = c z`` added."""
        changes = zip(batches, self._split(change), strict=True)
        return [z + self._held(x, like=z, scale=scale) for z, x in changes]


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
