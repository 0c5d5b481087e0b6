"""Networks of other code as diffusers' own: the U-Net that ADM and EDM share, and weights under diffusers' names.

A fused projection of queries, keys and values becomes three. Its rows are numbered (group, q | k | v, channel):

    1 group             DiT, ADM's new order
    a group a head      ADM's legacy order
    a group a channel   EDM
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from steersman.errors import InputError
from steersman.models.denoisers.architectures import CHANGES, ADMUNet

__all__ = ["convert", "empty_unet", "fill", "unet_blocks"]


def empty_unet(
    size: int,
    channels: Sequence[int],
    attended: Sequence[bool],
    *,
    residual: bool = True,
    **config: Any,  # noqa: ANN401
) -> UNet2DModel:
    """Returns a U-Net on the meta device, an `ADMUNet` only where its configuration needs one.

    Levels are counted from the image. Residual blocks change the size, else convolutions. None leaves out a setting.
    """
    plain, sampling = ("Resnet{}sampleBlock2D", "resnet") if residual else ("{}Block2D", "conv")
    config = {key: value for key, value in config.items() if value is not None} | {
        "sample_size": size,
        "block_out_channels": tuple(channels),
        "down_block_types": ["AttnDownBlock2D" if attends else plain.format("Down") for attends in attended],
        "up_block_types": ["AttnUpBlock2D" if attends else plain.format("Up") for attends in reversed(attended)],
        "downsample_type": sampling,
        "upsample_type": sampling,
    }
    with torch.device("meta"):
        return ADMUNet(**config) if config.keys() & set(CHANGES) else UNet2DModel(**config)


def unet_blocks(levels: int, n: int) -> Iterator[str]:
    """Yields diffusers' names of a U-Net's ResNet blocks, n a level on the way down, in the order of the forward pass.

    The attention after ``resnets.j`` is ``attentions.j``.
    """
    for side, count in (("down", n), ("up", n + 1)):
        for level in range(levels):
            yield from (f"{side}_blocks.{level}.resnets.{j}" for j in range(count))
            if level < levels - 1:
                yield f"{side}_blocks.{level}.{side}samplers.0"
        if side == "down":
            yield from ("mid_block.resnets.0", "mid_block.resnets.1")


def convert(
    tensors: Mapping[str, Tensor], modules: Mapping[str, tuple[str, ...]], groups: Callable[[str, int], int]
) -> dict[str, Tensor]:
    """Returns tensors under diffusers' names, in float32; one that belongs to none of the modules is refused."""
    weights: dict[str, Tensor] = {}
    for name, value in tensors.items():
        module, _, leaf = name.rpartition(".")
        if module not in modules:
            raise InputError(f"it has {name[:80]!r}, which no such network has")
        for new in modules[module]:
            rows = value.float()
            if ".to_" in new and rows.ndim > 1:
                rows = rows.flatten(1)  # the convolution of one pixel is a linear map
            if new.endswith("to_qkv"):
                numbered = rows.unflatten(0, (groups(new, len(rows) // 3), 3, -1))
                for letter, part in zip("qkv", numbered.unbind(1), strict=True):
                    weights[f"{new.removesuffix('qkv')}{letter}.{leaf}"] = part.clone().flatten(0, 1)
            else:
                # safetensors refuses to save one tensor under several names
                weights[f"{new}.{leaf}"] = rows.clone() if len(modules[module]) > 1 else rows
    return weights


def fill(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Gives a network its weights, without copying them; one missing, too many or of another shape is refused."""
    wanted = network.state_dict()
    for name in [*wanted, *weights]:
        given, expected = (tuple(state[name].shape) if name in state else "none" for state in (weights, wanted))
        if given != expected:
            raise InputError(f"the shape of {name} must be {expected}, got {given}")
    network.load_state_dict(weights, assign=True)
