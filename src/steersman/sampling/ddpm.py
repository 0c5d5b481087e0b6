"""DDPM's ancestral step (Ho et al. 2020): ``x_s ~ N(mu(x_t, x0_hat), Sigma_t)``, of any pair of levels."""

from dataclasses import dataclass
from typing import get_args

from jaxtyping import Float
from torch import Tensor

from steersman.errors import unknown
from steersman.guidance.step import FixedVariance, Step, posterior_mean
from steersman.sampling.sampler import Draw, Move, Predict, randomly
from steersman.typed import finite

__all__ = ["DDPM"]


@dataclass(frozen=True, kw_only=True)
@finite
class DDPM:
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

    fixed: FixedVariance = "small"

    def __post_init__(self) -> None:
        if self.fixed not in get_args(FixedVariance):
            raise unknown("variance", self.fixed, get_args(FixedVariance))

    @property
    def noisy(self) -> bool:
        """Whether a step adds noise; always true."""
        return True

    def init(self, x: Float[Tensor, "B C H W"]) -> tuple:
        """Returns no state."""
        return ()

    def step(
        self, x_t: Float[Tensor, "B C H W"], step: Step, predict: Predict, draw: Draw, state: tuple
    ) -> tuple[Move, tuple]:
        """Returns ``mu`` and ``sqrt(Sigma_t) eps``."""
        estimate = predict(x_t, step.level)
        mean = posterior_mean(x_t, estimate.x0, step.level, step.next)
        return Move(mean, randomly(estimate.variance, draw, step), estimate.variance), state
