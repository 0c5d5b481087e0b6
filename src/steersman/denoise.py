"""Denoisers: their protocol, their predictions, classifier-free guidance, and the four parameterizations.

From ``x_t = alpha x_0 + sigma eps``, a network that predicts one of these predicts all of them:

    epsilon   eps = (x_t - alpha x0) / sigma          x0 = (x_t - sigma eps) / alpha
    sample    x0
    v         v   = alpha eps - sigma x0              x0 = (alpha x_t - sigma v) / (alpha^2 + sigma^2)
    flow      u   = eps - x0                          x0 = (x_t - sigma u) / (alpha + sigma)

``v`` is Salimans & Ho's (2022), ``flow`` has diffusers' sign. Without noise (``sigma = 0``) there is no eps; without
signal (``alpha = 0``) eps does not determine ``x0``, but the other three do.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.batching import broadcast, take
from steersman.errors import InputError, unknown
from steersman.schedule import Level, Schedule, noised
from steersman.typed import check_finite

__all__ = [
    "Conditioned",
    "Denoiser",
    "Parameterization",
    "Prediction",
    "check_condition",
    "classifier_free",
    "classifier_free_at_once",
    "eps_from_x0",
    "look_ahead",
    "output_for",
    "to_x0",
]

FURTHEST = 1e6  # sigma / alpha that a lookahead starts from where there is no signal, and the ratio is infinite

Parameterization = Literal["epsilon", "sample", "v_prediction", "flow_prediction"]
Samples = Float[Tensor, "B *shape"]


class Prediction(NamedTuple):
    """A denoiser's prediction from a noisy sample.

    Attributes:
        x0_hat: The denoised sample, not yet clipped.
        variance_fraction: ADM's learned fraction between the smallest and the largest log variance, in [0, 1], or None.
        unconditional: The ``x0_hat`` without the label, where classifier-free guidance computed it.
    """

    x0_hat: Samples
    variance_fraction: Samples | None = None
    unconditional: Samples | None = None


@runtime_checkable
class Denoiser(Protocol):
    """A diffusion model: a protocol, which `steersman.NetworkDenoiser` implements for any network.

    Samples have any shape. Images are in [-1, 1]; latents are samples that `decode` turns into images. A latent model
    also has ``latent = True``, so that its samples are not clipped to the range of images, and a model conditioned on
    a text, ``prompt``, has ``prompted = True``. The command line also needs ``network``, a `torch.nn.Module`, and
    ``to(device, dtype)``.

    Attributes:
        schedule: The noise schedule of its training.
        shape: The shape of one sample, (C, H, W) for an image.
        classes: The names of its labels; empty for a model without labels.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> denoiser = sm.load_denoiser("zoo:mnist")
        >>> isinstance(denoiser, sm.Denoiser)
        True
        >>> denoiser(torch.zeros(2, 1, 28, 28), denoiser.schedule.at_ratio(1.0)).x0_hat.shape
        torch.Size([2, 1, 28, 28])
    """

    schedule: Schedule
    shape: tuple[int, ...]
    classes: tuple[str, ...]

    def __call__(self, x_t: Samples, level: Level, **condition: Any) -> Prediction:  # noqa: ANN401
        """Returns the prediction for noisy samples at a level; the conditions are the model's own."""
        ...

    def decode(self, x0: Samples) -> Float[Tensor, "B *image"]:
        """Returns the image in [-1, 1] that a sample stands for; differentiable."""
        ...


class Conditioned:
    """A denoiser with its conditioning, of whose tensors each has a row per image; itself a denoiser."""

    def __init__(self, denoiser: Denoiser, condition: Mapping[str, Any]) -> None:
        self.denoiser, self.condition = denoiser, condition
        self.schedule, self.shape, self.classes = denoiser.schedule, denoiser.shape, denoiser.classes
        self.latent: bool = getattr(denoiser, "latent", False)

    def __call__(self, x_t: Samples, level: Level, **condition: Any) -> Prediction:  # noqa: ANN401
        """Returns the denoiser's prediction; conditions given here override the denoiser's."""
        return self.denoiser(x_t, level, **{**self.condition, **condition})

    def decode(self, x0: Samples) -> Float[Tensor, "N *image"]:
        """Returns the denoiser's images: of a video, its frames."""
        return self.denoiser.decode(x0)

    def take(self, rows: Int[Tensor, " N"]) -> None:
        """Keeps the conditions of these rows of the batch."""
        self.condition = {key: take(value, rows) for key, value in self.condition.items()}


def check_condition(
    label: object,
    cfg_scale: float,
    others: Mapping[str, object] = MappingProxyType({}),
    *,
    classes: Sequence[str],
    unconditional: bool,
    known: Sequence[str] = ("label", "cfg_scale"),
) -> None:
    """Refuses a condition that a model with labels cannot follow.

    ``others`` are the conditions beside label and scale, of which none is known; ``unconditional`` says whether the
    model was also trained without labels, ``known`` which conditions it takes.
    """
    if others:
        raise unknown("condition", next(iter(others)), known)
    check_finite("cfg_scale", cfg_scale)
    if label is None and cfg_scale != 1:
        raise InputError(f"cfg_scale must be 1 without a label, got {cfg_scale}; give a label too")
    if not classes and label is not None:
        raise InputError("label must be left out, as the denoiser was trained without labels, got one")
    if classes and label is None and not unconditional:
        raise InputError(
            f"label must be given, as the denoiser has no unconditional model, got none; known: {', '.join(classes)}"
        )
    if cfg_scale != 1 and not unconditional:
        raise InputError(f"cfg_scale must be 1, as the denoiser has no unconditional model, got {cfg_scale}")


def classifier_free(
    conditional: Prediction, unconditional: Samples, scale: float, channels: int | None = None
) -> Prediction:
    """``x0_hat(null) + w (x0_hat(y) - x0_hat(null))`` of the first ``channels``, all if None (Ho & Salimans 2022).

    The other channels, and the variance, are the conditional prediction's.
    """
    labelled = conditional.x0_hat
    x0_hat = unconditional + scale * (labelled - unconditional)
    if channels is not None:
        if not 1 <= channels <= labelled.shape[1]:
            raise InputError(f"cfg_channels must be between 1 and {labelled.shape[1]}, or None for all, got {channels}")
        x0_hat = torch.cat([x0_hat[:, :channels], labelled[:, channels:]], dim=1)
    return conditional._replace(x0_hat=x0_hat, unconditional=unconditional)


def classifier_free_at_once(
    predict: Callable[[Tensor, Level], Prediction],
    x_t: Samples,
    level: Level,
    scale: float,
    channels: int | None = None,
) -> Prediction:
    """`classifier_free` from one doubled batch, of which ``predict`` gives the label to the first half alone."""
    both = predict(torch.cat([x_t, x_t]), Level(*(value.repeat(2) if value.ndim else value for value in level)))
    x0_hat, unconditional = both.x0_hat.chunk(2)
    fraction = None if both.variance_fraction is None else both.variance_fraction.chunk(2)[0]
    return classifier_free(Prediction(x0_hat, fraction), unconditional, scale, channels)


def eps_from_x0(x_t: Samples, x0: Samples, level: Level) -> Samples:
    """``eps = (x_t - alpha x0) / sigma``."""
    if not (level.sigma > 0).all():
        raise InputError(f"level.sigma must be above 0, as eps needs noise, got {level.sigma.tolist()}")
    return (x_t - broadcast(level.alpha, x_t) * x0) / broadcast(level.sigma, x_t)


def to_x0(kind: Parameterization, x_t: Samples, output: Samples, level: Level) -> Samples:
    """Returns ``x0_hat``, not clipped, from a network's output."""
    alpha, sigma = broadcast(level.alpha, x_t), broadcast(level.sigma, x_t)
    match kind:
        case "epsilon":
            if not (level.alpha > 0).all():
                raise InputError(
                    "a network that predicts epsilon cannot be evaluated at a level without signal (alpha = 0); start "
                    "at a level with signal (sampling.spacing=leading, or a finite sampling.ratio_max), or use a "
                    "network that predicts sample, v_prediction or flow_prediction"
                )
            return (x_t - sigma * output) / alpha
        case "sample":
            return output
        case "v_prediction":
            return (alpha * x_t - sigma * output) / (alpha**2 + sigma**2)
        case "flow_prediction":
            return (x_t - sigma * output) / (alpha + sigma)
    raise unknown("parameterization", kind, get_args(Parameterization))


def output_for(kind: Parameterization, x0: Samples, eps: Samples, level: Level) -> Samples:
    """Returns the output that a network of this kind should have for ``x_t = alpha x0 + sigma eps``."""
    match kind:
        case "epsilon":
            return eps
        case "sample":
            return x0
        case "v_prediction":
            return broadcast(level.alpha, x0) * eps - broadcast(level.sigma, x0) * x0
        case "flow_prediction":
            return eps - x0
    raise unknown("parameterization", kind, get_args(Parameterization))


def look_ahead(
    denoiser: Denoiser, x_t: Samples, prediction: Prediction, level: Level, evaluations: int, until: float
) -> Prediction:
    """Returns the prediction at a lower level, where ``x0_hat`` is no longer the mean over many possible images.

    Deterministic steps (DDIM), ``evaluations`` even ones of ``log(sigma / alpha)``, lead from ``x_t`` to the ratio
    ``until``; differentiable. At or below that ratio, the prediction is returned as it is.
    """
    ratio = min(float(level.sigma / level.alpha), FURTHEST)
    for each in range(evaluations if ratio > until else 0):
        next = denoiser.schedule.at_ratio(ratio * (until / ratio) ** ((each + 1) / evaluations))
        eps = eps_from_x0(x_t, prediction.x0_hat, level)
        x_t = noised(prediction.x0_hat, eps, next)
        prediction, level = denoiser(x_t, next), next
    return prediction
