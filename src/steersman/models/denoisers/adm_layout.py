"""Networks of Dhariwal & Nichol (2021) as their released checkpoints lay them out, in diffusers' terms.

With L levels of n residual blocks, counted from the image, their blocks are numbered through:

    input_blocks.0            the first convolution                    conv_in
    input_blocks.1 + l (n + 1) + j    block j of level l               down_blocks.l.resnets.j, .attentions.j
      j = n                   halves the size, but at the last level   down_blocks.l.downsamplers.0
    middle_block.0, 1, 2      residual, attention, residual            mid_block
    output_blocks.l (n + 1) + j   block j of the l-th level from last  up_blocks.l.resnets.j, .attentions.j
      j = n                   doubles the size after that              up_blocks.l.upsamplers.0

An attention's queries, keys and values are one projection, whose rows are numbered (head, q | k | v, channel) in the
legacy order and (q | k | v, head, channel) in the new one. Neither the order nor the number of heads can be read from
the tensors' shapes; everything else of the network can.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from steersman.errors import InputError
from steersman.models.denoisers.adm_network import ADMUNet

__all__ = ["Attention", "Layout", "fill", "in_diffusers_terms", "read_layout"]

NUMBERED = re.compile(r"(input_blocks|middle_block|output_blocks)\.(\d+)(?:\.(\d))?\.([a-z_]+(?:\.\d)?)")
ENLARGES = re.compile(r"output_blocks\.\d+\.[12]\.(conv|in_layers\.2)\.weight")
RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ATTENTION = {"norm": "group_norm", "proj_out": "to_out.0"}
ALONE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


@dataclass(frozen=True, kw_only=True)
class Attention:
    """What the shapes do not tell of the attentions: one of the two counts, and the order of the rows.

    Attributes:
        heads: How many heads each has.
        head_channels: How many channels a head has.
        heads_upsample: How many heads each has on the way up; None for as many as elsewhere.
        order: ``legacy`` or ``new``.
    """

    heads: int | None = None
    head_channels: int | None = None
    heads_upsample: int | None = None
    order: Literal["legacy", "new"]

    def count(self, channels: int, *, up: bool = False) -> int:
        """Returns the number of heads of an attention of so many channels.

        Args:
            channels: Its channels.
            up: Whether it is one of the way up.

        Raises:
            InputError: The channels cannot be divided so.
        """
        name, given = ("heads", self.heads) if self.head_channels is None else ("head_channels", self.head_channels)
        if up and self.heads_upsample and self.head_channels is None:
            name, given = "heads_upsample", self.heads_upsample
        if not given or given < 0 or channels % given:
            raise InputError(f"{name} must be a divisor of {channels}, an attention's channels, got {given}")
        return given if self.head_channels is None else channels // given


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the shapes tell.

    Attributes:
        width: How many channels tell the time.
        channels: Those of each level.
        blocks: Residual blocks of a level, n.
        attended: Which levels have attentions.
        inputs: Channels of the image.
        outputs: Channels of the output, those of the learned variance included.
        labels: How many labels there are.
        scale_shift: Whether the time scales what is normalised and shifts it, or is added before.
        residual: Whether residual blocks change the size, or convolutions.
    """

    width: int
    channels: tuple[int, ...]
    blocks: int
    attended: tuple[bool, ...]
    inputs: int = 3
    outputs: int = 6
    labels: int = 0
    scale_shift: bool = True
    residual: bool = True

    def network(self, attention: Attention, size: int) -> UNet2DModel:
        """Returns a network of this layout, without memory for its weights.

        Raises:
            InputError: An attention's channels cannot be divided into such heads.
        """
        attended = (each for each, has in zip(self.channels, self.attended, strict=True) if has)
        wide = {self.channels[-1], *attended}  # the middle always has an attention
        per_head = {each // attention.count(each) for each in wide}
        changes: dict[str, int] = {}
        if len(per_head) > 1:
            changes["heads"] = attention.count(self.channels[-1])
        if (up := attention.count(self.channels[-1], up=True)) != attention.count(self.channels[-1]):
            changes["up_heads"] = up
        if self.width != self.channels[0]:
            changes["time_channels"] = self.width
        sizing = "Resnet{}sampleBlock2D" if self.residual else "{}Block2D"
        config: dict[str, Any] = {
            "sample_size": size,
            "in_channels": self.inputs,
            "out_channels": self.outputs,
            "block_out_channels": self.channels,
            "layers_per_block": self.blocks,
            "down_block_types": [
                "AttnDownBlock2D" if attended else sizing.format("Down") for attended in self.attended
            ],
            "up_block_types": [
                "AttnUpBlock2D" if attended else sizing.format("Up") for attended in reversed(self.attended)
            ],
            "downsample_type": "resnet" if self.residual else "conv",
            "upsample_type": "resnet" if self.residual else "conv",
            "attention_head_dim": min(per_head) if len(per_head) == 1 else 1,
            "attn_norm_num_groups": 32,  # without it, diffusers leaves the middle attention's normalisation out
            "resnet_time_scale_shift": "scale_shift" if self.scale_shift else "default",
            "num_class_embeds": self.labels or None,
            "time_embedding_dim": 4 * self.width,
        }
        with torch.device("meta"):
            return ADMUNet(**config, **changes) if changes else UNet2DModel(**config)


def read_layout(tensors: Mapping[str, Tensor], blocks: int | None = None) -> Layout:
    """Returns the layout of a whole network, or of its lower half, the classifier.

    Args:
        tensors: The tensors by their released names.
        blocks: Residual blocks of a level; of a whole network, and of most halves, they can be read as well.

    Raises:
        InputError: These are not such a network's, or it could be laid out in several ways.
    """
    try:
        return _read(tensors, blocks)
    except KeyError as error:
        raise InputError(f"it lacks {error.args[0]}") from error
    except IndexError as error:
        raise InputError("its tensors have other dimensions") from error


def _read(tensors: Mapping[str, Tensor], blocks: int | None) -> Layout:
    first, width = tensors["input_blocks.0.0.weight"], tensors["time_embed.0.weight"].shape[1]
    count, whole = _count(tensors, "input_blocks"), _count(tensors, "output_blocks") > 0
    n = _blocks(tensors, count, whole, blocks)
    firsts = range(1, count, n + 1)
    channels = tuple(tensors[f"input_blocks.{i}.0.in_layers.2.weight"].shape[0] for i in firsts)
    if any(each % 32 for each in channels):
        raise InputError(f"its levels have {channels} channels, which are not all divisible by 32")
    return Layout(
        width=width,
        channels=channels,
        blocks=n,
        attended=tuple(f"input_blocks.{i}.1.qkv.weight" in tensors for i in firsts),
        inputs=first.shape[1],
        outputs=tensors["out.2.weight"].shape[0] if whole else 2 * first.shape[1],
        labels=tensors["label_emb.weight"].shape[0] if "label_emb.weight" in tensors else 0,
        scale_shift=tensors["input_blocks.1.0.emb_layers.1.weight"].shape[0] == 2 * channels[0],
        residual=f"input_blocks.{n + 1}.0.op.weight" not in tensors,
    )


def _blocks(tensors: Mapping[str, Tensor], count: int, whole: bool, given: int | None) -> int:
    if whole:
        levels = 1 + sum(ENLARGES.fullmatch(name) is not None for name in tensors)
        found = [count // levels - 1] if count % levels == 0 and count > levels else []
    else:
        found = [n for n in range(1, count) if count % (n + 1) == 0 and _fits(tensors, count, n)]
    if len(found) == 1 and given in (None, found[0]):
        return found[0]
    if given in found:
        return found[found.index(given)]
    if not found:
        raise InputError("it must have numbered blocks, as many in each level, got another network")
    choices = " or ".join(map(str, found))
    raise InputError(f"blocks must be {choices}, the residual blocks in each level, got {given or 'none'}")


def _fits(tensors: Mapping[str, Tensor], count: int, n: int) -> bool:
    """Whether the lower half can have n blocks a level, which are of one width, and all with attentions or none."""
    for start in range(1, count, n + 1):
        level = {
            (tensors[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0], f"input_blocks.{i}.1.qkv.weight" in tensors)
            for i in range(start, start + n)
            if f"input_blocks.{i}.0.out_layers.3.weight" in tensors
        }
        halves = f"input_blocks.{start + n}"
        if len(level) != 1 or f"{halves}.1.qkv.weight" in tensors or f"{halves}.0.skip_connection.weight" in tensors:
            return False
    return all(int(name.split(".")[1]) % (n + 1) == 0 for name in tensors if name.endswith(".0.op.weight"))


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Returns how many blocks are numbered so, from 0."""
    numbers = {name.split(".")[1] for name in tensors if name.startswith(f"{prefix}.")}
    return len(numbers)


def in_diffusers_terms(tensors: Mapping[str, Tensor], layout: Layout, attention: Attention) -> dict[str, Tensor]:
    """Returns the tensors by diffusers' names, in float32, queries, keys and values apart.

    Args:
        tensors: The tensors by their released names.
        layout: What was read of them.
        attention: What cannot be.

    Raises:
        InputError: There is a name that such a network does not have.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        numbered, value = NUMBERED.fullmatch(module), tensor.float()
        if module in ALONE:
            found[f"{ALONE[module]}.{kind}"] = value
        elif numbered is None:
            raise InputError(f"it has {name[:80]!r}, which no such network has")
        else:
            part, i, place, inner = numbered.groups()
            attends = inner == "qkv" or inner in ATTENTION
            block = _block(part, int(i), int(place or 0), layout.blocks, attends)
            if attends:
                value = value.flatten(1) if value.ndim > 1 else value  # a convolution over one place is a linear map
            if inner == "qkv":
                parts = _queries_keys_values(value, attention, up=part == "output_blocks")
                for letter, rows in zip("qkv", parts, strict=True):
                    found[f"{block}.to_{letter}.{kind}"] = rows
            else:
                found[f"{block}.{(ATTENTION | RESIDUAL).get(inner, 'conv')}.{kind}"] = value
    return found


def _block(part: str, i: int, place: int, n: int, attends: bool) -> str:
    """Returns what diffusers calls a block."""
    if part == "middle_block":
        return "mid_block.attentions.0" if attends else f"mid_block.resnets.{i // 2}"
    side = "down" if part == "input_blocks" else "up"
    level, j = divmod(i - (side == "down"), n + 1)
    if attends:
        return f"{side}_blocks.{level}.attentions.{j}"
    resizes = j == n if side == "down" else place > 0
    return f"{side}_blocks.{level}.{f'{side}samplers.0' if resizes else f'resnets.{j}'}"


def _queries_keys_values(rows: Tensor, attention: Attention, *, up: bool) -> Sequence[Tensor]:
    channels = len(rows) // 3
    heads = attention.count(channels, up=up)
    if attention.order == "new":
        return [part.clone() for part in rows.chunk(3)]
    numbered = rows[: 3 * channels].unflatten(0, (heads, 3, channels // heads))
    return [numbered[:, part].flatten(0, 1) for part in range(3)]


def fill(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Gives a network its weights; they are not copied.

    Raises:
        InputError: One is missing, too many, or of another shape.
    """
    wanted = network.state_dict()
    for name in [*wanted, *weights]:
        shapes = [tuple(held[name].shape) if name in held else "none" for held in (weights, wanted)]
        if shapes[0] != shapes[1]:
            raise InputError(f"the shape of {name} must be {shapes[1]}, got {shapes[0]}")
    network.load_state_dict(weights, assign=True)
