"""How an image in [-1, 1] becomes the input of a classifier.

A resize and a centre crop, both optional, and an affine map of each channel,

    u = (x + 1) / 2,    input = (u - mean) / std = x · 1/(2 std) + (1/2 - mean) / std.

A resize is ``R x C^T``, with one matrix for the rows and one for the columns. Every part is linear in x, so the
gradient reaches each pixel that the network sees. Nothing is clamped: bicubic resizing may overshoot [-1, 1] slightly,
and a clamp would cut the gradient where the image is saturated.

An 8-bit picture that needs no resize gets the input that torchvision, timm or transformers compute, up to float32
rounding. After a resize the difference is their rounding: they resize in 8 bits, in two passes.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from steersman.errors import InputError, unknown
from steersman.typed import finite

__all__ = ["RAW", "Channels", "Interpolation", "Preprocess", "convert_channels"]

Interpolation = Literal["bicubic", "bilinear"]
Channels = Literal["rgb", "bgr", "grey"]

_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R 601-2), as Pillow converts to grey


@dataclass(frozen=True, kw_only=True)
@finite
class Preprocess:
    """The preprocessing of a network: how an image in [-1, 1] becomes its input.

    The defaults leave the image exactly as it is.

    Args:
        mean: Mean of the network's training images in [0, 1], one value for all channels or one per channel.
        std: Standard deviation of these images, one value for all channels or one per channel.
        size: Height and width in pixels of the network's input; None keeps the image's size.
        interpolation: Interpolation of the resize, ``bicubic`` or ``bilinear``, always with antialiasing.
        crop: Fraction in (0, 1] of the shorter side that a centre crop keeps; the image is resized so that the crop
            has ``size`` pixels. None keeps the whole image and squeezes one that is not square. Pixels outside the
            crop are never guided.
        channels: Channels of the network: ``rgb``, ``bgr``, or ``grey`` for one channel. One channel is repeated to
            three, three are converted to their luminance. None means ``rgb`` if ``mean`` has three values, else the
            channels of the image.

    Raises:
        InputError: A value is outside the range above, or ``mean`` and ``std`` differ in length.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> preprocess = sm.Preprocess(size=96, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        >>> pixels = preprocess(torch.ones(2, 3, 32, 48))  # white
        >>> pixels.shape, [round(value, 2) for value in pixels[0, :, 0, 0].tolist()]
        (torch.Size([2, 3, 96, 96]), [2.25, 2.43, 2.64])
    """

    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    size: int | None = None
    interpolation: Interpolation = "bicubic"
    crop: float | None = None
    channels: Channels | None = None

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std):
            raise InputError(f"mean and std must have the same number of values, got {self.mean} and {self.std}")
        if min(self.std) <= 0:
            raise InputError(f"mean must be finite and std positive, got {self.mean} and {self.std}")
        if self.size is not None and self.size < 1:
            raise InputError(f"size must be a positive number of pixels or None, got {self.size}")
        if self.interpolation not in get_args(Interpolation):
            raise unknown("interpolation", self.interpolation, get_args(Interpolation))
        if self.crop is not None and not 0 < self.crop <= 1:
            raise InputError(f"crop must be a fraction in (0, 1] or None, got {self.crop}")
        if self.channels not in (None, *get_args(Channels)):
            raise unknown("channels", self.channels, get_args(Channels))

    def __call__(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B c h w"]:
        """Returns the network's input for images in [-1, 1], differentiably, in their dtype and on their device.

        Raises:
            InputError: The channels of the images cannot be converted to the network's.
        """
        image = convert_channels(
            image, 1 if self.channels == "grey" else 3 if self.channels or len(self.mean) == 3 else None
        )
        if self.channels == "bgr":
            image = image.flip(1)
        if len(self.mean) not in (1, image.shape[1]):
            raise InputError(f"the classifier takes images of {len(self.mean)} channels, got {image.shape[1]}")
        height, width = image.shape[-2:]
        shorter = min(height, width)
        if self.size is not None:
            edge = self.size if self.crop is None else round(self.size / self.crop)
            sides = (edge, edge) if self.crop is None else (edge * height // shorter, edge * width // shorter)
            image = _resize(image, sides, self.interpolation)
        if self.crop is not None:
            image = _centre_square(image, self.size or max(1, round(self.crop * shorter)))
        slope = tuple(0.5 / std for std in self.std)
        offset = tuple((0.5 - mean) / std for mean, std in zip(self.mean, self.std, strict=True))
        if all(value == 1 for value in slope) and not any(offset):
            return image
        slopes, offsets = (_per_channel(values, image.dtype, image.device) for values in (slope, offset))
        return image * slopes + offsets

    def resized(self, size: int | None) -> "Preprocess":
        """Returns the same preprocessing with another input size; None for the size of the image."""
        return replace(self, size=size)

    def grey(self) -> "Preprocess":
        """Returns the same for a network of one channel, with ``mean`` and ``std`` averaged over the channels."""
        mean, std = (sum(values) / len(values) for values in (self.mean, self.std))
        return replace(self, mean=(mean,), std=(std,), channels="grey")


RAW = Preprocess()
"""Feeds the sample as it is, at its own size and in [-1, 1], as EluCD's released code does."""


def convert_channels(image: Float[Tensor, "B C H W"], count: int | None) -> Float[Tensor, "B c H W"]:
    """Returns images with ``count`` channels: grey repeated to three, or the luminance of three."""
    given = image.shape[1]
    if count in (None, given):
        return image
    if (given, count) == (1, 3):
        return image.expand(-1, 3, -1, -1)
    if (given, count) == (3, 1):
        return (image * _per_channel(_LUMA, image.dtype, image.device)).sum(1, keepdim=True)
    allowed = "1 or 3" if count in (1, 3) else count
    raise InputError(f"classifier: images must have {allowed} channels, got {given}")


def _resize(
    image: Float[Tensor, "B C H W"], sides: tuple[int, int], interpolation: Interpolation
) -> Float[Tensor, "B C h w"]:
    if tuple(image.shape[-2:]) == sides:
        return image
    rows = _resize_matrix(image.shape[-2], sides[0], interpolation, image.dtype, image.device)
    columns = _resize_matrix(image.shape[-1], sides[1], interpolation, image.dtype, image.device)
    return rows @ image @ columns.mT


def _centre_square(image: Float[Tensor, "B C H W"], side: int) -> Float[Tensor, "B C h h"]:
    # Where the middle lies between two pixels, torchvision and timm round half to even; transformers rounds down.
    top, left = (round((length - side) / 2) for length in image.shape[-2:])
    return image[..., top : top + side, left : left + side]


@cache
def _resize_matrix(
    old: int, new: int, interpolation: Interpolation, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "new old"]:
    """Returns the matrix that resizes a column of pixels; products with it are faster than interpolation."""
    identity = torch.eye(old, dtype=torch.float64)[None, None]
    return functional.interpolate(identity, (new, old), mode=interpolation, antialias=True)[0, 0].to(device, dtype)


@cache
def _per_channel(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Float[Tensor, "c 1 1"]:
    # Kept, so that no step waits for a copy to the device.
    return torch.tensor(values, dtype=dtype, device=device).reshape(-1, 1, 1)
