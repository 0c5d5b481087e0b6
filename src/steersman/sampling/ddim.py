"""DDIM (Song et al. 2021): with ``Sigma = eta^2 beta_tilde``,

    x_s = alpha_s x0_hat + sqrt(sigma_s^2 - Sigma) eps_hat + sqrt(Sigma) eps.

``eta = 0`` is deterministic, ``eta = 1`` has DDPM's variance.
"""  # noqa: D205, D415

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from steersman.errors import InputError
from steersman.guidance.step import Step, reverse_variance
from steersman.sampling.sampler import Draw, Move, Predict, Sampler, randomly
from steersman.schedule import broadcast
from steersman.typed import finite

__all__ = ["DDIM"]


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

    def step(
        self, x_t: Float[Tensor, "B C H W"], step: Step, predict: Predict, draw: Draw, state: tuple
    ) -> tuple[Move, tuple]:
        """Returns the deterministic part and ``sqrt(Sigma) eps``."""
        estimate = predict(x_t, step.level)
        variance = self.eta**2 * reverse_variance(step.level, step.next)
        of_eps = (step.next.sigma**2 - variance).clamp(min=0).sqrt()
        mean = broadcast(step.next.alpha, x_t) * estimate.x0 + broadcast(of_eps, x_t) * estimate.eps
        return Move(mean, randomly(variance, draw, step), variance), state
