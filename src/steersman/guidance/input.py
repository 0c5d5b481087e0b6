"""Classifier input: the image that the classifier sees.

    noisy       x_t
    denoised    x0_hat(x_t), clipped to [-1, 1] or not
    lookahead   x0_hat(x_s), where x_s is what x_t becomes after some deterministic steps (Pan et al. 2023)
    rescaled    z = x_t / max(1, rms(x_t)), rms over one sample's values (EluCD, Algorithm 2)

The input is a sample: a latent one is decoded afterwards, so that the gradient keeps the sample's shape.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from steersman.batching import repeat, rms
from steersman.denoise import Denoiser, Prediction, look_ahead
from steersman.errors import InputError
from steersman.guidance.step import Batch
from steersman.schedule import Level
from steersman.typed import finite

__all__ = ["ClassifierInput", "Denoised", "Lookahead", "Noisy", "Rescaled"]


@runtime_checkable
class ClassifierInput(Protocol):
    """Chooses the image that the classifier sees.

    Attributes:
        needs_denoiser: Whether it depends on the prediction, so that the gradient with respect to ``x_t``
            differentiates the denoiser.
    """

    @property
    def needs_denoiser(self) -> bool: ...  # noqa: D102

    def __call__(self, x_t: Batch, prediction: Prediction | None, level: Level, denoiser: Denoiser) -> Batch:
        """Returns the input. The prediction is given where it is needed, the denoiser for further evaluations."""
        ...


@dataclass(frozen=True, kw_only=True)
class Noisy:
    """The noisy image ``x_t``, for classifiers that were trained on noisy images.

    Example:
        >>> import steersman as sm
        >>> guide = sm.Guide(objective=lambda image, target, level: image.sum(), input=sm.Noisy(), wrt="x_t")
        >>> guide.needs_denoiser, guide.differentiates_denoiser
        (False, False)
    """

    needs_denoiser = False

    def __call__(self, x_t: Batch, prediction: Prediction | None, level: Level, denoiser: Denoiser) -> Batch:
        return x_t


@dataclass(frozen=True, kw_only=True)
@finite
class Denoised:
    """The denoised image ``x0_hat`` (EluCD 4.2, nrCG eq. 5).

    Attributes:
        clip: Whether to clip it to [-1, 1]; the gradient includes the clip.
        guided: Whether to include the updates of the guides before this one in the same step.

    Example:
        >>> import steersman as sm
        >>> guide = sm.Guide(objective=lambda image, target, level: image.sum(), input=sm.Denoised(), wrt="x_t")
        >>> guide.needs_denoiser, guide.differentiates_denoiser
        (True, True)
    """

    clip: bool = True
    guided: bool = False
    needs_denoiser = True

    def __call__(self, x_t: Batch, prediction: Prediction | None, level: Level, denoiser: Denoiser) -> Batch:
        assert prediction is not None, "the loop evaluates the denoiser first"
        return prediction.x0_hat.clamp(-1, 1) if self.clip else prediction.x0_hat


@dataclass(frozen=True, kw_only=True)
@finite
class Lookahead:
    """The lookahead input: the denoised image after a few more deterministic steps (Pan et al. 2023).

    At high noise ``x0_hat`` is a blur, the mean of all images that ``x_t`` could become, and no classifier was trained
    on such an image. After a few deterministic steps it is one of these images, and sharp.

    Attributes:
        evaluations: The number of additional evaluations of the denoiser at each step, at least 1.
        until: The noise-to-signal ratio ``sigma / alpha`` of the last one, above 0. At less noise the classifier input
            is that of `Denoised`.
        clip: Whether to clip the image to [-1, 1]; the gradient includes the clip.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> denoiser, x_t = sm.load_denoiser("zoo:mnist"), 5.0 * torch.ones(1, 1, 28, 28)
        >>> prediction = denoiser(x_t, level := denoiser.schedule.at_ratio(5.0))
        >>> inputs = (sm.Denoised(), sm.Lookahead(evaluations=2))
        >>> [round(input(x_t, prediction, level, denoiser).std().item(), 1) for input in inputs]
        [0.6, 0.7]
    """

    evaluations: int = 1
    until: float = 0.3
    clip: bool = True
    needs_denoiser = True

    def __post_init__(self) -> None:
        if self.evaluations < 1 or not self.until > 0:
            raise InputError(
                f"input.evaluations must be at least 1 and input.until above 0, got {self.evaluations} and {self.until}"
            )

    def __call__(self, x_t: Batch, prediction: Prediction | None, level: Level, denoiser: Denoiser) -> Batch:
        assert prediction is not None, "the loop evaluates the denoiser first"
        x0_hat = look_ahead(denoiser, x_t, prediction, level, self.evaluations, self.until).x0_hat
        return x0_hat.clamp(-1, 1) if self.clip else x0_hat


@dataclass(frozen=True, kw_only=True)
class Rescaled:
    """The noisy image brought back to the range of images, ``x_t / max(1, rms(x_t))`` (EluCD, Algorithm 2).

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> denoiser = sm.load_denoiser("zoo:mnist")
        >>> z = sm.Rescaled()(torch.full((1, 1, 28, 28), 2.5), None, denoiser.schedule.at_ratio(5.0), denoiser)
        >>> round(z.square().mean().sqrt().item(), 2)
        1.0
    """

    needs_denoiser = False

    def __call__(self, x_t: Batch, prediction: Prediction | None, level: Level, denoiser: Denoiser) -> Batch:
        size = repeat(rms(x_t).reshape(-1, 1).clamp(min=1), 1, x_t[0].numel())
        return x_t / size.reshape_as(x_t)
