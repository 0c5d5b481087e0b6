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
from steersman.models.denoisers.adm import CLASSIFIERS, Attention, read_checkpoint
from steersman.models.denoisers.conversion import fill
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

    The settings are those that `models.denoisers.adm` lists: ``mine.pt?head_channels=64&attention=legacy``.
    """
    # Size and weights are also settings of the file.
    own = [f"{key}={value}" for key, value in spec.options.items() if key not in KEYS or key in ("size", "weights")]
    found = read_checkpoint("adm-classifier", f"{spec.name}?{'&'.join(own)}", CLASSIFIERS)
    with about("adm-classifier", found.path):
        if any(key.startswith("output_blocks.") for key in found.tensors):
            raise InputError("it must be a classifier, got a denoiser")
        head = {key: value.float() for key, value in found.tensors.items() if key.startswith("out.")}
        body = {key: value for key, value in found.tensors.items() if key not in head}
        pool, positions = _pool(head, found.layout.channels[-1], found.attention)
        side = round(positions**0.5)
        if side**2 != positions:
            raise InputError(f"its attention pool must have the positions of a square, got {positions}")
        unet, size = found.network(side * 2 ** (len(found.layout.channels) - 1))
        count = cast(nn.Linear, pool.c_proj).out_features
        found.settings.check({"num_classes": count, "pool": "attention" if positions else "adaptive"})
        network = ADMEncoder(unet, pool, found.diffusion.time_scale)
        # A convolution over one position is a linear map.
        head = {_renamed(key): value.flatten(1) if value.ndim > 1 else value for key, value in head.items()}
        fill(network, found.layout.weights(body, found.attention) | head)
    return spec.classifier(
        network,
        count,
        preprocess=Preprocess(size=size),
        names=imagenet_names() if found.released else (),
        noise_aware=True,
        schedule=found.diffusion.noise,
    )


def _pool(head: dict[str, Tensor], channels: int, attention: Attention) -> tuple[nn.Module, int]:
    """Returns the head that the tensors are of, and its number of positions, 0 for any; its logits are `c_proj`'s."""
    if "out.2.positional_embedding" in head and "out.2.c_proj.bias" in head:
        positions, classes = head["out.2.positional_embedding"].shape[-1] - 1, len(head["out.2.c_proj.bias"])
        return AttentionPool(channels, positions, attention.count(channels), classes), positions
    if "out.3.bias" in head:
        linear = nn.Linear(channels, len(head["out.3.bias"]))
        return nn.Sequential(OrderedDict(mean=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), c_proj=linear)), 0
    raise InputError("its head must be an attention pool, or the mean over all positions, got another")


def _renamed(key: str) -> str:
    for released, ours in (("out.0.", "norm."), ("out.2.", "pool."), ("out.3.", "pool.c_proj.")):
        if key.startswith(released):
            return ours + key.removeprefix(released)
    return key
