"""The guided steps of one call of a pipeline.

From the output u that the scheduler is given, its sample and levels, with ``h = alpha`` where it holds ``x / alpha``,

    x_t = h sample,   x0_hat = x0(u, x_t),

the guides make their updates, and these enter the step through what goes into ``step`` and what comes out of it:

    sample       the sample moved by p / h, of which the network is asked again
    estimate     (x0, eps) moved by (d0, de):   u += output(d0, de),   sample += (alpha d0 + sigma de) / h
    mean         the next sample += p / h_s
    deviation    the next sample, less the mean that it was drawn around

Which output belongs to ``(d0, de)`` is linear in them, so that a zero update changes no bit. DDPM's step is made from
``x_t`` and ``x0``, and keeps the sample: its ``de`` is ``-alpha d0 / sigma``. Where a scheduler goes on from a sample
that it kept (UniPC, singlestep methods), what moved the given one moves that one as well, divided by k (`levels.kept`).

Recurrence and particles happen inside of the pipeline's step, by asking its network again (`recording.Turn`). A
repeated step begins from ``x_t = r x_s + sqrt(beta) eps``. Of an image's K particles the pipeline itself draws the
first, and K - 1 more batches are kept here; particles change places within their image alone, so that every row goes on
with the conditions of its image.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float, Int
from torch import Tensor

from steersman.batching import send, take
from steersman.denoise import Parameterization, Prediction, eps_from_x0, output_for, to_x0
from steersman.errors import InputError
from steersman.guidance.guide import Guide
from steersman.guidance.injection import Estimate
from steersman.guidance.steering import Steering
from steersman.guidance.step import FixedVariance, Step, posterior_mean, reverse_variance, transition
from steersman.latent import channels
from steersman.pipelines.layout import layout_of
from steersman.pipelines.levels import Place, host, kept, places_of, start_of, visited
from steersman.pipelines.recording import Turn
from steersman.pipelines.samples import Asked
from steersman.precision import loss_scaled
from steersman.sampling.loop import Recurrence
from steersman.sampling.particles import Particles, Swarm
from steersman.schedule import CLEAN, Level, Schedule, broadcast
from steersman.schedulers import FAMILIES

__all__ = ["Plan", "Trajectory"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is the same in all calls of a pipeline.

    Attributes:
        scheduler: The pipeline's scheduler.
        name: The name of the known scheduler that it is.
        network: The name of its network's class.
        dtype: What its network computes in.
        vae: What decodes its latents, or None where it draws images.
        schedule: The noise that its network was trained on.
        guides: The guides.
        targets: Their target, or one an image.
        recurrence: How often steps are repeated.
        particles: How many candidates an image has, and which of them go on.
        frames: Which frames of a video the classifiers see, None for all.
    """

    scheduler: Any
    name: str
    network: str
    dtype: torch.dtype
    vae: Any
    schedule: Schedule
    guides: tuple[Guide, ...]
    targets: Int[Tensor, " N"]
    recurrence: Recurrence
    particles: Particles
    frames: Sequence[int] | None

    @property
    def kind(self) -> Parameterization:
        """What the output means that the scheduler is given."""
        return "flow_prediction" if self.name.startswith("Flow") else self.scheduler.config.prediction_type

    @property
    def fixed(self) -> FixedVariance:
        """The reverse variance where the network learned none."""
        given = self.scheduler.config.get("variance_type") or ""
        return "large" if self.name == "DDPMScheduler" and given.startswith("fixed_large") else "small"

    @property
    def scales(self) -> bool:
        """Whether the scheduler's samples are ``x / alpha``."""
        return FAMILIES[self.name] == "ratio"


class _Ready(NamedTuple):
    """A step before the scheduler makes it.

    Attributes:
        samples: What the scheduler steps from, one batch a particle.
        outputs: The outputs that belong to them.
        x_t: The samples as images.
        x0: The denoised images, guided.
    """

    samples: list[Tensor]
    outputs: list[Tensor]
    x_t: Float[Tensor, "N C H W"]
    x0: Float[Tensor, "N C H W"]


class Trajectory:
    """The steps of one call of a pipeline.

    A batch of the scheduler's has a row an image, or two; with K particles there are K such batches. As images they are
    one batch, (B K, C, H, W), image by image, each with its particles.

    Args:
        plan: What is the same in all calls.
        given: What the scheduler's first step is given.
        shown: What the network was given before it, by its parameters' names.
        generator: What the pipeline was called with for its own draws, or None.

    Attributes:
        shown: What a sample is multiplied with to be shown to the network where it is asked now.
    """

    def __init__(self, plan: Plan, given: Mapping[str, Any], shown: Mapping[str, Any], generator: Any) -> None:  # noqa: ANN401
        self.plan, sample = plan, given["sample"]
        self.start = start_of(plan.scheduler, given["timestep"])
        self.places, self.times = places_of(plan.scheduler, self.start), host(plan.scheduler.timesteps)[self.start :]
        self.levels = visited(self.places)
        self.count = sum(place.stage == 0 for place in self.places)
        self.layout = layout_of(plan.network, sample, shown, None if plan.vae is None else channels(plan.vae.config))
        self.rows, self.device = len(sample) // self.layout.copies, sample.device
        self.type = torch.promote_types(sample.dtype, torch.float32)
        self.computes = torch.float16 if torch.float16 in (plan.dtype, sample.dtype) else plan.dtype
        if plan.frames is not None and self.layout.frames is None:
            raise InputError("frames must be None for a pipeline that draws images")
        if len(plan.targets) not in (1, self.rows):
            raise InputError(f"target must be one, or one for each of {self.rows} images, got {len(plan.targets)}")
        self.generator = given.get("generator") or generator
        asked = Asked(plan.vae, plan.schedule, self._ask)
        asked.frames = self.layout.frames
        self.swarm = Swarm(plan.particles, self.rows, self.device)
        self.steering = Steering(plan.guides, send(plan.targets, self.device).expand(self.rows), asked)
        self.steering.take(self.swarm.rows)
        self.peak = torch.zeros((), dtype=self.type, device=self.device)
        self.calls, self.index, self.guided = 0, -1, False
        self.samples: list[Tensor] = []
        self.pushed: Tensor | None = None
        self.shown = 1.0

    @property
    def returned(self) -> Tensor | None:
        """What the scheduler's last step returned to the pipeline."""
        return self.samples[0] if self.samples else None

    @property
    def ended(self) -> bool:
        """Whether all steps are made."""
        return self.calls == len(self.places)

    def check(self, timestep: Any) -> None:  # noqa: ANN401
        """Refuses a step that is not the next one, as a loop of the user's own may make.

        Args:
            timestep: What the scheduler is given; not read where it is on an accelerator.

        Raises:
            InputError: It is another one.
        """
        if self.ended:
            count = len(self.places)
            raise InputError(f"scheduler.set_timesteps must be called before each loop, got a step after all {count}")
        on_host = not isinstance(timestep, Tensor) or timestep.device.type == "cpu"
        if on_host and float(timestep) != (due := float(self.times[self.calls])):
            raise InputError(
                f"scheduler.step must be called for its timesteps one after the other, got {float(timestep):g} where "
                f"{due:g} is next"
            )

    @property
    def differentiates_next(self) -> bool:
        """Whether the coming step differentiates the network."""
        if self.ended:
            return False
        place = self.places[self.calls]
        step = self._at(place, self.index + (place.stage == 0))
        return any(self.steering.differentiates_denoiser(step, before=before) for before in (False, True))

    def check_end(self) -> None:
        """Refuses a call that has ended before one of the particles was chosen.

        Raises:
            InputError: It has.
        """
        if self.swarm.count > 1:
            raise InputError(
                f"particles: the pipeline ended after {self.calls} of {len(self.places)} steps, when each image still "
                f"had {self.swarm.count}; let it make all steps, or give particles.ratio_min a level that it reaches"
            )

    def make(self, own: Callable[..., Any], call: inspect.BoundArguments, turn: Turn) -> Any:  # noqa: ANN401
        """Makes the scheduler's step, with the guides' updates, and returns its outcome.

        Args:
            own: The scheduler's own step.
            call: What it is given.
            turn: What the pipeline did since the step before.
        """
        self.turn, self.place = turn, self.places[self.calls]
        sample, output = call.arguments["sample"], call.arguments["model_output"]
        others = [turn.sample_from(each) for each in self.samples[1:]] if self.samples else self._starts(sample)
        samples, known = [sample, *others], output
        self.index += self.place.stage == 0
        kept_by_scheduler = dict(vars(self.plan.scheduler))
        again = self.plan.recurrence.at(self.place.level) if self.place.stage == 0 else 1
        outcomes: list[_Outcome] = []
        for repeat in range(again):
            ready = self._guided(samples, known, repeat)
            calls = [
                _changed(call, sample=x, model_output=u) for x, u in zip(ready.samples, ready.outputs, strict=True)
            ]
            outcomes.clear()
            for number, each in enumerate(calls):
                if number or repeat:
                    vars(self.plan.scheduler).update(kept_by_scheduler)
                outcomes.append(_Outcome(own(*each.args, **each.kwargs)))
            samples = self._pushed(ready, [outcome.sample for outcome in outcomes], own, calls)
            if repeat + 1 < again:
                samples, known = self._renoised(samples), None
        self.calls += 1
        if (last := self.ended) and self.swarm.weighs(CLEAN, self.count):
            x = self._joined(samples, self.place.held[1])
            samples = self._chosen(samples, self._choose(self.steering.log_likelihood(x, Prediction(x), CLEAN), CLEAN))
        self.samples = samples
        del self.turn  # and the graphs that it holds
        return outcomes[0].replaced(samples[0], both=last and self.plan.name == "LCMScheduler")

    def _guided(self, samples: list[Tensor], output: Tensor | None, repeat: int) -> _Ready:
        """Lets the guides take their updates, and changes what the scheduler is given by those that enter there.

        Args:
            samples: What the scheduler is given.
            output: What the pipeline made of the first of them; None if the network is to be asked again.
            repeat: Which repeat of the step this is.
        """
        level, began = self.place.level, samples[0]
        step = self._at(self.place, self.index, repeat)
        moved = self._moved_before(samples, output, step)
        if moved is not None:
            samples, output = moved, None
        through = self.steering.differentiates_denoiser(step)
        x_t, outputs, prediction = self._predicted(samples, output, through=through)
        self.step = step = self._at(self.place, self.index, repeat, prediction.variance_fraction)
        self.peak = step.peak
        x0_hat = prediction.x0_hat.detach()
        # Some pipelines end with a step from the clean image to itself: no noise is left, and nothing to guide.
        self.steering.rests = not level.sigma > 0
        eps = torch.zeros_like(x0_hat) if self.steering.rests else eps_from_x0(x_t.detach(), x0_hat, level)
        estimate = Estimate(x0_hat, eps, step.variance)
        guided = self.steering.estimate(x_t, prediction, estimate, step)
        changed = guided is not estimate
        self.guided |= any(update is not None for update in self.steering.updates)
        if step.stage == 0 and self.swarm.weighs(level, self.index):
            said = self.steering.log_likelihood(x_t, prediction, level, self.steering.updates)
            rows = self._choose(said, level)
            samples, outputs = self._chosen(samples, rows), self._chosen(outputs, rows)
            x_t, estimate, guided = take((x_t.detach(), estimate, guided), rows)
            self.peak, variance = take((self.peak, step.variance), rows)
            self.step = step._replace(variance=variance, peak=self.peak)
            self.steering.take(rows)
        if changed:
            samples, outputs = self._changed(samples, outputs, estimate, guided)
        if (changed or moved is not None) and self.swarm.count == 1:
            self._move_kept(samples[0] - began)
        elif self.pushed is not None:
            self._move_kept(None)
        return _Ready(samples, outputs, x_t.detach(), guided.x0)

    def _moved_before(self, samples: list[Tensor], output: Tensor | None, step: Step) -> list[Tensor] | None:
        """Returns the samples with the updates that enter before the network is asked; None where there are none."""
        if step.stage or not any(guide.injection.moment == "sample" for guide in self.plan.guides):
            return None
        through = self.steering.differentiates_denoiser(step, before=True)
        x_t, _, prediction = self._predicted(samples, output, through=through)
        moved = self.steering.sample(x_t, prediction, step) - x_t.detach()
        updates = zip(self.plan.guides, self.steering.updates, strict=True)
        if all(update is None for guide, update in updates if guide.injection.moment == "sample"):
            return None
        self.guided = True
        return [x + self._held(each, like=x) for x, each in zip(samples, self._split(moved), strict=True)]

    def _predicted(
        self, samples: list[Tensor], output: Tensor | None, *, through: bool
    ) -> tuple[Float[Tensor, "N C H W"], list[Tensor], Prediction]:
        """Returns the samples as images, the outputs, and what they predict, as a function of the images if wanted."""
        self.shown = float(self.place.held[0])
        x_t = self._joined(samples, self.place.held[0])
        x_t = x_t.detach().requires_grad_(through or self.steering.differentiates_sample)
        outputs = []

        def answers(x_t: Tensor) -> Tensor:
            for number, (x, sample) in enumerate(zip(self._split(x_t), samples, strict=True)):
                shown = self._held(x, like=sample) if through else sample
                if number or output is None:
                    outputs.append(self.turn(shown))
                else:
                    outputs.append(self.turn.linked(shown) if through else output.detach())
            return self._joined(outputs, CLEAN.alpha)

        with torch.set_grad_enabled(through):
            prediction = self._prediction(x_t, loss_scaled(answers, self.computes)(x_t), self.place.level)
        return x_t, [each.detach() for each in outputs], prediction

    def _ask(self, x_t: Float[Tensor, "N C H W"], level: Level) -> Prediction:
        """Returns what the network predicts at another level, under the conditions of the present turn."""
        held = level.alpha if self.plan.scales else CLEAN.alpha
        self.shown = float(held)
        time = self.turn.time_of(float(level.time))

        def answers(x_t: Tensor) -> Tensor:
            samples = [self._held(x, like=self.turn.sample, scale=held) for x in self._split(x_t)]
            return self._joined([self.turn(sample, time) for sample in samples], CLEAN.alpha)

        return self._prediction(x_t, loss_scaled(answers, self.computes)(x_t), level)

    def _prediction(self, x_t: Float[Tensor, "N C H W"], raw: Float[Tensor, "N D H W"], level: Level) -> Prediction:
        """Returns what the network's output says of images."""
        learned = None
        if raw.shape[1] == 2 * x_t.shape[1]:
            raw, learned = raw.chunk(2, dim=1)
        ranged = learned is not None and self.plan.scheduler.config.get("variance_type") == "learned_range"
        fraction = (learned.detach() + 1) / 2 if learned is not None and ranged else None
        return Prediction(to_x0(self.plan.kind, x_t, raw, level), fraction)

    def _at(self, place: Place, index: int, repeat: int = 0, fraction: Tensor | None = None) -> Step:
        """Returns where a place is among the steps; a second evaluation keeps the variance of its step."""
        if place.stage:
            return self.step._replace(level=place.level, stage=place.stage)
        variance = reverse_variance(place.level, place.next, fraction, self.plan.fixed)
        peak = torch.maximum(self.peak, variance.to(self.peak.dtype))
        return Step(index, self.count, repeat, 0, place.level, place.next, variance, peak, self.levels)

    def _changed(
        self, samples: list[Tensor], outputs: list[Tensor], before: Estimate, after: Estimate
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Returns samples and outputs moved by what guides made of the estimate."""
        x0, eps = after.x0 - before.x0, after.eps - before.eps
        alpha, sigma = (broadcast(value, x0) for value in (self.place.level.alpha, self.place.level.sigma))
        if self.plan.name in ("DDPMScheduler", "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"):
            eps = -alpha / sigma * x0
        more = output_for(self.plan.kind, x0, eps, self.place.level)
        if outputs[0].ndim == 4 and (rest := outputs[0].shape[1] - more.shape[1]):  # a learned variance stays
            more = torch.cat([more, more.new_zeros(len(more), rest, *more.shape[2:])], dim=1)
        moved = alpha * x0 + sigma * eps
        return (
            [x + self._held(each, like=x) for x, each in zip(samples, self._split(moved), strict=True)],
            [
                u + self._held(each, like=u, scale=CLEAN.alpha)
                for u, each in zip(outputs, self._split(more), strict=True)
            ],
        )

    def _move_kept(self, moved: Tensor | None) -> None:
        """Moves the sample that the scheduler kept as far as guides moved the one that it is given."""
        parts = [each for each in (moved, self.pushed) if each is not None]
        self.pushed = None
        found = kept(self.plan.scheduler, self.places, self.start, self.calls)
        if found is not None:
            sample = getattr(self.plan.scheduler, found.name)
            setattr(self.plan.scheduler, found.name, sample + sum(parts) / found.ratio.to(parts[0].dtype))

    def _pushed(
        self,
        ready: _Ready,
        samples: list[Tensor],
        own: Callable[..., Any],
        calls: Sequence[inspect.BoundArguments],
    ) -> list[Tensor]:
        """Returns the next samples moved by what enters the step at its end."""
        moments = {
            guide.injection.moment
            for guide, update in zip(self.plan.guides, self.steering.updates, strict=True)
            if update is not None
        } & {"mean", "deviation"}
        if not moments or not self.place.whole:
            return samples
        x_s = self._joined(samples, self.place.held[1])
        deviation = variance = None
        if "deviation" in moments and self.step.next.sigma > 0:
            mean, variance = self._mean(ready, own, calls)
            deviation = None if mean is None else x_s - mean
        turned = self.steering.deviation(deviation, variance, self.step)
        more = self.steering.mean(x_s) - x_s
        if turned is not None and deviation is not None:
            more = more + turned - deviation
        scale = self.place.held[1]
        updates = [self._held(each, like=x, scale=scale) for x, each in zip(samples, self._split(more), strict=True)]
        self.pushed = updates[0]
        return [x + update for x, update in zip(samples, updates, strict=True)]

    def _mean(
        self, ready: _Ready, own: Callable[..., Any], calls: Sequence[inspect.BoundArguments]
    ) -> tuple[Float[Tensor, "N C H W"] | None, Float[Tensor, "..."] | None]:
        """Returns the mean that the scheduler drew the next sample around, and the variance of that draw."""
        if self.plan.name == "DDPMScheduler":
            settings, x0 = self.plan.scheduler.config, ready.x0
            if settings.clip_sample:
                x0 = x0.clamp(-settings.clip_sample_range, settings.clip_sample_range)
            return posterior_mean(ready.x_t, x0, self.place.level, self.place.next), self.step.variance
        if not (eta := calls[0].arguments.get("eta", 0.0)):
            return None, None
        still = [
            _changed(call, generator=None, variance_noise=torch.zeros_like(x))
            for call, x in zip(calls, ready.samples, strict=True)
        ]
        settled = [_Outcome(own(*each.args, **each.kwargs)).sample for each in still]
        return self._joined(settled, self.place.held[1]), eta**2 * self.step.variance

    def _renoised(self, samples: list[Tensor]) -> list[Tensor]:
        """Takes samples one step back: ``x_t = r x_s + sqrt(beta) eps``."""
        ratio, beta = transition(self.place.level, self.place.next)
        x_s = self._split(self._joined(samples, self.place.held[1]))
        x_t = [broadcast(ratio, x) * x + broadcast(beta.sqrt(), x) * self._noise(x) for x in x_s]
        return [self._held(x, like=sample) for x, sample in zip(x_t, samples, strict=True)]

    def _starts(self, sample: Tensor) -> list[Tensor]:
        """Returns the noise that the particles beside the pipeline's own begin from."""
        if self.swarm.count > 1 and self.start:
            raise InputError("particles must begin from noise, got a pipeline that begins from an image")
        x = self._joined([sample], CLEAN.alpha)
        scale = 1 / torch.as_tensor(getattr(self.plan.scheduler, "init_noise_sigma", 1.0))
        return [self._held(self._noise(x), like=sample, scale=scale) for _ in range(self.swarm.count - 1)]

    def _noise(self, like: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Returns a normal draw for each image, of the pipeline's generators where it has some."""
        several = isinstance(self.generator, list)
        generator = None if several and len(self.generator) != len(like) else self.generator
        return randn_tensor(like.shape, generator=generator, device=like.device, dtype=like.dtype)

    def _choose(self, said: Float[Tensor, " N"], level: Level) -> Int[Tensor, " M"]:
        """Returns which particles go on."""
        self.guided = True
        given = self.generator if isinstance(self.generator, list) else [self.generator]
        if len(given) not in (1, self.rows):
            given = [None]
        each = self.rows // len(given)
        draws = [
            torch.rand(each, generator=one, dtype=torch.float64, device="cpu" if one is None else one.device).cpu()
            for one in given
        ]
        return self.swarm.choose(said, level, torch.cat(draws))

    def _chosen(self, batches: list[Tensor], rows: Int[Tensor, " M"]) -> list[Tensor]:
        """Returns the batches of the particles that go on."""
        held = torch.stack(batches)
        from_batch = (rows % len(batches)).reshape(self.rows, -1).repeat(self.layout.copies, 1)
        row = torch.arange(held.shape[1], device=held.device)
        return [held[batch, row] for batch in from_batch.unbind(1)]

    def _joined(self, batches: list[Tensor], scale: Tensor) -> Float[Tensor, "N C H W"]:
        """Returns the scheduler's batches, one a particle, as one batch of images."""
        images = [self.layout.unpack(each[: self.rows].clone()).to(self.type) for each in batches]
        joined = images[0] if len(images) == 1 else torch.stack(images, dim=1).flatten(0, 1)
        return joined * scale.to(self.type)

    def _split(self, x: Float[Tensor, "N C H W"]) -> tuple[Float[Tensor, "B C H W"], ...]:
        """Returns a batch of images as one batch a particle."""
        return x.unflatten(0, (self.rows, -1)).unbind(1)

    def _held(self, x: Float[Tensor, "B C H W"], *, like: Tensor, scale: Tensor | None = None) -> Tensor:
        """Returns images as the scheduler holds them, by default at the level of the step."""
        scale = self.place.held[0] if scale is None else scale
        rows = self.layout.pack(x / scale.to(x.dtype)).to(like.dtype)
        return rows if self.layout.copies == 1 else torch.cat([rows] * self.layout.copies)


class _Outcome:
    """What a scheduler's step returned: a tuple, or an output with names."""

    def __init__(self, value: Any) -> None:  # noqa: ANN401
        self.value = value

    @property
    def sample(self) -> Tensor:
        """The next sample."""
        return self.value[0] if isinstance(self.value, tuple) else self.value.prev_sample

    def replaced(self, sample: Tensor, *, both: bool) -> Any:  # noqa: ANN401
        """Returns the same with another sample.

        Args:
            sample: The sample.
            both: Whether it is the denoised image as well, which is returned after it.
        """
        if isinstance(self.value, tuple):
            return (sample, sample, *self.value[2:]) if both else (sample, *self.value[1:])
        self.value.prev_sample = sample
        if both:
            self.value.denoised = sample
        return self.value


def _changed(call: inspect.BoundArguments, **changes: Any) -> inspect.BoundArguments:  # noqa: ANN401
    """Returns a call with some arguments changed."""
    arguments: Any = {**call.arguments, **changes}
    return inspect.BoundArguments(call.signature, arguments)
