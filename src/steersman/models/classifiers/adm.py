"""The noise-aware classifiers of Dhariwal & Nichol (2021): the lower half of their U-Net, and a head.

    f(x_t, t) = W Attention(query: mean of h, keys and values: h and its mean),    h = SiLU(norm(U(x_t, t)))

with U the blocks down to the smallest size and the middle ones, which are diffusers' own; or W times the mean of h,
where a file has no attention pool.
"""

from collections import OrderedDict
from typing import cast

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from steersman.errors import InputError, about
from steersman.models.classifiers.classifier import Classifier
from steersman.models.classifiers.preprocess import Preprocess
from steersman.models.classifiers.spec import KEYS, Spec
from steersman.models.denoisers.adm import CLASSIFIERS, read_checkpoint
from steersman.models.denoisers.architectures import fill
from steersman.models.denoisers.settings import Settings
from steersman.names import imagenet_names

__all__ = ["ADMEncoder", "AttentionPool", "load_adm_classifier"]


class AttentionPool(nn.Module):
    """Attends from the mean over ``positions`` positions to them and to itself, and maps the result to logits."""

    def __init__(self, channels: int, positions: int, heads: int, classes: int) -> None:
        super().__init__()
        self.heads, self.positions = heads, positions
        self.positional_embedding = nn.Parameter(torch.zeros(channels, positions + 1))  # the mean's comes first
        self.qkv_proj = nn.Linear(channels, 3 * channels)
        self.c_proj = nn.Linear(channels, classes)

    def forward(self, h: Float[Tensor, "B C h w"]) -> Float[Tensor, "B K"]:
        """Returns the logits."""
        if h[0, 0].numel() != self.positions:
            height, width = h.shape[-2:]
            raise InputError(
                f"classifier: images must be of its own size, of {self.positions} positions, got {height} x {width}"
            )
        h = h.flatten(2)
        h = torch.cat([h.mean(2, keepdim=True), h], dim=2) + self.positional_embedding
        projected = self.qkv_proj(h.transpose(1, 2)).unflatten(2, (3, self.heads, -1))
        query, keys, values = projected.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query[:, :, :1], keys, values)
        return self.c_proj(attended.flatten(1))


class ADMEncoder(nn.Module):
    """The lower half of a U-Net and a head; ``time_scale`` is what a time is multiplied by before it is embedded."""

    def __init__(self, unet: UNet2DModel, pool: nn.Module, time_scale: float = 1.0) -> None:
        super().__init__()
        self.time_scale = time_scale
        self.conv_in, self.time_proj, self.time_embedding = unet.conv_in, unet.time_proj, unet.time_embedding
        self.down_blocks, self.mid_block = unet.down_blocks, cast(nn.Module, unet.mid_block)
        self.norm, self.pool = nn.GroupNorm(32, unet.config["block_out_channels"][-1]), pool

    def forward(self, x_t: Float[Tensor, "B C H W"], time: Float[Tensor, " B"]) -> Float[Tensor, "B K"]:
        """Returns the logits of noisy images at their times."""
        embedding = self.time_embedding(self.time_proj(time * self.time_scale).to(x_t.dtype))
        h = self.conv_in(x_t)
        for block in self.down_blocks:
            h, _ = block(h, embedding)
        return self.pool(functional.silu(self.norm(self.mid_block(h, embedding))))


def load_adm_classifier(spec: Spec) -> Classifier:
    """Returns the classifier of a released file, such as ``64x64_classifier.pt``, or of another one with its settings.

    The settings are those of `models.denoisers.settings`: ``mine.pt?head_channels=64&attention=legacy``.
    """
    # Size and weights are also settings of the file.
    own = [f"{key}={value}" for key, value in spec.options.items() if key not in KEYS or key in ("size", "weights")]
    path, tensors, settings, released = read_checkpoint("adm-classifier", f"{spec.name}?{'&'.join(own)}", CLASSIFIERS)
    with about("adm-classifier", path):
        head = {key: tensors.pop(key).float() for key in list(tensors) if key.startswith("out.")}
        network = ADMEncoder(settings.unet(), _pool(settings), settings.time_scale)
        # A convolution over one position is a linear map.
        head = {_renamed(key): value.flatten(1) if value.ndim > 1 else value for key, value in head.items()}
        fill(network, settings.state(tensors) | head)
    return spec.classifier(
        network,
        settings.num_classes,
        preprocess=Preprocess(size=settings.size),
        names=imagenet_names() if released else (),
        noise_aware=True,
        schedule=settings.noise,
    )


def _pool(settings: Settings) -> nn.Module:
    """Returns the head of a network's features, whose logits are `c_proj`'s."""
    channels, classes = settings.channels[-1], settings.num_classes
    if settings.pool == "attention":
        positions = (settings.size >> (len(settings.channels) - 1)) ** 2
        return AttentionPool(channels, positions, settings.heads_of(channels), classes)
    linear = nn.Linear(channels, classes)
    return nn.Sequential(OrderedDict(mean=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), c_proj=linear))


def _renamed(key: str) -> str:
    for released, ours in (("out.0.", "norm."), ("out.2.", "pool."), ("out.3.", "pool.c_proj.")):
        if key.startswith(released):
            return ours + key.removeprefix(released)
    return key
