"""Samplers: each leads from ``x_t`` at one level to ``x_s = mean + deviation`` at the next.

    DDPM      x_s ~ N(mu(x_t, x0_hat), Sigma_t)                                      (Ho et al. 2020)
    DDIM      x_s = alpha_s x0_hat + sqrt(sigma_s^2 - Sigma) eps_hat + sqrt(Sigma) eps,  Sigma = eta^2 beta_tilde
    DPM++     x_s = alpha_s x0_hat + sigma_s eps_hat + alpha_s (1 - exp(-h)) (x0_hat - x0_u) / 2r    (2M)
    Heun      z_s = z_hat + (t_s - t_hat) (d + d_s) / 2,  z = x / alpha,  t = sigma / alpha    (Karras et al. 2022)

Guides may move the mean or rotate the deviation, so the two are returned apart. A deterministic step has no deviation.

**Noise.** Each image has generators of its own, so that no other image changes its draws. Image k draws from generators
seeded by k alone, one for each purpose, on the CPU whatever the device; so a change of batch, device or recurrence
leaves the other draws as they were. Of an image's particles, the first draws as the image would alone. A CPU generator
keeps 32 bits of its seed, which bounds the seeds.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from steersman.batching import broadcast, send
from steersman.errors import InputError, unknown
from steersman.guidance.step import Batch, Estimate, FixedVariance, Step, posterior_mean, reverse_variance, transition
from steersman.schedule import Level, Ratios, Schedule, Spacing, check_ratios, noised
from steersman.typed import finite

__all__ = ["DDIM", "DDPM", "SEEDS", "DPMpp", "Draw", "Draws", "GivenNoise", "Heun", "Move", "Predict", "Purpose"]
__all__ += ["Sampler", "SeededNoise", "levels_of"]

Draw = Callable[[], Batch]


@runtime_checkable
class Predict(Protocol):
    """The guided and clipped denoiser; a sampler may evaluate it several times a step."""

    @property
    def schedule(self) -> Schedule:
        """The denoiser's schedule, for levels between those of the trajectory."""
        ...

    def __call__(self, x_t: Batch, level: Level, stage: int = 0) -> Estimate:
        """Returns the estimate at a level; ``stage`` counts the evaluations within the step."""
        ...


class Move(NamedTuple):
    """The result of a step, ``x_s = mean + deviation``.

    Attributes:
        mean: The next sample without the step's own noise.
        deviation: The noise that is added to it, None where there is none.
        variance: The variance of that noise.
    """

    mean: Batch
    deviation: Batch | None = None
    variance: Float[Tensor, "..."] | None = None


@runtime_checkable
class Sampler(Protocol):
    """Steps from level to level. A subclass has ``small`` variances and no state unless it says otherwise."""

    @property
    def fixed(self) -> FixedVariance:
        """The reverse variance of its steps where the model learned none; guidance weights follow it."""
        return "small"

    @property
    def noisy(self) -> bool | None:
        """Whether its steps end with noise, except for the last one; None where only a step shows it."""
        return None

    def init(self, x: Batch) -> tuple:
        """Returns the state before the first step; empty for one-step methods."""
        return ()

    def step(self, x_t: Batch, step: Step, predict: Predict, draw: Draw, state: tuple) -> tuple[Move, tuple]:
        """Returns the move to ``step.next`` and the next state."""
        ...


def levels_of(
    sampler: Sampler,
    schedule: Schedule,
    steps: int,
    spacing: Spacing | Ratios = "linspace",
    ratio_min: float = 0.0,
    ratio_max: float = math.inf,
) -> tuple[Level, ...]:
    """Returns the levels of a trajectory: those of the sampler's ``levels`` if it has any, else the schedule's."""
    if not 0 <= ratio_min < ratio_max:
        raise InputError(
            f"ratio_min and ratio_max must satisfy 0 <= ratio_min < ratio_max, got {ratio_min} and {ratio_max}"
        )
    own = getattr(sampler, "levels", None)
    if own is None:
        return schedule.levels(steps, spacing, ratio_min, ratio_max)
    return own(schedule, steps, spacing, ratio_min, ratio_max)


def _noise(variance: Float[Tensor, "..."], draw: Draw, step: Step) -> Batch | None:
    """Returns ``sqrt(variance) eps``, or None into a clean image and where the variance is zero."""
    if not step.next.sigma > 0 or (variance.ndim == 0 and not variance > 0):  # a learned variance is above 0
        return None
    eps = draw()
    return variance.sqrt().to(eps.dtype) * eps


@dataclass(frozen=True, kw_only=True)
@finite
class DDPM(Sampler):
    """The ancestral sampler.

    Attributes:
        fixed: The variance: ``small`` for ``Sigma_t = beta_tilde``, ``large`` for ``beta``. A learned variance takes
            precedence over both. ``clipped`` is ``small``, except in the last step, where ``beta_tilde`` is zero: there
            it is that of the step before, also as the lower end of a learned variance (ADM's code). No noise is drawn
            in that step, but it sets the guidance weight.

    Example:
        >>> import steersman as sm
        >>> from steersman.sampling import sample
        >>> sample(sm.load_denoiser("zoo:mnist"), sm.DDPM(fixed="large"), seeds=[0, 1], steps=2).shape
        torch.Size([2, 1, 28, 28])
    """

    fixed: FixedVariance = "small"  # pyright: ignore[reportIncompatibleMethodOverride]

    def __post_init__(self) -> None:
        if self.fixed not in get_args(FixedVariance):
            raise unknown("variance", self.fixed, get_args(FixedVariance))

    @property
    def noisy(self) -> bool:
        """True: every step adds noise."""
        return True

    def step(self, x_t: Batch, step: Step, predict: Predict, draw: Draw, state: tuple) -> tuple[Move, tuple]:
        """Returns ``mu`` and ``sqrt(Sigma_t) eps``."""
        estimate = predict(x_t, step.level)
        mean = posterior_mean(x_t, estimate.x0, step.level, step.next)
        return Move(mean, _noise(estimate.variance, draw, step), estimate.variance), state


@dataclass(frozen=True, kw_only=True)
@finite
class DDIM(Sampler):
    """The implicit sampler: deterministic at ``eta = 0``, with DDPM's variance at ``eta = 1``.

    Attributes:
        eta: The standard deviation of the step's noise relative to DDPM's, in [0, 1].

    Example:
        >>> import steersman as sm
        >>> from steersman.sampling import sample
        >>> sampler = sm.DDIM(eta=0.5)
        >>> sampler.noisy, sm.DDIM().noisy
        (True, False)
        >>> sample(sm.load_denoiser("zoo:mnist"), sampler, seeds=[0, 1], steps=2).shape
        torch.Size([2, 1, 28, 28])
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise InputError(f"sampler.eta must be between 0 and 1, got {self.eta}")

    @property
    def noisy(self) -> bool:
        """Whether ``eta`` is above 0."""
        return self.eta > 0

    def step(self, x_t: Batch, step: Step, predict: Predict, draw: Draw, state: tuple) -> tuple[Move, tuple]:
        """Returns the deterministic part and ``sqrt(Sigma) eps``."""
        estimate = predict(x_t, step.level)
        variance = self.eta**2 * reverse_variance(step.level, step.next)
        of_eps = (step.next.sigma**2 - variance).clamp(min=0).sqrt()
        mean = broadcast(step.next.alpha, x_t) * estimate.x0 + broadcast(of_eps, x_t) * estimate.eps
        return Move(mean, _noise(variance, draw, step), variance), state


@dataclass(frozen=True, kw_only=True)
class DPMpp(Sampler):
    """DPM-Solver++(2M): deterministic, second-order and multistep, with one evaluation of the denoiser a step.

    Example:
        >>> import steersman as sm
        >>> from steersman.sampling import sample
        >>> sample(sm.load_denoiser("zoo:mnist"), sm.DPMpp(), seeds=[0, 1], steps=2, spacing="logsnr").shape
        torch.Size([2, 1, 28, 28])
    """

    @property
    def noisy(self) -> bool:
        """False: no step adds noise."""
        return False

    def step(self, x_t: Batch, step: Step, predict: Predict, draw: Draw, state: tuple) -> tuple[Move, tuple]:
        """Returns DDIM's step, with the second-order term where there is a history ``(x0_u, lambda_u)``.

        With ``lambda = log(alpha / sigma)``, ``h = lambda_s - lambda_t`` and ``r = (lambda_t - lambda_u) / h``. A
        repeated step has no history: its sample was renoised, and is no longer on the trajectory before it.
        """
        estimate = predict(x_t, step.level)
        now = float((step.level.alpha / step.level.sigma).log())
        alpha, sigma = (broadcast(value, x_t) for value in (step.next.alpha, step.next.sigma))
        x_s = alpha * estimate.x0 + sigma * estimate.eps
        if state and step.repeat == 0 and step.next.sigma > 0:
            x0_u, before = state
            h = (step.next.alpha / step.next.sigma).log() - now
            x_s = x_s - broadcast(h.neg().expm1() * h / (2 * (now - before)), x_s) * alpha * (estimate.x0 - x0_u)
        return Move(x_s), (estimate.x0, now)


@dataclass(frozen=True, kw_only=True)
@finite
class Heun(Sampler):
    """EDM's second-order sampler, two evaluations a step; deterministic without churn.

    Attributes:
        churn: ``S_churn``, the amount of noise added over all steps, at least 0.
        ratio_min: ``S_tmin``, lower limit of the noise-to-signal ratio ``sigma / alpha`` at which noise is added.
        ratio_max: ``S_tmax``, upper limit of the ratio.
        noise: ``S_noise``, the standard deviation of the added noise relative to what the level needs, above 0.

    Example:
        >>> import steersman as sm
        >>> from steersman.sampling import sample
        >>> sample(sm.load_denoiser("zoo:mnist"), sm.Heun(churn=0.5), seeds=[0, 1], steps=2, spacing="karras").shape
        torch.Size([2, 1, 28, 28])
    """

    churn: float = 0.0
    ratio_min: float = 0.0
    ratio_max: float = math.inf
    noise: float = 1.0

    def __post_init__(self) -> None:
        if not self.churn >= 0:
            raise InputError(f"sampler.churn must be at least 0, got {self.churn}")
        check_ratios("sampler", self.ratio_min, self.ratio_max)
        if not 0 < self.noise < math.inf:
            raise InputError(f"sampler.noise must be above 0 and finite, got {self.noise}")

    @property
    def noisy(self) -> bool:
        """False: churn adds its noise before the step."""
        return False

    def step(self, x_t: Batch, step: Step, predict: Predict, draw: Draw, state: tuple) -> tuple[Move, tuple]:
        """Returns Heun's step from the churned sample; Euler's into a clean image and out of pure noise."""
        x_t, level = self._churned(x_t, step, predict, draw)
        estimate = predict(x_t, level)
        x_s = noised(estimate.x0, estimate.eps, step.next)  # Euler: z_s = x0_hat + t_s eps_hat
        if step.next.sigma > 0 and level.alpha > 0:
            change = predict(x_s, step.next, stage=1).eps - estimate.eps
            half = (step.next.sigma - step.next.alpha * level.sigma / level.alpha) / 2
            x_s = x_s + broadcast(half, x_s) * change
        return Move(x_s), state

    def _churned(self, x_t: Batch, step: Step, predict: Predict, draw: Draw) -> tuple[Batch, Level]:
        """Returns the sample at ``t_hat = (1 + gamma) t``, or as far as the schedule goes."""
        t = float(step.level.sigma / step.level.alpha)  # infinite where there is no signal, which cannot be churned
        churned = self.ratio_min <= t <= self.ratio_max and t < math.inf
        gamma = min(self.churn / step.count, math.sqrt(2) - 1) if churned else 0.0
        if gamma == 0:
            return x_t, step.level
        hat = predict.schedule.at_ratio((1 + gamma) * t)
        ratio, beta = transition(hat, step.level)
        return broadcast(ratio, x_t) * x_t + broadcast(self.noise * beta.sqrt(), x_t) * draw(), hat


Purpose = Literal["start", "step", "renoise", "check"]
_PURPOSES = ("start", "step", "renoise", "choice", "check")
_SEEDED = 3  # purposes whose seeds are consecutive; those added later are hashed, so as to collide with none of these
SEEDS = 2**30  # 3 * 2^30 < 2^32


class SeededNoise:
    """Draws that follow from each image's seed, from 0 to below 2^30, in float32 or float64."""

    def __init__(
        self, seeds: Sequence[int], shape: tuple[int, ...], device: torch.device | str, dtype: torch.dtype
    ) -> None:
        for seed in seeds:
            if not 0 <= seed < SEEDS:
                raise InputError(f"seed must be between 0 and {SEEDS - 1}, got {seed}")
        self.seeds, self.shape, self.device, self.dtype = seeds, shape, device, dtype
        self._made: dict[tuple[str, int], list[torch.Generator]] = {}
        self._images: Sequence[int] = range(len(seeds))

    def of(self, images: Sequence[int]) -> "SeededNoise":
        """Returns the draws of some of the images alone, by the same generators."""
        some = copy(self)
        some._images = [self._images[image] for image in images]
        return some

    def __call__(self, purpose: Purpose, particles: int = 1) -> Float[Tensor, "N *shape"]:
        """Returns the next draw for a purpose, image by image."""
        images = zip(*(self._generators(purpose, particle) for particle in range(particles)), strict=True)
        draws = [torch.randn(self.shape, generator=each, dtype=self.dtype) for image in images for each in image]
        return send(torch.stack(draws), self.device)

    def uniform(self) -> Float64[Tensor, " B"]:
        """Returns the next number for each image."""
        draws = [torch.rand((), generator=each, dtype=torch.float64) for each in self._generators("choice", 0)]
        return torch.stack(draws)

    def _generators(self, purpose: str, particle: int) -> list[torch.Generator]:
        """Returns each image's generator for a purpose of a particle, made at its first use."""
        if (purpose, particle) not in self._made:
            number = _PURPOSES.index(purpose)
            seeds = (
                seed * _SEEDED + number
                if particle == 0 and number < _SEEDED
                else int(np.random.SeedSequence((seed, number, particle)).generate_state(1)[0])
                for seed in self.seeds
            )
            self._made[purpose, particle] = [torch.Generator().manual_seed(seed) for seed in seeds]
        return [self._made[purpose, particle][image] for image in self._images]


class GivenNoise:
    """Draws from outside, in the order in which they are used: the start first."""

    def __init__(
        self,
        draws: Iterable[Tensor],
        images: int,
        shape: tuple[int, ...],
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> None:
        self._draws: Iterator[Tensor] = iter(draws)
        self._all_used = self._draws is not draws  # what is left in an iterator is for whoever goes on with it
        self.images, self.shape, self.device, self.dtype = images, tuple(shape), device, dtype
        self.used = 0

    def __call__(self, purpose: Purpose, particles: int = 1) -> Float[Tensor, "N *shape"]:
        """Returns the next draw, whatever it is for."""
        return send(self._next(purpose, (self.images * particles, *self.shape)).to(self.dtype), self.device)

    def uniform(self) -> Float[Tensor, " B"]:
        """Returns the next draw, one number an image."""
        draw = self._next("choice", (self.images,))
        if draw.device.type == "cpu" and not bool(((draw >= 0) & (draw <= 1)).all()):
            raise InputError(f"noise: draw {self.used}, for the choice, must be numbers from 0 to 1")
        return draw

    def finish(self) -> None:
        """Refuses draws in a list that nothing has used."""
        if self._all_used and next(self._draws, None) is not None:
            raise InputError(f"noise must have the {self.used} draws that these settings use, got more")

    def _next(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        draw = next(self._draws, None)
        if draw is None:
            raise InputError(
                f"noise must have a draw for the start and for each random step, got {self.used}: no draw left for the "
                f"{purpose}"
            )
        self.used += 1
        if not isinstance(draw, Tensor) or not draw.is_floating_point() or draw.shape != shape:
            got = f"{draw.dtype} of shape {tuple(draw.shape)}" if isinstance(draw, Tensor) else type(draw).__name__
            raise InputError(
                f"noise: draw {self.used}, for the {purpose}, must be a tensor of floats of shape {shape}, got {got}"
            )
        return draw


Draws = SeededNoise | GivenNoise
