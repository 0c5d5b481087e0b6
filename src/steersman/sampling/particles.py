"""Particles: several candidates an image, of which the likelier go on.

Before a step, each candidate x_t of an image is weighed by the guides' log-likelihood r of their target there, the sum
over the guides. With inverse temperature lambda, the weights grow by a potential (Singhal et al. 2025),

    sum           log G = lambda r(x_t)
    difference    log G = lambda (r(x_t) - r(x_u)),  x_u the candidate's own past, the last time that it was weighed
    max           log G = lambda max r  over the candidate's past and present

and as many candidates are drawn by their weights, systematically (Kitagawa 1996), once the effective sample size
``(sum w)^2 / sum w^2`` is small enough. In the end one of them goes on alone, the likeliest, or one by the weights.
With differences the potentials of a whole walk multiply to ``exp(lambda r(x_0))``: many particles then draw from
``p(x_0) exp(lambda r(x_0))``.

No gradient is needed: a guide of scale 0 weighs and does not update. A guide that updates gives its likelihood with the
gradient, at no further cost; but then the candidates come from another walk. A step that it moves by delta, from
``N(mu, Sigma)`` to ``x_s = mu + delta + d``, is corrected for by (Wu et al. 2023, twisted SMC)

    log N(x_s; mu, Sigma) / N(x_s; mu + delta, Sigma) = -sum (d + delta / 2) delta / Sigma

so that many particles draw from the same ``p(x_0) exp(lambda r(x_0))``, whatever moves them. With an update towards
where they should be, fewer of them are enough. An update longer than the step's own noise leaves few of them any
weight: so does the noise injection's at low noise on DDPM, as it goes by ``beta``, but the small variance is less. The
step into the clean image has no density, and is not pushed.
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

__all__ = ["Particles", "Swarm"]

Potential = Literal["sum", "difference", "max"]
Choice = Literal["likeliest", "draw"]

WORST = -1e12  # the log-weight of a candidate without a finite likelihood; finite, so that shares stay numbers


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
        fraction: Particles are resampled when the effective sample size is at most this fraction of the count.
        choice: The particle that is kept: the ``likeliest``, or one by ``draw`` with the weights.
        corrected: Whether the weights correct for the guidance updates (twisted SMC).

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
    fraction: float = 1.0
    choice: Choice = "likeliest"
    corrected: bool = False

    def __post_init__(self) -> None:
        if self.count < 1 or self.every < 1:
            raise InputError(
                f"particles.count and particles.every must be at least 1, got {self.count} and {self.every}"
            )
        if not (self.ratio_min >= 0 and self.ratio_max >= 0):
            raise InputError(
                f"particles.ratio_min and particles.ratio_max must be at least 0, got {self.ratio_min} and "
                f"{self.ratio_max}"
            )
        if not 0 < self.temperature < math.inf:
            raise InputError(f"particles.temperature must be above 0 and finite, got {self.temperature}")
        if not 0 <= self.fraction <= 1:
            raise InputError(f"particles.fraction must be between 0 and 1, got {self.fraction}")
        if self.potential not in get_args(Potential):
            raise unknown("particles.potential", self.potential, get_args(Potential))
        if self.choice not in get_args(Choice):
            raise unknown("particles.choice", self.choice, get_args(Choice))


class Swarm:
    """The candidates of one walk of a batch: how many each image has left, and their weights.

    Rows of the batch are image by image, each with its candidates. The weights stay on the device, so that the host
    never waits for them: in float64 on a CPU, in float32 elsewhere, as not every accelerator has float64. Which rows go
    on is decided there too.

    Args:
        particles: What is done with them.
        images: How many images there are.
        device: Where the batch is.

    Attributes:
        count: The candidates that each image has left.
        rows: Of a batch of images, the rows that make it one of candidates.
        leaders: Each image's row that was the likeliest when they were weighed last.
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
        """Whether the candidates are weighed before the step from a level, the index-th."""
        ratio = float(level.sigma / level.alpha)
        return self.count > 1 and (
            ratio <= self.particles.ratio_min
            or (ratio <= self.particles.ratio_max and index % self.particles.every == 0)
        )

    @property
    def corrects(self) -> bool:
        """Whether the weights make up for the guides' updates."""
        return self.particles.corrected and self.count > 1

    def check(self, guides: Sequence[Guide], *, noisy: bool | None) -> None:
        """Refuses updates that the weights cannot make up for.

        Args:
            guides: The guides.
            noisy: Whether the sampler's steps end with noise, or None if that is not known.

        Raises:
            InputError: An update enters elsewhere than through the mean of a step, or there is no noise around it.
        """
        if not self.corrects:
            return
        if noisy is False:
            raise _noiseless()
        for guide in guides:
            if guide.scale and guide.injection.moment not in ("estimate", "mean"):
                raise InputError(
                    f"particles.corrected must be false with a guidance update of the {guide.injection.moment}, got "
                    "true; use the injection mean, noise or denoised, which moves the mean of a step"
                )

    def correct(
        self,
        delta: Float[Tensor, "N C H W"],
        deviation: Float[Tensor, "N C H W"] | None,
        variance: Float[Tensor, "..."] | None,
    ) -> None:
        """Lets the weights grow by how much likelier a step is without its updates than with them.

        Args:
            delta: By how much they moved the step's mean.
            deviation: The noise that was added to it.
            variance: That noise's variance.

        Raises:
            InputError: There was none.
        """
        if deviation is None or variance is None:
            raise _noiseless()
        log_ratio = -total((deviation + delta / 2) * delta / variance.to(delta.dtype))
        log_ratio = log_ratio.reshape_as(self.weights).to(self.dtype)
        self.weights = self.weights + torch.where(log_ratio.isfinite(), log_ratio, WORST)

    def choose(
        self, log_likelihood: Float[Tensor, " N"], level: Level, uniform: Float[Tensor, " B"]
    ) -> Int[Tensor, " M"]:
        """Returns the rows that go on.

        Args:
            log_likelihood: Each candidate's; those that are not finite do not go on while another one is.
            level: Where they are.
            uniform: A draw between 0 and 1 for each image, on any device.
        """
        r = log_likelihood.reshape_as(self.weights).to(self.dtype)
        self._weigh(r / self.particles.temperature)
        r = torch.where(r.isfinite(), r, WORST)
        share, uniform = self.weights.softmax(1), send(uniform.to(self.dtype), self.device)
        places = torch.arange(self.count, device=self.device)
        if float(level.sigma / level.alpha) <= self.particles.ratio_min:
            place = _drawn(share, uniform[:, None]) if self.particles.choice == "draw" else r.argmax(1, keepdim=True)
            self.count = 1
        else:
            again = 1 / total(share.square())[:, None] <= self.particles.fraction * self.count
            place = torch.where(again, _drawn(share, (uniform[:, None] + places) / self.count), places)
            self.weights = torch.where(again, 0, self.weights)
        self.past = self.past.gather(1, place)
        rows = self.first + place
        if self.count == 1:
            self.leaders = torch.arange(len(rows), device=self.device)
        else:
            self.leaders = (self.first + r.gather(1, place).argmax(1, keepdim=True))[:, 0]
        return rows.flatten()

    def _weigh(self, r: Float[Tensor, "B K"]) -> None:
        """Lets the weights grow by the potential; the largest is then 0, which keeps differences exact in float32.

        A candidate whose r is not finite gets the worst weight. Where an image has no other, none of them changes.
        """
        known = r.isfinite()
        if self.particles.potential == "max":
            r = torch.maximum(r, self.past)
        grown = self.weights + r - (self.past if self.particles.potential == "difference" else 0)
        weights = torch.where(known, grown, torch.where(known.any(1, keepdim=True), WORST, self.weights))
        self.weights = weights - weights.amax(1, keepdim=True)
        self.past = torch.where(known, r, self.past)


def _noiseless() -> InputError:
    return InputError(
        "particles.corrected must be false with a sampler whose steps end without noise, by whose density guidance "
        "updates are weighed, got true; use a sampler with noise, such as ddpm, or ddim with eta above 0"
    )


def _drawn(share: Float[Tensor, "B K"], marks: Float[Tensor, "B M"]) -> Int[Tensor, "B M"]:
    """Returns the place at which each row's running sum passes each mark."""
    return torch.searchsorted(share.cumsum(1), marks, right=True).clamp(max=share.shape[1] - 1)
