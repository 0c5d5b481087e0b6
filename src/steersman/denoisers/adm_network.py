"""The U-Net of Dhariwal & Nichol (2021) where diffusers' configuration cannot say it, as diffusers' own with changes.

diffusers counts attention heads by their channels, ``heads = channels / attention_head_dim`` at every width, divides
the channels of every normalisation into as many groups, and tells the network as many frequencies of the time as its
first block has channels. ADM for ImageNet 128 has 4 heads at every width; ADM for ImageNet 512 is told 256 frequencies,
and its first block has 128 channels. EDM's has ``floor(C / 64)`` heads and ``min(32, floor(C / 4))`` groups, which are
diffusers' own from 128 channels on, in multiples of 64.
"""

from typing import Any

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import nn

__all__ = ["CHANGES", "GROUPS", "ADMUNet"]

CHANGES = ("heads", "head_channels", "group_channels", "time_channels")
"""What an `ADMUNet` may say beside what a `UNet2DModel` does."""
GROUPS = 32


class ADMUNet(UNet2DModel):
    """diffusers' `UNet2DModel` with heads or groups counted or time told otherwise, which is kept where it is saved.

    Args:
        heads: How many heads every attention has; None as diffusers counts them.
        head_channels: ``h``: an attention of C channels has ``floor(C / h)`` heads; None as diffusers counts them.
        group_channels: ``g``: a normalisation of C channels has ``min(32, floor(C / g))`` groups; None as diffusers
            counts them.
        time_channels: How many channels tell the time; None as many as the first block has.
        kwargs: As a `UNet2DModel` takes them.
    """

    @register_to_config
    def __init__(
        self,
        *,
        heads: int | None = None,
        head_channels: int | None = None,
        group_channels: int | None = None,
        time_channels: int | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(**kwargs)
        for module in self.modules():
            if isinstance(module, Attention):
                count = heads or (module.inner_dim // head_channels if head_channels else module.heads)
                module.heads = module.sliceable_head_dim = count
                module.scale = (module.inner_dim / count) ** -0.5
            if isinstance(module, nn.GroupNorm) and group_channels is not None:
                module.num_groups = min(GROUPS, module.num_channels // group_channels)
        if time_channels is not None:
            embedded = self.time_embedding.linear_2.out_features
            self.time_proj = Timesteps(time_channels, self.config["flip_sin_to_cos"], self.config["freq_shift"])
            self.time_embedding = TimestepEmbedding(time_channels, embedded)

    @staticmethod
    def _get_init_keys(input_class: type) -> set[str]:
        """Returns what a configuration may say: diffusers reads it off the signature, which names the changes only."""
        return ConfigMixin._get_init_keys(input_class) | ConfigMixin._get_init_keys(UNet2DModel)
