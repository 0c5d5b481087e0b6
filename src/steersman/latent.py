"""Latents, and the images that a VAE makes of them.

    image = Dec(z),   z = x_0 / s + b,   or   z = m + d x_0 / s + b

with the scaling factor s that gives the latents of a denoiser unit variance, a shift b, and for some VAEs a mean m and
a deviation d of each channel. The encoder's z is its likeliest. All of it is differentiable: a classifier of images
guides latents by ``grad log p(y | Dec(z))`` (EluCD 5.3), straight through the codebook of a VQ-VAE.

Latents and frames of a video are (B, C, T, H, W). Images and videos go through the VAE one at a time, so that a batch
needs little more memory than one image.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from steersman.batching import send
from steersman.errors import InputError
from steersman.precision import loss_scaled

__all__ = ["cast", "channels", "decoded", "encoded", "frozen", "scaled", "unscaled"]


def decoded(vae: Any, x0: Float[Tensor, "B C *T H W"]) -> Float[Tensor, "B C2 *T2 H2 W2"]:  # noqa: ANN401
    """Returns the images ``Dec(z)`` of latents ``x_0``, not clipped, in the latents' dtype.

    The VAE is diffusers' `AutoencoderKL` or `VQModel`, or has their ``config`` and ``decode``. A VAE of videos makes an
    image of one latent frame; one of images decodes each latent frame by itself.
    """
    if x0.shape[1] != (wanted := channels(vae.config) or x0.shape[1]):
        raise InputError(f"latents must have {wanted} channels, as the VAE decodes, got {x0.shape[1]}")
    videos = any(isinstance(module, nn.Conv3d) for module in vae.modules())
    if x0.ndim == 5 and not videos:
        frames = decoded(vae, x0.transpose(1, 2).flatten(0, 1))
        return frames.unflatten(0, (len(x0), -1)).transpose(1, 2)
    z = _unscaled(vae, x0)
    z = z[:, :, None] if x0.ndim == 4 and videos else z
    decode = loss_scaled(partial(_decode, vae), vae.dtype)
    images = torch.cat([decode(image) for image in z.split(1)])
    return images if z.ndim == x0.ndim else images[:, :, 0]


def _decode(vae: Any, z: Tensor) -> Tensor:  # noqa: ANN401
    """Returns what a VAE makes of latents of its own scale, as its pipelines ask it, whatever it computes in."""
    options: dict[str, Any] = {}
    if _is_movq(vae.config):
        options["force_not_quantize"] = True
    elif vae.config.get("timestep_conditioning"):  # LTX's VAE ends with a step of denoising, by default at time 0
        options["temb"] = z.new_zeros(len(z), dtype=vae.dtype)
    return vae.decode(z.to(vae.dtype), **options).sample.to(z.dtype)


def _is_movq(config: Mapping[str, Any]) -> bool:
    """Whether it is Kandinsky's MoVQ, whose normalisation follows the quantised latents, which are not scaled."""
    return config.get("norm_type") == "spatial"


def encoded(vae: Any, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:  # noqa: ANN401
    """Returns the latents ``x_0`` of images in [-1, 1], in the images' dtype."""
    latents = []
    for image in images.to(vae.dtype).split(1):
        output = vae.encode(image)
        law, z = (getattr(output, key, None) for key in ("latent_dist", "latents"))
        if law is None and z is None:
            raise InputError(f"vae must be one that encodes, as AutoencoderKL or VQModel, got {type(vae).__name__}")
        latents.append(z if law is None else law.mode())
    return scaled(vae.config, torch.cat(latents).to(images.dtype))


def channels(config: Mapping[str, Any]) -> int | None:
    """Returns the number of channels of a VAE's latents; None where its configuration does not say."""
    names = ("vq_embed_dim", "latent_channels", "z_dim")
    return next((config[name] for name in names if config.get(name)), None)


def scaled(config: Mapping[str, Any], z: Float[Tensor, "B C *shape"]) -> Float[Tensor, "B C *shape"]:
    """Returns latents ``x_0`` of the encoder's ``z``; `unscaled` is its inverse."""
    deviation, offset = _affine(config, z)
    return (z - offset) / deviation * config.get("scaling_factor", 1.0)


def unscaled(config: Mapping[str, Any], x0: Float[Tensor, "B C *shape"]) -> Float[Tensor, "B C *shape"]:
    """Returns ``z`` of latents ``x_0``, by a VAE's configuration."""
    deviation, offset = _affine(config, x0)
    return x0 / config.get("scaling_factor", 1.0) * deviation + offset


def _affine(config: Mapping[str, Any], like: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """Returns ``d`` and ``m + b``, where a configuration has them for each channel, else 1 and b."""
    shift = config.get("shift_factor") or 0.0
    mean, deviation = (config.get(key) for key in ("latents_mean", "latents_std"))
    if mean is None or deviation is None:
        return 1.0, shift
    return _channels(deviation, like), _channels(mean, like) + shift


def _channels(values: Sequence[float] | Tensor, like: Tensor) -> Tensor:
    """Returns a number for each channel, in the shape of latents."""
    if not isinstance(values, Tensor):
        values = send(torch.tensor(values, dtype=like.dtype), like.device)
    return values.to(like).reshape(1, -1, *[1] * (like.ndim - 2))


def _unscaled(vae: Any, x0: Tensor) -> Tensor:  # noqa: ANN401
    """Returns ``z`` of latents ``x_0``, where its modules say more than its configuration."""
    config = vae.config
    if _is_movq(config):
        return x0
    if isinstance(getattr(vae, "bn", None), nn.BatchNorm2d):  # FLUX.2: statistics of the patches' values
        side = config["patch_size"][0]
        patches = F.pixel_unshuffle(x0, side)
        mean, variance = (_channels(values, patches) for values in (vae.bn.running_mean, vae.bn.running_var))
        return F.pixel_shuffle(patches * (variance + config["batch_norm_eps"]).sqrt() + mean, side)
    if isinstance(getattr(vae, "latents_mean", None), Tensor):  # LTX: buffers
        config = {**config, "latents_mean": vae.latents_mean, "latents_std": vae.latents_std}
    return unscaled(config, x0)


def frozen(vae: Any) -> Any:  # noqa: ANN401
    """Returns the VAE in evaluation mode, its weights without gradients, its blocks recomputed where it can."""
    vae.eval().requires_grad_(False)
    with suppress(ValueError):  # it cannot
        vae.enable_gradient_checkpointing()
    return vae


def cast(vae: Any, device: str | torch.device | None, dtype: torch.dtype | None) -> None:  # noqa: ANN401
    """Moves a VAE; one that overflows in float16 stays in float32."""
    exact = dtype == torch.float16 and vae.config.get("force_upcast")
    nn.Module.to(vae, device=device, dtype=torch.float32 if exact else dtype)
