"""ADM's U-Net (Dhariwal & Nichol 2021) as EDM writes it, in diffusers' terms: a `UNet2DModel`, or an `ADMUNet`.

It is one of ResNet blocks that resample, scale and shift. EDM names them by resolution, diffusers by their place:

    enc  RxR_conv, then per level  RxR_down, RxR_block0, …           conv_in, down_blocks
    dec  RxR_in0, RxR_in1, then per level  RxR_up, RxR_block0, …     mid_block, up_blocks

and two things differ within:

    attention   one matrix makes q, k and v, whose rows alternate: 3 c, 3 c + 1, 3 c + 2 of channel c
    labels      a matrix W takes them one-hot, so that none is the zero vector; its output is added to the time's.
                Here they are numbers of an embedding's rows, the columns of W, and a last row of zeros for none

An attention of C channels has ``floor(C / 64)`` heads, a normalisation ``min(32, floor(C / 4))`` groups; a file whose
layers tell of others is refused.

Source: https://github.com/NVlabs/edm, training/networks.py (DhariwalUNet).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor

from steersman.errors import InputError
from steersman.models.denoisers.adm_layout import fill
from steersman.models.denoisers.adm_network import CHANGES, GROUPS, ADMUNet
from steersman.models.denoisers.records import Module

__all__ = ["edm_unet"]

HEAD_CHANNELS, GROUP_CHANNELS = 64, 4
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


def edm_unet(modules: Mapping[str, Module], *, size: int, channels: int) -> UNet2DModel:
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
        raise InputError(f"enc must have as many blocks at each of {levels} levels, got {len(names)} parts")
    places = list(_places(size, levels, blocks))
    pairs = dict(ENDS) | {f"enc.{_at(size, 0)}_conv": "conv_in"}
    for theirs, resnet, attention in places:
        _check(theirs, modules)
        pairs |= {f"{theirs}.{old}": f"{resnet}.{new}" for old, new in RESNET.items() if f"{theirs}.{old}" in modules}
        if modules[theirs].attributes["num_heads"]:
            pairs |= {f"{theirs}.{old}": f"{attention}.{new}" for old, new in ATTENTION.items()}
    left = [name for name, each in modules.items() if each.tensors and name not in (*pairs, *ASIDE)]
    if left:
        raise InputError(f"its modules must be those of a DhariwalUNet, got {left[0]}")
    first = [modules[f"enc.{_at(size, level)}_block0"].attributes for level in range(levels)]
    attended, label = [each["num_heads"] > 0 for each in first], modules.get("map_label")
    config: dict[str, Any] = {
        "sample_size": size,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": [each["out_channels"] for each in first],
        "layers_per_block": blocks,
        "down_block_types": [DOWN[each] for each in attended],
        "up_block_types": [UP[each] for each in reversed(attended)],
        "add_attention": modules[f"dec.{_at(size, levels - 1)}_in0"].attributes["num_heads"] > 0,
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "num_class_embeds": None if label is None else label.tensors["weight"].shape[1] + 1,
        "time_embedding_dim": len(modules["map_layer0"].tensors["bias"]),
    }
    config |= _heads({name: modules[name].attributes for name, _, _ in places})
    config |= _groups([each for each in modules.values() if each.kind == "GroupNorm"])
    if (told := _frequencies(modules["map_noise"])) != config["block_out_channels"][0]:
        config["time_channels"] = told
    with torch.device("meta"):
        unet = ADMUNet(**config) if config.keys() & set(CHANGES) else UNet2DModel(**config)
    weights = _weights({new: _leaves(modules[old]) for old, new in pairs.items()})
    if label is not None:
        columns = label.tensors["weight"].T
        weights["class_embedding.weight"] = torch.cat([columns, columns.new_zeros(1, columns.shape[1])])
    fill(unet, weights)
    return unet


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
        raise InputError(f"{name}: skip_scale and adaptive_scale must be 1 and True, got others")
    if (conv.attributes["up"], conv.attributes["down"]) != (name.endswith("_up"), name.endswith("_down")):
        raise InputError(f"{name}: it resamples where its name does not say so")
    for each in (conv, modules.get(f"{name}.skip")):
        kernel = None if each is None else each.tensors.get("resample_filter")
        if kernel is not None and not (kernel.shape == (1, 1, 2, 2) and bool((kernel == 0.25).all())):
            raise InputError(f"{name}: resample_filter must be [1, 1], got another")


def _heads(blocks: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Returns how the attentions of blocks are configured; all have ``floor(C / 64)`` heads."""
    attending = {name: (each["out_channels"], each["num_heads"]) for name, each in blocks.items() if each["num_heads"]}
    for name, (channels, heads) in attending.items():
        if heads != channels // HEAD_CHANNELS or channels % heads:
            raise InputError(
                f"{name} must have {channels} // {HEAD_CHANNELS} heads, where that divides the channels, got {heads}"
            )
    if all(channels == heads * HEAD_CHANNELS for channels, heads in attending.values()):
        return {"attention_head_dim": HEAD_CHANNELS}
    return {"attention_head_dim": 1, "head_channels": HEAD_CHANNELS}


def _groups(norms: Sequence[Module]) -> dict[str, Any]:
    """Returns how normalisations are configured; all have ``min(32, floor(C / 4))`` groups."""
    epsilon = norms[0].attributes["eps"]
    for each in norms:
        channels, groups = len(each.tensors["weight"]), each.attributes["num_groups"]
        if groups != min(GROUPS, channels // GROUP_CHANNELS) or channels % groups or each.attributes["eps"] != epsilon:
            raise InputError(
                f"GroupNorm must have min({GROUPS}, {channels} // {GROUP_CHANNELS}) groups, where that divides the "
                f"channels, and one eps, got {groups} groups and eps {each.attributes['eps']}"
            )
    plain = all(each.attributes["num_groups"] == GROUPS for each in norms)
    built = GROUPS if plain else 1
    changed = {} if plain else {"group_channels": GROUP_CHANNELS}
    return {"norm_num_groups": built, "attn_norm_num_groups": built, "norm_eps": epsilon} | changed


def _frequencies(time: Module) -> int:
    """Returns how many channels tell the time."""
    told = time.attributes
    if time.kind != "PositionalEmbedding" or (told["max_positions"], told["endpoint"]) != (10000, False):
        raise InputError(f"map_noise must be a PositionalEmbedding of 10000 positions, got another {time.kind}")
    return told["num_channels"]


def _leaves(module: Module) -> dict[str, Tensor]:
    return {leaf: each for leaf, each in module.tensors.items() if leaf != "resample_filter"}


def _weights(given: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Returns the tensors of modules by their names, queries, keys and values apart."""
    weights: dict[str, Tensor] = {}
    for name, leaves in given.items():
        for leaf, value in leaves.items():
            if name.endswith(".to_qkv"):
                alternating = _matrix(value).unflatten(0, (-1, 3)).unbind(1)
                stem = name.removesuffix("qkv")
                weights |= {f"{stem}{one}.{leaf}": each for one, each in zip("qkv", alternating, strict=True)}
            else:
                weights[f"{name}.{leaf}"] = _matrix(value) if name.endswith(".to_out.0") else value
    return {name: each.contiguous() for name, each in weights.items()}


def _matrix(value: Tensor) -> Tensor:
    """Returns a convolution of one pixel as the matrix that it is."""
    return value.flatten(1) if value.ndim > 1 else value
