"""A Gaussian mixture with class i as component i: the exact denoiser and classifier of the tests.

With ``p(x) = sum_i w_i N(x; mu_i, S_i)``, ``x_t = alpha x + sigma eps`` is a mixture with the means ``alpha mu_i`` and
the covariances ``C_i = alpha^2 S_i + sigma^2 I``, so that all of these are exact (EluCD, Prop. 4.2):

    p(i | x_t)                = softmax_i [log w_i + log N(x_t; alpha mu_i, C_i)]
    x0_hat(x_t)               = sum_i p(i | x_t) [mu_i + alpha S_i C_i^-1 (x_t - alpha mu_i)]
    grad log p(x_t, y=j)      = -C_j^-1 (x_t - alpha mu_j)
    grad log p(y=j | x_t)     = sum_i p(i | x_t) [C_i^-1 (x_t - alpha mu_i) - C_j^-1 (x_t - alpha mu_j)]
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from steersman.batching import broadcast
from steersman.denoise import Prediction, check_condition, classifier_free
from steersman.errors import InputError
from steersman.schedule import VP, Level, Schedule

__all__ = ["Mixture"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixture:
    """An exact denoiser, an exact noise-aware classifier and exact conditional samples, of the shape (D, 1, 1).

    Attributes:
        weights: ``w_i``, positive, summing to 1.
        means: ``mu_i``.
        covariances: ``S_i``, positive definite.
        schedule: The noise schedule.
    """

    weights: Float64[Tensor, " K"]
    means: Float64[Tensor, "K D"]
    covariances: Float64[Tensor, "K D D"]
    schedule: Schedule = field(default_factory=VP.cosine)

    def __post_init__(self) -> None:
        if not bool((self.weights > 0).all()) or abs(float(self.weights.sum()) - 1) > 1e-6:
            raise InputError(f"weights must be above 0 and sum to 1, got {self.weights.tolist()}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of a sample."""
        return (self.means.shape[1], 1, 1)

    @property
    def classes(self) -> tuple[str, ...]:
        """The indices of the components."""
        return tuple(str(i) for i in range(len(self.weights)))

    def decode(self, x0: Float[Tensor, "B D 1 1"]) -> Float[Tensor, "B D 1 1"]:
        """Returns the sample itself."""
        return x0

    def _residuals(self, x_t: Tensor, level: Level) -> tuple[Float[Tensor, "B K D"], Float[Tensor, "B K"]]:
        """Returns ``C_i^-1 (x_t - alpha mu_i)`` and ``log w_i N(x_t; alpha mu_i, C_i)``."""
        alpha, sigma = (broadcast(value, x_t).reshape(-1, 1, 1, 1) for value in (level.alpha, level.sigma))
        covariance = alpha**2 * self.covariances.to(x_t) + sigma**2 * torch.eye(x_t.shape[1]).to(x_t)
        difference = x_t[:, None, :, 0, 0] - alpha[..., 0] * self.means.to(x_t)
        factor = torch.linalg.cholesky(covariance)
        residual = (torch.cholesky_inverse(factor) * difference[..., None, :]).sum(-1)
        half_log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return residual, self.weights.to(x_t).log() - half_log_det - (difference * residual).sum(-1) / 2

    def log_joint(self, x_t: Float[Tensor, "B D 1 1"], level: Level) -> Float[Tensor, "B K"]:
        """Returns ``log p(x_t, y=i)``, up to one constant."""
        return self._residuals(x_t, level)[1]

    def log_posterior(self, x_t: Float[Tensor, "B D 1 1"], level: Level) -> Float[Tensor, "B K"]:
        """Returns ``log p(y=i | x_t)``: the exact noise-aware classifier."""
        return self.log_joint(x_t, level).log_softmax(1)

    def joint_direction(self, x_t: Float[Tensor, "B D 1 1"], level: Level, j: int) -> Float[Tensor, "B D 1 1"]:
        """Returns ``grad log p(x_t, y=j)`` (Prop. 4.2)."""
        residual, _ = self._residuals(x_t, level)
        return -residual[:, j, :, None, None]

    def conditional_direction(self, x_t: Float[Tensor, "B D 1 1"], level: Level, j: int) -> Float[Tensor, "B D 1 1"]:
        """Returns ``grad log p(y=j | x_t)`` (Prop. 4.2)."""
        residual, log_joint = self._residuals(x_t, level)
        mean = (log_joint.softmax(1)[..., None] * residual).sum(1)
        return (mean - residual[:, j])[..., None, None]

    def __call__(
        self,
        x_t: Float[Tensor, "B D 1 1"],
        level: Level,
        *,
        label: Int[Tensor, " B"] | None = None,
        cfg_scale: float = 1.0,
        **others: Any,  # noqa: ANN401
    ) -> Prediction:
        """Returns the exact ``x0_hat``, of one class where there is a label; may use classifier-free guidance."""
        check_condition(label, cfg_scale, others, classes=self.classes, unconditional=True)
        residual, log_joint = self._residuals(x_t, level)
        alpha = broadcast(level.alpha, x_t).reshape(-1, 1, 1)
        x0 = self.means.to(x_t) + alpha * torch.einsum("kde,bke->bkd", self.covariances.to(x_t), residual)
        unconditional = (log_joint.softmax(1)[..., None] * x0).sum(1)[..., None, None]
        if label is None:
            return Prediction(unconditional)
        conditional = Prediction(x0[torch.arange(len(label)), label][..., None, None])
        return conditional if cfg_scale == 1 else classifier_free(conditional, unconditional, cfg_scale)

    def sample(self, count: int, generator: torch.Generator, label: int | None = None) -> Float64[Tensor, "B D 1 1"]:
        """Returns exact samples, of all classes or of one."""
        if label is None:
            labels = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        else:
            labels = torch.full((count,), label)
        eps = torch.randn(count, self.means.shape[1], 1, generator=generator, dtype=torch.float64)
        x = self.means[labels] + (torch.linalg.cholesky(self.covariances)[labels] @ eps)[..., 0]
        return x[..., None, None]
