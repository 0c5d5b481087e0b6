"""Checkpoints of Dhariwal & Nichol (2021), "Diffusion Models Beat GANs", and Nichol & Dhariwal (2021), as denoisers.

With L levels of n residual blocks, counted from the image, their blocks are numbered through:

    input_blocks.1 + l (n + 1) + j    block j of level l                 down_blocks.l.resnets.j, .attentions.j
      j = n                           halves the size                    down_blocks.l.downsamplers.0
    middle_block.0, 1, 2              residual, attention, residual      mid_block
    output_blocks.l (n + 1) + j       block j of the l-th last level     up_blocks.l.resnets.j, .attentions.j
      j = n                           doubles the size after that        up_blocks.l.upsamplers.0

The shapes tell the network but for its attentions' heads and the order of their rows (`models.denoisers.conversion`).
A released file is known by its name, ``adm:256x256_diffusion.pt``; of any other the spec states them, with the size of
the images and the training (`models.denoisers.settings`): ``adm:mine.pt?heads=4&attention=legacy&size=64``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor

from steersman.errors import InputError, about
from steersman.models.checkpoint import read_tensors
from steersman.models.denoisers.architectures import GROUPS
from steersman.models.denoisers.conversion import convert, empty_unet, fill, unet_blocks
from steersman.models.denoisers.network import DiffusersDenoiser
from steersman.models.denoisers.settings import Diffusion, Settings, read_settings
from steersman.names import imagenet_names

__all__ = [
    "CLASSIFIERS",
    "DENOISERS",
    "Attention",
    "Checkpoint",
    "Layout",
    "load_adm",
    "read_checkpoint",
    "read_layout",
]

URL = "https://openaipublic.blob.core.windows.net/diffusion"
HEADS = ("heads", "head_channels", "heads_upsample")
NETWORK = (*HEADS, "attention", "size", "blocks", "weights", "num_classes", "num_channels", "channel_mult")
STATED = (*NETWORK, "attention_resolutions", "use_scale_shift_norm", "resblock_updown")
TRAINING = ("diffusion_steps", "schedule", "rescale_timesteps")
SETTINGS = {
    "adm": (*STATED, *TRAINING, "predict_xstart", "learn_sigma", "class_cond"),
    "adm-classifier": (*STATED, *TRAINING, "pool"),
}
ENLARGES = re.compile(r"output_blocks\.\d+\.[12]\.(conv|in_layers\.2)\.weight")
RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ATTENTION = {"norm": "group_norm", "qkv": "to_qkv", "proj_out": "to_out.0"}
OUTSIDE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


@dataclass(frozen=True, kw_only=True)
class Attention:
    """What the shapes do not tell of the attentions: the number of heads, or their channels, and the order of rows."""

    heads: int | None = None
    head_channels: int | None = None
    heads_upsample: int | None = None  # on the way up, where it is another number
    order: Literal["legacy", "new"]

    def count(self, channels: int, *, up: bool = False) -> int:
        """Returns the number of heads of an attention, which must divide its channels."""
        name = "heads" if self.head_channels is None else "head_channels"
        if up and self.heads_upsample and self.head_channels is None:
            name = "heads_upsample"
        given = getattr(self, name)
        if not given or given < 0 or channels % given:
            raise InputError(f"{name} must be a divisor of {channels}, an attention's channels, got {given}")
        return given if self.head_channels is None else channels // given


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the shapes tell of a network."""

    width: int  # channels of the time embedding's input
    channels: tuple[int, ...]  # of each level
    blocks: int  # n
    attended: tuple[bool, ...]  # the levels with attentions
    inputs: int = 3
    outputs: int = 6
    labels: int = 0
    scale_shift: bool = True  # the time scales and shifts what is normalised; else it is added before
    residual: bool = True  # residual blocks change the size; else convolutions

    def network(self, attention: Attention, size: int) -> UNet2DModel:
        """Returns a network of this layout for images of a size, on the meta device."""
        wide = {self.channels[-1]}  # of the middle, which always has an attention
        wide |= {width for width, attends in zip(self.channels, self.attended, strict=True) if attends}
        head_channels = {width // attention.count(width) for width in wide}
        heads, up_heads = (attention.count(self.channels[-1], up=up) for up in (False, True))
        return empty_unet(
            size,
            self.channels,
            self.attended,
            residual=self.residual,
            in_channels=self.inputs,
            out_channels=self.outputs,
            layers_per_block=self.blocks,
            attention_head_dim=min(head_channels) if len(head_channels) == 1 else 1,
            attn_norm_num_groups=GROUPS,  # without it, diffusers leaves the middle attention's normalisation out
            resnet_time_scale_shift="scale_shift" if self.scale_shift else "default",
            num_class_embeds=self.labels or None,
            time_embedding_dim=4 * self.width,
            heads=heads if len(head_channels) > 1 else None,
            up_heads=up_heads if up_heads != heads else None,
            time_channels=self.width if self.width != self.channels[0] else None,
        )

    def weights(self, tensors: Mapping[str, Tensor], attention: Attention) -> dict[str, Tensor]:
        """Returns the released tensors under the names of the network's."""

        def groups(name: str, channels: int) -> int:
            return attention.count(channels, up=name.startswith("up_blocks")) if attention.order == "legacy" else 1

        return convert(tensors, self._modules(), groups)

    def _modules(self) -> dict[str, tuple[str, ...]]:
        """Maps the released names of modules to those of diffusers."""
        modules = dict(OUTSIDE)

        def add(old: str, new: str, parts: Mapping[str, str]) -> None:
            modules.update({f"{old}.{part}": f"{new}.{name}" for part, name in parts.items()})

        i, k, m = 1, 0, 0  # the next block on the way down, on the way up, in the middle
        for new in unet_blocks(len(self.channels), self.blocks):
            attention = new.replace("resnets", "attentions")
            if new.startswith("down"):
                add(f"input_blocks.{i}.0", new, {**RESNET, "op": "conv"})
                add(f"input_blocks.{i}.1", attention, ATTENTION)
                i += 1
            elif new.startswith("mid"):
                add(f"middle_block.{m}", new, RESNET)
                m += 2
            elif "resnets" in new:
                add(f"output_blocks.{k}.0", new, RESNET)
                add(f"output_blocks.{k}.1", attention, ATTENTION)
                k += 1
            else:
                for index in (1, 2):  # after the attention, where there is one
                    add(f"output_blocks.{k - 1}.{index}", new, {**RESNET, "conv": "conv"})
        add("middle_block.1", "mid_block.attentions.0", ATTENTION)
        return {old: (new,) for old, new in modules.items()}


def read_layout(tensors: Mapping[str, Tensor], blocks: int | None = None) -> Layout:
    """Returns the layout of a network, or of its lower half, a classifier, whose tensors may leave open n."""
    try:
        count = len({name.split(".")[1] for name in tensors if name.startswith("input_blocks.")})
        decoder = any(name.startswith("output_blocks.") for name in tensors)
        first, width = tensors["input_blocks.0.0.weight"], tensors["time_embed.0.weight"].shape[1]
        n = _blocks(tensors, count, blocks, decoder=decoder)
        starts = range(1, count, n + 1)
        channels = tuple(tensors[f"input_blocks.{i}.0.in_layers.2.weight"].shape[0] for i in starts)
        if any(level_width % GROUPS for level_width in channels):
            raise InputError(f"the channels of its levels must be divisible by {GROUPS}, got {channels}")
        return Layout(
            width=width,
            channels=channels,
            blocks=n,
            attended=tuple(f"input_blocks.{i}.1.qkv.weight" in tensors for i in starts),
            inputs=first.shape[1],
            outputs=tensors["out.2.weight"].shape[0] if decoder else 2 * first.shape[1],
            labels=tensors["label_emb.weight"].shape[0] if "label_emb.weight" in tensors else 0,
            scale_shift=tensors["input_blocks.1.0.emb_layers.1.weight"].shape[0] == 2 * channels[0],
            residual=f"input_blocks.{n + 1}.0.op.weight" not in tensors,
        )
    except KeyError as error:
        raise InputError(f"it lacks {error.args[0]}") from error
    except IndexError as error:
        raise InputError("its tensors have other dimensions") from error


def _blocks(tensors: Mapping[str, Tensor], count: int, stated: int | None, *, decoder: bool) -> int:
    """Returns n of a network of so many input blocks, counted on the way up, or as the lower half allows."""
    if decoder:
        levels = 1 + sum(ENLARGES.fullmatch(name) is not None for name in tensors)
        possible = [count // levels - 1] if count % levels == 0 and count > levels else []
    else:
        possible = [n for n in range(1, count) if count % (n + 1) == 0 and _fits(tensors, count, n)]
    if not possible:
        raise InputError("it must have numbered blocks, as many in each level, got another network")
    if len(chosen := [n for n in possible if stated in (None, n)]) == 1:
        return chosen[0]
    choices = " or ".join(map(str, possible))
    raise InputError(f"blocks must be {choices}, the residual blocks in each level, got {stated or 'none'}")


def _fits(tensors: Mapping[str, Tensor], count: int, n: int) -> bool:
    """Whether levels of n blocks are each of one width, and have an attention in all blocks or in none."""
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


@dataclass(frozen=True)
class Released:
    """What is known of a released file."""

    size: int
    width: int
    multipliers: tuple[float, ...]  # of the width at each level
    blocks: int
    labels: int = 0
    attended: tuple[int, ...] = (32, 16, 8)  # the sizes with attentions
    attention: Attention = Attention(head_channels=64, order="legacy")
    residual: bool = True
    scale_shift: bool = True
    diffusion: Diffusion = Diffusion()
    page: str = "jul-2021"

    @property
    def layout(self) -> Layout:
        """The layout that its tensors must have."""
        return Layout(
            width=self.width,
            channels=tuple(int(factor * self.width) for factor in self.multipliers),
            blocks=self.blocks,
            attended=tuple(self.size >> level in self.attended for level in range(len(self.multipliers))),
            labels=self.labels,
            scale_shift=self.scale_shift,
            residual=self.residual,
        )


_64, _128, _256, _512 = (1, 2, 3, 4), (1, 1, 2, 3, 4), (1, 1, 2, 2, 4, 4), (0.5, 1, 1, 2, 2, 4, 4)
_COSINE = Diffusion(schedule="cosine")
_LONG = Diffusion(diffusion_steps=4000, schedule="cosine")
_4_HEADS = Attention(heads=4, order="legacy")
_NEW = Attention(head_channels=64, order="new")
_IMPROVED: dict[str, Any] = {"attention": _4_HEADS, "residual": False, "attended": (16, 8), "page": "march-2021"}
_RESCALED = {**_IMPROVED, "diffusion": replace(_LONG, rescale_timesteps=True)}
_LSUN = {**_IMPROVED, "attention": replace(_4_HEADS, heads=1), "attended": (16,), "scale_shift": False}
DENOISERS: Mapping[str, Released] = {
    "64x64_diffusion.pt": Released(64, 192, _64, 3, labels=1000, attention=_NEW, diffusion=_COSINE),
    "128x128_diffusion.pt": Released(128, 256, _128, 2, labels=1000, attention=_4_HEADS),
    "256x256_diffusion.pt": Released(256, 256, _256, 2, labels=1000),
    "256x256_diffusion_uncond.pt": Released(256, 256, _256, 2),
    "512x512_diffusion.pt": Released(512, 256, _512, 2, labels=1000),
    "lsun_bedroom.pt": Released(256, 256, _256, 2),
    "lsun_cat.pt": Released(256, 256, _256, 2),
    "lsun_horse.pt": Released(256, 256, _256, 2),
    "lsun_horse_nodropout.pt": Released(256, 256, _256, 2),
    "cifar10_uncond_50M_500K.pt": Released(32, 128, (1, 2, 2, 2), 3, **_RESCALED),
    "cifar10_uncond_vlb_50M_500K.pt": Released(32, 128, (1, 2, 2, 2), 3, **_RESCALED),
    "imagenet64_uncond_100M_1500K.pt": Released(64, 128, _64, 3, **_RESCALED),
    "imagenet64_uncond_vlb_100M_1500K.pt": Released(64, 128, _64, 3, **_RESCALED),
    "imagenet64_cond_270M_250K.pt": Released(64, 192, _64, 3, labels=1000, diffusion=_LONG, **_IMPROVED),
    "lsun_uncond_100M_1200K_bs128.pt": Released(256, 128, _256, 2, **_LSUN),
    "lsun_uncond_100M_2400K_bs64.pt": Released(256, 128, _256, 2, **_LSUN),
}
CLASSIFIERS: Mapping[str, Released] = {
    "64x64_classifier.pt": Released(64, 128, _64, 4, diffusion=_COSINE),  # as the denoiser's that it guides
    "128x128_classifier.pt": Released(128, 128, _128, 2),
    "256x256_classifier.pt": Released(256, 128, _256, 2),
    "512x512_classifier.pt": Released(512, 128, _512, 2),
}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A file's tensors by their released names, and what is known, read or stated of their network."""

    path: Path
    tensors: dict[str, Tensor]
    layout: Layout
    attention: Attention
    diffusion: Diffusion
    settings: Settings
    released: Released | None

    def network(self, pooled: int = 0) -> tuple[UNet2DModel, int]:
        """Returns the network without weights, and the side of its images: as known or stated, or as pooled.

        A classifier's attention pool tells it by its number of positions.
        """
        halved = 2 ** (len(self.layout.channels) - 1)
        size = self.settings.get("size") or (self.released.size if self.released else pooled)
        if pooled and size != pooled:
            raise InputError(f"size must be {pooled}, by the number of its attention pool's positions, got {size}")
        if not size or size % halved:
            raise InputError(f"size=N must be that of its images, a multiple of {halved}, got {size or 'none'}")
        sides = {size >> level: attends for level, attends in enumerate(self.layout.attended)}
        attended = tuple(side for side, attends in sides.items() if attends)
        stated = self.settings.get("attention_resolutions", attended)
        if {side for side in stated if side in sides} != set(attended):  # scripts may state others too, in any order
            self.settings.check({"attention_resolutions": attended})
        return self.layout.network(self.attention, size), size


def load_adm(name: str) -> DiffusersDenoiser:
    """Returns the denoiser of ``FILE?KEY=VALUE&KEY=VALUE``, in float32 on the CPU."""
    checkpoint = read_checkpoint("adm", name, DENOISERS)
    layout = checkpoint.layout
    with about("adm", checkpoint.path):
        if not any(key.startswith("output_blocks.") for key in checkpoint.tensors):
            raise InputError("it must be a denoiser, got a classifier")
        learned = layout.outputs == 2 * layout.inputs
        if layout.inputs == 6 or not (learned or layout.outputs == layout.inputs):
            raise InputError(
                f"it must be a denoiser, got one of {layout.inputs} channels to {layout.outputs}, as upsamplers are"
            )
        checkpoint.settings.check(
            {"learn_sigma": learned, "class_cond": layout.labels > 0, "num_classes": layout.labels}
        )
        network, _ = checkpoint.network()
        fill(network, layout.weights(checkpoint.tensors, checkpoint.attention))
    return checkpoint.diffusion.denoiser(network, imagenet_names() if checkpoint.released and layout.labels else ())


def read_checkpoint(source: str, name: str, released: Mapping[str, Released]) -> Checkpoint:
    """Returns the checkpoint of ``FILE?KEY=VALUE&KEY=VALUE``; source is ``adm`` or ``adm-classifier``."""
    settings = read_settings(source, name, SETTINGS[source])
    path = Path(settings.file)
    known = released.get(path.name)
    if not path.is_file():
        fetch = f"fetch {URL}/{known.page}/{path.name} and put it there" if known else f"known at {URL}/: "
        raise InputError(f"{source}: there is no file {settings.file!r}; {fetch}{'' if known else ', '.join(released)}")
    if known is None:
        _attention(settings, None)
    tensors = read_tensors(path, weights=settings.get("weights"))
    with about(source, path):
        layout = read_layout(tensors, settings.get("blocks"))
        if known and layout != known.layout:
            key = next(key for key, value in vars(known.layout).items() if getattr(layout, key) != value)
            if not settings:
                raise InputError(
                    f"it is not what is released by that name: {key} must be {getattr(known.layout, key)}, got "
                    f"{getattr(layout, key)}; give a network of your own its settings, "
                    f"{source}:{path}?heads=4&attention=legacy&size=64"
                )
            known = None
        attention = _attention(settings, known)
        settings.check(
            {
                "num_channels": layout.width,
                "channel_mult": tuple(width / layout.width for width in layout.channels),
                "use_scale_shift_norm": layout.scale_shift,
                **({"resblock_updown": layout.residual} if len(layout.channels) > 1 else {}),
            }
        )
        diffusion = settings.diffusion(known.diffusion if known else None)
    return Checkpoint(
        path=path,
        tensors=tensors,
        layout=layout,
        attention=attention,
        diffusion=diffusion,
        settings=settings,
        released=known,
    )


def _attention(settings: Settings, known: Released | None) -> Attention:
    """Returns the attentions' heads and order, as stated or known; one of the two counts is needed, and the order."""
    given = {key: settings[key] for key in HEADS if key in settings}
    counts = given.keys() & {"heads", "head_channels"}
    if len(counts) == 2 or (known is None and not (counts and "attention" in settings)):
        spec = f"{settings.source}:{settings.file}"
        raise InputError(
            f"{settings.source}: {settings.file!r} is not a released file, whose heads are known; state them: "
            f"{spec}?heads=4&attention=legacy&size=64, or head_channels=64, and attention=legacy or new"
        )
    order = settings.get("attention") or (known.attention.order if known else "legacy")
    base = known.attention if known and not counts else Attention(order=order)
    return replace(base, order=order, **given)
