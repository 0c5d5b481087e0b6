"""What a denoiser predicts, and its four ways of saying it.

From ``x_t = alpha x_0 + sigma eps``, a network that predicts one of these predicts all of them:

    epsilon   eps = (x_t - alpha x0) / sigma          x0 = (x_t - sigma eps) / alpha
    sample    x0
    v         v   = alpha eps - sigma x0              x0 = (alpha x_t - sigma v) / (alpha^2 + sigma^2)
    flow      u   = eps - x0                          x0 = (x_t - sigma u) / (alpha + sigma)

``v`` is Salimans & Ho's (2022), ``flow`` has diffusers' sign. Where there is no noise, ``sigma = 0``, all of them give
``x0 = x_t / alpha``, and no eps belongs to it. Where there is no signal, ``alpha = 0``, eps is ``x_t / sigma`` whatever
the image is, so that it tells nothing of ``x0``; the other three do.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.batching import take
from steersman.errors import InputError, unknown
from steersman.schedule import Level, Schedule, broadcast
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

FURTHEST = 1e6  # the sigma / alpha that even steps of its logarithm begin from where there is no signal at all

Parameterization = Literal["epsilon", "sample", "v_prediction", "flow_prediction"]


class Prediction(NamedTuple):
    """What a denoiser makes of a noisy image.

    Attributes:
        x0_hat: The denoised image, not yet clipped.
        variance_fraction: ADM's learned place between the smallest and the largest log variance, in [0, 1], or None.
        unconditional: The ``x0_hat`` without the label, where classifier-free guidance computed it.
    """

    x0_hat: Float[Tensor, "B *shape"]
    variance_fraction: Float[Tensor, "B *shape"] | None = None
    unconditional: Float[Tensor, "B *shape"] | None = None


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

    def __call__(self, x_t: Float[Tensor, "B *shape"], level: Level, **condition: Any) -> Prediction:  # noqa: ANN401
        """Returns the prediction for noisy images at a level; the conditions are the model's own."""
        ...

    def decode(self, x0: Float[Tensor, "B *shape"]) -> Float[Tensor, "B *image"]:
        """Returns the image in [-1, 1] that a sample stands for; differentiable."""
        ...


class Conditioned:
    """A denoiser with its conditions given: itself one, that needs no more to be told.

    Args:
        denoiser: The denoiser.
        condition: What it is told beside image and level; a tensor has a row an image.

    Attributes:
        latent: Whether its samples are latents.
    """

    def __init__(self, denoiser: Denoiser, condition: Mapping[str, Any]) -> None:
        self.denoiser, self.condition = denoiser, condition
        self.schedule, self.shape, self.classes = denoiser.schedule, denoiser.shape, denoiser.classes
        self.latent: bool = getattr(denoiser, "latent", False)

    def __call__(self, x_t: Float[Tensor, "B *shape"], level: Level, **condition: Any) -> Prediction:  # noqa: ANN401
        """Returns the denoiser's prediction; conditions given here go before those given at first."""
        return self.denoiser(x_t, level, **{**self.condition, **condition})

    def decode(self, x0: Float[Tensor, "B *shape"]) -> Float[Tensor, "B *image"]:
        """Returns the denoiser's own."""
        return self.denoiser.decode(x0)

    def take(self, rows: Int[Tensor, " N"]) -> None:
        """Goes on with the conditions of those rows of the batch."""
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
    """Refuses a condition that a model of labels cannot follow.

    Args:
        label: A label each, or None.
        cfg_scale: The classifier-free scale ``w``.
        others: What else was given.
        classes: The names of the model's labels; empty for one without.
        unconditional: Whether it has learned images without a label too.
        known: The conditions that it takes.

    Raises:
        InputError: Another condition, a label for a model without labels, none for one that must have it, or a
            ``cfg_scale`` that is not finite, without a label, or for a model that is not both conditional and
            unconditional.
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
    conditional: Prediction,
    unconditional: Float[Tensor, "B *shape"],
    scale: float,
    channels: int | None = None,
) -> Prediction:
    """``x0_hat(null) + w (x0_hat(y) - x0_hat(null))``, which the noise prediction follows (Ho & Salimans 2022).

    Args:
        conditional: What the denoiser predicts with the label; its variance stays.
        unconditional: Its ``x0_hat`` without.
        scale: ``w``.
        channels: How many channels, the first ones, are guided; the others are the conditional model's. All if None.

    Raises:
        InputError: More channels than there are, or fewer than one.
    """
    given = conditional.x0_hat
    x0_hat = unconditional + scale * (given - unconditional)
    if channels is not None:
        if not 1 <= channels <= given.shape[1]:
            raise InputError(f"cfg_channels must be between 1 and {given.shape[1]}, or None for all, got {channels}")
        x0_hat = torch.cat([x0_hat[:, :channels], given[:, channels:]], dim=1)
    return conditional._replace(x0_hat=x0_hat, unconditional=unconditional)


def classifier_free_at_once(
    predict: Callable[[Float[Tensor, "D *shape"], Level], Prediction],
    x_t: Float[Tensor, "B *shape"],
    level: Level,
    scale: float,
    channels: int | None = None,
) -> Prediction:
    """`classifier_free` from one doubled batch.

    Args:
        predict: Returns the prediction of twice the batch, with the label for the first half and without for the other.
        x_t: Noisy samples.
        level: Their level, one for all or one each.
        scale: ``w``.
        channels: As there.
    """
    both = predict(torch.cat([x_t, x_t]), Level(*(value.repeat(2) if value.ndim else value for value in level)))
    x0_hat, unconditional = both.x0_hat.chunk(2)
    fraction = None if both.variance_fraction is None else both.variance_fraction.chunk(2)[0]
    return classifier_free(Prediction(x0_hat, fraction), unconditional, scale, channels)


def eps_from_x0(
    x_t: Float[Tensor, "B *shape"], x0: Float[Tensor, "B *shape"], level: Level
) -> Float[Tensor, "B *shape"]:
    """``eps = (x_t - alpha x0) / sigma``.

    Raises:
        InputError: There is no noise.
    """
    if not (level.sigma > 0).all():
        raise InputError(f"level.sigma must be above 0, as eps needs noise, got {level.sigma.tolist()}")
    return (x_t - broadcast(level.alpha, x_t) * x0) / broadcast(level.sigma, x_t)


def to_x0(
    kind: Parameterization, x_t: Float[Tensor, "B *shape"], output: Float[Tensor, "B *shape"], level: Level
) -> Float[Tensor, "B *shape"]:
    """Returns ``x0_hat``, not clipped, from what a network put out.

    Raises:
        InputError: An unknown parameterization, or ``epsilon`` where there is no signal.
    """
    alpha, sigma = broadcast(level.alpha, x_t), broadcast(level.sigma, x_t)
    match kind:
        case "epsilon":
            if not (level.alpha > 0).all():
                raise InputError(
                    "a network that predicts epsilon cannot be asked at a level without signal (alpha = 0), where the "
                    "noise says nothing of the image; begin at a level with signal (sampling.spacing=leading, or a "
                    "finite sampling.ratio_max), or use a network that predicts sample, v_prediction or flow_prediction"
                )
            return (x_t - sigma * output) / alpha
        case "sample":
            return output
        case "v_prediction":
            return (alpha * x_t - sigma * output) / (alpha**2 + sigma**2)
        case "flow_prediction":
            return (x_t - sigma * output) / (alpha + sigma)
    raise unknown("parameterization", kind, get_args(Parameterization))


def output_for(
    kind: Parameterization, x0: Float[Tensor, "B *shape"], eps: Float[Tensor, "B *shape"], level: Level
) -> Float[Tensor, "B *shape"]:
    """Returns what a network of that kind should put out for ``x_t = alpha x0 + sigma eps``.

    Raises:
        InputError: An unknown parameterization.
    """
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
    denoiser: Denoiser,
    x_t: Float[Tensor, "B *shape"],
    prediction: Prediction,
    level: Level,
    evaluations: int,
    until: float,
) -> Prediction:
    """Returns what the denoiser predicts further on, where ``x0_hat`` is no longer the blur of all that could be.

    Deterministic steps (DDIM) lead from ``x_t`` over levels of evenly falling ``log(sigma / alpha)``, each evaluated
    once; differentiable.

    Args:
        denoiser: Whom to ask.
        x_t: Noisy images.
        prediction: What it predicts there.
        level: Their level.
        evaluations: How many levels further on it is asked.
        until: The last of them, as ``sigma / alpha``; from there on down there is nothing ahead.
    """
    ratio = min(float(level.sigma / level.alpha), FURTHEST)
    for each in range(evaluations if ratio > until else 0):
        next = denoiser.schedule.at_ratio(ratio * (until / ratio) ** ((each + 1) / evaluations))
        eps = eps_from_x0(x_t, prediction.x0_hat, level)
        x_t = broadcast(next.alpha, x_t) * prediction.x0_hat + broadcast(next.sigma, x_t) * eps
        prediction, level = denoiser(x_t, next), next
    return prediction
