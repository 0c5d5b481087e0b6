"""Strength: how the guidance's weight ``w_t`` runs over time.

With t counted T-1 .. 0 over the steps really taken and ``Sigma_t`` the reverse variance of a step:

    variance    w_t = Sigma_t                                                            (Dhariwal & Nichol 2021)
    deviation   w_t = sqrt(Sigma_t)                       a push as large as the step's own noise, for a unit gradient
    sine        w_t = Sigma_t + gamma sin(pi t / T) max_{u >= t} Sigma_u                 (EluCD eq. 5)
    constant    w_t = 1
    linear      w_t = (t + 1) / T, or 1 - t / T rising towards the image
    interval    w_t = 1 where low <= sigma / alpha <= high, else 0                       (Kynkäänniemi et al. 2024)
    every       w_t = 1 at each k-th step, else 0
    signal      w_t = alpha_s / alpha_t = 1 / sqrt(a_t), from level t to level s
    taper       w_t = rms(x_t) [(t + 2) / (T + 1) + gamma sin(pi (T - 1 - t) / T)]               (EluCD, Algorithm 2)
    relative    w_t = |score| / |g|,  score = -eps / sigma_t        the scale is the push's share of the score, whatever
                                                                    the model, the classifier and the size of an image
    polyak      w_t = |eps| / |g|^2                                                              (Shen et al. 2024)
    product     the product of several

Norms are over one sample; eps is the model's own, of its ``x0_hat`` before any clip. Where the weight is zero for all
images, no gradient is taken.

The relative strength in the noise injection moves DDPM's mean by ``s (beta_t / sqrt(a_t)) |score| g / |g|``, which is
FreeDoM's step ``s c_1 rms(eps) (sigma_t / alpha_t) g / rms(g)``, c_1 the posterior's weight of ``x0_hat`` (Yu et al.
2023, code; s = 0.02 there).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import mul
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.denoise import Prediction, eps_from_x0
from steersman.errors import InputError
from steersman.guidance.step import Step
from steersman.guidance.view import norm, rms
from steersman.schedule import broadcast

__all__ = [
    "Constant",
    "Deviation",
    "Every",
    "Interval",
    "Linear",
    "Polyak",
    "Product",
    "Relative",
    "Signal",
    "Sine",
    "Strength",
    "Taper",
    "Variance",
]


@runtime_checkable
class Strength(Protocol):
    """Weighs a step's gradient.

    Attributes:
        needs_denoiser: Whether it depends on the prediction.
    """

    @property
    def needs_denoiser(self) -> bool: ...  # noqa: D102

    def active(self, step: Step) -> bool:
        """Whether the weight can be other than zero at this step; told before anything is computed."""
        ...

    def __call__(
        self, step: Step, x_t: Float[Tensor, "B C H W"], prediction: Prediction | None, g: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "..."]:
        """Returns the weight: (), (B, 1, 1, 1), or of the sample's shape."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Always:
    """A strength that is never zero for all images."""

    needs_denoiser = False

    def active(self, step: Step) -> bool:
        """Returns true."""
        return True


@dataclass(frozen=True, kw_only=True)
class _OfVariance:
    """A strength that is zero where the step has no variance, as the last one into a clean image."""

    needs_denoiser = False

    def active(self, step: Step) -> bool:
        """Returns whether there is a variance."""
        return bool((step.variance > 0).any())


@dataclass(frozen=True, kw_only=True)
class Variance(_OfVariance):
    """``w_t = Sigma_t``, the reverse variance."""

    def __call__(
        self, step: Step, x_t: Float[Tensor, "B C H W"], prediction: Prediction | None, g: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "..."]:
        """Returns ``Sigma_t``."""
        return step.variance


@dataclass(frozen=True, kw_only=True)
class Deviation(_OfVariance):
    """``w_t = sqrt(Sigma_t)``: with a gradient of unit rms, the scale is the push in units of the step's own noise."""

    def __call__(
        self, step: Step, x_t: Float[Tensor, "B C H W"], prediction: Prediction | None, g: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "..."]:
        """Returns ``sqrt(Sigma_t)``."""
        return step.variance.sqrt()


@dataclass(frozen=True, kw_only=True)
class Sine(_OfVariance):
    """``w_t = Sigma_t + gamma sin(pi t / T) max_{u >= t} Sigma_u`` (EluCD eq. 5); zero where ``Sigma_t`` is.

    Attributes:
        gamma: The added factor; 0.3 in the paper.
    """

    gamma: float = 0.3

    def __call__(
        self, step: Step, x_t: Float[Tensor, "B C H W"], prediction: Prediction | None, g: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "..."]:
        """Returns ``w_t``; the maximum is each image's own."""
        return step.variance + self.gamma * math.sin(math.pi * step.left / step.count) * step.peak


@dataclass(frozen=True, kw_only=True)
class Constant(_Always):
    """``w_t = 1``."""

    def __call__(
        self, step: Step, x_t: Float[Tensor, "B C H W"], prediction: Prediction | None, g: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "..."]:
        """Returns 1."""
        return torch.ones((), dtype=x_t.dtype)


@dataclass(frozen=True, kw_only=True)
class Linear(_Always):
    """``w_t = (t + 1) / T``, falling towards the image, or ``1 - t / T``, rising.

    Attributes:
        rising: Whether it rises towards the image.
    """

    rising: bool = False

    def __call__(
        self, step: Step, x_t: Float[Tensor, "B C H W"], prediction: Prediction | None, g: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "..."]:
        """Returns ``w_t``."""
        share = (step.left + 1) / step.count
        return torch.tensor(1 - share + 1 / step.count if self.rising else share, dtype=x_t.dtype)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """``w_t = 1`` where ``low <= sigma / alpha <= high`` (Kynkäänniemi et al. 2024).

    Attributes:
        low: The smallest noise-to-signal ratio at which it acts.
        high: The largest.
    """

    low: float = 0.0
    high: float = math.inf
    needs_denoiser = False

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise InputError(f"strength.low, high: {self.low}, {self.high} given; allowed: 0 <= low <= high")

    def active(self, step: Step) -> bool:
        """Whether the level lies inside."""
        return self.low <= float(step.level.sigma / step.level.alpha) <= self.high

    def __call__(
        self, step: Step, x_t: Float[Tensor, "B C H W"], prediction: Prediction | None, g: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "..."]:
        """Returns 1: outside, nothing is asked."""
        return torch.ones((), dtype=x_t.dtype)


@dataclass(frozen=True, kw_only=True)
class Every:
    """``w_t = 1`` at each k-th step, the first included.

    Attributes:
        k: The period, in steps.
    """

    k: int = 2
    needs_denoiser = False

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"strength.k: {self.k} given; allowed: 1 and more")

    def active(self, step: Step) -> bool:
        """Whether it is this step's turn."""
        return step.index % self.k == 0

    def __call__(
        self, step: Step, x_t: Float[Tensor, "B C H W"], prediction: Prediction | None, g: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "..."]:
        """Returns 1: at other steps, nothing is asked."""
        return torch.ones((), dtype=x_t.dtype)


@dataclass(frozen=True, kw_only=True)
class Signal(_Always):
    """``w_t = alpha_s / alpha_t``, the growth of the signal in a step: it carries a push of ``x_t`` over to ``x_s``."""

    def __call__(
        self, step: Step, x_t: Float[Tensor, "B C H W"], prediction: Prediction | None, g: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "..."]:
        """Returns ``alpha_s / alpha_t``."""
        return (step.next.alpha / step.level.alpha).to(x_t.dtype)


@dataclass(frozen=True, kw_only=True)
class Taper(_Always):
    """``w_i = rms(x_t) [(N + 1 - i) / (N + 1) + gamma sin(pi i / N)]``, i = 0 .. N-1 (EluCD, Algorithm 2, code).

    A falling line and a sine; for a gradient of unit rms, in units of the sample.

    Attributes:
        gamma: The sine's factor; 0.3 in the paper.
    """

    gamma: float = 0.3

    def __call__(
        self, step: Step, x_t: Float[Tensor, "B C H W"], prediction: Prediction | None, g: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "..."]:
        """Returns ``w_i``."""
        line = 1 - step.index / (step.count + 1)
        return rms(x_t) * (line + self.gamma * math.sin(math.pi * step.index / step.count))


@dataclass(frozen=True, kw_only=True)
class Relative(_Always):
    """``w_t = |score| / |g|``: the scale is the push's length in units of the score's."""

    needs_denoiser = True

    def __call__(
        self, step: Step, x_t: Float[Tensor, "B C H W"], prediction: Prediction | None, g: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "..."]:
        """Returns ``|eps| / (sigma |g|)``, and a finite weight for a gradient of zero."""
        return norm(_eps(step, x_t, prediction)) / broadcast(step.level.sigma, x_t) / _positive(norm(g))


@dataclass(frozen=True, kw_only=True)
class Polyak(_Always):
    """``w_t = |eps| / |g|^2``, a Polyak step (Shen et al. 2024): the flatter the objective, the longer the push."""

    needs_denoiser = True

    def __call__(
        self, step: Step, x_t: Float[Tensor, "B C H W"], prediction: Prediction | None, g: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "..."]:
        """Returns ``|eps| / |g|^2``, and a finite weight for a gradient of zero."""
        return norm(_eps(step, x_t, prediction)) / _positive(norm(g)) ** 2


def _eps(step: Step, x_t: Float[Tensor, "B C H W"], prediction: Prediction | None) -> Float[Tensor, "B C H W"]:
    assert prediction is not None, "the loop asks the denoiser first"
    return eps_from_x0(x_t, prediction.x0_hat, step.level)


def _positive(size: Float[Tensor, "B 1 1 1"]) -> Float[Tensor, "B 1 1 1"]:
    return torch.where(size > 0, size, 1)


@dataclass(frozen=True)
class Product:
    """The product of several strengths, such as the variance inside an interval.

    Attributes:
        factors: They.
    """

    factors: Sequence[Strength]

    def __post_init__(self) -> None:
        if not self.factors:
            raise InputError("strength.factors: none given; allowed: one and more")

    @property
    def needs_denoiser(self) -> bool:
        """Whether a factor does."""
        return any(factor.needs_denoiser for factor in self.factors)

    def active(self, step: Step) -> bool:
        """Whether all factors are."""
        return all(factor.active(step) for factor in self.factors)

    def __call__(
        self, step: Step, x_t: Float[Tensor, "B C H W"], prediction: Prediction | None, g: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "..."]:
        """Returns the product."""
        return reduce(mul, (factor(step, x_t, prediction, g) for factor in self.factors))
