"""Checkpoints of Dhariwal & Nichol (2021), "Diffusion Models Beat GANs on Image Synthesis", as denoisers.

Of a released file everything is known by its name: ``adm:models/256x256_diffusion.pt``. Of another one the tensors'
shapes tell most, and the rest is given: ``adm:mine.pt?heads=4&attention=legacy&size=64``, with

    heads, head_channels    how many heads an attention has, or how many channels a head
    attention               legacy (heads are split before queries, keys and values) or new (after)
    size                    the image's height and width, at which the attentions were trained; a classifier whose
                            attention pool numbers its places needs none
    schedule                the noise that it was trained on, linear (the default) or cosine
    blocks                  residual blocks of a level, where a classifier's tensors leave it open

All predict the noise, over 1000 times.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from steersman.checkpoint import read_tensors
from steersman.denoisers.adm_layout import Attention, Layout, fill, in_diffusers_terms, read_layout
from steersman.denoisers.diffusers import DiffusersDenoiser
from steersman.errors import InputError, about, unknown
from steersman.options import split_options
from steersman.schedule import VP

__all__ = ["CLASSIFIERS", "DENOISERS", "SCHEDULES", "Checkpoint", "load_adm", "read_checkpoint"]

SOURCE = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021"
MULTIPLIERS: Mapping[int, tuple[float, ...]] = {
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}
ATTENDED = (32, 16, 8)
SCHEDULES = {"linear": VP.linear, "cosine": VP.cosine}
ORDERS = ("legacy", "new")
NUMBERS = ("heads", "head_channels", "size", "blocks")
SETTINGS = (*NUMBERS, "attention", "schedule")


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a file.

    Attributes:
        attention: Its heads, and their order.
        layout: Its network; None where it is read from the shapes.
        size: Height and width of its images; None where the shapes may tell.
        schedule: The noise that it was trained on, by its name.
        blocks: Residual blocks of a level; None where they are read from the shapes.
    """

    attention: Attention
    layout: Layout | None = None
    size: int | None = None
    schedule: str = "linear"
    blocks: int | None = None

    def pixels(self, halved: int, found: int = 0) -> int:
        """Returns the size, which is told or found, and that the levels can halve.

        Args:
            halved: What they divide it by.
            found: The size that the shapes tell; 0 where they do not.

        Raises:
            InputError: None is told or found, or another one than can be.
        """
        if found and self.size not in (None, found):
            raise InputError(f"size: {self.size} given; allowed: {found}, which its places are of")
        size = self.size or found
        if not size or size % halved:
            raise InputError(f"size: {size or 'none'} given; allowed: size=N, its images' own, a multiple of {halved}")
        return size


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A file's tensors by their released names, and the network that they are of.

    Attributes:
        released: Whether it is one of the released files.
    """

    path: Path
    tensors: dict[str, Tensor]
    layout: Layout
    known: Known
    released: bool


def _released(size: int, width: int, blocks: int, labels: int, attention: Attention, **more: Any) -> Known:  # noqa: ANN401
    multipliers = MULTIPLIERS[size]
    layout = Layout(
        width=width,
        channels=tuple(int(each * width) for each in multipliers),
        blocks=blocks,
        attended=tuple(size >> level in ATTENDED for level in range(len(multipliers))),
        labels=labels,
    )
    return Known(attention=attention, layout=layout, size=size, **more)


_LEGACY = Attention(head_channels=64, order="legacy")
_UNCONDITIONAL = _released(256, 256, 2, 0, _LEGACY)
DENOISERS: Mapping[str, Known] = {
    "64x64_diffusion.pt": _released(64, 192, 3, 1000, replace(_LEGACY, order="new"), schedule="cosine"),
    "128x128_diffusion.pt": _released(128, 256, 2, 1000, Attention(heads=4, order="legacy")),
    "256x256_diffusion.pt": _released(256, 256, 2, 1000, _LEGACY),
    "256x256_diffusion_uncond.pt": _UNCONDITIONAL,
    "512x512_diffusion.pt": _released(512, 256, 2, 1000, _LEGACY),
    **{f"lsun_{name}.pt": _UNCONDITIONAL for name in ("bedroom", "cat", "horse", "horse_nodropout")},
}
CLASSIFIERS: Mapping[str, Known] = {
    "64x64_classifier.pt": _released(64, 128, 4, 0, _LEGACY, schedule="cosine"),  # as the denoiser's that it guides
    **{f"{size}x{size}_classifier.pt": _released(size, 128, 2, 0, _LEGACY) for size in (128, 256, 512)},
}


def load_adm(name: str) -> DiffusersDenoiser:
    """Returns a checkpoint's denoiser, in float32 on the CPU.

    Args:
        name: The file, with what the module's docstring lists where it is none of the released ones.

    Raises:
        InputError: The file is missing, cannot be read, or holds another network.
    """
    found = read_checkpoint("adm", name, DENOISERS)
    layout, known = found.layout, found.known
    halved = 2 ** (len(layout.channels) - 1)
    with about("adm", found.path):
        if not any(key.startswith("output_blocks.") for key in found.tensors):
            raise InputError("it is a classifier; allowed: a denoiser")
        if layout.inputs == 6 or layout.outputs not in (layout.inputs, 2 * layout.inputs):
            raise InputError(
                f"it maps {layout.inputs} channels to {layout.outputs}, as an upsampler does; allowed: a denoiser"
            )
        network = layout.network(known.attention, known.pixels(halved))
        fill(network, in_diffusers_terms(found.tensors, layout, known.attention))
    classes: tuple[str, ...] = ()
    if found.released and layout.labels:
        from steersman.classifiers.imagenet import imagenet_names

        classes = imagenet_names()
    return DiffusersDenoiser(network, schedule=SCHEDULES[known.schedule](), classes=classes)


def read_checkpoint(source: str, name: str, released: Mapping[str, Known]) -> Checkpoint:
    """Returns a file's tensors, and what is known of their network.

    Args:
        source: ``adm`` or ``adm-classifier``, for the messages.
        name: The file, with what the module's docstring lists where it is none of the released ones.
        released: The released ones.

    Raises:
        InputError: The file is missing or cannot be read, something has to be given, or what is released by that name
            is another network.
    """
    file, settings = split_options(name, SETTINGS, f"setting of {source}")
    path = Path(file)
    if not path.is_file():
        fetch = f"fetch {SOURCE}/{path.name} and put it there" if path.name in released else f"known at {SOURCE}/: "
        listed = "" if path.name in released else ", ".join(released)
        raise InputError(f"{source}: there is no file {file!r}; {fetch}{listed}")
    known = released[path.name] if path.name in released and not settings else _given(source, file, settings)
    tensors = read_tensors(path)
    with about(source, path):
        layout = read_layout(tensors, known.blocks)
        for key, wanted in vars(known.layout).items() if known.layout else ():
            if (given := getattr(layout, key)) != wanted:
                raise InputError(
                    f"it is not what is released by that name, with {key} {given}; allowed: {wanted}, or settings of "
                    f"one's own, {source}:{file}?heads=4&attention=legacy&size=64"
                )
    return Checkpoint(path=path, tensors=tensors, layout=layout, known=known, released=known.layout is not None)


def _given(source: str, file: str, settings: Mapping[str, str]) -> Known:
    for key in settings.keys() & set(NUMBERS):
        if not (settings[key].isdecimal() and int(settings[key]) > 0):
            raise InputError(f"{source}: {key}={settings[key]} given; allowed: 1 and more")
    if ("heads" in settings) == ("head_channels" in settings) or "attention" not in settings:
        raise InputError(
            f"{source}: {file!r} is not a released file, whose heads are known; tell them: "
            f"{source}:{file}?heads=4&attention=legacy&size=64, or head_channels=64, and attention=legacy or new"
        )
    order, schedule = settings["attention"], settings.get("schedule", "linear")
    if order not in ORDERS:
        raise unknown("attention", order, ORDERS)
    if schedule not in SCHEDULES:
        raise unknown("schedule", schedule, SCHEDULES)
    numbers = {key: int(settings[key]) if key in settings else None for key in NUMBERS}
    attention = Attention(heads=numbers["heads"], head_channels=numbers["head_channels"], order=order)
    return Known(attention=attention, size=numbers["size"], blocks=numbers["blocks"], schedule=schedule)
