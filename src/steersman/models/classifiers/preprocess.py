"""How a classifier wants its input.

An image in [-1, 1] becomes the network's input by one affine map a channel,

    u = (x + 1) / 2,    input = (u - mean) / std = x · 1/(2 std) + (1/2 - mean) / std,

after an optional resize and an optional centre crop, in that order, as libraries do it: what lies just outside of the
crop takes part in the resize. A resize is ``R x C^T``, a matrix for the rows and one for the columns. Every part is
linear in x, so the gradient of a log-likelihood reaches each pixel that the network sees. Nothing is clamped: bicubic
resizing may overshoot [-1, 1] slightly, and a clamp would cut the gradient exactly where the image is saturated.

A picture of 8 bits that needs no resize gets the input that torchvision, timm or transformers make of it, to float32's
rounding. One that is resized differs by theirs: they resize in 8 bits, in two passes, and clamp to [0, 255].
"""

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from steersman.errors import InputError, unknown
from steersman.typed import finite

__all__ = ["RAW", "Channels", "Interpolation", "Preprocess", "in_channels"]

Interpolation = Literal["bicubic", "bilinear"]
Channels = Literal["rgb", "bgr", "grey"]

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R 601-2), as Pillow converts."""


@dataclass(frozen=True, kw_only=True)
@finite
class Preprocess:
    """The preprocessing of a network: how an image in [-1, 1] becomes its input.

    The defaults leave the image exactly as it is.

    Args:
        mean: Mean of the network's training images in [0, 1], one value for all channels or one a channel.
        std: Standard deviation of these images, one value for all channels or one a channel.
        size: Height and width in pixels of the network's input; None keeps the image's size.
        interpolation: The interpolation of the resize, always with antialiasing.
        crop: Fraction in (0, 1] of the shorter side that a centre crop keeps; the whole image is resized so that the
            crop has ``size`` pixels. None keeps the whole image, and squeezes one that is not square: pixels outside a
            crop are never guided.
        channels: The network's channels: ``rgb`` or ``bgr``, or one channel, ``grey``. One channel is repeated to three
            for the former; for the latter, the luminance of three channels is taken. None for ``rgb`` if mean and
            standard deviation have three values, else for the channels of the image.

    Raises:
        InputError: A value is outside the range above, or ``mean`` and ``std`` differ in length.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> preprocess = sm.Preprocess(size=96, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        >>> shown = preprocess(torch.ones(2, 3, 32, 48))  # white
        >>> shown.shape, [round(value, 2) for value in shown[0, :, 0, 0].tolist()]
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
            raise InputError(f"mean and std must hold as many values, got {self.mean} and {self.std}")
        if not all(map(math.isfinite, self.mean)) or not all(0 < std < math.inf for std in self.std):
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
        """Returns the network's input for an image, ``(u - mean) / std``, differentiably.

        Args:
            image: Images in [-1, 1], in float32 or float64.

        Returns:
            The network's input, of the image's dtype and device.

        Raises:
            InputError: The image has channels that cannot be turned into the network's.
        """
        image = self._in_channels(image)
        channels = image.shape[1]
        if len(self.mean) not in (1, channels):
            raise InputError(f"the classifier takes images of {len(self.mean)} channels, got {channels}")
        if self.size is not None and image.shape[-2:] != (sides := self._sides(*image.shape[-2:])):
            rows, columns = (
                _resize(old, new, self.interpolation, image.dtype, image.device)
                for old, new in zip(image.shape[-2:], sides, strict=True)
            )
            image = rows @ image @ columns.mT
        if self.crop is not None:
            image = _centre_square(image, self.size or max(1, round(self.crop * min(image.shape[-2:]))))
        slope = tuple(0.5 / std for std in self.std)
        offset = tuple((0.5 - mean) / std for mean, std in zip(self.mean, self.std, strict=True))
        if all(each == 1 for each in slope) and not any(offset):
            return image
        slopes, offsets = (_per_channel(each, image.dtype, image.device) for each in (slope, offset))
        return image * slopes + offsets

    def _in_channels(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B c H W"]:
        takes = 1 if self.channels == "grey" else 3 if self.channels or len(self.mean) == 3 else None
        image = in_channels(image, takes)
        return image.flip(1) if self.channels == "bgr" else image

    def _sides(self, height: int, width: int) -> tuple[int, int]:
        """Returns height and width after the resize: with a crop, the shorter one is size / crop."""
        assert self.size is not None
        if self.crop is None:
            return self.size, self.size
        edge, shorter = round(self.size / self.crop), min(height, width)
        return edge * height // shorter, edge * width // shorter

    def resized(self, size: int | None) -> "Preprocess":
        """Returns the same preprocessing with another input size (None: the image's own)."""
        return replace(self, size=size)

    def grey(self) -> "Preprocess":
        """Returns the same for a network of one channel, with mean and deviation averaged over the channels."""
        mean, std = (sum(each) / len(each) for each in (self.mean, self.std))
        return replace(self, mean=(mean,), std=(std,), channels="grey")


RAW = Preprocess()
"""Feeds the sample as it is, at its own size and in [-1, 1], as EluCD's released code does."""


def _centre_square(image: Float[Tensor, "B C H W"], side: int) -> Float[Tensor, "B C h h"]:
    # Where the middle lies between two pixels, torchvision and timm round half to even; transformers rounds down.
    top, left = (round((whole - side) / 2) for whole in image.shape[-2:])
    return image[..., top : top + side, left : left + side]


def in_channels(image: Float[Tensor, "B C H W"], count: int | None) -> Float[Tensor, "B c H W"]:
    """Returns images with as many channels: grey repeated to three, or the luminance of red, green and blue.

    Args:
        image: Images.
        count: How many; None for as many as there are.

    Raises:
        InputError: They have other channels.
    """
    given = image.shape[1]
    if count in (None, given):
        return image
    if (given, count) == (1, 3):
        return image.expand(-1, 3, -1, -1)
    if (given, count) == (3, 1):
        return (image * _per_channel(LUMA, image.dtype, image.device)).sum(1, keepdim=True)
    allowed = "1 or 3" if count in (1, 3) else count
    raise InputError(f"classifier: images must have {allowed} channels, got {given}")


@cache
def _resize(
    old: int, new: int, interpolation: Interpolation, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "new old"]:
    """Returns the matrix that resizes a column of pixels; products with it are faster than interpolation."""
    each = torch.eye(old, dtype=torch.float64)[None, None]
    return functional.interpolate(each, (new, old), mode=interpolation, antialias=True)[0, 0].to(device, dtype)


@cache
def _per_channel(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Float[Tensor, "c 1 1"]:
    return torch.tensor(values, dtype=dtype, device=device).reshape(-1, 1, 1)
