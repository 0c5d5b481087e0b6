"""Checkpoints of Dhariwal & Nichol (2021), "Diffusion Models Beat GANs", and Nichol & Dhariwal (2021), as denoisers.

The shapes tell a network but for its attentions' heads and the order of their rows. A released file is known by its
name, ``adm:256x256_diffusion.pt``; of any other the spec states them, with the size of the images and the training
(`models.denoisers.settings`): ``adm:mine.pt?heads=4&attention=legacy&size=64&diffusion_steps=4000&schedule=cosine``.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from steersman.errors import InputError, about
from steersman.models.checkpoint import read_tensors
from steersman.models.denoisers.architectures import GROUPS, fill
from steersman.models.denoisers.network import DiffusersDenoiser
from steersman.models.denoisers.settings import Settings, Stated, read_settings, written
from steersman.names import imagenet_names

__all__ = ["CLASSIFIERS", "DENOISERS", "IMPROVED", "load_adm", "read_checkpoint", "read_layout"]

URL = "https://openaipublic.blob.core.windows.net/diffusion"
ENLARGES = re.compile(r"output_blocks\.\d+\.[12]\.(conv|in_layers\.2)\.weight")

MULTIPLES = {
    32: (1, 2, 2, 2),
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}
"""The channels of each level by the size of the images, as the scripts have it."""


def _released(size: int, num_channels: int, blocks: int, labels: int = 0, **others: Any) -> Settings:  # noqa: ANN401
    """Returns what is known of a network of Dhariwal & Nichol, or of another with other settings."""
    resolutions = others.pop("attention_resolutions", (32, 16, 8))
    others = {"head_channels": 64, **others} if "heads" not in others else others
    return Settings(
        size=size,
        num_channels=num_channels,
        channel_mult=MULTIPLES[size],
        blocks=blocks,
        attended=tuple(level for level in range(len(MULTIPLES[size])) if size >> level in resolutions),
        class_cond=labels > 0,
        num_classes=labels,
        **others,
    )


_TRAINED: dict[str, Any] = {"heads": 4, "resblock_updown": False, "attention_resolutions": (16, 8)}
_LONG: dict[str, Any] = {**_TRAINED, "diffusion_steps": 4000, "schedule": "cosine"}
_RESCALED: dict[str, Any] = {**_LONG, "rescale_timesteps": True}
_LSUN: dict[str, Any] = {**_TRAINED, "heads": 1, "attention_resolutions": (16,), "use_scale_shift_norm": False}
IMPROVED: Mapping[str, Settings] = {
    "cifar10_uncond_50M_500K.pt": _released(32, 128, 3, **_RESCALED),
    "cifar10_uncond_vlb_50M_500K.pt": _released(32, 128, 3, **_RESCALED),
    "imagenet64_uncond_100M_1500K.pt": _released(64, 128, 3, **_RESCALED),
    "imagenet64_uncond_vlb_100M_1500K.pt": _released(64, 128, 3, **_RESCALED),
    "imagenet64_cond_270M_250K.pt": _released(64, 192, 3, 1000, **_LONG),
    "lsun_uncond_100M_1200K_bs128.pt": _released(256, 128, 2, **_LSUN),
    "lsun_uncond_100M_2400K_bs64.pt": _released(256, 128, 2, **_LSUN),
}
DENOISERS: Mapping[str, Settings] = {
    "64x64_diffusion.pt": _released(64, 192, 3, 1000, attention="new", schedule="cosine"),
    "128x128_diffusion.pt": _released(128, 256, 2, 1000, heads=4),
    "256x256_diffusion.pt": _released(256, 256, 2, 1000),
    "256x256_diffusion_uncond.pt": _released(256, 256, 2),
    "512x512_diffusion.pt": _released(512, 256, 2, 1000),
    "lsun_bedroom.pt": _released(256, 256, 2),
    "lsun_cat.pt": _released(256, 256, 2),
    "lsun_horse.pt": _released(256, 256, 2),
    "lsun_horse_nodropout.pt": _released(256, 256, 2),
    **IMPROVED,
}
CLASSIFIERS: Mapping[str, Settings] = {
    "64x64_classifier.pt": _released(64, 128, 4, schedule="cosine"),  # as the denoiser's that it guides
    "128x128_classifier.pt": _released(128, 128, 2),
    "256x256_classifier.pt": _released(256, 128, 2),
    "512x512_classifier.pt": _released(512, 128, 2),
}


class Checkpoint(NamedTuple):
    """A file's tensors by their own names, and all settings of their network; whether it is a released file."""

    path: Path
    tensors: dict[str, Tensor]
    settings: Settings
    released: bool


def load_adm(name: str) -> DiffusersDenoiser:
    """Returns the denoiser of ``FILE?KEY=VALUE&KEY=VALUE``, in float32 on the CPU."""
    path, tensors, settings, released = read_checkpoint("adm", name, DENOISERS)
    with about("adm", path):
        network = settings.unet()
        fill(network, settings.state(tensors))
    return settings.denoiser(network, imagenet_names() if released and settings.class_cond else ())


def read_checkpoint(source: str, name: str, released: Mapping[str, Settings]) -> Checkpoint:
    """Returns the checkpoint of ``FILE?KEY=VALUE&KEY=VALUE``; source is ``adm`` or ``adm-classifier``."""
    stated = read_settings(source, name)
    path = Path(stated.file)
    known = released.get(path.name)
    if not path.is_file():
        page = "march-2021" if path.name in IMPROVED else "jul-2021"
        fetch = f"fetch {URL}/{page}/{path.name} and put it there" if known else f"known at {URL}/: "
        raise InputError(f"{source}: there is no file {stated.file!r}; {fetch}{'' if known else ', '.join(released)}")
    _check_heads(stated, known)
    tensors = read_tensors(path, weights=stated.get("weights"))
    with about(source, path):
        found = read_layout(tensors, stated.get("blocks"))
        denoiser = "learn_sigma" in found
        if denoiser != (source == "adm"):
            wanted, given = ("classifier", "denoiser") if denoiser else ("denoiser", "classifier")
            raise InputError(f"it must be a {wanted}, got a {given}")
        if known and (key := known.other_than(found)):
            if not stated:
                raise InputError(
                    f"it is not what is released by that name: {key} must be {written(getattr(known, key))}, got "
                    f"{written(found[key])}; give a network of your own its settings, "
                    f"{source}:{path}?heads=4&attention=legacy&size=64"
                )
            known = None
            _check_heads(stated, known)
        found |= {} if denoiser else _head(tensors)
        found["size"] = _size(tensors, len(found["channel_mult"]), stated, known)
        stated.check(found)
        _check_resolutions(found, stated)
        return Checkpoint(path, tensors, stated.settings(known, found), known is not None)


def _check_heads(stated: Stated, known: Settings | None) -> None:
    """Refuses two counts of heads, and another file than a released one without one and the order of rows."""
    counts = stated.keys() & {"heads", "head_channels"}
    if len(counts) == 2 or (known is None and not (counts and "attention" in stated)):
        spec = f"{stated.source}:{stated.file}"
        raise InputError(
            f"{stated.source}: {stated.file!r} is not a released file, whose heads are known; state them: "
            f"{spec}?heads=4&attention=legacy&size=64, or head_channels=64, and attention=legacy or new"
        )


def read_layout(tensors: Mapping[str, Tensor], blocks: int | None = None) -> dict[str, Any]:
    """Returns the settings that the shapes tell of a network, or of its lower half, which may leave open n."""
    try:
        count = len({name.split(".")[1] for name in tensors if name.startswith("input_blocks.")})
        inputs, width = tensors["input_blocks.0.0.weight"].shape[1], tensors["time_embed.0.weight"].shape[1]
        decoder = any(name.startswith("output_blocks.") for name in tensors)
        n = _count_blocks(tensors, count, blocks, decoder=decoder)
        starts = range(1, count, n + 1)
        channels = tuple(tensors[f"input_blocks.{i}.0.in_layers.2.weight"].shape[0] for i in starts)
        if any(level_width % GROUPS for level_width in channels):
            raise InputError(f"the channels of its levels must be divisible by {GROUPS}, got {channels}")
        found: dict[str, Any] = {
            "num_channels": width,
            "channel_mult": tuple(level_width / width for level_width in channels),
            "blocks": n,
            "attended": tuple(level for level, i in enumerate(starts) if f"input_blocks.{i}.1.qkv.weight" in tensors),
            "in_channels": inputs,
            "use_scale_shift_norm": tensors["input_blocks.1.0.emb_layers.1.weight"].shape[0] == 2 * channels[0],
        }
        if len(channels) > 1:
            found["resblock_updown"] = f"input_blocks.{n + 1}.0.op.weight" not in tensors
        if decoder:
            outputs = tensors["out.2.weight"].shape[0]
            if inputs == 6 or outputs not in (inputs, 2 * inputs):
                raise InputError(f"it must be a denoiser, got one of {inputs} channels to {outputs}, as upsamplers are")
            labels = tensors["label_emb.weight"].shape[0] if "label_emb.weight" in tensors else 0
            found |= {"learn_sigma": outputs == 2 * inputs, "class_cond": labels > 0, "num_classes": labels}
        return found
    except KeyError as error:
        raise InputError(f"it lacks {error.args[0]}") from error
    except IndexError as error:
        raise InputError("its tensors have other dimensions") from error


def _count_blocks(tensors: Mapping[str, Tensor], count: int, stated: int | None, *, decoder: bool) -> int:
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


def _head(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the settings of a classifier's head."""
    if "out.2.positional_embedding" in tensors and "out.2.c_proj.bias" in tensors:
        return {"pool": "attention", "num_classes": len(tensors["out.2.c_proj.bias"])}
    if "out.3.bias" in tensors:
        return {"pool": "adaptive", "num_classes": len(tensors["out.3.bias"])}
    raise InputError("its head must be an attention pool, or the mean over all positions, got another")


def _size(tensors: Mapping[str, Tensor], levels: int, stated: Stated, known: Settings | None) -> int:
    """Returns the side of the images: as stated or known, or as an attention pool tells by its number of positions."""
    halved, pooled = 2 ** (levels - 1), 0
    if (embedding := tensors.get("out.2.positional_embedding")) is not None:
        positions = embedding.shape[-1] - 1  # the first is the mean's
        side = math.isqrt(positions)
        if side**2 != positions:
            raise InputError(f"its attention pool must have the positions of a square, got {positions}")
        pooled = side * halved
    size = stated.get("size") or (known.size if known else pooled)
    if pooled and size != pooled:
        raise InputError(f"size must be {pooled}, by the number of its attention pool's positions, got {size}")
    if not size or size % halved:
        raise InputError(f"size=N must be that of its images, a multiple of {halved}, got {size or 'none'}")
    return size


def _check_resolutions(found: Mapping[str, Any], stated: Stated) -> None:
    """Refuses stated sizes that are not those with attentions; scripts may state more, and in any order."""
    sides = [found["size"] >> level for level in range(len(found["channel_mult"]))]
    attended = tuple(sides[level] for level in found["attended"])
    given = stated.get("attention_resolutions", attended)
    if {side for side in given if side in sides} != set(attended):
        raise InputError(
            f"attention_resolutions must be {written(attended)}, by the file's tensors and images of {sides[0]} "
            f"pixels, got {written(given)}"
        )
