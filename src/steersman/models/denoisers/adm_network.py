"""U-Nets that diffusers' configuration cannot describe, as diffusers' own with changes.

diffusers counts attention heads by their channels, ``heads = channels / attention_head_dim`` at every width, divides
the channels of every normalisation into as many groups, and tells the network as many frequencies of the time as its
first block has channels. ADM for ImageNet 128 has 4 heads at every width; ADM for ImageNet 512 is told 256 frequencies,
and its first block has 128 channels. EDM's has ``floor(C / 64)`` heads and ``min(32, floor(C / 4))`` groups, which are
diffusers' own from 128 channels on, in multiples of 64.

A network of patches works on ``P x``, where P moves each square of ``p x p`` pixels into ``p^2`` channels:

    F(x) = P^T U(P x)

P only reorders values, so ``P eps`` is white noise again and the diffusion is the same, but the U-Net U has ``p^2``
times fewer positions to compute.
"""

import inspect
from collections.abc import Callable
from typing import Any

from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d import UNet2DModel, UNet2DOutput
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

__all__ = ["CHANGES", "GROUPS", "ADMUNet", "extending"]

CHANGES = ("heads", "head_channels", "up_heads", "group_channels", "time_channels", "patch")
"""What an `ADMUNet` may say beside what a `UNet2DModel` does."""
GROUPS = 32


def extending(base: type[nn.Module]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Returns a decorator of an ``__init__`` that passes ``**kwargs`` on: it states the base's parameters as its own.

    diffusers reads off the signature what a configuration may say.
    """

    def extend(init: Callable[..., None]) -> Callable[..., None]:
        own, rest = (dict(inspect.signature(each).parameters) for each in (init, base.__init__))
        passed = {name: each.replace(kind=each.KEYWORD_ONLY) for name, each in rest.items() if name not in own}
        kept = [each for each in own.values() if each.kind is not each.VAR_KEYWORD]
        vars(init)["__signature__"] = inspect.Signature([*kept, *passed.values()])
        return register_to_config(init)

    return extend


class ADMUNet(UNet2DModel):
    """diffusers' `UNet2DModel` with other heads, groups, time channels or patches; its configuration says which.

    Args:
        heads: How many heads every attention has; None as diffusers counts them.
        head_channels: ``h``: an attention of C channels has ``floor(C / h)`` heads; None as diffusers counts them.
        up_heads: How many heads every attention of the way up has; None as many as the others.
        group_channels: ``g``: a normalisation of C channels has ``min(32, floor(C / g))`` groups; None as diffusers
            counts them.
        time_channels: How many channels tell the time; None as many as the first block has.
        patch: ``p``: the side of the squares that become channels; None for pixels as they are. The configuration's
            ``sample_size``, ``in_channels`` and ``out_channels`` are those of the images.
        kwargs: As a `UNet2DModel` takes them.
    """

    @extending(UNet2DModel)
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
            self.conv_in = _wider(self.conv_in, inputs=patch**2)
            self.conv_out = _wider(self.conv_out, outputs=patch**2)
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
        """Returns what a `UNet2DModel` does, of images (B, C, H, W)."""
        patch = self.config["patch"] or 1
        (output,) = super().forward(pixel_unshuffle(sample, patch), timestep, class_labels, return_dict=False)
        output = pixel_shuffle(output, patch)
        return UNet2DOutput(sample=output) if return_dict else (output,)


def _wider(conv: nn.Conv2d, inputs: int = 1, outputs: int = 1) -> nn.Conv2d:
    """Returns a new convolution like another, with so many times the channels."""
    side, around = conv.kernel_size[0], conv.padding[0]
    return nn.Conv2d(conv.in_channels * inputs, conv.out_channels * outputs, side, padding=around)
