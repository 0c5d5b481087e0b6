"""Latents, and the images that a VAE makes of them.

A denoiser of latents works on ``x_0 = s (z - b)``, with z what the VAE's encoder puts out, ``s`` the scaling factor
that gives it unit variance and ``b`` a shift; some VAEs have a mean m and a deviation d of each channel as well. So

    image = Dec(z),   z = x_0 / s + b,   or   z = m + d x_0 / s + b

which is differentiable: a classifier of images guides latents by ``grad log p(y | Dec(z))`` (EluCD 5.3). An image's
own latent is of the z that its encoder finds likeliest.

A VQ-VAE's decoder replaces each place of z by the nearest entry of its codebook first, ``z_q``, as its pipeline does.
That has no gradient of its own, and passes the one with respect to ``z_q`` on to z as it is (straight through, van den
Oord et al. 2017). Its encoder gives z itself.

Images go through the VAE one at a time, and its blocks are
computed again for the gradient instead of kept, so that a batch needs little more memory than one image.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steersman.errors import InputError
from steersman.rows import send

__all__ = ["cast", "channels", "decoded", "encoded", "frozen", "scaled", "unscaled"]


def decoded(vae: Any, x0: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:  # noqa: ANN401
    """Returns ``Dec(z)`` of each latent, not clipped, in the latents' dtype.

    Args:
        vae: diffusers' `AutoencoderKL` or `VQModel`, or what has its ``config`` and ``decode``.
        x0: Latents ``x_0`` as the denoiser knows them.

    Raises:
        InputError: The VAE decodes another number of channels.
    """
    config = vae.config
    if x0.shape[1] != (wanted := channels(config) or x0.shape[1]):
        raise InputError(f"latents must have {wanted} channels, as the VAE decodes, got {x0.shape[1]}")
    z = unscaled(config, x0).to(vae.dtype)
    return torch.cat([vae.decode(each).sample for each in z.split(1)]).to(x0.dtype)


def encoded(vae: Any, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:  # noqa: ANN401
    """Returns the latents ``x_0`` of images in [-1, 1], of the likeliest z, in the images' dtype.

    Args:
        vae: As in `decoded`, with its ``encode``.
        images: The images.

    Raises:
        InputError: The VAE's encoder gives neither a law of latents nor latents.
    """
    found = []
    for each in images.to(vae.dtype).split(1):
        output = vae.encode(each)
        law, z = (getattr(output, key, None) for key in ("latent_dist", "latents"))
        if law is None and z is None:
            raise InputError(f"vae must be one that encodes, as AutoencoderKL or VQModel, got {type(vae).__name__}")
        found.append(z if law is None else law.mode())
    return scaled(vae.config, torch.cat(found).to(images.dtype))


def channels(config: Mapping[str, Any]) -> int | None:
    """Returns how many channels a VAE's latents have, by its configuration; None where it does not say."""
    return config.get("vq_embed_dim") or config.get("latent_channels")


def scaled(config: Mapping[str, Any], z: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Returns latents ``x_0`` of ``z``, what `unscaled` undoes.

    Args:
        config: The VAE's configuration.
        z: What the encoder put out.
    """
    mean, deviation = (config.get(key) for key in ("latents_mean", "latents_std"))
    z = z - (config.get("shift_factor") or 0.0)
    if mean is not None and deviation is not None:
        z = (z - _channels(mean, z)) / _channels(deviation, z)
    return z * config.get("scaling_factor", 1.0)


def unscaled(config: Mapping[str, Any], x0: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Returns ``z`` of latents ``x_0``.

    Args:
        config: The VAE's configuration.
        x0: Latents as the denoiser knows them.
    """
    mean, deviation = (config.get(key) for key in ("latents_mean", "latents_std"))
    z = x0 / config.get("scaling_factor", 1.0)
    if mean is not None and deviation is not None:
        z = z * _channels(deviation, z) + _channels(mean, z)
    return z + (config.get("shift_factor") or 0.0)


def frozen(vae: Any) -> Any:  # noqa: ANN401
    """Returns the VAE in evaluation mode, its weights without gradients, its blocks recomputed where it can."""
    vae.eval().requires_grad_(False)
    if getattr(vae, "_supports_gradient_checkpointing", False):
        vae.enable_gradient_checkpointing()
    return vae


def cast(vae: Any, device: str | torch.device | None, dtype: torch.dtype | None) -> None:  # noqa: ANN401
    """Moves a VAE; one that overflows in float16 stays in float32."""
    exact = dtype == torch.float16 and vae.config.get("force_upcast")
    nn.Module.to(vae, device=device, dtype=torch.float32 if exact else dtype)


def _channels(values: Sequence[float], like: Tensor) -> Tensor:
    return send(torch.tensor(values, dtype=like.dtype), like.device).reshape(1, -1, 1, 1)
