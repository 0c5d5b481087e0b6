"""Injections: where the push ``p = s w_t g`` of a guide enters the step.

    mean        mu <- mu + p
    noise       eps <- eps - sigma p,  so  x0_hat <- x0_hat + (sigma^2 / alpha) p
    denoised    x0_hat <- x0_hat + p,  eps kept                                                  (MPGD, He et al. 2024)

In score terms the noise injection adds p to the score; the mean injection of ``s Sigma_t g`` on DDPM does the same with
``sqrt(a_t) Sigma_t / beta_t`` times the scale. So a scale on one injection says nothing about another.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from steersman.schedule import Level, broadcast

__all__ = ["DenoisedImage", "Estimate", "Injection", "Mean", "NoisePrediction"]


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
    """Lets a push into the step, before it (the estimate) or after it (the mean)."""

    def estimate(self, estimate: Estimate, push: Float[Tensor, "B C H W"], level: Level) -> Estimate:
        """Returns the estimate to step by."""
        ...

    def mean(self, mean: Float[Tensor, "B C H W"], push: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Returns the mean of the next sample."""
        ...


@dataclass(frozen=True, kw_only=True)
class Mean:
    """The mean of the reverse step is moved."""

    def estimate(self, estimate: Estimate, push: Float[Tensor, "B C H W"], level: Level) -> Estimate:
        """Returns it as it is."""
        return estimate

    def mean(self, mean: Float[Tensor, "B C H W"], push: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Returns ``mu + p``."""
        return mean + push


@dataclass(frozen=True, kw_only=True)
class NoisePrediction:
    """The noise prediction is moved, and the denoised image with it; not clipped again."""

    def estimate(self, estimate: Estimate, push: Float[Tensor, "B C H W"], level: Level) -> Estimate:
        """Returns ``eps - sigma p`` and its ``x0``."""
        alpha, sigma = broadcast(level.alpha, push), broadcast(level.sigma, push)
        return estimate._replace(x0=estimate.x0 + sigma**2 / alpha * push, eps=estimate.eps - sigma * push)

    def mean(self, mean: Float[Tensor, "B C H W"], push: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Returns it as it is."""
        return mean


@dataclass(frozen=True, kw_only=True)
class DenoisedImage:
    """The denoised image is moved, the noise prediction kept."""

    def estimate(self, estimate: Estimate, push: Float[Tensor, "B C H W"], level: Level) -> Estimate:
        """Returns ``x0 + p``."""
        return estimate._replace(x0=estimate.x0 + push)

    def mean(self, mean: Float[Tensor, "B C H W"], push: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Returns it as it is."""
        return mean
