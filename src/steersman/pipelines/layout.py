"""How a pipeline's samples hold images or their latents: as they are, doubled or packed."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from steersman.errors import InputError

__all__ = ["LAYOUTS", "Layout", "as_images"]


class Layout(NamedTuple):
    """How a scheduler's sample holds the images.

    Attributes:
        copies: How often it holds each, one batch after the other.
        unpack: Turns its rows into (B, C, H, W).
        pack: Turns them back.
    """

    copies: int
    unpack: Callable[[Tensor], Float[Tensor, "B C H W"]]
    pack: Callable[[Tensor], Tensor]


def _same(x: Tensor) -> Tensor:
    return x


def as_images(sample: Tensor, told: Mapping[str, Any]) -> Layout:
    """(B, C, H, W), as it is."""
    if sample.ndim != 4:
        raise InputError(f"pipe: samples of shape {tuple(sample.shape)} given; allowed: images or their latents")
    return Layout(1, _same, _same)


_DIT_NULL = 1000  # DiTPipeline's own constant


def _as_doubled(sample: Tensor, told: Mapping[str, Any]) -> Layout:
    """DiT's sample keeps both halves of the classifier-free batch, the second with null labels; the first is read."""
    half, odd = divmod(len(sample), 2)
    null = told["class_labels"][half:] == _DIT_NULL
    doubled = not odd and bool(null.all()) and torch.equal(told["hidden_states"][:half], told["hidden_states"][half:])
    return Layout(2 if doubled else 1, _same, _same)


def _as_patches(sample: Tensor, told: Mapping[str, Any]) -> Layout:
    """Flux's tokens (B, h w, 4 C), each the 2 x 2 values of every channel at the place that ``img_ids`` names."""
    places = told["img_ids"].reshape(-1, 3)[: sample.shape[1]]
    h, w = (int(places[:, axis].max()) + 1 for axis in (1, 2))

    def unpack(tokens: Tensor) -> Tensor:
        return tokens.unflatten(1, (h, w)).unflatten(3, (-1, 2, 2)).permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)

    def pack(x: Tensor) -> Tensor:
        return x.unflatten(3, (w, 2)).unflatten(2, (h, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    return Layout(1, unpack, pack)


# By the network's class; all others hold images or latents as they are.
LAYOUTS: Mapping[str, Callable[[Tensor, Mapping[str, Any]], Layout]] = {
    "DiTTransformer2DModel": _as_doubled,
    "FluxTransformer2DModel": _as_patches,
}
