"""How a classifier wants its input.

An image in [-1, 1] becomes the network's input by one affine map a channel,

    u = (x + 1) / 2,    input = (u - mean) / std = x · 1/(2 std) + (1/2 - mean) / std,

after an optional centre crop and an optional resize. Every part is linear in x, so the gradient of a
log-likelihood reaches each pixel that the network sees. Nothing is clamped: bicubic resizing may overshoot
[-1, 1] slightly, and a clamp would cut the gradient exactly where the image is saturated.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from steersman.errors import InputError, unknown

__all__ = ["RAW", "Interpolation", "Preprocess"]

Interpolation = Literal["bicubic", "bilinear"]


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """What a network was trained to be fed, stated so that an image in [-1, 1] can be turned into it.

    The defaults leave the image exactly as it is.

    Args:
        mean: Mean of the network's training images in [0, 1], one value for all channels or one a channel.
        std: Their standard deviation, likewise.
        size: Height and width in pixels that the network is fed; None keeps the image's own.
        interpolation: How it is resized, always with antialiasing.
        crop: Fraction in (0, 1] of the shorter side that a centre square keeps before the resize. None keeps the
            whole image, and squeezes one that is not square: pixels outside a crop would never be guided.

    Raises:
        InputError: A value is outside the range above, or ``mean`` and ``std`` differ in length.
    """

    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    size: int | None = None
    interpolation: Interpolation = "bicubic"
    crop: float | None = None

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std):
            raise InputError(f"mean and std must hold as many values, got {self.mean} and {self.std}")
        if not all(map(math.isfinite, self.mean)) or not all(0 < std < math.inf for std in self.std):
            raise InputError(f"mean must be finite and std positive, got {self.mean} and {self.std}")
        if self.size is not None and self.size < 1:
            raise InputError(f"size must be a positive number of pixels or None, got {self.size}")
        if self.interpolation not in get_args(Interpolation):
            raise unknown("interpolation", self.interpolation, get_args(Interpolation))
        if self.crop is not None and not 0 < self.crop <= 1:
            raise InputError(f"crop must be a fraction in (0, 1] or None, got {self.crop}")

    def __call__(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        """Returns the network's input for an image, ``(u - mean) / std``, differentiably.

        Args:
            image: Images in [-1, 1], in float32 or float64.

        Returns:
            The network's input, of the image's dtype and device.

        Raises:
            InputError: The image does not have as many channels as ``mean``.
        """
        channels = image.shape[1]
        if len(self.mean) not in (1, channels):
            raise InputError(f"the classifier takes images of {len(self.mean)} channels, got {channels}")
        if self.crop is not None:
            image = _centre_square(image, self.crop)
        if self.size is not None and image.shape[-2:] != (self.size, self.size):
            image = functional.interpolate(image, (self.size, self.size), mode=self.interpolation, antialias=True)
        slope = [0.5 / std for std in self.std]
        offset = [(0.5 - mean) / std for mean, std in zip(self.mean, self.std, strict=True)]
        return image * _per_channel(slope, image) + _per_channel(offset, image)

    def resized(self, size: int | None) -> "Preprocess":
        """Returns the same preprocessing with another input size (None: the image's own)."""
        return replace(self, size=size)


RAW = Preprocess()
"""Feeds the sample as it is, at its own size and in [-1, 1], as EluCD's released code does."""


def _centre_square(image: Float[Tensor, "B C H W"], fraction: float) -> Float[Tensor, "B C h h"]:
    height, width = image.shape[-2:]
    side = max(1, round(fraction * min(height, width)))
    top, left = (height - side) // 2, (width - side) // 2
    return image[..., top : top + side, left : left + side]


def _per_channel(values: list[float], image: Float[Tensor, "B C H W"]) -> Float[Tensor, "c 1 1"]:
    return torch.tensor(values, dtype=image.dtype, device=image.device).reshape(-1, 1, 1)
