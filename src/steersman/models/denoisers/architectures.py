"""Networks of other code as diffusers' own: classes with more settings, and weights under diffusers' names.

diffusers derives the number of attention heads, normalisation groups and time frequencies from the channels. ADM for
ImageNet 128 has 4 heads at every width; ADM for ImageNet 512 has 256 frequencies and a first block of 128 channels;
EDM has ``floor(C / 64)`` heads and ``min(32, floor(C / 4))`` groups.

A network of patches computes ``F(x) = P^T U(P x)``, where P moves each ``p x p`` square of pixels into ``p^2``
channels. P only reorders values, so ``P eps`` is white noise and the diffusion is the same, but the U-Net U has
``p^2`` times fewer positions to compute.

DiT embeds the time t as cosine and sine of ``t f_i``, ``f_i = 10000^(-i / (128 - shift))`` for i from 0 to 127, with
``shift = 0``; diffusers has ``shift = 1``, with which DiT's weights are off by up to a fifth.

A fused projection of queries, keys and values becomes three. Its rows are numbered (group, q | k | v, channel):

    1 group             DiT, ADM's new order
    a group a head      ADM's legacy order
    a group a channel   EDM
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel, UNet2DOutput
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from steersman.errors import InputError

__all__ = ["CHANGES", "GROUPS", "ADMUNet", "DiT", "convert", "empty_unet", "fill", "unet_blocks", "within"]

CHANGES = ("heads", "head_channels", "up_heads", "group_channels", "time_channels", "patch")
"""The settings of an `ADMUNet` that a `UNet2DModel` does not have."""
GROUPS = 32  # of a normalisation


def _extending(base: type[nn.Module]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Returns a decorator that adds the parameters of the base's ``__init__`` to the signature of one with kwargs.

    diffusers reads off the signature which keys a configuration may have.
    """

    def extend(init: Callable[..., None]) -> Callable[..., None]:
        own, inherited = (dict(inspect.signature(function).parameters) for function in (init, base.__init__))
        added = [value.replace(kind=value.KEYWORD_ONLY) for name, value in inherited.items() if name not in own]
        named = [value for value in own.values() if value.kind is not value.VAR_KEYWORD]
        vars(init)["__signature__"] = inspect.Signature([*named, *added])
        return register_to_config(init)

    return extend


class ADMUNet(UNet2DModel):
    """diffusers' `UNet2DModel` with other heads, groups, time frequencies or patches; None leaves diffusers' own."""

    @_extending(UNet2DModel)
    def __init__(
        self,
        *,
        heads: int | None = None,
        head_channels: int | None = None,
        up_heads: int | None = None,
        group_channels: int | None = None,
        time_channels: int | None = None,
        patch: int | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**kwargs)
        if patch is not None:
            self.conv_in = _widened(self.conv_in, inputs=patch**2)
            self.conv_out = _widened(self.conv_out, outputs=patch**2)
        up = set(self.up_blocks.modules())
        for module in self.modules():
            if isinstance(module, Attention):
                everywhere = heads or (module.inner_dim // head_channels if head_channels else module.heads)
                count = up_heads if up_heads and module in up else everywhere
                module.heads = module.sliceable_head_dim = count
                module.scale = (module.inner_dim / count) ** -0.5
            if isinstance(module, nn.GroupNorm) and group_channels is not None:
                module.num_groups = min(GROUPS, module.num_channels // group_channels)
        if time_channels is not None:
            embedded = self.time_embedding.linear_2.out_features
            self.time_proj = Timesteps(time_channels, self.config["flip_sin_to_cos"], self.config["freq_shift"])
            self.time_embedding = TimestepEmbedding(time_channels, embedded)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Returns the output for images (B, C, H, W), as a `UNet2DModel` does."""
        patch = self.config["patch"] or 1
        (output,) = super().forward(pixel_unshuffle(sample, patch), timestep, class_labels, return_dict=False)
        output = pixel_shuffle(output, patch)
        return UNet2DOutput(sample=output) if return_dict else (output,)


class DiT(DiTTransformer2DModel):
    """diffusers' `DiTTransformer2DModel` with another shift of its time frequencies; None leaves diffusers' own."""

    @_extending(DiTTransformer2DModel)
    def __init__(self, *, time_shift: float | None = None, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(**kwargs)
        for module in self.modules():
            if isinstance(module, Timesteps) and time_shift is not None:
                module.downscale_freq_shift = time_shift


def _widened(conv: nn.Conv2d, inputs: int = 1, outputs: int = 1) -> nn.Conv2d:
    """Returns a new convolution with this many times the channels."""
    side, around = conv.kernel_size[0], conv.padding[0]
    return nn.Conv2d(conv.in_channels * inputs, conv.out_channels * outputs, side, padding=around)


def empty_unet(
    size: int,
    channels: Sequence[int],
    attended: Sequence[bool],
    *,
    residual: bool = True,
    heads: int | None = None,
    head_channels: int | None = None,
    up_heads: int | None = None,
    group_channels: int | None = None,
    time_channels: int | None = None,
    **config: Any,  # noqa: ANN401
) -> UNet2DModel:
    """Returns a U-Net on the meta device, an `ADMUNet` only where diffusers' own configuration cannot say it.

    Levels are counted from the image. Residual blocks change the size, else convolutions. Each attention has ``heads``,
    or as many as ``head_channels`` go into its channels; each normalisation ``min(32, channels // group_channels)``
    groups, or 32. None leaves out a setting.
    """
    attending = [width for width, attends in zip(channels, attended, strict=True) if attends]
    attending += [channels[-1]] if config.get("add_attention", True) else []
    sizes = {width // heads if heads else head_channels or width for width in attending}
    if len(sizes) <= 1 and not any(width % size for width in attending for size in sizes):
        config["attention_head_dim"] = next(iter(sizes), None)  # all heads of one size, as diffusers can say
        heads = head_channels = None
    else:
        config["attention_head_dim"] = 1  # whatever it is, the numbers of heads are set afterwards
    groups = 1
    if group_channels is None or min(channels) >= GROUPS * group_channels:
        groups, group_channels = GROUPS, None
    plain, sampling = ("Resnet{}sampleBlock2D", "resnet") if residual else ("{}Block2D", "conv")
    config |= {
        "heads": heads,
        "head_channels": head_channels,
        "up_heads": up_heads,
        "group_channels": group_channels,
        "time_channels": None if time_channels == channels[0] else time_channels,
        "norm_num_groups": groups,
        "attn_norm_num_groups": groups,  # without it, diffusers leaves the middle attention's normalisation out
        "sample_size": size,
        "block_out_channels": tuple(channels),
        "down_block_types": ["AttnDownBlock2D" if attends else plain.format("Down") for attends in attended],
        "up_block_types": ["AttnUpBlock2D" if attends else plain.format("Up") for attends in reversed(attended)],
        "downsample_type": sampling,
        "upsample_type": sampling,
    }
    config = {key: value for key, value in config.items() if value is not None}
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


def within(theirs: str, ours: str, parts: Mapping[str, str]) -> dict[str, str]:
    """Returns a map of modules within two modules, ``theirs.part`` to ``ours.part``."""
    return {f"{theirs}.{old}": f"{ours}.{new}" for old, new in parts.items()}


def convert(
    tensors: Mapping[str, Tensor], modules: Mapping[str, str], groups: Callable[[str, int], int]
) -> dict[str, Tensor]:
    """Returns tensors under diffusers' names, in float32; one that belongs to none of the modules is refused.

    ``groups`` gives the number of groups of a projection by its name in diffusers and its channels.
    """
    weights: dict[str, Tensor] = {}
    for name, value in tensors.items():
        module, _, leaf = name.rpartition(".")
        if module not in modules:
            raise InputError(f"it has {name[:80]!r}, which no such network has")
        new, rows = modules[module], value.float()
        if ".to_" in new and rows.ndim > 1:
            rows = rows.flatten(1)  # the convolution of one pixel is a linear map
        if new.endswith("to_qkv"):
            numbered = rows.unflatten(0, (groups(new, len(rows) // 3), 3, -1))
            for letter, part in zip("qkv", numbered.unbind(1), strict=True):
                weights[f"{new.removesuffix('qkv')}{letter}.{leaf}"] = part.clone().flatten(0, 1)
        else:
            weights[f"{new}.{leaf}"] = rows
    return weights


def fill(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Gives a network its weights, without copying them; one missing, too many or of another shape is refused."""
    wanted = network.state_dict()
    for name in [*wanted, *weights]:
        given, expected = (tuple(state[name].shape) if name in state else "none" for state in (weights, wanted))
        if given != expected:
            raise InputError(f"the shape of {name} must be {expected}, got {given}")
    network.load_state_dict(weights, assign=True)
