"""The noise-aware classifiers of Dhariwal & Nichol (2021): the lower half of their U-Net, and a head.

    f(x_t, t) = W Attention(query: mean of h, keys and values: h and its mean),    h = SiLU(norm(U(x_t, t)))

with U the blocks down to the smallest size and the middle ones, which are diffusers' own; or W times the mean itself,
where a file has no attention pool. It is told the time of its own schedule at which images are as noisy as these, and
shown them on that schedule's scale (`steersman.models.classifiers.base`).
"""

from typing import cast

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from steersman.errors import InputError, about
from steersman.models.classifiers.base import Classifier
from steersman.models.classifiers.preprocess import Preprocess
from steersman.models.classifiers.weights import class_names
from steersman.models.denoisers.adm import CLASSIFIERS, Attention, read_checkpoint
from steersman.models.denoisers.conversion import fill

__all__ = ["load_adm_classifier"]


class AttentionPool(nn.Module):
    """Attends from the mean over all places to them and to itself; the first place has the mean's embedding.

    Args:
        channels: Channels C.
        places: How many places there are, the mean not among them.
        heads: How many heads.
        classes: How many logits.

    Raises:
        InputError: It is given another number of places.
    """

    def __init__(self, channels: int, places: int, heads: int, classes: int) -> None:
        super().__init__()
        self.heads, self.places = heads, places
        self.positional_embedding = nn.Parameter(torch.zeros(channels, places + 1))
        self.qkv_proj = nn.Linear(channels, 3 * channels)
        self.c_proj = nn.Linear(channels, classes)

    def forward(self, hidden: Float[Tensor, "B C h w"]) -> Float[Tensor, "B K"]:
        """Returns the logits."""
        if hidden[0, 0].numel() != self.places:
            height, width = hidden.shape[-2:]
            raise InputError(
                f"classifier: images must be of its own size, of {self.places} positions, got {height} x {width}"
            )
        places = hidden.flatten(2)
        places = torch.cat([places.mean(2, keepdim=True), places], dim=2) + self.positional_embedding
        projected = self.qkv_proj(places.transpose(1, 2)).unflatten(2, (3, self.heads, -1))
        query, keys, values = projected.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query[:, :, :1], keys, values)
        return self.c_proj(attended.flatten(1))


class MeanPool(nn.Module):
    """Takes the mean over all places.

    Args:
        channels: Channels C.
        classes: How many logits.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.c_proj = nn.Linear(channels, classes)

    def forward(self, hidden: Float[Tensor, "B C h w"]) -> Float[Tensor, "B K"]:
        """Returns the logits."""
        return self.c_proj(hidden.mean((2, 3)))


class ADMEncoder(nn.Module):
    """The lower half of a U-Net, and a head.

    Args:
        unet: The U-Net, of which the upper half is left out.
        pool: From the smallest image, (B, C, h, w), to the logits.
        time_scale: What a time is multiplied with before it is embedded.
    """

    def __init__(self, unet: UNet2DModel, pool: nn.Module, time_scale: float = 1.0) -> None:
        super().__init__()
        self.time_scale = time_scale
        self.conv_in, self.time_proj, self.time_embedding = unet.conv_in, unet.time_proj, unet.time_embedding
        self.down_blocks, self.mid_block = unet.down_blocks, cast(nn.Module, unet.mid_block)
        self.norm, self.pool = nn.GroupNorm(32, unet.config["block_out_channels"][-1]), pool

    def forward(self, x_t: Float[Tensor, "B C H W"], time: Float[Tensor, " B"]) -> Float[Tensor, "B K"]:
        """Returns the logits of noisy images at their times."""
        told = self.time_embedding(self.time_proj(time * self.time_scale).to(x_t.dtype))
        hidden = self.conv_in(x_t)
        for block in self.down_blocks:
            hidden, _ = block(hidden, told)
        return self.pool(functional.silu(self.norm(self.mid_block(hidden, told))))


def load_adm_classifier(name: str) -> Classifier:
    """Returns a checkpoint's classifier.

    Args:
        name: One of the released files, such as ``64x64_classifier.pt``, or another one with its settings, as
            `models.denoisers.adm` lists them: ``mine.pt?head_channels=64&attention=legacy&diffusion_steps=4000``.
            The authors' training tells a classifier t itself, whatever ``rescale_timesteps`` is for its denoiser.

    Raises:
        InputError: The file is missing, cannot be read, or holds another network.
    """
    found = read_checkpoint("adm-classifier", name, CLASSIFIERS)
    with about("adm-classifier", found.path):
        if any(key.startswith("output_blocks.") for key in found.tensors):
            raise InputError("it must be a classifier, got a denoiser")
        head = {key: value.float() for key, value in found.tensors.items() if key.startswith("out.")}
        body = {key: value for key, value in found.tensors.items() if key not in head}
        pool, places = _pool(head, found.layout.channels[-1], found.attention)
        halved = 2 ** (len(found.layout.channels) - 1)
        side = round(places**0.5)
        if side**2 != places:
            raise InputError(f"its attention pool must have the positions of a square, got {places}")
        unet, size = found.network(side * halved)
        count = len(head["out.2.c_proj.bias" if places else "out.3.bias"])
        found.settings.check({"num_classes": count, "pool": "attention" if places else "adaptive"})
        network = ADMEncoder(unet, pool, found.diffusion.time_scale)
        weights = found.layout.weights(body, found.attention)
        fill(network, weights | {_renamed(key): _flat(value) for key, value in head.items()})
    names = class_names(name, count, None)
    if found.released:
        from steersman.names import imagenet_names

        names = imagenet_names()
    return Classifier(
        network,
        preprocess=Preprocess(size=size),
        names=names,
        binary=count == 1,
        told_level=True,
        schedule=found.diffusion.noise,
    )


def _pool(head: dict[str, Tensor], channels: int, attention: Attention) -> tuple[nn.Module, int]:
    """Returns the head that the tensors are of, and how many places it knows; 0 for any number."""
    if "out.2.positional_embedding" in head and "out.2.c_proj.bias" in head:
        places = head["out.2.positional_embedding"].shape[-1] - 1
        return AttentionPool(channels, places, attention.count(channels), len(head["out.2.c_proj.bias"])), places
    if "out.3.bias" in head:
        return MeanPool(channels, len(head["out.3.bias"])), 0
    raise InputError("its head must be an attention pool, or the mean over all positions, got another")


def _renamed(key: str) -> str:
    for released, ours in (("out.0.", "norm."), ("out.2.", "pool."), ("out.3.", "pool.c_proj.")):
        if key.startswith(released):
            return ours + key.removeprefix(released)
    return key


def _flat(value: Tensor) -> Tensor:
    return value.flatten(1) if value.ndim > 1 else value  # a convolution over one place is a linear map
