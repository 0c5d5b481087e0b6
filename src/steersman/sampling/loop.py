"""The loop: the only one, for every sampler, with guides, recurrence, particles and callbacks.

    for each pair of levels:
        repeat:
            update                  x_t <- x_t + the updates that enter before the denoiser is asked
            choose                of an image's candidates, the likelier go on
            predict, guided       x0_hat, eps  <-  denoiser, clipped, then the guides' updates
            step                  x_s = mean + updates + deviation, which updates may turn
            correct               the candidates' weights for what the updates did, where that is asked for
            renoise               x_t = r x_s + sqrt(beta) eps, unless it was the last repeat  (Bansal et al. 2023)

Levels are float64, guidance is float32 or float64, and the networks see their own dtype.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.batching import take
from steersman.denoise import Conditioned, Denoiser, Prediction, eps_from_x0
from steersman.errors import InputError, unknown
from steersman.guidance.decoded import after_decoding
from steersman.guidance.guide import Guide
from steersman.guidance.injection import Estimate, Kept
from steersman.guidance.steering import Steering, Update
from steersman.guidance.step import Step, reverse_variance, transition
from steersman.guidance.targets import Target, resolved
from steersman.names import each_class, resolve
from steersman.precision import ieee
from steersman.sampling.noise import GivenNoise, Noise, SeededNoise
from steersman.sampling.particles import Particles, Swarm
from steersman.sampling.sampler import Draw, Sampler, levels_of
from steersman.schedule import Level, Schedule, Spacing, broadcast, check_ratios
from steersman.typed import finite

__all__ = ["Callback", "Recurrence", "Report", "labelled", "sample"]


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
    x: Float[Tensor, "B C H W"]
    x0: Float[Tensor, "B C H W"]
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
    target: Target | Iterable[Target] | None = None,
    seeds: Sequence[int] = (0,),
    steps: int = 50,
    spacing: Spacing = "linspace",
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
) -> Float[Tensor, "B C H W"]:
    """Draws one image a seed, guided.

    Args:
        denoiser: The diffusion model.
        sampler: How to step.
        guides: The guides; none for plain sampling.
        target: The class to guide to, an index or a name that the guides' classifiers know: one for all images, or one
            each.
        seeds: One an image; an image depends on its seed and the settings alone.
        steps: How many steps.
        spacing: Which of the schedule's levels they visit.
        ratio_min: The smallest noise-to-signal ratio ``sigma / alpha`` among them, before the clean image.
        ratio_max: The largest, where the walk starts.
        clip: Whether the denoised image is clipped to [-1, 1] before each step, as pixel models expect; latents never
            are, and where a guide's view clips, it is the image decoded of them that is clipped.
        keeps: What clipping keeps: ``sample`` for ``x_t = alpha x0 + sigma eps``, or ``noise`` for the model's own eps.
        recurrence: How often steps are repeated.
        particles: How many candidates an image has, and which of them go on.
        condition: What else the denoiser is told, such as ``cfg_scale`` and ``label``: one for all images, or one each.
        noise: Draws to use instead of the seeds': the start, then each step's in order; a list of as many as are used,
            or an iterator that may have more. Each has a row for each candidate of each image; where candidates are
            drawn, it is a number from 0 to 1 an image.
        device: Where the samples live; the denoiser's own device.
        dtype: The samples' type, float32 or float64, whatever the networks run in.
        callbacks: Called after each step.

    Returns:
        Samples in the denoiser's space; `Denoiser.decode` turns them into images.

    Raises:
        InputError: Guides without a target, a target too many or too few, particles without a guide that weighs them,
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
    if (particles := particles or Particles()).count > 1 and not guides:
        raise InputError(f"particles.count must be 1 without a guide that weighs them, got {particles.count}")
    denoiser = Conditioned(denoiser, labelled(condition or {}, len(seeds), denoiser.classes, device))
    if denoiser.latent:
        guides, clip = tuple(map(after_decoding, guides)), False
    steering = Steering(guides, _targets(target, len(seeds), device, guides), denoiser)
    swarm = Swarm(particles, len(seeds), device)
    steering.check(noisy=sampler.noisy)
    swarm.check(guides, noisy=sampler.noisy)
    for each in (denoiser, steering):
        each.take(swarm.rows)
    levels = levels_of(sampler, denoiser.schedule, steps, spacing, ratio_min, ratio_max)
    given = None if noise is None else GivenNoise(noise, len(seeds), denoiser.shape, device, dtype)
    draws: Noise = given or SeededNoise(seeds, denoiser.shape, device, dtype)
    x = draws("start", swarm.count) * denoiser.schedule.start(levels[0])
    state, unguided = sampler.init(x), sampler.init(x)
    predictor = _Predictor(denoiser, steering, sampler, clip, keeps, peak=torch.zeros((), dtype=dtype))
    for index, (level, next) in enumerate(pairwise(levels)):
        for repeat in range(again := (recurrence or Recurrence()).at(level)):
            variance = reverse_variance(level, next, fixed=sampler.fixed, levels=levels)
            predictor.step = step = Step(index, steps, repeat, 0, level, next, variance, predictor.peak, levels)
            steering.rests = swarm.corrects and not next.sigma > 0
            x = predictor.before(x)
            if swarm.weighs(level, index):
                rows = swarm.choose(predictor.log_likelihood(x), level, draws.uniform())
                x, state, unguided = predictor.take(x, rows), take(state, rows), take(unguided, rows)
            move, state = sampler.step(x, step, predictor, partial(draws, "step", swarm.count), state)
            x_s, deviation = steering.mean(move.mean), steering.deviation(move.deviation, move.variance, step)
            if swarm.corrects and next.sigma > 0:
                still = partial(torch.zeros_like, x)
                without, unguided = sampler.step(x, step, _Unguided(predictor), still, unguided)
                swarm.correct(x_s - without.mean, move.deviation, move.variance)
            x_s = x_s if deviation is None else x_s + deviation
            for callback in callbacks:
                callback(_report(predictor, x_s, swarm))
            x = _renoise(x_s, level, next, partial(draws, "renoise", swarm.count)) if repeat + 1 < again else x_s
    if swarm.weighs(levels[-1], steps):
        x = x[swarm.choose(steering.log_likelihood(x, Prediction(x), levels[-1]), levels[-1], draws.uniform())]
    if given is not None:
        given.finish()
    return x


def _report(predictor: "_Predictor", x_s: Float[Tensor, "N C H W"], swarm: Swarm) -> Report:
    report = Report(predictor.step, x_s, predictor.x0, predictor.steering.updates)
    return take(report, swarm.leaders) if swarm.count > 1 else report


@dataclass
class _Predictor:
    """The guided denoiser of one walk: where it is, the variances' peak, the last ``x0``, what it knows already."""

    denoiser: Conditioned
    steering: Steering
    sampler: Sampler
    clip: bool
    keeps: Kept
    peak: Float[Tensor, "..."]
    x0: Float[Tensor, "B C H W"] = field(init=False)
    unguided: Estimate = field(init=False)
    step: Step = field(init=False)
    known: "_Known | None" = field(init=False, default=None)

    @property
    def schedule(self) -> Schedule:
        return self.denoiser.schedule

    def before(self, x_t: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Returns the sample with the updates that enter it; the denoiser is asked only where one depends on it."""
        step = self.step._replace(peak=torch.maximum(self.peak, self.step.variance.to(self.peak.dtype)))
        through = self.steering.differentiates_denoiser(step, before=True)
        x_t = x_t.detach().requires_grad_(through or self.steering.differentiates_sample)
        with torch.set_grad_enabled(through):
            prediction = self.denoiser(x_t, step.level) if self.steering.needs_denoiser(step) else None
        return self.steering.sample(x_t, prediction, step)

    def log_likelihood(self, x_t: Float[Tensor, "N C H W"]) -> Float[Tensor, " N"]:
        """Returns what the guides say of each row; the step, where it begins there, asks nothing again."""
        prediction, estimate = self._ask(x_t, self.step.level, 0)
        self.known = _Known(x_t, estimate)
        return self.steering.log_likelihood(x_t, prediction, self.step.level, self.steering.updates)

    def take(self, x_t: Float[Tensor, "N C H W"], rows: Int[Tensor, " M"]) -> Float[Tensor, "M C H W"]:
        """Goes on with those rows, and returns the sample's."""
        self.denoiser.take(rows)
        self.steering.take(rows)
        self.peak, variance, self.known = take((self.peak, self.step.variance, self.known), rows)
        self.unguided = take(self.unguided, rows)
        self.step = self.step._replace(variance=variance, peak=self.peak)
        return self.known.x_t if self.known else x_t[rows]

    def __call__(self, x_t: Float[Tensor, "B C H W"], level: Level, stage: int = 0) -> Estimate:
        if stage == 0 and self.known is not None:
            known, self.known = self.known, None
            if known.x_t is x_t and level is self.step.level:
                self.x0 = known.estimate.x0
                return known.estimate
            self.steering.undo()
        _, estimate = self._ask(x_t, level, stage)
        self.x0 = estimate.x0
        return estimate

    def _ask(self, x_t: Float[Tensor, "B C H W"], level: Level, stage: int) -> tuple[Prediction, Estimate]:
        step = self.step._replace(level=level, stage=stage)
        through = self.steering.differentiates_denoiser(step)
        x_t = x_t.detach().requires_grad_(through or self.steering.differentiates_sample)
        with torch.set_grad_enabled(through):
            prediction = self.denoiser(x_t, level)
        if stage == 0:  # the variance is the whole step's
            fraction = _detached(prediction.variance_fraction)
            variance = reverse_variance(level, step.next, fraction, self.sampler.fixed, step.levels)
            self.peak = torch.maximum(self.peak, variance.to(self.peak.dtype))
            self.step = step = step._replace(variance=variance, peak=self.peak)
        x0_hat = prediction.x0_hat.detach()
        x0 = x0_hat.clamp(-1, 1) if self.clip else x0_hat
        eps = eps_from_x0(x_t.detach(), x0_hat if self.keeps == "noise" else x0, level)
        estimate = Estimate(x0, eps, step.variance)
        self.unguided = estimate
        return prediction, self.steering.estimate(x_t, prediction, estimate, step)


@dataclass(frozen=True)
class _Unguided:
    """The same step as it would have been without guides; nothing is asked again.

    Attributes:
        predictor: The guided one, which has been asked for the step.
    """

    predictor: _Predictor

    @property
    def schedule(self) -> Schedule:
        return self.predictor.schedule

    def __call__(self, x_t: Float[Tensor, "B C H W"], level: Level, stage: int = 0) -> Estimate:
        if stage:
            raise InputError(
                "particles.corrected must be false with a sampler that evaluates the denoiser more than once a step, "
                "got true; use a sampler that evaluates it once, such as ddpm"
            )
        return self.predictor.unguided


class _Known(NamedTuple):
    """What came of a sample that the denoiser was asked about before the step."""

    x_t: Float[Tensor, "N C H W"]
    estimate: Estimate


def _detached(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach()


def _renoise(x_s: Float[Tensor, "B C H W"], level: Level, next: Level, draw: Draw) -> Float[Tensor, "B C H W"]:
    """Takes a sample one step back: ``x_t = r x_s + sqrt(beta) eps``."""
    ratio, beta = transition(level, next)
    return broadcast(ratio, x_s) * x_s + broadcast(beta.sqrt(), x_s) * draw()


def labelled(
    condition: Mapping[str, Any], count: int, classes: Sequence[str], device: torch.device | str
) -> Mapping[str, Any]:
    """Returns the conditions with one label an image, where there are labels."""
    given = condition.get("label")
    # To read labels that are on an accelerator would be to wait for it.
    if given is None or not classes or (isinstance(given, Tensor) and given.device.type != "cpu"):
        return condition
    labels = torch.tensor([resolve(each, classes, "label") for each in each_class(condition["label"], "label")])
    if len(labels) not in (1, count):
        raise InputError(f"label must be one, or one for each of {count} images, got {len(labels)}")
    return {**condition, "label": labels.to(device).expand(count)}


def _targets(
    target: Target | Iterable[Target] | None, count: int, device: torch.device | str, guides: Sequence[Guide]
) -> Int[Tensor, " B"] | None:
    """Returns one target an image."""
    if target is None and not guides:
        return None
    targets = resolved(guides, target)
    if len(targets) not in (1, count):
        raise InputError(f"target must be one, or one for each of {count} seeds, got {len(targets)}")
    return targets.to(device).expand(count)
