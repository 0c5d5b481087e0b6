"""Weight: how the guidance's weight ``w_t`` runs over time.

With t counted T-1 .. 0 over the steps really taken and ``Sigma_t`` the reverse variance of a step:

    variance    w_t = Sigma_t                                                            (Dhariwal & Nichol 2021)
    deviation   w_t = sqrt(Sigma_t)                       as large as the step's own noise, for a unit gradient
    sine        w_t = Sigma_t + gamma sin(pi t / T) max_{u >= t} Sigma_u                 (EluCD eq. 5)
    constant    w_t = 1
    linear      w_t = (t + 1) / T, or 1 - t / T rising towards the image
    interval    w_t = 1 where low <= sigma / alpha <= high, else 0                       (Kynkäänniemi et al. 2024)
    every       w_t = 1 at each k-th step, else 0
    signal      w_t = alpha_s / alpha_t = 1 / sqrt(a_t), from level t to level s
    transition  w_t = a_t / mean_u a_u, or beta_t / mean_u beta_u                                (TFG, Ye et al. 2024)
    taper       w_t = rms(x_t) [max((t + 2) / (T + 1), floor) + gamma sin(pi (T - 1 - t) / T)]   (EluCD, Algorithm 2)
    relative    w_t = |score| / |g|,  score = -eps / sigma_t        the scale is its share of the score, whatever
                                                                    the model, the classifier and the size of an image
    difference  w_t = |score - score_null| / |g|          the same in units of what classifier-free guidance adds
                                                                                                 (EluCD, Algorithm 3)
    polyak      w_t = |eps| / |g|^2                                                              (Shen et al. 2024)
    product     the product of several

Norms are over one sample; eps is the model's own, of its ``x0_hat`` before any clip. Where the weight is zero for all
images, no gradient is taken.

The relative weight in the noise injection moves DDPM's mean by ``s (beta_t / sqrt(a_t)) |score| g / |g|``, which is
FreeDoM's step ``s c_1 rms(eps) (sigma_t / alpha_t) g / rms(g)``, c_1 the posterior's weight of ``x0_hat`` (Yu et al.
2023, code; s = 0.02 there).

The difference weight in the noise injection, with classifier-free scale w and ``Delta = eps_y - eps_null``, makes
``eps_null + w (Delta - s |Delta| g / |g|)`` of the noise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import mul
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from steersman.batching import norm, rms
from steersman.denoise import Prediction, eps_from_x0
from steersman.errors import InputError, unknown
from steersman.guidance.step import Step, transition
from steersman.schedule import Level, broadcast, check_ratios
from steersman.typed import finite

__all__ = [
    "Constant",
    "Deviation",
    "Difference",
    "Every",
    "Interval",
    "Linear",
    "Polyak",
    "Product",
    "Relative",
    "Signal",
    "Sine",
    "Weight",
    "Taper",
    "Transition",
    "Variance",
    "compares",
]


@runtime_checkable
class Weight(Protocol):
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
    """A weight that is never zero for all images."""

    needs_denoiser = False

    def active(self, step: Step) -> bool:
        """Returns true."""
        return True


@dataclass(frozen=True, kw_only=True)
class _OfVariance:
    """A weight that is zero where the step has no variance, as the last one into a clean image."""

    needs_denoiser = False

    def active(self, step: Step) -> bool:
        """Returns whether there is a variance."""
        return step.varies


@dataclass(frozen=True, kw_only=True)
class Variance(_OfVariance):
    """``w_t = Sigma_t``, the reverse variance.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> from steersman.guidance import Step
        >>> levels, x_t = sm.VP.linear().levels(10), torch.ones(1, 3, 8, 8)
        >>> weights = [sm.Variance()(Step.at(levels, index), x_t, None, x_t) for index in (0, 5, 9)]
        >>> [round(weight.item(), 3) for weight in weights]
        [0.88, 0.458, 0.0]
    """

    def __call__(
        self, step: Step, x_t: Float[Tensor, "B C H W"], prediction: Prediction | None, g: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "..."]:
        """Returns ``Sigma_t``."""
        return step.variance


@dataclass(frozen=True, kw_only=True)
class Deviation(_OfVariance):
    """``w_t = sqrt(Sigma_t)``: for a gradient of unit rms, the scale is the update in units of the step's noise.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> from steersman.guidance import Step
        >>> levels, x_t = sm.VP.linear().levels(10), torch.ones(1, 3, 8, 8)
        >>> weights = [sm.Deviation()(Step.at(levels, index), x_t, None, x_t) for index in (0, 5, 9)]
        >>> [round(weight.item(), 3) for weight in weights]
        [0.938, 0.677, 0.0]
    """

    def __call__(
        self, step: Step, x_t: Float[Tensor, "B C H W"], prediction: Prediction | None, g: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "..."]:
        """Returns ``sqrt(Sigma_t)``."""
        return step.variance.sqrt()


@dataclass(frozen=True, kw_only=True)
@finite
class Sine(_OfVariance):
    """``w_t = Sigma_t + gamma sin(pi t / T) max_{u >= t} Sigma_u`` (EluCD eq. 5); zero where ``Sigma_t`` is.

    Attributes:
        gamma: The factor of the sine; 0.3 in the paper.
        peak: The maximum that is used: ``own`` for that of each value, ``first`` for that of the first value in the
            batch (EluCD's released code). With a learned variance, ``first`` makes an image depend on its batch.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> from steersman.guidance import Step
        >>> levels, x_t = sm.VP.linear().levels(10), torch.ones(1, 3, 8, 8)
        >>> weights = [sm.Sine(gamma=0.3)(Step.at(levels, index), x_t, None, x_t) for index in (0, 5, 9)]
        >>> [round(weight.item(), 3) for weight in weights]
        [0.961, 0.709, 0.0]
    """

    gamma: float = 0.3
    peak: Literal["own", "first"] = "own"

    def __post_init__(self) -> None:
        if self.peak not in ("own", "first"):
            raise unknown("weight.peak", self.peak, ("own", "first"))

    def __call__(
        self, step: Step, x_t: Float[Tensor, "B C H W"], prediction: Prediction | None, g: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "..."]:
        """Returns ``w_t``."""
        peak = step.peak if self.peak == "own" else step.peak.flatten()[0]
        return step.variance.to(peak.dtype) + self.gamma * math.sin(math.pi * step.left / step.count) * peak


@dataclass(frozen=True, kw_only=True)
class Constant(_Always):
    """``w_t = 1``.

    Example:
        >>> import steersman as sm
        >>> guides = sm.load_recipe("nrcg", {"weight": "constant"}, scale=0.1).bind("zoo:mnist-lenet")
        >>> guides[0].weight, guides[0].scale
        (Constant(), 0.1)
    """

    def __call__(
        self, step: Step, x_t: Float[Tensor, "B C H W"], prediction: Prediction | None, g: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "..."]:
        """Returns 1."""
        return torch.ones((), dtype=x_t.dtype)


@dataclass(frozen=True, kw_only=True)
@finite
class Linear(_Always):
    """``w_t = (t + 1) / T``, falling towards the image, or ``1 - t / T``, rising.

    Attributes:
        rising: Whether the weight rises towards the image.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> from steersman.guidance import Step
        >>> levels, x_t = sm.VP.linear().levels(10), torch.ones(1, 3, 8, 8)
        >>> weights = [sm.Linear()(Step.at(levels, index), x_t, None, x_t) for index in (0, 5, 9)]
        >>> [round(weight.item(), 3) for weight in weights]
        [1.0, 0.5, 0.1]
    """

    rising: bool = False

    def __call__(
        self, step: Step, x_t: Float[Tensor, "B C H W"], prediction: Prediction | None, g: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "..."]:
        """Returns ``w_t``."""
        share = (step.left + 1) / step.count
        return torch.tensor(1 - share + 1 / step.count if self.rising else share, dtype=x_t.dtype)


@dataclass(frozen=True, kw_only=True)
@finite
class Interval:
    """``w_t = 1`` where ``ratio_min <= sigma / alpha <= high`` (Kynkäänniemi et al. 2024).

    Attributes:
        ratio_min: Lower limit of the noise-to-signal ratio ``sigma / alpha``, at least 0.
        ratio_max: Upper limit of the ratio.

    Example:
        >>> import steersman as sm
        >>> from steersman.guidance import Step
        >>> levels = sm.EDM(ratio_min=0.1, ratio_max=10.0).levels(5)
        >>> [round(float(level.sigma), 2) for level in levels]
        [10.0, 3.16, 1.0, 0.32, 0.1, 0.0]
        >>> [sm.Interval(ratio_min=0.5, ratio_max=5.0).active(Step.at(levels, index)) for index in range(5)]
        [False, True, True, False, False]
    """

    ratio_min: float = 0.0
    ratio_max: float = math.inf
    needs_denoiser = False

    def __post_init__(self) -> None:
        check_ratios("weight", self.ratio_min, self.ratio_max)

    def active(self, step: Step) -> bool:
        """Whether the level lies inside."""
        return self.ratio_min <= float(step.level.sigma / step.level.alpha) <= self.ratio_max

    def __call__(
        self, step: Step, x_t: Float[Tensor, "B C H W"], prediction: Prediction | None, g: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "..."]:
        """Returns 1: outside, nothing is asked."""
        return torch.ones((), dtype=x_t.dtype)


@dataclass(frozen=True, kw_only=True)
@finite
class Every:
    """``w_t = 1`` at every k-th step, including the first.

    Attributes:
        k: The period in steps, at least 1.

    Example:
        >>> import steersman as sm
        >>> from steersman.guidance import Step
        >>> levels = sm.VP.linear().levels(6)
        >>> [sm.Every(k=3).active(Step.at(levels, index)) for index in range(6)]
        [True, False, False, True, False, False]
    """

    k: int = 2
    needs_denoiser = False

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"weight.k must be at least 1, got {self.k}")

    def active(self, step: Step) -> bool:
        """Whether it is this step's turn."""
        return step.index % self.k == 0

    def __call__(
        self, step: Step, x_t: Float[Tensor, "B C H W"], prediction: Prediction | None, g: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "..."]:
        """Returns 1: at other steps, nothing is asked."""
        return torch.ones((), dtype=x_t.dtype)


@dataclass(frozen=True, kw_only=True)
class Signal:
    """``w_t = alpha_s / alpha_t``, the growth of the signal in a step.

    It turns an update of ``x_t`` into one of ``x_s``. A step from pure noise, ``alpha_t = 0``, is not guided.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> from steersman.guidance import Step
        >>> levels, x_t = sm.VP.linear().levels(10), torch.ones(1, 3, 8, 8)
        >>> weights = [sm.Signal()(Step.at(levels, index), x_t, None, x_t) for index in (0, 5, 9)]
        >>> [round(weight.item(), 3) for weight in weights]
        [2.884, 1.549, 1.0]
    """

    needs_denoiser = False

    def active(self, step: Step) -> bool:
        """Whether there is a signal to grow."""
        return bool((step.start.alpha > 0).all())

    def __call__(
        self, step: Step, x_t: Float[Tensor, "B C H W"], prediction: Prediction | None, g: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "..."]:
        """Returns ``alpha_s / alpha_t``."""
        return (step.next.alpha / step.start.alpha).to(x_t.dtype)


@dataclass(frozen=True, kw_only=True)
@finite
class Transition(_Always):
    """``w_t = a_t / mean_u a_u`` over the steps, ``a = (alpha_t / alpha_s)^2``, with a mean of 1 (TFG, Ye et al. 2024).

    For variance-preserving schedules ``a_t = 1 - beta_t``, which grows towards the image.

    Attributes:
        rising: True for the weight above, False for ``beta_t / mean_u beta_u``, which falls towards the image.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> from steersman.guidance import Step
        >>> levels, x_t = sm.VP.linear().levels(10), torch.ones(1, 3, 8, 8)
        >>> weights = [sm.Transition()(Step.at(levels, index), x_t, None, x_t) for index in (0, 5, 9)]
        >>> [round(weight.item(), 3) for weight in weights]
        [0.264, 0.915, 2.193]
    """

    rising: bool = True

    def __call__(
        self, step: Step, x_t: Float[Tensor, "B C H W"], prediction: Prediction | None, g: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "..."]:
        """Returns ``w_t``."""
        walked = Level(*map(torch.stack, zip(*step.levels, strict=True)))
        shares = self._share(*(Level(*(value[each] for value in walked)) for each in (slice(-1), slice(1, None))))
        return (self._share(step.start, step.next) / shares.mean()).to(x_t.dtype)

    def _share(self, level: Level, next: Level) -> Float64[Tensor, "*steps"]:
        ratio, beta = transition(level, next)
        return ratio**2 if self.rising else beta


@dataclass(frozen=True, kw_only=True)
@finite
class Taper(_Always):
    """``w_i = rms(x_t) [max((N+1-i) / (N+1), floor) + gamma sin(pi i / N)]``, i = 0 .. N-1 (EluCD, Algorithm 2, code).

    A falling line plus a sine, for a gradient of unit rms in units of the sample.

    Attributes:
        gamma: The factor of the sine; 0.3 in the paper.
        floor: The minimum of the line; ``1e-5 / s`` in the paper's code, which only matters at the end of many steps.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> from steersman.guidance import Step
        >>> levels, x_t = sm.VP.linear().levels(10), torch.ones(1, 3, 8, 8)
        >>> weights = [sm.Taper(gamma=0.3)(Step.at(levels, index), x_t, None, x_t) for index in (0, 5, 9)]
        >>> [round(weight.item(), 3) for weight in weights]
        [1.0, 0.845, 0.275]
    """

    gamma: float = 0.3
    floor: float = 0.0

    def __call__(
        self, step: Step, x_t: Float[Tensor, "B C H W"], prediction: Prediction | None, g: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "..."]:
        """Returns ``w_i``."""
        line = max(1 - step.index / (step.count + 1), self.floor)
        return rms(x_t) * (line + self.gamma * math.sin(math.pi * step.index / step.count))


@dataclass(frozen=True, kw_only=True)
class Relative(_Always):
    """``w_t = |score| / |g|``: the scale is the length of the update relative to the score.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> from steersman.guidance import Step
        >>> from steersman.denoise import Prediction
        >>> step, x_t = Step.at(sm.EDM(ratio_min=1.0, ratio_max=2.0).levels(2), 0), torch.ones(1, 1, 2, 2)
        >>> prediction = Prediction(x0_hat=torch.zeros_like(x_t))  # a score of length 0.5
        >>> [round(sm.Relative()(step, x_t, prediction, g).item(), 3) for g in (x_t, 10 * x_t)]
        [0.25, 0.025]
    """

    needs_denoiser = True

    def __call__(
        self, step: Step, x_t: Float[Tensor, "B C H W"], prediction: Prediction | None, g: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "..."]:
        """Returns ``|eps| / (sigma |g|)``, and a finite weight for a gradient of zero."""
        return norm(_eps(step, x_t, prediction)) / broadcast(step.level.sigma, x_t) / _positive(norm(g))


@dataclass(frozen=True, kw_only=True)
class Difference(_Always):
    """``w_t = |score - score_null| / |g|``: the scale is the update's share of what classifier-free guidance adds."""

    needs_denoiser = True

    def __call__(
        self, step: Step, x_t: Float[Tensor, "B C H W"], prediction: Prediction | None, g: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "..."]:
        """Returns ``alpha |x0_hat - x0_null| / (sigma^2 |g|)``, and a finite weight for a gradient of zero.

        Raises:
            InputError: The denoiser made no prediction without its label.
        """
        assert prediction is not None, "the loop asks the denoiser first"
        if prediction.unconditional is None:
            raise InputError(
                "weight difference needs the prediction without the label too, which the denoiser did not make; use "
                "a denoiser with labels and a null label, and give a label and a classifier-free scale other than 1"
            )
        alpha, sigma = broadcast(step.level.alpha, x_t), broadcast(step.level.sigma, x_t)
        return alpha / sigma**2 * norm(prediction.x0_hat - prediction.unconditional) / _positive(norm(g))


@dataclass(frozen=True, kw_only=True)
class Polyak(_Always):
    """``w_t = |eps| / |g|^2``, a Polyak step (Shen et al. 2024): the flatter the objective, the larger the update.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> from steersman.guidance import Step
        >>> from steersman.denoise import Prediction
        >>> step, x_t = Step.at(sm.EDM(ratio_min=1.0, ratio_max=2.0).levels(2), 0), torch.ones(1, 1, 2, 2)
        >>> prediction = Prediction(x0_hat=torch.zeros_like(x_t))  # a noise prediction of length 1
        >>> [round(sm.Polyak()(step, x_t, prediction, g).item(), 4) for g in (x_t, 10 * x_t)]
        [0.25, 0.0025]
    """

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


def compares(weight: Weight) -> bool:
    """Whether a weight needs the prediction without label or prompt beside the one with it."""
    return isinstance(weight, Difference) or any(map(compares, getattr(weight, "factors", ())))


@dataclass(frozen=True)
@finite
class Product:
    """The product of several guidance weights, such as the variance inside an interval.

    Attributes:
        factors: The weights to multiply.

    Example:
        In a recipe it is a list: ``weight: [deviation, {kind: interval, ratio_min: 0.5, ratio_max: 5.0}]``.

        >>> import steersman as sm
        >>> from steersman.guidance import Step
        >>> levels = sm.EDM(ratio_min=0.1, ratio_max=10.0).levels(5)
        >>> weight = sm.Product((sm.Deviation(), sm.Interval(ratio_min=0.5, ratio_max=5.0)))
        >>> [weight.active(Step.at(levels, index)) for index in range(5)]
        [False, True, True, False, False]
    """

    factors: Sequence[Weight]

    def __post_init__(self) -> None:
        if not self.factors:
            raise InputError("weight.factors must hold at least one, got none")

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
