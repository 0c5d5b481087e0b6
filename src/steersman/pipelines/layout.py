"""How a pipeline's samples hold images, videos or their latents: as they are, doubled, packed, frame by frame.

Whatever the form, guides work on tensors (B, C, H, W); of a video the frames of a channel lie below each other, (B, C,
T H, W). What tells the form is the sample's shape and what the network is given with it:

    4 axes                      images or their latents, (B, C, H, W)
    4 axes of a DiT             both halves of the classifier-free batch, the second with null labels
    5 axes                      videos, (B, C, T, H, W); of the networks in `BY_FRAME` (B, T, C, H, W)
    3 axes, and ``img_ids``     tokens (B, h w, r^2 C), r x r places of an image each (Flux, Chroma, FLUX.2)
    3 axes, and ``img_shapes``  the same (Qwen-Image)
    3 axes, and ``num_frames``  tokens (B, T h w, C), a place of a video each (LTX)
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
BY_FRAME = ("CogVideoXTransformer3DModel", "ConsisIDTransformer3DModel")
_DIT_NULL = 1000  # DiTPipeline's own constant


class Layout(NamedTuple):
    """How a scheduler's sample holds the images.

    Attributes:
        unpack: Turns its rows into (B, C, H, W).
        pack: Turns them back.
        copies: How often it holds each row, one batch after the other.
        frames: T, how many latent frames a video has; None for images.
    """

    unpack: Callable[[Tensor], Float[Tensor, "B C H W"]]
    pack: Callable[[Tensor], Tensor]
    copies: int = 1
    frames: int | None = None


def layout_of(network: str, sample: Tensor, given: Mapping[str, Any], channels: int | None = None) -> Layout:
    """Returns how a scheduler's sample holds the images; may read what the network is given from an accelerator.

    Args:
        network: The name of the network's class.
        sample: The sample.
        given: What the network is given, by its parameters' names.
        channels: The channels of the VAE's latents, where there is one.

    Raises:
        InputError: It holds no images in a way that is known here.
    """
    if sample.ndim == 4:
        return Layout(_same, _same, copies=_copies(network, given, len(sample)))
    if sample.ndim == 5:
        if network in BY_FRAME:
            return _frame_by_frame(sample.shape[1], lambda x: x.transpose(1, 2))
        return _frame_by_frame(sample.shape[2], _same)
    if sample.ndim == 3 and given.get("img_ids") is not None:
        places = given["img_ids"].reshape(-1, given["img_ids"].shape[-1])[: sample.shape[1], 1:3]
        height, width = (int(last) + 1 for last in places.amax(0).tolist())
        return _patches(sample, height, width, channels)
    if sample.ndim == 3 and given.get("img_shapes") is not None:
        shapes = given["img_shapes"][0]
        _, height, width = shapes[0] if isinstance(shapes[0], tuple | list) else shapes
        return _patches(sample, height, width, channels)
    if sample.ndim == 3 and {"num_frames", "height", "width"} <= set(given) and sample.shape[2] == channels:
        return _video_tokens(sample.shape[1], given["height"], given["width"])
    raise InputError(
        f"pipe: samples must be images, videos or their latents in a form that is known here, got the shape "
        f"{tuple(sample.shape)}"
    )


def _same(x: Tensor) -> Tensor:
    return x


def _copies(network: str, given: Mapping[str, Any], rows: int) -> int:
    """Returns 2 for a DiT's sample that keeps both halves of the classifier-free batch, of which the first is read."""
    if network != "DiTTransformer2DModel" or rows % 2:
        return 1
    return 2 if bool((given["class_labels"][rows // 2 :] == _DIT_NULL).all()) else 1


def _frame_by_frame(frames: int, channels_first: Callable[[Tensor], Tensor]) -> Layout:
    def unpack(sample: Tensor) -> Tensor:
        return channels_first(sample).flatten(2, 3)

    def pack(x: Tensor) -> Tensor:
        return channels_first(x.unflatten(2, (frames, -1)))

    return Layout(unpack, pack, frames=frames)


def _patches(sample: Tensor, height: int, width: int, channels: int | None) -> Layout:
    """Tokens of h x w patches, row by row; within a token the channel comes first, then the place in the patch."""
    channels = channels or sample.shape[2] // 4
    side = round((sample.shape[2] / channels) ** 0.5)
    if (height * width, side**2 * channels) != sample.shape[1:]:
        raise InputError(
            f"pipe: tokens must be the {height} x {width} square patches of latents of {channels} channels, got "
            f"{sample.shape[1]} tokens of {sample.shape[2]} values"
        )

    def unpack(tokens: Tensor) -> Tensor:
        return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height, width)), side)

    def pack(x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, side).flatten(2).transpose(1, 2)

    return Layout(unpack, pack)


def _video_tokens(tokens: int, height: int, width: int) -> Layout:
    frames = tokens // (height * width)

    def unpack(sample: Tensor) -> Tensor:
        return sample.transpose(1, 2).unflatten(2, (frames * height, width))

    def pack(x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)

    return Layout(unpack, pack, frames=frames)
