"""A network as a denoiser.

A network F is called as ``F(x_t, c t)`` or, where it has labels, as ``F(x_t, c t, y)``, with t the time of the level on
the schedule that it was trained on. Its output is read as its parameterization says (`steersman.denoise`); where it has
twice the channels, the second half is ADM's learned variance, ``2 f - 1`` of the fraction f.

With labels, ``x0_hat(x_t, y)`` is the conditional model, ``x0_hat(x_t, null)`` the unconditional one, and
classifier-free guidance of scale ``w`` (Ho & Salimans 2022) predicts
``x0_hat(null) + w (x0_hat(y) - x0_hat(null))`` from one doubled batch.

EDM preconditions its network F (Karras et al. 2022, eq. 7 and table 1), with ``x_t = x_0 + sigma eps`` and s the
standard deviation of the data, so that F's input and output have unit variance at every level:

    x0_hat = c_skip x_t + c_out F(c_in x_t, c_noise, y)

    c_skip = s^2 / (sigma^2 + s^2)            c_in    = 1 / sqrt(sigma^2 + s^2)
    c_out  = sigma s / sqrt(sigma^2 + s^2)    c_noise = ln(sigma) / 4
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, get_args

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from jaxtyping import Float, Int
from torch import Tensor, nn

from steersman import latent
from steersman.batching import broadcast, in_blocks
from steersman.denoise import Parameterization, Prediction, check_condition, classifier_free_at_once, to_x0
from steersman.errors import InputError, unknown
from steersman.precision import loss_scaled
from steersman.schedule import EDM, Level, Schedule, times

__all__ = ["DiffusersDenoiser", "EDMDenoiser", "NetworkDenoiser", "evaluated", "labels_of", "predicted", "shape_of"]


class NetworkDenoiser:
    """A network with the noise that it was trained on.

    Samples enter and leave in float32 or float64, whatever the network runs in.

    Args:
        network: Maps noisy samples (B, ...), their times (B,) and, if it has labels, their labels (B,) to its
            prediction: a tensor, an object with the prediction as ``sample``, or a tuple that starts with it. It is put
            into evaluation mode, and its weights get no gradients.
        schedule: The noise schedule of its training, such as ``VP.from_betas(betas)``.
        shape: The shape of one sample, (C, H, W) for an image. Images are in [-1, 1].
        parameterization: What the network predicts.
        classes: The names of its labels, without the null label.
        null: The label that stands for no label; None for a network trained without one.
        time_scale: ``c``: the factor from the schedule's time to the network's.
        time_dtype: The type of the time that the network gets; for an integer type the time is rounded.
        vae: The decoder of its samples if they are latents: diffusers' `AutoencoderKL` or `VQModel`.

    Attributes:
        latent: Whether its samples are latents.
        block: How many images the network gets at a time, None for the whole batch (`steersman.batching`).

    Raises:
        InputError: An unknown parameterization, an invalid shape or time scale, or a VAE with other channels.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> class Network(torch.nn.Module):
        ...     def forward(self, x_t, time):
        ...         return 0.1 * x_t
        >>> denoiser = sm.NetworkDenoiser(Network(), schedule=sm.VP.linear(), shape=(3, 8, 8))
        >>> sm.sample(denoiser, seeds=2, steps=2, progress=False).tensor.shape
        torch.Size([2, 3, 8, 8])
    """

    block: int | None = None

    def __init__(
        self,
        network: nn.Module,
        *,
        schedule: Schedule,
        shape: Sequence[int],
        parameterization: Parameterization = "epsilon",
        classes: Sequence[str] = (),
        null: int | None = None,
        time_scale: float = 1.0,
        time_dtype: torch.dtype = torch.float32,
        vae: Any = None,  # noqa: ANN401
    ) -> None:
        if parameterization not in get_args(Parameterization):
            raise unknown("parameterization", parameterization, get_args(Parameterization))
        if not shape or min(shape) < 1:
            raise InputError(f"shape must be that of one sample, such as (3, 64, 64), got {tuple(shape)}")
        if not 0 < time_scale < math.inf:
            raise InputError(f"time_scale must be above 0 and finite, got {time_scale}")
        if vae is not None and latent.channels(vae.config) != shape[0]:
            raise InputError(
                f"vae must be one of {shape[0]} channels, as the network is, got {latent.channels(vae.config)}"
            )
        self.network = network.eval().requires_grad_(False)
        self.vae = None if vae is None else latent.frozen(vae)
        self.latent = vae is not None
        self.schedule = schedule
        self.parameterization: Parameterization = parameterization
        self.shape = tuple(map(int, shape))
        self.classes = tuple(classes)
        self.null = null
        self.time_scale, self.time_dtype = time_scale, time_dtype

    def __repr__(self) -> str:
        labels = f", {len(self.classes)} labels" if self.classes else ""
        return f"{type(self).__name__}({type(self.network).__name__}, samples {self.shape}, {self.schedule!r}{labels})"

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "NetworkDenoiser":
        """Moves network and VAE, and returns self."""
        nn.Module.to(self.network, device=device, dtype=dtype)
        if self.vae is not None:
            latent.cast(self.vae, device, dtype)
        return self

    def __call__(
        self,
        x_t: Float[Tensor, "B *shape"],
        level: Level,
        *,
        label: Int[Tensor, " B"] | None = None,
        cfg_scale: float = 1.0,
        cfg_channels: int | None = None,
        **_others: Any,  # noqa: ANN401
    ) -> Prediction:
        """Returns the prediction; without a label, the unconditional one.

        Args:
            x_t: Noisy samples.
            level: Their level, one for all or one for each.
            label: The label of each sample.
            cfg_scale: The classifier-free scale ``w``; at 1 only the conditional model is evaluated.
            cfg_channels: The number of channels, the first ones, to which it is applied; None for all. DiT's released
                code has 3 of 4.

        Raises:
            InputError: The model cannot follow the conditions (`steersman.denoise.check_condition`), or the network
                returns another shape.
        """
        known, unconditional = ("label", "cfg_scale", "cfg_channels"), self.null is not None
        check_condition(label, cfg_scale, _others, classes=self.classes, unconditional=unconditional, known=known)
        null = None if self.null is None else torch.full((len(x_t),), self.null, device=x_t.device)
        if label is None or null is None or cfg_scale == 1:
            return self._predict(x_t, level, null if label is None else label)
        predict = partial(self._predict, label=torch.cat([label, null]))
        return classifier_free_at_once(predict, x_t, level, cfg_scale, cfg_channels)

    def _predict(self, x_t: Tensor, level: Level, label: Tensor | None) -> Prediction:
        time = times(level, len(x_t), x_t.device, torch.float32) * self.time_scale
        time = (time if self.time_dtype.is_floating_point else time.round()).to(self.time_dtype)
        return predicted(self.parameterization, x_t, self._evaluate(x_t, time, label), level)

    def _evaluate(self, x: Tensor, time: Tensor, label: Tensor | None) -> Tensor:
        """Returns F's output in x's dtype, computed in the network's."""
        dtype = next(self.network.parameters(), x).dtype
        return evaluated(self.network, dtype, self.block, x, time, *(() if label is None else (label,)))

    def decode(self, x0: Float[Tensor, "B *shape"]) -> Float[Tensor, "B *image"]:
        """Returns the image of a latent, or the sample itself where it is an image."""
        return x0 if self.vae is None else latent.decoded(self.vae, x0)

    def encode(self, images: Float[Tensor, "B *image"]) -> Float[Tensor, "B *shape"]:
        """Returns the latents of images, or the images themselves where they are the samples."""
        return images if self.vae is None else latent.encoded(self.vae, images)


class DiffusersDenoiser(NetworkDenoiser):
    """A network of diffusers, whose configuration tells its shape and its labels; they are named, or have numbers."""

    def __init__(
        self,
        network: UNet2DModel | DiTTransformer2DModel,
        *,
        schedule: Schedule,
        parameterization: Parameterization = "epsilon",
        classes: tuple[str, ...] = (),
        time_scale: float = 1.0,
        vae: AutoencoderKL | VQModel | None = None,
    ) -> None:
        classes, null = labels_of(network, classes)
        super().__init__(
            network,
            schedule=schedule,
            shape=shape_of(network),
            parameterization=parameterization,
            classes=classes,
            null=null,
            time_scale=time_scale,
            vae=vae,
        )


class EDMDenoiser(NetworkDenoiser):
    """A network F with EDM's preconditioning, called with ``c_in x_t``, ``c_noise`` and, if it has some, labels.

    Of K labels, label K means none where it was trained with some left out (``unconditional``).
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        shape: tuple[int, int, int],
        classes: tuple[str, ...] = (),
        unconditional: bool = False,
        sigma_data: float = 0.5,
        schedule: EDM = EDM(),  # noqa: B008 - frozen
    ) -> None:
        if not 0 < sigma_data < math.inf:
            raise InputError(f"sigma_data must be above 0 and finite, got {sigma_data}")
        null = len(classes) if classes and unconditional else None
        super().__init__(network, schedule=schedule, shape=shape, classes=classes, null=null)
        self.sigma_data = sigma_data

    @property
    def unconditional(self) -> bool:
        """Whether it was trained with some labels left out."""
        return self.null is not None

    def _predict(self, x_t: Tensor, level: Level, label: Tensor | None) -> Prediction:
        total = (level.sigma**2 + self.sigma_data**2).sqrt()
        coefficients = (self.sigma_data**2 / total**2, level.sigma * self.sigma_data / total, 1 / total)
        c_skip, c_out, c_in = (broadcast(coefficient, x_t) for coefficient in coefficients)
        dtype = torch.promote_types(next(self.network.parameters(), x_t).dtype, torch.float32)
        c_noise = times(level, len(x_t), x_t.device, dtype)  # the schedule's time is ln(sigma) / 4
        return Prediction(c_skip * x_t + c_out * self._evaluate(c_in * x_t, c_noise, label))


def evaluated(
    network: Callable[..., Any], dtype: torch.dtype, block: int | None, x: Tensor, *conditioning: Tensor
) -> Tensor:
    """Returns a network's output in x's dtype, computed in the network's, of so many images at a time."""

    def call(x: Tensor, *conditioning: Tensor) -> Tensor:
        output = network(x.to(dtype), *conditioning)
        if not isinstance(output, Tensor):
            output = output[0] if isinstance(output, tuple) else output.sample
        return output.to(x.dtype)

    return in_blocks(loss_scaled(call, dtype), block, x, *conditioning)


def predicted(
    kind: Parameterization, x_t: Tensor, output: Tensor, level: Level, *, learned_range: bool = True
) -> Prediction:
    """Returns the prediction of a network's output; a second half is ADM's learned variance, or is not read."""
    fraction = None
    if output.shape[1:] == (2 * x_t.shape[1], *x_t.shape[2:]):
        output, learned = output.chunk(2, dim=1)
        fraction = (learned + 1) / 2 if learned_range else None
    if output.shape != x_t.shape:
        raise InputError(
            f"the denoiser's network must return the shape of its input, {tuple(x_t.shape)}, or twice the "
            f"channels with a learned variance, got {tuple(output.shape)}"
        )
    return Prediction(to_x0(kind, x_t, output, level), fraction)


def shape_of(network: UNet2DModel | DiTTransformer2DModel) -> tuple[int, int, int]:
    """Returns the shape (C, H, W) of one sample."""
    size = network.config["sample_size"]
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return network.config["in_channels"], height, width


def labels_of(
    network: UNet2DModel | DiTTransformer2DModel, classes: tuple[str, ...] = ()
) -> tuple[tuple[str, ...], int | None]:
    """Returns the names of a network's labels, by default their numbers, and its null label.

    A `DiTTransformer2DModel` has a null label after its others; a `UNet2DModel` where it has a label more than names.
    """
    if isinstance(network, DiTTransformer2DModel):
        numbered = network.config["num_embeds_ada_norm"]
        labels = numbered + 1
    else:
        labels = numbered = network.config["num_class_embeds"] or 0
    if classes and len(classes) not in (labels, labels - 1):
        raise InputError(f"classes must name the {labels} labels of the network, got {len(classes)} names")
    classes = classes or tuple(map(str, range(numbered)))
    return classes, labels - 1 if len(classes) < labels else None
