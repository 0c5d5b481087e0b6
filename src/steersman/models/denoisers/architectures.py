"""Networks that diffusers' configuration cannot describe, as diffusers' own classes with more settings.

diffusers derives the number of attention heads, normalisation groups and time frequencies from the channels. ADM for
ImageNet 128 has 4 heads at every width; ADM for ImageNet 512 has 256 frequencies and a first block of 128 channels;
EDM has ``floor(C / 64)`` heads and ``min(32, floor(C / 4))`` groups.

A network of patches computes ``F(x) = P^T U(P x)``, where P moves each ``p x p`` square of pixels into ``p^2``
channels. P only reorders values, so ``P eps`` is white noise and the diffusion is the same, but the U-Net U has
``p^2`` times fewer positions to compute.

DiT embeds the time t as cosine and sine of ``t f_i``, ``f_i = 10000^(-i / (128 - shift))`` for i from 0 to 127, with
``shift = 0``; diffusers has ``shift = 1``, with which DiT's weights are off by up to a fifth.
"""

import inspect
from collections.abc import Callable
from typing import Any

from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel, UNet2DOutput
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

__all__ = ["CHANGES", "GROUPS", "ADMUNet", "DiT"]

CHANGES = ("heads", "head_channels", "up_heads", "group_channels", "time_channels", "patch")
"""The settings of an `ADMUNet` that a `UNet2DModel` does not have."""
GROUPS = 32


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
