"""Guidance weights: how the weight ``w_t`` of a gradient g runs over time.

With t counted T-1 .. 0 over the steps and ``Sigma_t`` the reverse variance of a step:

    variance    Sigma_t                                                                  (Dhariwal & Nichol 2021)
    deviation   sqrt(Sigma_t)
    sine        Sigma_t + gamma sin(pi t / T) max_{u >= t} Sigma_u                       (EluCD eq. 5)
    constant    1
    linear      (t + 1) / T, or 1 - t / T rising towards the image
    interval    1 where ratio_min <= sigma / alpha <= ratio_max, else 0                  (Kynkäänniemi et al. 2024)
    every       1 at each k-th step, else 0
    damped      1 / (1 + c v_t),  v_t = S^2 sigma^2 / (sigma^2 + alpha^2 S^2)            (Dandapanthula & Boffi 2026)
    signal      alpha_s / alpha_t = 1 / sqrt(a_t), from level t to level s
    transition  a_t / mean_u a_u, or beta_t / mean_u beta_u                              (TFG, Ye et al. 2024)
    taper       rms(x_t) [max((t + 2) / (T + 1), floor) + gamma sin(pi (T - 1 - t) / T)] (EluCD, Algorithm 2)
    relative    |score| / |g|,  score = -eps / sigma_t
    difference  |score - score_null| / |g|                                               (EluCD, Algorithm 3)
    polyak      |eps| / |g|^2                                                            (Shen et al. 2024)

Norms are over one sample; eps is the model's own, of its ``x0_hat`` before any clip. Where the weight is zero for all
images, no gradient is taken.

The relative weight in the noise injection moves DDPM's mean by ``s (beta_t / sqrt(a_t)) |score| g / |g|``, which is
FreeDoM's step ``s c_1 rms(eps) (sigma_t / alpha_t) g / rms(g)``, c_1 the posterior's weight of ``x0_hat`` (Yu et al.
2023, code; s = 0.02 there). The difference weight in the noise injection, with classifier-free scale w and ``Delta =
eps_y - eps_null``, makes the noise ``eps_null + w (Delta - s |Delta| g / |g|)``.
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

from steersman.batching import broadcast, norm, rms
from steersman.denoise import Prediction, eps_from_x0
from steersman.errors import InputError, unknown
from steersman.guidance.step import Batch, Step, transition
from steersman.schedule import Level, check_ratios
from steersman.typed import finite

__all__ = ["Constant", "Damped", "Deviation", "Difference", "Every", "Interval", "Linear", "Polyak", "Product"]
__all__ += ["Relative", "Signal", "Sine", "Taper", "Transition", "Variance", "Weight", "needs_unconditional"]

Value = Float[Tensor, "..."]


@runtime_checkable
class Weight(Protocol):
    """Weighs a step's gradient.

    Attributes:
        needs_denoiser: Whether it depends on the prediction.
    """

    @property
    def needs_denoiser(self) -> bool: ...  # noqa: D102

    def active(self, step: Step) -> bool:
        """Whether the weight can differ from zero at this step; asked before anything is computed."""
        ...

    def __call__(self, step: Step, x_t: Batch, prediction: Prediction | None, g: Batch) -> Value:
        """Returns the weight: a number, one for each image, or of the sample's shape."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Weight:
    """A weight that is 1, at every step."""

    needs_denoiser = False

    def active(self, step: Step) -> bool:
        """Whether the weight can differ from zero at this step."""
        return True

    def __call__(self, step: Step, x_t: Batch, prediction: Prediction | None, g: Batch) -> Value:
        return torch.ones((), dtype=x_t.dtype)


@dataclass(frozen=True, kw_only=True)
class Variance(_Weight):
    """``w_t = Sigma_t``, the reverse variance.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> from steersman.guidance import Step
        >>> levels, x = sm.VP.linear().levels(10), torch.ones(1, 2)
        >>> [round(sm.Variance()(Step.at(levels, index), x, None, x).item(), 3) for index in (0, 5, 9)]
        [0.88, 0.458, 0.0]
    """

    def active(self, step: Step) -> bool:
        """Whether the step has a variance: the last one, into a clean image, has none."""
        return step.varies

    def __call__(self, step: Step, x_t: Batch, prediction: Prediction | None, g: Batch) -> Value:
        return step.variance


@dataclass(frozen=True, kw_only=True)
class Deviation(Variance):
    """``w_t = sqrt(Sigma_t)``: for a gradient of unit rms, the scale is the update in units of the step's noise.

    Example:
        >>> import steersman as sm
        >>> sm.load_recipe("nrcg", {"weight": "deviation"}).bind("zoo:mnist-lenet")[0].weight
        Deviation()
    """

    def __call__(self, step: Step, x_t: Batch, prediction: Prediction | None, g: Batch) -> Value:
        return step.variance.sqrt()


@dataclass(frozen=True, kw_only=True)
@finite
class Sine(Variance):
    """``w_t = Sigma_t + gamma sin(pi t / T) max_{u >= t} Sigma_u`` (EluCD eq. 5); zero where ``Sigma_t`` is.

    Attributes:
        gamma: The factor of the sine; 0.3 in the paper.
        peak: The maximum that is used: ``own`` for that of each value, ``first`` for that of the first value in the
            batch (EluCD's released code). With a learned variance, ``first`` makes an image depend on its batch.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> from steersman.guidance import Step
        >>> levels, x = sm.VP.linear().levels(10), torch.ones(1, 2)
        >>> [round(sm.Sine(gamma=0.3)(Step.at(levels, index), x, None, x).item(), 3) for index in (0, 5, 9)]
        [0.961, 0.709, 0.0]
    """

    gamma: float = 0.3
    peak: Literal["own", "first"] = "own"

    def __post_init__(self) -> None:
        if self.peak not in ("own", "first"):
            raise unknown("weight.peak", self.peak, ("own", "first"))

    def __call__(self, step: Step, x_t: Batch, prediction: Prediction | None, g: Batch) -> Value:
        peak = step.peak if self.peak == "own" else step.peak.flatten()[0]
        t = step.count - 1 - step.index
        return step.variance.to(peak.dtype) + self.gamma * math.sin(math.pi * t / step.count) * peak


@dataclass(frozen=True, kw_only=True)
class Constant(_Weight):
    """``w_t = 1``.

    Example:
        >>> import steersman as sm
        >>> guides = sm.load_recipe("nrcg", {"weight": "constant"}, scale=0.1).bind("zoo:mnist-lenet")
        >>> guides[0].weight, guides[0].scale
        (Constant(), 0.1)
    """


@dataclass(frozen=True, kw_only=True)
@finite
class Linear(_Weight):
    """``w_t = (t + 1) / T``, falling towards the image, or ``1 - t / T``, rising.

    Attributes:
        rising: Whether the weight rises towards the image.

    Example:
        >>> import steersman as sm
        >>> sm.load_recipe("nrcg", {"weight": {"kind": "linear", "rising": True}}).bind("zoo:mnist-lenet")[0].weight
        Linear(rising=True)
    """

    rising: bool = False

    def __call__(self, step: Step, x_t: Batch, prediction: Prediction | None, g: Batch) -> Value:
        share = (step.left + 1) / step.count
        return torch.tensor(1 - share + 1 / step.count if self.rising else share, dtype=x_t.dtype)


@dataclass(frozen=True, kw_only=True)
@finite
class Interval(_Weight):
    """``w_t = 1`` where ``ratio_min <= sigma / alpha <= ratio_max``, else 0 (Kynkäänniemi et al. 2024).

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

    def __post_init__(self) -> None:
        check_ratios("weight", self.ratio_min, self.ratio_max)

    def active(self, step: Step) -> bool:
        """Whether the level is inside."""
        return self.ratio_min <= float(step.level.sigma / step.level.alpha) <= self.ratio_max


@dataclass(frozen=True, kw_only=True)
@finite
class Every(_Weight):
    """``w_t = 1`` at every k-th step, including the first, else 0.

    Attributes:
        k: The period in steps, at least 1.

    Example:
        >>> import steersman as sm
        >>> sm.load_recipe("nrcg", {"weight": {"kind": "every", "k": 3}}).bind("zoo:mnist-lenet")[0].weight
        Every(k=3)
    """

    k: int = 2

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"weight.k must be at least 1, got {self.k}")

    def active(self, step: Step) -> bool:
        """Whether the step is a k-th one."""
        return step.index % self.k == 0


@dataclass(frozen=True, kw_only=True)
@finite
class Damped(_Weight):
    """``w_t = 1 / (1 + c v_t)``, reward damping (Dandapanthula & Boffi 2026): less guidance where less is known.

    ``v_t = S^2 sigma^2 / (sigma^2 + alpha^2 S^2)`` is the variance of the image, given ``x_t``, for Gaussian data of
    standard deviation S. The gradient at ``x0_hat`` stands for that of all images that ``x_t`` could become. For such
    data and a log-likelihood l with the second derivative ``-c`` of ``s l``, s the scale, it is too large by ``1 + c
    v_t``.

    Attributes:
        curvature: ``c``, at least 0; ``2 s`` in the paper, for ``l = -|x - a|^2``.
        deviation: ``S``, above 0; the paper tunes it.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> from steersman.guidance import Step
        >>> levels, x = sm.EDM(ratio_min=0.1, ratio_max=10.0).levels(3), torch.ones(1, 2)
        >>> [round(sm.Damped(curvature=4.0)(Step.at(levels, index), x, None, x).item(), 2) for index in range(3)]
        [0.2, 0.33, 0.96]
    """

    curvature: float = 2.0
    deviation: float = 1.0

    def __post_init__(self) -> None:
        if not (self.curvature >= 0 and self.deviation > 0):
            raise InputError(
                "weight.curvature must be at least 0 and weight.deviation above 0, got "
                f"{self.curvature} and {self.deviation}"
            )

    def __call__(self, step: Step, x_t: Batch, prediction: Prediction | None, g: Batch) -> Value:
        alpha, sigma = step.level.alpha, step.level.sigma
        variance = (self.deviation * sigma) ** 2 / (sigma**2 + (self.deviation * alpha) ** 2)
        return broadcast(1 / (1 + self.curvature * variance), x_t)


@dataclass(frozen=True, kw_only=True)
class Signal(_Weight):
    """``w_t = alpha_s / alpha_t``, the growth of the signal in a step.

    It turns an update of ``x_t`` into one of ``x_s``. A step from pure noise, ``alpha_t = 0``, is not guided.

    Example:
        >>> import steersman as sm
        >>> sm.load_recipe("nrcg", {"weight": "signal"}).bind("zoo:mnist-lenet")[0].weight
        Signal()
    """

    def active(self, step: Step) -> bool:
        """Whether the step starts from a level with signal."""
        return bool((step.start.alpha > 0).all())

    def __call__(self, step: Step, x_t: Batch, prediction: Prediction | None, g: Batch) -> Value:
        return (step.next.alpha / step.start.alpha).to(x_t.dtype)


@dataclass(frozen=True, kw_only=True)
@finite
class Transition(_Weight):
    """``w_t = a_t / mean_u a_u`` over the steps, ``a = (alpha_t / alpha_s)^2``, with a mean of 1 (TFG, Ye et al. 2024).

    For variance-preserving schedules ``a_t = 1 - beta_t``, which grows towards the image.

    Attributes:
        rising: True for the weight above, False for ``beta_t / mean_u beta_u``, which falls towards the image.

    Example:
        >>> import steersman as sm
        >>> sm.load_recipe("nrcg", {"weight": "transition"}).bind("zoo:mnist-lenet")[0].weight
        Transition(rising=True)
    """

    rising: bool = True

    def __call__(self, step: Step, x_t: Batch, prediction: Prediction | None, g: Batch) -> Value:
        levels = Level(*map(torch.stack, zip(*step.levels, strict=True)))
        shares = self._share(Level(*(value[:-1] for value in levels)), Level(*(value[1:] for value in levels)))
        return (self._share(step.start, step.next) / shares.mean()).to(x_t.dtype)

    def _share(self, level: Level, next: Level) -> Float64[Tensor, "*steps"]:
        ratio, beta = transition(level, next)
        return ratio**2 if self.rising else beta


@dataclass(frozen=True, kw_only=True)
@finite
class Taper(_Weight):
    """``w_i = rms(x_t) [max((N+1-i) / (N+1), floor) + gamma sin(pi i / N)]``, i = 0 .. N-1 (EluCD, Algorithm 2, code).

    A falling line plus a sine, for a gradient of unit rms in units of the sample.

    Attributes:
        gamma: The factor of the sine; 0.3 in the paper.
        floor: The minimum of the line; ``1e-5 / s`` in the paper's code, which only matters at the end of many steps.

    Example:
        >>> import steersman as sm
        >>> sm.load_recipe("elucd-edm").bind("zoo:mnist-lenet")[0].weight
        Taper(gamma=0.3, floor=0.0)
    """

    gamma: float = 0.3
    floor: float = 0.0

    def __call__(self, step: Step, x_t: Batch, prediction: Prediction | None, g: Batch) -> Value:
        line = max(1 - step.index / (step.count + 1), self.floor)
        return rms(x_t) * (line + self.gamma * math.sin(math.pi * step.index / step.count))


@dataclass(frozen=True, kw_only=True)
class Relative(_Weight):
    """``w_t = |score| / |g|``: the scale is the length of the update relative to the score.

    Example:
        >>> import steersman as sm
        >>> sm.load_recipe("nrcg", {"weight": "relative"}).bind("zoo:mnist-lenet")[0].weight
        Relative()
    """

    needs_denoiser = True

    def __call__(self, step: Step, x_t: Batch, prediction: Prediction | None, g: Batch) -> Value:
        return norm(_eps(step, x_t, prediction)) / broadcast(step.level.sigma, x_t) / _length(g)


@dataclass(frozen=True, kw_only=True)
class Difference(_Weight):
    """``w_t = |score - score_null| / |g|``: the scale is the update's share of what classifier-free guidance adds."""

    needs_denoiser = True

    def __call__(self, step: Step, x_t: Batch, prediction: Prediction | None, g: Batch) -> Value:
        assert prediction is not None, "the loop evaluates the denoiser first"
        if prediction.unconditional is None:
            raise InputError(
                "weight difference needs the prediction without the label too, which the denoiser did not make; use "
                "a denoiser with labels and a null label, and give a label and a classifier-free scale other than 1"
            )
        alpha, sigma = broadcast(step.level.alpha, x_t), broadcast(step.level.sigma, x_t)
        return alpha / sigma**2 * norm(prediction.x0_hat - prediction.unconditional) / _length(g)


@dataclass(frozen=True, kw_only=True)
class Polyak(_Weight):
    """``w_t = |eps| / |g|^2``, a Polyak step (Shen et al. 2024): the flatter the objective, the larger the update.

    Example:
        >>> import steersman as sm
        >>> sm.load_recipe("nrcg", {"weight": "polyak"}).bind("zoo:mnist-lenet")[0].weight
        Polyak()
    """

    needs_denoiser = True

    def __call__(self, step: Step, x_t: Batch, prediction: Prediction | None, g: Batch) -> Value:
        return norm(_eps(step, x_t, prediction)) / _length(g) ** 2


def _eps(step: Step, x_t: Batch, prediction: Prediction | None) -> Batch:
    assert prediction is not None, "the loop evaluates the denoiser first"
    return eps_from_x0(x_t, prediction.x0_hat, step.level)


def _length(g: Batch) -> Value:
    """Returns ``|g|``, and 1 for a gradient of zero, so that its weight is finite."""
    size = norm(g)
    return torch.where(size > 0, size, 1)


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
        """Whether a factor depends on the prediction."""
        return any(factor.needs_denoiser for factor in self.factors)

    def active(self, step: Step) -> bool:
        """Whether all factors are active."""
        return all(factor.active(step) for factor in self.factors)

    def __call__(self, step: Step, x_t: Batch, prediction: Prediction | None, g: Batch) -> Value:
        return reduce(mul, (factor(step, x_t, prediction, g) for factor in self.factors))


def needs_unconditional(weight: Weight) -> bool:
    """Whether a weight needs the prediction without label or prompt beside the one with it."""
    return isinstance(weight, Difference) or any(map(needs_unconditional, getattr(weight, "factors", ())))
