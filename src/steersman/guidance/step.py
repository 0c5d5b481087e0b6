"""A step of a trajectory: its reverse variance, what a classifier sees of it, and where guidance updates enter it.

From a level t to a cleaner level s, with ``r = alpha_t / alpha_s`` and ``beta = sigma_t^2 - r^2 sigma_s^2`` (for a
variance-preserving schedule ``1 - a``, ``a = r^2``), the posterior of ``x_s`` given ``x_t`` and ``x_0`` is Gaussian:

    mean       mu = (r sigma_s^2 x_t + alpha_s beta x_0) / sigma_t^2
    variance   beta_tilde = beta sigma_s^2 / sigma_t^2                                    (Ho et al. 2020, eq. 6, 7)

The variance belongs to the pair of levels, so that it follows any respacing. ADM learns a fraction f per value:
``log Sigma = f log beta + (1 - f) log beta_tilde`` (Nichol & Dhariwal 2021, eq. 15). Into a clean image ``beta_tilde``
is zero, and so is ``Sigma``.

The classifier input, a sample, of which a latent one is decoded afterwards:

    noisy       x_t
    denoised    x0_hat(x_t), clipped to [-1, 1] or not
    lookahead   x0_hat(x_s), where x_s is what x_t becomes after some deterministic steps (Pan et al. 2023)
    rescaled    z = x_t / max(1, rms(x_t)), rms over one sample's values (EluCD, Algorithm 2)

The injection, where the update ``p = s w_t g`` of a guide enters the step:

    sample       x_t <- x_t + p,  before the denoiser is evaluated for the step                 (EluCD, Algorithm 2)
    noise        eps <- eps - sigma p,  so  x0_hat <- x0_hat + (sigma^2 / alpha) p
    denoised     x0_hat <- x0_hat + p,  eps kept                         (MPGD, He et al. 2024; TFG, Ye et al. 2024)
                 or x_t kept, so  eps <- eps - (alpha / sigma) p     (Universal Guidance backward, Bansal et al. 2023)
    mean         mu <- mu + p
    spherical    d <- r m / |m|,  m = d + w (r p / |p| - d),  w = min(1, |p| / r)               (DSG, Yang et al. 2024)

with d the step's own noise and ``r = sqrt(n Sigma)`` its length for n values. For a gradient of unit rms and
``w_t = sqrt(Sigma_t)``, the scale is DSG's rate w.

In score terms the noise injection adds p to the score; the mean injection of ``s Sigma_t g`` on DDPM does the same with
``sqrt(a_t) Sigma_t / beta_t`` times the scale. So a scale on one injection says nothing about another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from steersman.batching import broadcast, norm, repeat, rms
from steersman.denoise import Denoiser, Prediction, look_ahead
from steersman.errors import InputError, unknown
from steersman.schedule import Level
from steersman.typed import finite

__all__ = ["Batch", "Classes", "FixedVariance", "PerImage", "Step", "Targets"]
__all__ += ["posterior_mean", "reverse_variance", "transition"]
__all__ += ["ClassifierInput", "Denoised", "Lookahead", "Noisy", "Rescaled"]
__all__ += ["DenoisedImage", "Estimate", "Injection", "InjectionPoint", "Kept", "Mean", "NoisePrediction"]
__all__ += ["Sample", "Spherical"]

Batch = Float[Tensor, "B *shape"]
PerImage = Float[Tensor, " B"]
Targets = Any
"""What each image is steered to (`steersman.guidance.target`): a tensor, or nested tuples or dictionaries of tensors,
with a row for each image."""
Classes = Int[Tensor, " B"] | Int[Tensor, "B S"]
"""Targets that are classes: the index of one, or those of a set, filled up with -1."""

FixedVariance = Literal["small", "large", "clipped"]
InjectionPoint = Literal["sample", "estimate", "mean", "deviation"]
Kept = Literal["noise", "sample"]


class Step(NamedTuple):
    """A step of a trajectory.

    Attributes:
        index: The step's index, 0 first.
        count: The number of steps.
        repeat: The repetition of the step under recurrence, 0 first.
        stage: The evaluation of the denoiser within the step: 0, and 1 for Heun's second.
        level: The level of that evaluation; of the first one, the level that the step starts from.
        next: The level that the step leads to.
        variance: The reverse variance ``Sigma_t`` of this pair of levels: (), or the sample's shape where learned.
        peak: The largest variance of the steps so far.
        levels: All levels of the trajectory, the noisiest first; one more than steps.
    """

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]
    repeat: int
    stage: int
    level: Level
    next: Level
    variance: Float[Tensor, "..."]
    peak: Float[Tensor, "..."]
    levels: tuple[Level, ...] = ()

    @classmethod
    def at(cls, levels: Sequence[Level], index: int, fixed: FixedVariance = "small") -> "Step":
        """Returns a step of a trajectory over some levels, with the fixed reverse variances."""
        pairs = pairwise(levels[: index + 2])
        variances = [reverse_variance(level, next, fixed=fixed, levels=levels) for level, next in pairs]
        peak = torch.stack(variances).max()
        return cls(index, len(levels) - 1, 0, 0, levels[index], levels[index + 1], variances[-1], peak, tuple(levels))

    @property
    def left(self) -> int:
        """The number of steps after this one: t, counted T-1 .. 0."""
        return self.count - 1 - self.index

    @property
    def varies(self) -> bool:
        """Whether the step has a variance; a learned one is above zero, so that no accelerator needs to be awaited."""
        return self.variance.ndim > 0 or bool(self.variance > 0)

    @property
    def start(self) -> Level:
        """The level that the whole step starts from, at each of its evaluations."""
        return self.levels[self.index] if self.stage else self.level


def transition(level: Level, next: Level) -> tuple[Float64[Tensor, "*batch"], Float64[Tensor, "*batch"]]:
    """Returns ``r = alpha_t / alpha_s`` and ``beta``, of ``x_t = r x_s + sqrt(beta) eps``."""
    ratio = level.alpha / next.alpha
    return ratio, level.sigma**2 - ratio**2 * next.sigma**2


def posterior_mean(x_t: Batch, x0: Batch, level: Level, next: Level) -> Batch:
    """Returns ``mu``, the mean of ``x_s`` given ``x_t`` and ``x_0``."""
    ratio, beta = transition(level, next)
    of_x_t = ratio * next.sigma**2 / level.sigma**2
    of_x0 = next.alpha * beta / level.sigma**2
    return broadcast(of_x_t, x_t) * x_t + broadcast(of_x0, x0) * x0


def reverse_variance(
    level: Level,
    next: Level,
    fraction: Batch | None = None,
    fixed: FixedVariance = "small",
    levels: Sequence[Level] = (),
) -> Float[Tensor, "..."]:
    """Returns ``Sigma_t`` of a pair of levels."""
    _, beta = transition(level, next)
    small = beta * next.sigma**2 / level.sigma**2
    if fixed == "clipped" and not small > 0 and len(levels) > 2:
        small = reverse_variance(levels[-3], levels[-2])
    if fraction is None or not small > 0:
        return beta if fixed == "large" and fraction is None else small
    log_small, log_share = (broadcast(value.log(), fraction) for value in (small, beta / small))
    return (log_small + fraction * log_share).exp()  # one CPU scalar an operation: accelerators take no two


@runtime_checkable
class ClassifierInput(Protocol):
    """Chooses the image that the classifier sees.

    Attributes:
        needs_denoiser: Whether it depends on the prediction, so that the gradient with respect to ``x_t``
            differentiates the denoiser.
    """

    @property
    def needs_denoiser(self) -> bool: ...  # noqa: D102

    def __call__(self, x_t: Batch, prediction: Prediction | None, level: Level, denoiser: Denoiser) -> Batch:
        """Returns the input. The prediction is given where it is needed, the denoiser for further evaluations."""
        ...


@dataclass(frozen=True, kw_only=True)
class Noisy:
    """The noisy image ``x_t``, for classifiers that were trained on noisy images.

    Example:
        >>> import steersman as sm
        >>> guide = sm.Guide(objective=lambda image, target, level: image.sum(), input=sm.Noisy(), wrt="x_t")
        >>> guide.needs_denoiser, guide.differentiates_denoiser
        (False, False)
    """

    needs_denoiser = False

    def __call__(self, x_t: Batch, prediction: Prediction | None, level: Level, denoiser: Denoiser) -> Batch:
        return x_t


@dataclass(frozen=True, kw_only=True)
@finite
class Denoised:
    """The denoised image ``x0_hat`` (EluCD 4.2, nrCG eq. 5).

    Attributes:
        clip: Whether to clip it to [-1, 1]; the gradient includes the clip.
        guided: Whether to include the updates of the guides before this one in the same step.

    Example:
        >>> import steersman as sm
        >>> guide = sm.Guide(objective=lambda image, target, level: image.sum(), input=sm.Denoised(), wrt="x_t")
        >>> guide.needs_denoiser, guide.differentiates_denoiser
        (True, True)
    """

    clip: bool = True
    guided: bool = False
    needs_denoiser = True

    def __call__(self, x_t: Batch, prediction: Prediction | None, level: Level, denoiser: Denoiser) -> Batch:
        assert prediction is not None, "the loop evaluates the denoiser first"
        return prediction.x0_hat.clamp(-1, 1) if self.clip else prediction.x0_hat


@dataclass(frozen=True, kw_only=True)
@finite
class Lookahead:
    """The lookahead input: the denoised image after a few more deterministic steps (Pan et al. 2023).

    At high noise ``x0_hat`` is a blur, the mean of all images that ``x_t`` could become, and no classifier was trained
    on such an image. After a few deterministic steps it is one of these images, and sharp.

    Attributes:
        evaluations: The number of additional evaluations of the denoiser at each step, at least 1.
        until: The noise-to-signal ratio ``sigma / alpha`` of the last one, above 0. At less noise the classifier input
            is that of `Denoised`.
        clip: Whether to clip the image to [-1, 1]; the gradient includes the clip.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> denoiser, x_t = sm.load_denoiser("zoo:mnist"), 5.0 * torch.ones(1, 1, 28, 28)
        >>> prediction = denoiser(x_t, level := denoiser.schedule.at_ratio(5.0))
        >>> inputs = (sm.Denoised(), sm.Lookahead(evaluations=2))
        >>> [round(input(x_t, prediction, level, denoiser).std().item(), 1) for input in inputs]
        [0.7, 0.8]
    """

    evaluations: int = 1
    until: float = 0.3
    clip: bool = True
    needs_denoiser = True

    def __post_init__(self) -> None:
        if self.evaluations < 1 or not self.until > 0:
            raise InputError(
                f"input.evaluations must be at least 1 and input.until above 0, got {self.evaluations} and {self.until}"
            )

    def __call__(self, x_t: Batch, prediction: Prediction | None, level: Level, denoiser: Denoiser) -> Batch:
        assert prediction is not None, "the loop evaluates the denoiser first"
        x0_hat = look_ahead(denoiser, x_t, prediction, level, self.evaluations, self.until).x0_hat
        return x0_hat.clamp(-1, 1) if self.clip else x0_hat


@dataclass(frozen=True, kw_only=True)
class Rescaled:
    """The noisy image brought back to the range of images, ``x_t / max(1, rms(x_t))`` (EluCD, Algorithm 2).

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> denoiser = sm.load_denoiser("zoo:mnist")
        >>> z = sm.Rescaled()(torch.full((1, 1, 28, 28), 2.5), None, denoiser.schedule.at_ratio(5.0), denoiser)
        >>> round(z.square().mean().sqrt().item(), 2)
        1.0
    """

    needs_denoiser = False

    def __call__(self, x_t: Batch, prediction: Prediction | None, level: Level, denoiser: Denoiser) -> Batch:
        size = repeat(rms(x_t).reshape(-1, 1).clamp(min=1), 1, x_t[0].numel())
        return x_t / size.reshape_as(x_t)


class Estimate(NamedTuple):
    """What a sampler steps by: the denoised image, the noise that belongs to it, and the reverse variance.

    Attributes:
        x0: The denoised image, clipped and guided.
        eps: The noise. ``x_t = alpha x0 + sigma eps`` holds unless a denoised-image injection changed one alone.
        variance: ``Sigma_t`` of the step: (), or the sample's shape where it is learned.
    """

    x0: Batch
    eps: Batch
    variance: Float[Tensor, "..."]


@runtime_checkable
class Injection(Protocol):
    """Adds an update to the step at one injection point, by the method of that name; the others change nothing.

    Attributes:
        point: The injection point.
        needs_signal: Whether an update has no value where ``alpha = 0``.
    """

    point: ClassVar[InjectionPoint]
    needs_signal: ClassVar[bool] = False

    def sample(self, x_t: Batch, update: Batch) -> Batch:
        """Returns the sample to step from, before the denoiser is evaluated."""
        return x_t

    def estimate(self, estimate: Estimate, update: Batch, level: Level) -> Estimate:
        """Returns the estimate to step by."""
        return estimate

    def mean(self, mean: Batch, update: Batch) -> Batch:
        """Returns the mean of the next sample."""
        return mean

    def deviation(self, deviation: Batch, update: Batch, variance: Float[Tensor, "..."]) -> Batch:
        """Returns the noise that is added to the mean, of which the sampler drew one of the given variance."""
        return deviation


@dataclass(frozen=True, kw_only=True)
class Sample(Injection):
    """Adds the guidance update to the sample, before the denoiser is evaluated: ``x_t + p``.

    An update that needs the denoised image costs one more evaluation of the denoiser.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> sm.Sample().sample(torch.ones(1, 2), 0.5 * torch.ones(1, 2))
        tensor([[1.5000, 1.5000]])
    """

    point: ClassVar[InjectionPoint] = "sample"

    def sample(self, x_t: Batch, update: Batch) -> Batch:
        """Returns ``x_t + p``."""
        return x_t + update


@dataclass(frozen=True, kw_only=True)
class NoisePrediction(Injection):
    """Changes the noise prediction to ``eps - sigma p``, and the denoised image with it, which is not clipped again.

    Without signal, ``alpha = 0``, the sample says nothing about the image, so ``p(y | x_t) = p(y)``: the score changes
    by zero, the denoised image by 0 / 0. The guide is inactive at such a level.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> from steersman.guidance import Estimate
        >>> estimate = Estimate(x0=torch.zeros(1, 2), eps=torch.ones(1, 2), variance=torch.tensor(0.1))
        >>> guided = sm.NoisePrediction().estimate(estimate, torch.full((1, 2), 0.1), sm.EDM().at_ratio(2.0))
        >>> [round(value.mean().item(), 2) for value in (guided.x0, guided.eps)]
        [0.4, 0.8]
    """

    point: ClassVar[InjectionPoint] = "estimate"
    needs_signal: ClassVar[bool] = True

    def estimate(self, estimate: Estimate, update: Batch, level: Level) -> Estimate:
        """Returns ``eps - sigma p`` and its ``x0``."""
        alpha, sigma = broadcast(level.alpha, update), broadcast(level.sigma, update)
        return estimate._replace(x0=estimate.x0 + sigma**2 / alpha * update, eps=estimate.eps - sigma * update)


@dataclass(frozen=True, kw_only=True)
@finite
class DenoisedImage(Injection):
    """Adds the guidance update to the denoised image: ``x0_hat + p``.

    Attributes:
        keeps: What stays the same: ``noise`` for the noise prediction, or ``sample`` for ``x_t = alpha x0 + sigma
            eps``. A sampler that uses the denoised image alone, such as DDPM, always keeps the sample.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> from steersman.guidance import Estimate
        >>> estimate = Estimate(x0=torch.zeros(1, 2), eps=torch.ones(1, 2), variance=torch.tensor(0.1))
        >>> guided = sm.DenoisedImage().estimate(estimate, torch.full((1, 2), 0.4), sm.EDM().at_ratio(2.0))
        >>> [round(value.mean().item(), 2) for value in (guided.x0, guided.eps)]
        [0.4, 1.0]
    """

    keeps: Kept = "noise"
    point: ClassVar[InjectionPoint] = "estimate"

    def __post_init__(self) -> None:
        if self.keeps not in get_args(Kept):
            raise unknown("injection.keeps", self.keeps, get_args(Kept))

    def estimate(self, estimate: Estimate, update: Batch, level: Level) -> Estimate:
        """Returns ``x0 + p``, with the same ``eps`` or with ``eps - (alpha / sigma) p``."""
        eps = estimate.eps
        if self.keeps == "sample":
            eps = eps - broadcast(level.alpha / level.sigma, update) * update
        return estimate._replace(x0=estimate.x0 + update, eps=eps)


@dataclass(frozen=True, kw_only=True)
class Mean(Injection):
    """Adds the guidance update to the mean of the reverse step: ``mu + p``.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> sm.Mean().mean(torch.ones(1, 2), 0.5 * torch.ones(1, 2))
        tensor([[1.5000, 1.5000]])
    """

    point: ClassVar[InjectionPoint] = "mean"

    def mean(self, mean: Batch, update: Batch) -> Batch:
        """Returns ``mu + p``."""
        return mean + update


@dataclass(frozen=True, kw_only=True)
class Spherical(Injection):
    """Rotates the step's noise towards the guidance update and keeps its length (DSG); needs a sampler with noise.

    Example:
        Two values of variance 0.5 have the length 1 before and after.

        >>> import steersman as sm
        >>> import torch
        >>> turned = sm.Spherical().deviation(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.5]]), torch.tensor(0.5))
        >>> [round(value, 3) for value in turned.flatten().tolist()]
        [0.707, 0.707]
    """

    point: ClassVar[InjectionPoint] = "deviation"

    def deviation(self, deviation: Batch, update: Batch, variance: Float[Tensor, "..."]) -> Batch:
        """Returns ``r m / |m|``, r the root of the summed variances; without an update, the noise at the length r."""
        radius, size = norm(torch.ones_like(update) * variance.to(update.dtype).sqrt()), norm(update)
        rate = (size / radius).clamp(max=1)
        mixed = (1 - rate) * deviation + rate * radius * (update / torch.where(size > 0, size, 1))
        return radius * mixed / norm(mixed)
