"""EDM's sampler (Karras et al. 2022, Algorithm 2), in the coordinates ``z = x / alpha`` and ``t = sigma / alpha``:

    churn    z_hat = z + S_noise sqrt(t_hat^2 - t^2) eps,   t_hat = (1 + gamma) t
             gamma = min(S_churn / N, sqrt(2) - 1) where S_tmin <= t <= S_tmax, else 0
    Euler    z_s = z_hat + (t_s - t_hat) d                  d = (z_hat - x0_hat) / t_hat = eps_hat
    Heun     z_s = z_hat + (t_s - t_hat) (d + d_s) / 2      d_s at Euler's z_s; not into a clean image

Euler's step is DDIM's, ``z_s = x0_hat + t_s eps_hat``, and Heun's adds ``(t_s - t_hat) (d_s - d) / 2`` to it. Where
there is no signal, t is infinite: the step from there is Euler's, and nothing can be churned.
"""  # noqa: D205, D415

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from steersman.errors import InputError
from steersman.guidance.step import Step, transition
from steersman.sampling.sampler import Draw, Move, Predict, Sampler
from steersman.schedule import Level, broadcast, check_ratios
from steersman.typed import finite

__all__ = ["Heun"]


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

    def step(
        self, x_t: Float[Tensor, "B C H W"], step: Step, predict: Predict, draw: Draw, state: tuple
    ) -> tuple[Move, tuple]:
        """Returns Heun's step from the churned sample; Euler's into a clean image, and out of pure noise."""
        x_t, level = self._churned(x_t, step, predict, draw)
        alpha, sigma = (broadcast(value, x_t) for value in (step.next.alpha, step.next.sigma))
        estimate = predict(x_t, level)
        x_s = alpha * estimate.x0 + sigma * estimate.eps
        if step.next.sigma > 0 and level.alpha > 0:
            change = predict(x_s, step.next, stage=1).eps - estimate.eps
            half = (step.next.sigma - step.next.alpha * level.sigma / level.alpha) / 2
            x_s = x_s + broadcast(half, x_s) * change
        return Move(x_s), state

    def _churned(
        self, x_t: Float[Tensor, "B C H W"], step: Step, predict: Predict, draw: Draw
    ) -> tuple[Float[Tensor, "B C H W"], Level]:
        """Takes a sample up to ``t_hat``, or as far as the schedule goes."""
        t = float(step.level.sigma / step.level.alpha)
        churned = self.ratio_min <= t <= self.ratio_max and t < math.inf
        gamma = min(self.churn / step.count, math.sqrt(2) - 1) if churned else 0.0
        if gamma == 0:
            return x_t, step.level
        hat = predict.schedule.at_ratio((1 + gamma) * t)
        ratio, beta = transition(hat, step.level)
        return broadcast(ratio, x_t) * x_t + broadcast(self.noise * beta.sqrt(), x_t) * draw(), hat
