"""How a pipeline's samples hold images, videos or their latents: as they are, doubled, packed, frame by frame.

Guides work on images (B, C, H, W) and videos (B, C, T, H, W). The form of a pipeline's samples follows from their shape
and from what the network is given with them:

    4 axes                      images or their latents, (B, C, H, W)
    4 axes of a DiT             both halves of the classifier-free batch, the second with null labels
    5 axes                      videos, (B, C, T, H, W); of some networks (B, T, C, H, W)
    3 axes, and ``img_ids``     tokens (B, h w, r^2 C), each r x r pixels of an image (Flux, Chroma, FLUX.2)
    3 axes, and ``img_shapes``  the same (Qwen-Image)
    3 axes, and ``num_frames``  tokens (B, T h w, C), each a pixel of a video (LTX)
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from steersman.errors import InputError

__all__ = ["PACKED", "Layout", "layout_of"]

PACKED = ("img_ids", "img_shapes", "num_frames")
"""Arguments of networks that say where packed tokens belong."""
_BY_FRAME = ("CogVideoXTransformer3DModel", "ConsisIDTransformer3DModel")
_DIT_NULL = 1000  # DiTPipeline's own constant


class Layout(NamedTuple):
    """How a scheduler's sample holds the images.

    Attributes:
        unpack: Turns its rows into images or videos.
        pack: Turns them back.
        copies: How often it holds each row, one batch after the other.
    """

    unpack: Callable[[Tensor], Float[Tensor, "B C *T H W"]]
    pack: Callable[[Tensor], Tensor]
    copies: int = 1


def layout_of(network: str, sample: Tensor, given: Mapping[str, Any], channels: int | None = None) -> Layout:
    """Returns how a scheduler's sample holds the images; may read what the network is given from an accelerator."""
    if sample.ndim == 4:
        halves = network == "DiTTransformer2DModel" and len(sample) % 2 == 0
        doubled = halves and bool((given["class_labels"][len(sample) // 2 :] == _DIT_NULL).all())
        return Layout(_same, _same, copies=2 if doubled else 1)
    if sample.ndim == 5:
        channels_first = _swapped if network in _BY_FRAME else _same
        return Layout(channels_first, channels_first)
    if sample.ndim == 3 and given.get("img_ids") is not None:
        indices = given["img_ids"].reshape(-1, given["img_ids"].shape[-1])[: sample.shape[1], 1:3]
        height, width = (int(last) + 1 for last in indices.amax(0).tolist())
        return _patches(sample, height, width, channels)
    if sample.ndim == 3 and given.get("img_shapes") is not None:
        shapes = given["img_shapes"][0]
        _, height, width = shapes[0] if isinstance(shapes[0], tuple | list) else shapes
        return _patches(sample, height, width, channels)
    if sample.ndim == 3 and {"num_frames", "height", "width"} <= set(given) and sample.shape[2] == channels:
        height, width = given["height"], given["width"]
        frames = sample.shape[1] // (height * width)
        return Layout(
            lambda z: z.transpose(1, 2).unflatten(2, (frames, height, width)),
            lambda x: x.flatten(2).transpose(1, 2),
        )
    raise InputError(
        f"pipe: samples must be images, videos or their latents in a form that is known here, got the shape "
        f"{tuple(sample.shape)}"
    )


def _same(x: Tensor) -> Tensor:
    return x


def _swapped(x: Tensor) -> Tensor:
    """Swaps the axes of channels and frames."""
    return x.transpose(1, 2)


def _patches(sample: Tensor, height: int, width: int, channels: int | None) -> Layout:
    """Tokens of h x w patches, row by row; within a token the channel comes first, then the pixel of the patch."""
    channels = channels or sample.shape[2] // 4
    side = round((sample.shape[2] / channels) ** 0.5)
    if (height * width, side**2 * channels) != sample.shape[1:]:
        raise InputError(
            f"pipe: tokens must be the {height} x {width} square patches of latents of {channels} channels, got "
            f"{sample.shape[1]} tokens of {sample.shape[2]} values"
        )
    return Layout(
        lambda z: F.pixel_shuffle(z.transpose(1, 2).unflatten(2, (height, width)), side),
        lambda x: F.pixel_unshuffle(x, side).flatten(2).transpose(1, 2),
    )
