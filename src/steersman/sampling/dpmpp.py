"""DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2), in ``lambda = log(alpha / sigma)``, from t to s and with u before t:

    x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - exp(-h)) [x0_hat + (x0_hat - x0_u) / 2r]
    h   = lambda_s - lambda_t,   r = (lambda_t - lambda_u) / h

``x0_u`` is the denoised image of the step before. Without that term, as it is for the first step and into a clean
image, the step is DDIM's, ``x_s = alpha_s x0_hat + sigma_s eps_hat``.
"""  # noqa: D205, D415

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from steersman.guidance.step import Step
from steersman.sampling.sampler import Draw, Move, Predict, Sampler
from steersman.schedule import broadcast

__all__ = ["DPMpp"]


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
        """Whether a step adds noise; always false."""
        return False

    def init(self, x: Float[Tensor, "B C H W"]) -> tuple:
        """Returns no history; after a step, it is the denoised image and ``lambda``, a number."""
        return ()

    def step(
        self, x_t: Float[Tensor, "B C H W"], step: Step, predict: Predict, draw: Draw, state: tuple
    ) -> tuple[Move, tuple]:
        """Returns the step of second order; of first order without a history.

        A repeated step has none: its sample was renoised, and no longer lies on the way that the history tells of.
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
