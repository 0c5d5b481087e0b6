"""Injections: where the update ``p = s w_t g`` of a guide enters the step.

    sample       x_t <- x_t + p,  before the denoiser is asked for the step                     (EluCD, Algorithm 2)
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

from steersman.batching import norm
from steersman.errors import unknown
from steersman.schedule import Level, broadcast
from steersman.typed import finite

__all__ = ["DenoisedImage", "Estimate", "Injection", "Kept", "Mean", "Moment", "NoisePrediction", "Sample", "Spherical"]

Moment = Literal["sample", "estimate", "mean", "deviation"]
Kept = Literal["noise", "sample"]


class Estimate(NamedTuple):
    """What a sampler steps by: the denoised image, the noise that belongs to it, and the reverse variance.

    Attributes:
        x0: The denoised image, clipped and guided.
        eps: The noise. ``x_t = alpha x0 + sigma eps`` holds unless a denoised-image injection parted them.
        variance: ``Sigma_t`` of the step: (), or the sample's shape where it is learned.
    """

    x0: Float[Tensor, "B C H W"]
    eps: Float[Tensor, "B C H W"]
    variance: Float[Tensor, "..."]


@runtime_checkable
class Injection(Protocol):
    """Lets an update into the step at one moment; at the others, nothing changes.

    Attributes:
        moment: That moment, the name of the method that is its own.
    """

    moment: ClassVar[Moment]

    def defined(self, level: Level) -> bool:
        """Whether an update has a value at a level."""
        return True

    def sample(self, x_t: Float[Tensor, "B C H W"], update: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Returns the sample to step from; the denoiser is asked about it."""
        return x_t

    def estimate(self, estimate: Estimate, update: Float[Tensor, "B C H W"], level: Level) -> Estimate:
        """Returns the estimate to step by."""
        return estimate

    def mean(self, mean: Float[Tensor, "B C H W"], update: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Returns the mean of the next sample."""
        return mean

    def deviation(
        self, deviation: Float[Tensor, "B C H W"], update: Float[Tensor, "B C H W"], variance: Float[Tensor, "..."]
    ) -> Float[Tensor, "B C H W"]:
        """Returns what is added to that mean, of which the sampler drew one of the given variance."""
        return deviation


@dataclass(frozen=True, kw_only=True)
class Sample(Injection):
    """Adds the guidance update to the sample, before the denoiser is evaluated: ``x_t + p``.

    An update that needs the denoised image costs one more evaluation of the denoiser.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> objective = sm.TargetLogit(classifier=sm.load_classifier("zoo:mnist-lenet"))
        >>> guide = sm.Guide(objective=objective, injection=sm.Sample())
        >>> guide.injection.sample(torch.ones(1, 1, 1, 2), 0.5 * torch.ones(1, 1, 1, 2))
        tensor([[[[1.5000, 1.5000]]]])
    """

    moment: ClassVar[Moment] = "sample"

    def sample(self, x_t: Float[Tensor, "B C H W"], update: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
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
        >>> estimate = Estimate(x0=torch.zeros(1, 1, 1, 2), eps=torch.ones(1, 1, 1, 2), variance=torch.tensor(0.1))
        >>> moved = sm.NoisePrediction().estimate(estimate, torch.full((1, 1, 1, 2), 0.1), sm.EDM().at_ratio(2.0))
        >>> [round(value.mean().item(), 2) for value in (moved.x0, moved.eps)]
        [0.4, 0.8]
    """

    moment: ClassVar[Moment] = "estimate"

    def defined(self, level: Level) -> bool:
        """Whether there is a signal."""
        return bool((level.alpha > 0).all())

    def estimate(self, estimate: Estimate, update: Float[Tensor, "B C H W"], level: Level) -> Estimate:
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
        >>> estimate = Estimate(x0=torch.zeros(1, 1, 1, 2), eps=torch.ones(1, 1, 1, 2), variance=torch.tensor(0.1))
        >>> moved = sm.DenoisedImage().estimate(estimate, torch.full((1, 1, 1, 2), 0.4), sm.EDM().at_ratio(2.0))
        >>> [round(value.mean().item(), 2) for value in (moved.x0, moved.eps)]
        [0.4, 1.0]
    """

    keeps: Kept = "noise"
    moment: ClassVar[Moment] = "estimate"

    def __post_init__(self) -> None:
        if self.keeps not in get_args(Kept):
            raise unknown("injection.keeps", self.keeps, get_args(Kept))

    def estimate(self, estimate: Estimate, update: Float[Tensor, "B C H W"], level: Level) -> Estimate:
        """Returns ``x0 + p``, with the ``eps`` that was or with ``eps - (alpha / sigma) p``."""
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
        >>> objective = sm.TargetLogit(classifier=sm.load_classifier("zoo:mnist-lenet"))
        >>> guide = sm.Guide(objective=objective, weight=sm.Variance(), injection=sm.Mean())
        >>> guide.injection.mean(torch.ones(1, 1, 1, 2), 0.5 * torch.ones(1, 1, 1, 2))
        tensor([[[[1.5000, 1.5000]]]])
    """

    moment: ClassVar[Moment] = "mean"

    def mean(self, mean: Float[Tensor, "B C H W"], update: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Returns ``mu + p``."""
        return mean + update


@dataclass(frozen=True, kw_only=True)
class Spherical(Injection):
    """Rotates the step's noise towards the guidance update and keeps its length (DSG); needs a sampler with noise.

    Example:
        Two values of variance 0.5 have the length 1 before and after.

        >>> import steersman as sm
        >>> import torch
        >>> noise, update = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2), torch.tensor([0.0, 0.5]).reshape(1, 1, 1, 2)
        >>> turned = sm.Spherical().deviation(noise, update, torch.tensor(0.5))
        >>> [round(value, 3) for value in turned.flatten().tolist()]
        [0.707, 0.707]
    """

    moment: ClassVar[Moment] = "deviation"

    def deviation(
        self, deviation: Float[Tensor, "B C H W"], update: Float[Tensor, "B C H W"], variance: Float[Tensor, "..."]
    ) -> Float[Tensor, "B C H W"]:
        """Returns ``r m / |m|``, r the root of the summed variances; without an update, the noise at the length r."""
        radius, size = norm(torch.ones_like(update) * variance.to(update.dtype).sqrt()), norm(update)
        rate = (size / radius).clamp(max=1)
        mixed = (1 - rate) * deviation + rate * radius * (update / torch.where(size > 0, size, 1))
        return radius * mixed / norm(mixed)
