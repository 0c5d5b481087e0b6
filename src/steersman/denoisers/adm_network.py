"""The U-Net of Dhariwal & Nichol (2021) that diffusers' configuration cannot say, as diffusers' own with two changes.

diffusers counts attention heads by their channels, ``heads = channels / attention_head_dim`` at every width, and tells
the network as many frequencies of the time as its first block has channels. ADM for ImageNet 128 has 4 heads at every
width; ADM for ImageNet 512 is told 256 frequencies, and its first block has 128 channels.
"""

from typing import Any

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d import UNet2DModel

__all__ = ["ADMUNet"]


class ADMUNet(UNet2DModel):
    """diffusers' `UNet2DModel` with its heads counted or its time told otherwise; both are kept where it is saved.

    Args:
        heads: How many heads every attention has; None as diffusers counts them.
        time_channels: How many channels tell the time; None as many as the first block has.
        kwargs: As a `UNet2DModel` takes them.
    """

    @register_to_config
    def __init__(self, *, heads: int | None = None, time_channels: int | None = None, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(**kwargs)
        if heads is not None:
            for module in self.modules():
                if isinstance(module, Attention):
                    module.heads = module.sliceable_head_dim = heads
                    module.scale = (module.inner_dim / heads) ** -0.5
        if time_channels is not None:
            embedded = self.time_embedding.linear_2.out_features
            self.time_proj = Timesteps(time_channels, self.config["flip_sin_to_cos"], self.config["freq_shift"])
            self.time_embedding = TimestepEmbedding(time_channels, embedded)

    @staticmethod
    def _get_init_keys(input_class: type) -> set[str]:
        """Returns what a configuration may say: diffusers reads it off the signature, which names the changes only."""
        return ConfigMixin._get_init_keys(input_class) | ConfigMixin._get_init_keys(UNet2DModel)
