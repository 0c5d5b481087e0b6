"""The sampling loop, for every sampler, with guides, recurrence, particles and callbacks.

    for each pair of levels:
        repeat:
            update                x_t <- x_t + the updates that enter before the denoiser is evaluated
            resample              of an image's particles, the likelier survive
            predict, guide        x0_hat, eps  <-  denoiser, clipped, then the guides' updates
            step                  x_s = mean + updates + deviation, which updates may rotate
            correct               the particles' weights for what the updates did
            renoise               x_t = r x_s + sqrt(beta) eps, except after the last repeat  (Bansal et al. 2023)

Where each image keeps one particle, those that are unlikely may go back to noisier levels: `Particles.retries`.
Levels are float64, guidance is float32 or float64, and the networks see their own dtype.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.batching import broadcast, put, send, take
from steersman.denoise import Conditioned, Denoiser, Prediction, eps_from_x0
from steersman.errors import InputError, unknown
from steersman.guidance.guide import Guide, Steering, Update, after_decoding
from steersman.guidance.step import Batch, Estimate, FixedVariance, Kept, Step, Targets, reverse_variance, transition
from steersman.guidance.target import Encoded, Target, for_images, resolve_targets
from steersman.names import each_class, resolve
from steersman.precision import ieee
from steersman.sampling.particles import ParticleFilter, Particles
from steersman.sampling.samplers import Draws, GivenNoise, Sampler, SeededNoise, levels_of
from steersman.schedule import Level, Ratios, Schedule, Spacing, check_ratios
from steersman.typed import finite

__all__ = ["Callback", "GuidedDenoiser", "Recurrence", "Report", "labelled", "renoised", "sample"]


class Report(NamedTuple):
    """The state of sampling after a step, as callbacks receive it; with several particles, that of the likeliest.

    Attributes:
        step: The step: its index, its levels, its variance.
        x: The sample after the step.
        x0: The denoised image that the step used, with the guidance updates.
        updates: The gradient and the update of each guide, None for a guide that was not active.

    Example:
        >>> import steersman as sm
        >>> reports = []
        >>> settings = {"recipe": "nrcg", "steps": 2, "seeds": 1, "progress": False, "callback": reports.append}
        >>> result = sm.sample("zoo:mnist", classifier="zoo:mnist-lenet", target="7", **settings)
        >>> [(report.step.index, report.x0.shape) for report in reports]
        [(0, torch.Size([1, 1, 28, 28])), (1, torch.Size([1, 1, 28, 28]))]
        >>> [update is not None for update in (report.updates[0] for report in reports)]
        [True, False]
    """

    step: Step
    x: Batch
    x0: Batch
    updates: tuple[Update | None, ...]


Callback = Callable[[Report], None]


@dataclass(frozen=True, kw_only=True)
@finite
class Recurrence:
    """Each step repeated several times, with noise added back in between.

    Attributes:
        times: How often a step is done, at least 1.
        ratio_min: Lower limit of the noise-to-signal ratio ``sigma / alpha`` at which steps are repeated.
        ratio_max: Upper limit of the ratio.

    Example:
        >>> import steersman as sm
        >>> recurrence = sm.Recurrence(times=3, ratio_min=1.0, ratio_max=10.0)
        >>> [recurrence.at(sm.EDM().at_ratio(ratio)) for ratio in (50.0, 5.0, 0.5)]
        [1, 3, 1]
    """

    times: int = 1
    ratio_min: float = 0.0
    ratio_max: float = float("inf")

    def __post_init__(self) -> None:
        if self.times < 1:
            raise InputError(f"recurrence.times must be at least 1, got {self.times}")
        check_ratios("recurrence", self.ratio_min, self.ratio_max)

    def at(self, level: Level) -> int:
        """Returns how often the step from a level is done."""
        return self.times if self.ratio_min <= float(level.sigma / level.alpha) <= self.ratio_max else 1


@torch.no_grad()
@ieee()
def sample(
    denoiser: Denoiser,
    sampler: Sampler,
    *,
    guides: Sequence[Guide] = (),
    target: Target | Iterable[Target] | Encoded | None = None,
    seeds: Sequence[int] = (0,),
    steps: int = 50,
    spacing: Spacing | Ratios = "linspace",
    ratio_min: float = 0.0,
    ratio_max: float = math.inf,
    clip: bool = True,
    keeps: Kept = "sample",
    recurrence: Recurrence | None = None,
    particles: Particles | None = None,
    condition: Mapping[str, Any] | None = None,
    noise: Iterable[Tensor] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    callbacks: Sequence[Callback] = (),
) -> Batch:
    """Draws one sample for each seed, with guidance.

    Args:
        denoiser: The diffusion model.
        sampler: The sampler.
        guides: The guides; none for plain sampling.
        target: The target, one for all or a list of one for each: an index or a name that the guides' classifiers know,
            a set of classes, or what else the guides' objectives take (`steersman.guidance.target`).
        seeds: One for each sample, which depends on its seed and the settings alone.
        steps: The number of steps.
        spacing: Which of the schedule's levels the steps visit: a name, or falling ratios ``sigma / alpha`` through
            which they go, with the same share of the steps from each to the next.
        ratio_min: The smallest noise-to-signal ratio ``sigma / alpha`` among them, before the clean image.
        ratio_max: The largest ratio, where sampling starts.
        clip: Whether the denoised image is clipped to [-1, 1] before each step, as pixel models expect. Latents never
            are; where a guide's input clips, the image decoded from them is clipped.
        keeps: What clipping keeps: ``sample`` for ``x_t = alpha x0 + sigma eps``, or ``noise`` for the model's own eps.
        recurrence: How often steps are repeated.
        particles: The particles of an image and their resampling.
        condition: The model's own conditioning, such as ``cfg_scale`` and ``label``: one for all samples, or one each.
        noise: Draws to use instead of the seeds', in the order in which they are used: ``(N, *shape)``, a row for each
            particle of each image, and ``(B,)`` numbers from 0 to 1 whenever particles are weighted. A list must hold
            as many as are used; an iterator may hold more.
        device: The device of the samples and of the denoiser.
        dtype: The samples' dtype, float32 or float64, whatever the networks run in.
        callbacks: Called after each step, but for those that `Particles.retries` adds.

    Returns:
        Samples in the denoiser's space; `Denoiser.decode` turns them into images.

    Raises:
        InputError: Guides without a target, a target too many or too few, particles without a guide that weights them,
            guides that the sampler or the particles cannot follow, or settings out of range.
    """
    if not seeds:
        raise InputError("seeds must hold one seed for each image, got none")
    if keeps not in get_args(Kept):
        raise unknown("keeps", keeps, get_args(Kept))
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    if dtype == torch.float64 and torch.device(device).type == "mps":
        raise InputError("dtype must be torch.float32 on mps, which has no float64, got torch.float64")
    particles = particles or Particles()
    if getattr(denoiser, "latent", False):
        guides, clip = tuple(map(after_decoding, guides)), False
    targets = None
    if guides or target is not None:
        targets = for_images(resolve_targets(guides, target), len(seeds), device)
    conditions = labelled(condition or {}, len(seeds), denoiser.classes, device)
    levels = levels_of(sampler, denoiser.schedule, steps, spacing, ratio_min, ratio_max)
    given = None if noise is None else GivenNoise(noise, len(seeds), denoiser.shape, device, dtype)
    if given is not None and particles.retries:
        raise InputError(f"noise must be left out with particles.retries {particles.retries}, got draws")

    def trajectory_of(images: Sequence[int], draws: Draws) -> _Trajectory:
        population = ParticleFilter(particles, len(images), device)
        rows = send(torch.tensor(images), device)[population.rows]
        choices = {"fixed": sampler.fixed, "dtype": dtype, "clip": clip, "keeps": keeps}
        guided = GuidedDenoiser(denoiser, guides, targets, rows, conditions, **choices)
        return _Trajectory(sampler, levels, recurrence, guided, population, draws)

    trajectory = trajectory_of(range(len(seeds)), given or SeededNoise(seeds, denoiser.shape, device, dtype))
    trajectory.guided.steering.check(noisy=sampler.noisy)
    trajectory.population.check(guides, noisy=sampler.noisy)
    x, first = trajectory.draws("start", particles.count) * denoiser.schedule.start(levels[0]), 0
    if particles.retries:
        x, first = _retried(x, trajectory, trajectory_of, callbacks)
    x = trajectory.down(x, first, len(levels) - 1, callbacks)
    if trajectory.population.weighs(levels[-1], steps):
        x, _ = trajectory.choose(x, levels[-1])
    if given is not None:
        given.finish()
    return x


class _Trajectory(NamedTuple):
    """The sampling of some images, each with its particles, over some levels."""

    sampler: Sampler
    levels: tuple[Level, ...]
    recurrence: Recurrence | None
    guided: "GuidedDenoiser"
    population: ParticleFilter
    draws: Draws

    def down(
        self, x: Float[Tensor, "N *shape"], first: int, last: int, callbacks: Sequence[Callback] = ()
    ) -> Float[Tensor, "M *shape"]:
        """Returns the samples at the last of some levels, given those at the first."""
        sampler, levels, recurrence, guided, population, draws = self
        steering, particles = guided.steering, population.particles
        state, unguided_state = sampler.init(x), sampler.init(x)
        for index in range(first, last):
            level, next = levels[index : index + 2]
            repeats = recurrence.at(level) if recurrence and recurrence.times > 1 else 1
            for repeat in range(repeats):
                several = population.count > 1
                variance = reverse_variance(level, next, fixed=sampler.fixed, levels=levels)
                guided.step = step = Step(index, len(levels) - 1, repeat, 0, level, next, variance, guided.peak, levels)
                # A step without noise has no density that could correct the weights for its updates.
                steering.paused = several and particles.corrected and not next.sigma > 0
                x = guided.before(x) if guided.enters_sample else x
                if several and population.weighs(level, index):
                    rows = population.choose(guided.log_likelihood(x), level, draws.uniform())
                    x, state, unguided_state = guided.take(x, rows), take(state, rows), take(unguided_state, rows)
                move, state = sampler.step(x, step, guided, partial(draws, "step", population.count), state)
                x_s, deviation = steering.mean(move.mean), steering.deviation(move.deviation, move.variance, step)
                if particles.corrected and population.count > 1 and next.sigma > 0:
                    still = partial(torch.zeros_like, x)  # the mean alone is asked for
                    without, unguided_state = sampler.step(x, step, _Unguided(guided), still, unguided_state)
                    population.correct(x_s - without.mean, move.deviation, move.variance)
                x = x_s if deviation is None else x_s + deviation
                report = Report(guided.step, x, guided.x0, steering.updates)
                for callback in callbacks:
                    callback(take(report, population.leaders) if population.count > 1 else report)
                if repeat + 1 < repeats:
                    x = renoised(x, level, next, draws("renoise", population.count))
        return x

    def choose(
        self, x: Float[Tensor, "N *shape"], level: Level
    ) -> tuple[Float[Tensor, "B *shape"], Float[Tensor, " B"]]:
        """Returns the particle that each image keeps at a level, and its log-likelihood."""
        prediction = self.guided.denoiser(x, level) if level.sigma > 0 else Prediction(x)
        log_likelihood = self.guided.steering.log_likelihood(x, prediction, level)
        rows = self.population.leaders
        if self.population.count > 1:
            rows = self.population.choose(log_likelihood, level, self.draws.uniform())
        return self.guided.take(x, rows), log_likelihood[rows].nan_to_num(nan=-math.inf, posinf=-math.inf)


def _retried(
    x: Float[Tensor, "N *shape"],
    trajectory: _Trajectory,
    trajectory_of: Callable[[Sequence[int], Draws], _Trajectory],
    callbacks: Sequence[Callback],
) -> tuple[Float[Tensor, "B *shape"], int]:
    """Returns the likeliest of several tries of each image, and the index of the level at which they were compared.

    Which images are tried again is read from the device, once before each try.
    """
    particles, levels, steering = trajectory.population.particles, trajectory.levels, trajectory.guided.steering
    ratios = [float(level.sigma / level.alpha) for level in levels[:-1]]
    end = particles.ratio_min if particles.retry_at is None else particles.retry_at
    beginning = particles.ratio_max if particles.retry_from is None else particles.retry_from
    first, last = (sum(ratio > limit for ratio in ratios) for limit in (beginning, end))
    if first == last:
        raise InputError(
            f"particles.retries must be 0 unless a level lies between the ratios {end:g} and {beginning:g}, "
            f"from which to which noise is added back, got {particles.retries}"
        )
    assert isinstance(draws := trajectory.draws, SeededNoise), "given draws are refused with retries"
    x, found = trajectory.choose(trajectory.down(x, 0, last, callbacks), levels[last])
    for _ in range(particles.retries):
        images = (found < particles.retry_below).nonzero()[:, 0]
        if not len(images):
            break
        again = trajectory_of(images.tolist(), draws.of(images.tolist()))
        rows = images[again.population.rows]
        again.guided.steering.states, again.guided.peak = take((steering.states, trajectory.guided.peak), rows)
        tried = renoised(x[rows], levels[first], levels[last], again.draws("renoise", particles.count))
        tried, likelier = again.choose(again.down(tried, first, last), levels[last])
        better = (likelier > found[images]).nonzero()[:, 0]
        new = take((tried, likelier, again.guided.steering.states, again.guided.peak), better)
        old = (x, found, steering.states, trajectory.guided.peak)
        x, found, steering.states, trajectory.guided.peak = put(old, images[better], new)
    return x, last


class GuidedDenoiser:
    """The clipped and guided denoiser of one trajectory; it knows the step, and what it was last asked.

    Targets and conditions have a row for each image; ``rows`` selects from them one for each particle.

    Attributes:
        step: The present step, set before each step; its variance is then the one that the model learned, if any.
        peak: The largest variance of the steps so far.
        x0: The denoised image of the last evaluation, with the updates.
        unguided: The estimate of the last evaluation without the updates.
        enters_sample: Whether updates enter the sample, before the denoiser is evaluated.
    """

    step: Step
    x0: Batch
    unguided: Estimate

    def __init__(
        self,
        denoiser: Denoiser,
        guides: Sequence[Guide],
        targets: Targets | None,
        rows: Int[Tensor, " N"],
        condition: Mapping[str, Any] = MappingProxyType({}),
        *,
        fixed: FixedVariance,
        dtype: torch.dtype,
        clip: bool = False,
        keeps: Kept = "sample",
    ) -> None:
        self.denoiser = Conditioned(denoiser, condition)
        self.steering = Steering(guides, targets, self.denoiser)
        self.denoiser.take(rows)
        self.steering.take(rows)
        self.enters_sample = any(guide.injection.point == "sample" for guide in guides)
        self.peak = torch.zeros((), dtype=dtype)
        self.fixed: FixedVariance = fixed
        self.clip, self.keeps = clip, keeps
        self._asked: tuple[Tensor, Estimate] | None = None

    @property
    def schedule(self) -> Schedule:
        """The denoiser's schedule."""
        return self.denoiser.schedule

    def before(self, x_t: Batch) -> Batch:
        """Returns the sample with the updates that enter it; the denoiser is asked only where one depends on it."""
        step = self.step._replace(peak=torch.maximum(self.peak, self.step.variance.to(self.peak.dtype)))
        through = self.steering.differentiates_denoiser(step, before=True)
        x_t = x_t.detach().requires_grad_(through or self.steering.differentiates_sample)
        with torch.set_grad_enabled(through):
            prediction = self.denoiser(x_t, step.level) if self.steering.needs_denoiser(step) else None
        return self.steering.sample(x_t, prediction, step)

    def log_likelihood(self, x_t: Float[Tensor, "N *shape"]) -> Float[Tensor, " N"]:
        """Returns the guides' log-likelihood of each row; the step that begins there does not ask again."""
        prediction, estimate = self._evaluate(x_t, self.step.level, 0)
        self._asked = x_t, estimate
        return self.steering.log_likelihood(x_t, prediction, self.step.level, self.steering.updates)

    def take(self, x_t: Float[Tensor, "N *shape"], rows: Int[Tensor, " M"]) -> Float[Tensor, "M *shape"]:
        """Goes on with those rows, and returns the sample's."""
        self.denoiser.take(rows)
        self.steering.take(rows)
        self.peak, variance, self.unguided, self._asked = take(
            (self.peak, self.step.variance, self.unguided, self._asked), rows
        )
        self.step = self.step._replace(variance=variance, peak=self.peak)
        return x_t[rows] if self._asked is None else self._asked[0]

    def __call__(self, x_t: Batch, level: Level, stage: int = 0) -> Estimate:
        """Returns the estimate of a level, with the updates that enter there."""
        if stage == 0 and self._asked is not None:
            (asked, estimate), self._asked = self._asked, None
            if asked is x_t and level is self.step.level:
                self.x0 = estimate.x0
                return estimate
            self.steering.undo()  # a churned sample is another one
        _, estimate = self._evaluate(x_t, level, stage)
        self.x0 = estimate.x0
        return estimate

    def _evaluate(self, x_t: Batch, level: Level, stage: int) -> tuple[Prediction, Estimate]:
        step = self.step._replace(level=level, stage=stage)
        through = self.steering.differentiates_denoiser(step)
        x_t = x_t.detach().requires_grad_(through or self.steering.differentiates_sample)
        with torch.set_grad_enabled(through):
            prediction = self.denoiser(x_t, level)
        if stage == 0:  # the variance is the whole step's
            fraction = prediction.variance_fraction
            fraction = None if fraction is None else fraction.detach()
            variance = reverse_variance(level, step.next, fraction, self.fixed, step.levels)
            self.peak = torch.maximum(self.peak, variance.to(self.peak.dtype))
            self.step = step = step._replace(variance=variance, peak=self.peak)
        x0_hat = prediction.x0_hat.detach()
        x0 = x0_hat.clamp(-1, 1) if self.clip else x0_hat
        # Some pipelines end with a step from the clean image to itself, to which no eps belongs.
        noisy = bool(level.sigma > 0)
        eps = eps_from_x0(x_t.detach(), x0_hat if self.keeps == "noise" else x0, level) if noisy else x0.new_zeros(())
        self.unguided = Estimate(x0, eps.expand_as(x0), step.variance)
        return prediction, self.steering.estimate(x_t, prediction, self.unguided, step)


class _Unguided(NamedTuple):
    """The same step without guides; nothing is evaluated again."""

    guided: GuidedDenoiser

    @property
    def schedule(self) -> Schedule:
        return self.guided.schedule

    def __call__(self, x_t: Batch, level: Level, stage: int = 0) -> Estimate:
        if stage:
            raise InputError(
                "particles.corrected must be false with a sampler that evaluates the denoiser more than once a step, "
                "got true; use a sampler that evaluates it once, such as ddpm"
            )
        return self.guided.unguided


def renoised(x_s: Batch, level: Level, next: Level, eps: Batch) -> Batch:
    """Returns a sample taken one step back, ``x_t = r x_s + sqrt(beta) eps``."""
    ratio, beta = transition(level, next)
    return broadcast(ratio, x_s) * x_s + broadcast(beta.sqrt(), x_s) * eps


def labelled(
    condition: Mapping[str, Any], count: int, classes: Sequence[str], device: torch.device | str
) -> Mapping[str, Any]:
    """Returns the conditioning with one label for each image, where there are labels."""
    label = condition.get("label")
    # To read labels that are on an accelerator would be to wait for it.
    if label is None or not classes or (isinstance(label, Tensor) and label.device.type != "cpu"):
        return condition
    labels = torch.tensor([resolve(each, classes, "label") for each in each_class(label, "label")])
    if len(labels) not in (1, count):
        raise InputError(f"label must be one, or one for each of {count} images, got {len(labels)}")
    return {**condition, "label": labels.to(device).expand(count)}
