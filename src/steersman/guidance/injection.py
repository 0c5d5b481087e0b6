"""Injections: where the update ``p = s w_t g`` of a guide enters the step.

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

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.batching import broadcast, norm
from steersman.errors import unknown
from steersman.guidance.step import Batch
from steersman.schedule import Level
from steersman.typed import finite

__all__ = ["DenoisedImage", "Estimate", "Injection", "InjectionPoint", "Kept", "Mean", "NoisePrediction"]
__all__ += ["Sample", "Spherical"]

InjectionPoint = Literal["sample", "estimate", "mean", "deviation"]
Kept = Literal["noise", "sample"]


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
