"""Particles: several samples of an image, weighted and resampled during sampling (sequential Monte Carlo).

Before a step, each particle x_t is weighted by the guides' log-likelihood r of their target, summed over the guides.
With inverse temperature lambda, which may change with the level, the log-weights grow by a potential (Singhal et al.
2025),

    sum           log G = lambda_t r(x_t)
    difference    log G = lambda_t r(x_t) - lambda_u r(x_u),  x_u the particle's past, when it was weighted last
    max           log G = lambda_t max r  over the particle's past and present

and particles are resampled systematically (Kitagawa 1996) once the effective sample size ``(sum w)^2 / sum w^2`` is
small enough. With differences, many particles draw from ``p(x_0) exp(lambda r(x_0))``. Where a guide moves the mean of
a step by delta, to ``x_s = mu + delta + d``, that law is kept by the correction (Wu et al. 2023, twisted SMC)

    log N(x_s; mu, Sigma) / N(x_s; mu + delta, Sigma) = -sum (d + delta / 2) delta / Sigma

Where even the particle that an image keeps has r below a limit, the image may go back, ``x_t = r x_s + sqrt(beta) eps``
from ``retry_at`` to ``retry_from``, and try again (backtracking; Zhang et al. 2025, Inference-time scaling of diffusion
models through classical search).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.batching import send, total
from steersman.errors import InputError, unknown
from steersman.guidance.guide import Guide
from steersman.schedule import Level
from steersman.typed import finite

__all__ = ["WORST", "ParticleFilter", "Particles"]

Potential = Literal["sum", "difference", "max"]
Choice = Literal["likeliest", "draw"]

WORST = -1e12  # the log-weight of a particle without a finite likelihood; finite, so that weights stay numbers


@dataclass(frozen=True, kw_only=True)
@finite
class Particles:
    """Several particles an image, weighted by the guides' log-likelihood and resampled during sampling.

    With ``ratio_max=0`` there is no resampling: best of n.

    Attributes:
        count: The number of particles of an image, at least 1.
        ratio_min: The noise-to-signal ratio ``sigma / alpha`` from which on one is kept; 0 for the clean image.
        ratio_max: Upper limit of the ratio at which particles are weighted.
        every: Particles are weighted at every k-th step between these limits.
        potential: How the weights grow: ``sum``, ``difference`` or ``max``.
        temperature: ``1 / lambda``, above 0; at a low temperature only the likeliest particles survive.
        temperature_end: The temperature at ``ratio_min``, where that at ``ratio_max`` is ``temperature``; between the
            two it changes evenly, in the logarithm of both. None for the same temperature everywhere.
        fraction: Particles are resampled when the effective sample size is at most this fraction of the count.
        choice: The particle that is kept: the ``likeliest``, or one by ``draw`` with the weights.
        corrected: Whether the weights correct for the guidance updates (twisted SMC).
        retries: How often, at most, noise is added back up to ``retry_from``, and the steps from there are tried again,
            for an image that is unlikely at ``retry_at``; of its tries the likeliest is kept.
        retry_below: The log-likelihood, of all guides that weigh, below which an image is unlikely.
        retry_at: The ratio at which that is asked, at most ``ratio_min``, which is the default; 0 for the clean image.
        retry_from: The ratio from which steps are tried again, at least ``ratio_max``, which is the default.

    Example:
        >>> import steersman as sm
        >>> from steersman.sampling import sample
        >>> denoiser, guides = sm.load_denoiser("zoo:mnist"), sm.load_recipe("nrcg").bind("zoo:mnist-lenet")
        >>> particles = sm.Particles(count=2, temperature=0.5)
        >>> sample(denoiser, sm.DDPM(), guides=guides, target="7", seeds=[0], steps=2, particles=particles).shape
        torch.Size([1, 1, 28, 28])
    """

    count: int = 1
    ratio_min: float = 0.0
    ratio_max: float = math.inf
    every: int = 1
    potential: Potential = "sum"
    temperature: float = 1.0
    temperature_end: float | None = None
    fraction: float = 1.0
    choice: Choice = "likeliest"
    corrected: bool = False
    retries: int = 0
    retry_below: float = -1.0
    retry_at: float | None = None
    retry_from: float | None = None

    def __post_init__(self) -> None:
        if self.count < 1 or self.every < 1:
            raise InputError(
                f"particles.count and particles.every must be at least 1, got {self.count} and {self.every}"
            )
        if self.retries < 0:
            raise InputError(f"particles.retries must be at least 0, got {self.retries}")
        if self.retries and self.corrected:
            raise InputError(
                f"particles.retries must be 0 with particles.corrected, whose law they would change, got {self.retries}"
            )
        if self.retry_at is not None and not 0 <= self.retry_at <= self.ratio_min:
            raise InputError(
                f"particles.retry_at must be between 0 and particles.ratio_min {self.ratio_min}, got {self.retry_at}"
            )
        if self.retry_from is not None and not self.retry_from >= self.ratio_max:
            raise InputError(
                f"particles.retry_from must be at least particles.ratio_max {self.ratio_max}, got {self.retry_from}"
            )
        if not (self.ratio_min >= 0 and self.ratio_max >= 0):
            raise InputError(
                f"particles.ratio_min and particles.ratio_max must be at least 0, got {self.ratio_min} and "
                f"{self.ratio_max}"
            )
        for name in ("temperature", "temperature_end"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise InputError(f"particles.{name} must be above 0 and finite, got {value}")
        if self.temperature_end is not None and not 0 < self.ratio_min < self.ratio_max < math.inf:
            raise InputError(
                "particles.temperature_end must be left out unless 0 < ratio_min < ratio_max, both finite, between "
                f"which the temperature changes, got ratio_min {self.ratio_min} and ratio_max {self.ratio_max}"
            )
        if not 0 <= self.fraction <= 1:
            raise InputError(f"particles.fraction must be between 0 and 1, got {self.fraction}")
        if self.potential not in get_args(Potential):
            raise unknown("particles.potential", self.potential, get_args(Potential))
        if self.choice not in get_args(Choice):
            raise unknown("particles.choice", self.choice, get_args(Choice))

    def temperature_at(self, ratio: float) -> float:
        """Returns the temperature at a noise-to-signal ratio ``sigma / alpha``."""
        if self.temperature_end is None:
            return self.temperature
        ratio = min(max(ratio, self.ratio_min), self.ratio_max)
        share = math.log(self.ratio_max / ratio) / math.log(self.ratio_max / self.ratio_min)
        return self.temperature ** (1 - share) * self.temperature_end**share


class ParticleFilter:
    """The particles of a batch: how many each image has left, and their weights.

    Rows of the batch are image by image, each with its particles. Weights and choices stay on the device, so that the
    host never waits for them: in float64 on a CPU, in float32 elsewhere, as not every accelerator has float64.

    Attributes:
        count: The number of particles that each image has left.
        rows: The rows of a batch of images that make it one of particles.
        leaders: The row of each image's likeliest particle when they were last weighted.
    """

    def __init__(self, particles: Particles, images: int, device: torch.device | str) -> None:
        self.particles, self.count, self.device = particles, particles.count, device
        self.rows = torch.arange(images * self.count, device=device) // self.count
        self.first = torch.arange(images, device=device)[:, None] * self.count
        self.leaders = self.first[:, 0]
        self.dtype = torch.float64 if torch.device(device).type == "cpu" else torch.float32
        self.weights = torch.zeros(images, self.count, dtype=self.dtype, device=device)
        self.past = torch.full_like(self.weights, -math.inf if particles.potential == "max" else 0.0)

    def weighs(self, level: Level, index: int) -> bool:
        """Whether the particles are weighted before the step from a level, the index-th."""
        if self.count == 1:
            return False
        ratio = float(level.sigma / level.alpha)
        return ratio <= self.particles.ratio_min or (
            ratio <= self.particles.ratio_max and index % self.particles.every == 0
        )

    def check(self, guides: Sequence[Guide], *, noisy: bool | None) -> None:
        """Refuses particles that no guide weighs, and updates that the weights cannot correct for.

        These are updates of anything but the mean, or without noise around it.
        """
        for name, value, least in (("count", self.count, 1), ("retries", self.particles.retries, 0)):
            if value > least and not any(guide.weighs for guide in guides):
                raise InputError(f"particles.{name} must be {least} without a guide that weighs them, got {value}")
        if not self.particles.corrected or self.count == 1:
            return
        if noisy is False:
            raise _noiseless()
        for guide in guides:
            if guide.scale and guide.injection.point not in ("estimate", "mean"):
                raise InputError(
                    f"particles.corrected must be false with a guidance update of the {guide.injection.point}, got "
                    "true; use the injection mean, noise or denoised, which moves the mean of a step"
                )

    def correct(
        self,
        delta: Float[Tensor, "N *shape"],
        deviation: Float[Tensor, "N *shape"] | None,
        variance: Float[Tensor, "..."] | None,
    ) -> None:
        """Adds ``-sum (d + delta / 2) delta / Sigma`` to the log-weights, for updates that moved the mean by delta."""
        if deviation is None or variance is None:
            raise _noiseless()
        log_ratio = -total((deviation + delta / 2) * delta / variance.to(delta.dtype))
        log_ratio = log_ratio.reshape_as(self.weights).to(self.dtype)
        self.weights = self.weights + torch.where(log_ratio.isfinite(), log_ratio, WORST)

    def choose(
        self, log_likelihood: Float[Tensor, " N"], level: Level, uniform: Float[Tensor, " B"]
    ) -> Int[Tensor, " M"]:
        """Returns the rows of the particles that survive, given a draw between 0 and 1 for each image.

        Particles without a finite likelihood do not survive while another one of their image does.
        """
        r = log_likelihood.reshape_as(self.weights).to(self.dtype)
        ratio = float(level.sigma / level.alpha)
        self._weigh(r, self.particles.temperature_at(ratio))
        r = torch.where(r.isfinite(), r, WORST)
        share, uniform = self.weights.softmax(1), send(uniform.to(self.dtype), self.device)
        if ratio <= self.particles.ratio_min:
            draws = self.particles.choice == "draw"
            index = _drawn(share, uniform[:, None]) if draws else r.argmax(1, keepdim=True)
            self.count = 1
        else:
            indices = torch.arange(self.count, device=self.device)
            resampled = 1 / total(share.square())[:, None] <= self.particles.fraction * self.count
            # Systematic resampling: one draw an image, and marks at equal distances from it.
            index = torch.where(resampled, _drawn(share, (uniform[:, None] + indices) / self.count), indices)
            self.weights = torch.where(resampled, 0, self.weights)
        self.past = self.past.gather(1, index)
        rows = self.first + index
        if self.count == 1:
            self.leaders = torch.arange(len(rows), device=self.device)
        else:
            self.leaders = (self.first + r.gather(1, index).argmax(1, keepdim=True))[:, 0]
        return rows.flatten()

    def _weigh(self, r: Float[Tensor, "B K"], temperature: float) -> None:
        """Adds the potential to the log-weights; the largest is then 0, which keeps differences exact in float32.

        A particle whose r is not finite gets the worst weight; where an image has no other, its weights do not change.
        """
        known, difference = r.isfinite(), self.particles.potential == "difference"
        if self.particles.potential == "max":
            r = torch.maximum(r, self.past)
        potential = r / temperature
        grown = self.weights + potential - (self.past if difference else 0)
        weights = torch.where(known, grown, torch.where(known.any(1, keepdim=True), WORST, self.weights))
        self.weights = weights - weights.amax(1, keepdim=True)
        self.past = torch.where(known, potential if difference else r, self.past)


def _noiseless() -> InputError:
    return InputError(
        "particles.corrected must be false with a sampler whose steps end without noise, by whose density guidance "
        "updates are weighed, got true; use a sampler with noise, such as ddpm, or ddim with eta above 0"
    )


def _drawn(share: Float[Tensor, "B K"], marks: Float[Tensor, "B M"]) -> Int[Tensor, "B M"]:
    """Returns the index at which the running sum of each row passes each mark."""
    return torch.searchsorted(share.cumsum(1), marks, right=True).clamp(max=share.shape[1] - 1)
