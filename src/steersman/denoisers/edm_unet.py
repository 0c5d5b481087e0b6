"""ADM's U-Net (Dhariwal & Nichol 2021) as EDM writes it, made diffusers' `UNet2DModel`.

It is one of ResNet blocks that resample, scale and shift. EDM names them by resolution, diffusers by their place:

    enc  RxR_conv, then per level  RxR_down, RxR_block0, …           conv_in, down_blocks
    dec  RxR_in0, RxR_in1, then per level  RxR_up, RxR_block0, …     mid_block, up_blocks

and two things differ within:

    attention   one matrix makes q, k and v, whose rows alternate: 3 c, 3 c + 1, 3 c + 2 of channel c
    labels      a matrix takes them one-hot, so that none is the zero vector; its output is added to the time's

Widths, depth, groups and heads are those that the file tells of each layer.

Source: https://github.com/NVlabs/edm, training/networks.py (DhariwalUNet).
"""

from collections.abc import Iterator, Mapping

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d import UNet2DModel
from jaxtyping import Float
from torch import Tensor, nn

from steersman.denoisers.adm_layout import fill
from steersman.denoisers.records import Module
from steersman.errors import InputError

__all__ = ["LabelledUNet", "edm_unet"]

RESNET = {
    "norm0": "norm1",
    "conv0": "conv1",
    "affine": "time_emb_proj",
    "norm1": "norm2",
    "conv1": "conv2",
    "skip": "conv_shortcut",
}
ATTENTION = {"norm2": "group_norm", "qkv": "to_qkv", "proj": "to_out.0"}
ENDS = {
    "map_layer0": "time_embedding.linear_1",
    "map_layer1": "time_embedding.linear_2",
    "out_norm": "conv_norm_out",
    "out_conv": "conv_out",
}
DOWN = {True: "AttnDownBlock2D", False: "ResnetDownsampleBlock2D"}
UP = {True: "AttnUpBlock2D", False: "ResnetUpsampleBlock2D"}
ASIDE = ("map_label", "map_augment")  # the second is for training alone: nothing is augmented when sampling


class LabelledUNet(nn.Module):
    """A U-Net that is called as EDM's own: labels are one-hot, all zeros, or not given where it has none.

    Args:
        unet: The U-Net; its ``class_labels`` are added to the time's embedding as they are.
        labels: The matrix that makes them of the labels.
    """

    def __init__(self, unet: UNet2DModel, labels: nn.Linear | None) -> None:
        super().__init__()
        self.unet, self.labels = unet, labels

    def forward(
        self, x: Float[Tensor, "B C H W"], noise: Float[Tensor, " B"], labels: Float[Tensor, "B K"] | None = None
    ) -> Float[Tensor, "B C H W"]:
        """Returns F(x, noise, labels)."""
        embedded = None if self.labels is None else self.labels(labels)
        return self.unet(x, noise, class_labels=embedded).sample


def edm_unet(modules: Mapping[str, Module], *, size: int, channels: int) -> LabelledUNet:
    """Returns the network; its layout takes no memory, and its weights are the file's own.

    Args:
        modules: Those of a DhariwalUNet.
        size: Height and width of an image in pixels.
        channels: C of an image.

    Raises:
        InputError: They make another network than this one.
    """
    names = modules["enc"].children
    levels = 1 + sum(name.endswith("_down") for name in names)
    blocks, rest = divmod(len(names) - levels, levels)
    if rest or blocks < 1:
        raise InputError(f"enc: {len(names)} parts given; allowed: as many blocks at each of {levels} levels")
    places = list(_places(size, levels, blocks))
    first = [modules[f"enc.{_at(size, level)}_block0"].attributes for level in range(levels)]
    attended = [each["num_heads"] > 0 for each in first]
    inner = modules[f"dec.{_at(size, levels - 1)}_in0"].attributes
    time, label = modules["map_noise"], modules.get("map_label")
    if time.kind != "PositionalEmbedding" or (time.attributes["max_positions"], time.attributes["endpoint"]) != (
        10000,
        False,
    ):
        raise InputError(f"map_noise: another {time.kind} given; allowed: PositionalEmbedding of 10000 positions")
    steps, embedding = time.attributes["num_channels"], len(modules["map_layer0"].tensors["bias"])
    with torch.device("meta"):
        unet = UNet2DModel(
            sample_size=size,
            in_channels=channels,
            out_channels=channels,
            time_embedding_dim=embedding,
            down_block_types=tuple(DOWN[each] for each in attended),
            up_block_types=tuple(UP[each] for each in reversed(attended)),
            block_out_channels=tuple(each["out_channels"] for each in first),
            layers_per_block=blocks,
            downsample_type="resnet",
            upsample_type="resnet",
            attention_head_dim=1,
            norm_num_groups=1,
            attn_norm_num_groups=1,
            resnet_time_scale_shift="scale_shift",
            add_attention=bool(inner["num_heads"]),
            class_embed_type=None if label is None else "identity",
        )
        unet.time_proj = Timesteps(steps, flip_sin_to_cos=True, downscale_freq_shift=0)
        unet.time_embedding = TimestepEmbedding(steps, embedding)
        labels = None if label is None else nn.Linear(label.tensors["weight"].shape[1], embedding, bias=False)
    pairs = dict(ENDS) | {f"enc.{_at(size, 0)}_conv": "conv_in"}
    for theirs, resnet, attention in places:
        _check(theirs, modules)
        pairs |= {f"{theirs}.{old}": f"{resnet}.{new}" for old, new in RESNET.items() if f"{theirs}.{old}" in modules}
        if modules[theirs].attributes["num_heads"]:
            pairs |= {f"{theirs}.{old}": f"{attention}.{new}" for old, new in ATTENTION.items()}
            heads = modules[theirs].attributes["num_heads"]
            if not _part_heads(unet.get_submodule(attention), heads):
                raise InputError(f"{theirs}: {heads} heads given; allowed: a number that divides its channels, or none")
    _load(unet, {new: _leaves(modules[old]) for old, new in pairs.items()})
    for old, new in pairs.items():
        if modules[old].kind == "GroupNorm":
            _group(unet.get_submodule(new), modules[old])
    left = [name for name, each in modules.items() if each.tensors and name not in pairs and name not in ASIDE]
    if left:
        raise InputError(f"{left[0]}: given; allowed: the modules of a DhariwalUNet")
    if label is not None and labels is not None:
        _load(labels, {"": _leaves(label)})
    return LabelledUNet(unet, labels)


def _at(size: int, level: int) -> str:
    return f"{size >> level}x{size >> level}"


def _places(size: int, levels: int, blocks: int) -> Iterator[tuple[str, str, str]]:
    """Yields each block's name, its ResNet block's in diffusers, and its attention's, were it to have some."""
    for level in range(levels):
        at, down, up = _at(size, level), f"down_blocks.{level}", f"up_blocks.{levels - 1 - level}"
        if level:
            yield f"enc.{at}_down", f"down_blocks.{level - 1}.downsamplers.0", ""
        for number in range(blocks):
            yield f"enc.{at}_block{number}", f"{down}.resnets.{number}", f"{down}.attentions.{number}"
        for number in range(blocks + 1):
            yield f"dec.{at}_block{number}", f"{up}.resnets.{number}", f"{up}.attentions.{number}"
        if level < levels - 1:
            yield f"dec.{at}_up", f"up_blocks.{levels - 2 - level}.upsamplers.0", ""
    inner = f"dec.{_at(size, levels - 1)}"
    yield f"{inner}_in0", "mid_block.resnets.0", "mid_block.attentions.0"
    yield f"{inner}_in1", "mid_block.resnets.1", ""


def _check(name: str, modules: Mapping[str, Module]) -> None:
    """Refuses a block that computes something else."""
    told, conv = modules[name].attributes, modules[f"{name}.conv0"]
    if not (told["skip_scale"] == 1 and told["adaptive_scale"] is True):
        raise InputError(f"{name}: skip_scale, adaptive_scale other than 1, True given")
    if (conv.attributes["up"], conv.attributes["down"]) != (name.endswith("_up"), name.endswith("_down")):
        raise InputError(f"{name}: it resamples where its name does not say so")
    for each in (conv, modules.get(f"{name}.skip")):
        kernel = None if each is None else each.tensors.get("resample_filter")
        if kernel is not None and not (kernel.shape == (1, 1, 2, 2) and bool((kernel == 0.25).all())):
            raise InputError(f"{name}: another resample_filter than [1, 1] given")


def _part_heads(attention: nn.Module, heads: int) -> bool:
    """Sets how many heads an attention has, and says whether it can have so many."""
    if not isinstance(attention, Attention) or heads < 1 or attention.inner_dim % heads:
        return False
    attention.heads, attention.scale = heads, (attention.inner_dim // heads) ** -0.5
    return True


def _group(norm: nn.Module, told: Module) -> None:
    groups = told.attributes["num_groups"]
    if not isinstance(norm, nn.GroupNorm) or groups < 1 or norm.num_channels % groups:
        raise InputError(f"GroupNorm: {groups} groups given; allowed: a number that divides its channels")
    norm.num_groups, norm.eps = groups, told.attributes["eps"]


def _leaves(module: Module) -> dict[str, Tensor]:
    return {leaf: each for leaf, each in module.tensors.items() if leaf != "resample_filter"}


def _load(network: nn.Module, given: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Gives a network without memory its weights, which must be of the shapes of its own."""
    weights: dict[str, Tensor] = {}
    for name, leaves in given.items():
        for leaf, value in leaves.items():
            if name.endswith(".to_qkv"):
                alternating = _matrix(value).unflatten(0, (-1, 3)).unbind(1)
                stem = name.removesuffix("qkv")
                weights |= {f"{stem}{one}.{leaf}": each for one, each in zip("qkv", alternating, strict=True)}
            else:
                weights[f"{name}.{leaf}" if name else leaf] = _matrix(value) if name.endswith(".to_out.0") else value
    fill(network, {name: each.contiguous() for name, each in weights.items()})


def _matrix(value: Tensor) -> Tensor:
    """Returns a convolution of one pixel as the matrix that it is."""
    return value.flatten(1) if value.ndim > 1 else value
