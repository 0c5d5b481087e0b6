"""The settings of a run, and its file ``run.yaml``: every resolved setting, the seeds, the versions."""

import platform
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import ConfigDict

from steersman.batching import block_size
from steersman.errors import InputError, about, unknown
from steersman.files import read_yaml
from steersman.lab.choices import AUTO, TYPES, check_choices, check_device
from steersman.recipes import Recipe, load_recipe
from steersman.sampling.samplers import SEEDS
from steersman.typed import filled_in, finite, typed

__all__ = [
    "AGREES",
    "DRAWN",
    "DTYPES",
    "LAX",
    "LAYOUTS",
    "MOST",
    "TARGET",
    "Placement",
    "Run",
    "check_folder",
    "differences",
    "other_settings",
    "read_record",
    "read_run",
]

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in TYPES}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
AGREES = 0.98
"""The least cosine with float32 of a type that a measurement may choose."""

LAX = ConfigDict(coerce_numbers_to_str=True, allow_inf_nan=False)  # a class in YAML may be a number
MOST, LARGEST_BATCH = 10_000_000, 65_536  # images of a run, and of a batch
SHOWN = 3  # settings that a message names
DRAWN = "drawn"  # the key of run.yaml under which `steersman.lab.generate.store` describes the images
TARGET = "target"
"""The label that stands for the target of each image."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How a network runs on a device.

    Attributes:
        dtype: The type of the weights and of the computation.
        layout: The memory layout of the weights, which convolutions take over.
        block: How many images the network sees at a time (`steersman.batching`).
        cosines: The least cosine with float32, by type, of every type that was faster.
    """

    dtype: str = "float32"
    layout: str = "contiguous"
    block: int
    cosines: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name, value, known in (("dtype", self.dtype, DTYPES), ("layout", self.layout, LAYOUTS)):
            if value not in known:
                raise unknown(name, value, known)
        if self.block < 1:
            raise InputError(f"block must be at least 1, got {self.block}")

    def __str__(self) -> str:
        """What was chosen, and why no faster type."""
        text = f"{self.dtype}, {self.layout}, {self.block} images at a time"
        if (cosine := self.cosines.get(self.dtype)) is not None:
            text += f", least cosine with float32 {cosine:.4f}"
        for dtype, cosine in self.cosines.items():
            if dtype != self.dtype:
                text += f"; {dtype} is faster but refused: least cosine with float32 {cosine:.4f}, not above {AGREES}"
        return text


@dataclass(frozen=True, kw_only=True)
@finite
class Run:
    """All settings that make the images of a run.

    Attributes:
        targets: Names or indices of classes of the guide; ``all`` for every class of the denoiser.
        blend: Instead of targets, a weight for each of several classes; a negative weight steers away.
        num: Images of each target.
        seed: The seed of the first image; the others count up.
        denoiser: The diffusion model, as `steersman.load_denoiser` takes it.
        classifiers: The guides, as `steersman.load_classifier` takes them; the first one also measures.
        judge: The network that measures and never steers; None for no judge.
        recipe: The settings of sampling and guidance.
        guided: Whether the guide steers; else it only measures.
        label: The label for class-conditional denoisers: index or name, or ``target`` for that of each image.
        prompt: The prompt, for text-to-image models.
        negative_prompt: The negative prompt, likewise.
        cfg_scale: The classifier-free guidance scale; 1 for the conditional model alone.
        batch_size: Images that are drawn at once; by default 4 on a CPU, else 16.
        device: The device of all networks. Its index is not recorded: equal devices draw equal images.
        dtype: float32, bfloat16 or float16; ``auto`` to measure which type, layout and block is fastest; or
            ``auto-float32`` to measure layouts and blocks alone.
        placed: The result of that measurement, for ``denoiser`` and ``classifier``.
        recompute: Whether the denoiser recomputes activations in the backward pass to save memory.
        compile: Whether ``torch.compile`` compiles the networks.
        format: The format of the images: png, npz or webdataset.
    """

    targets: tuple[str, ...] = ()
    blend: Mapping[str, float] = field(default_factory=dict)
    num: int = 16
    seed: int = 0
    denoiser: str = "zoo:sportballs"
    classifiers: tuple[str, ...] = ("imagenet:efficientnet-lite0",)
    judge: str | None = "zoo:sportballs-judge"
    recipe: Recipe = field(default_factory=lambda: load_recipe("default"))
    guided: bool = True
    label: str | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    cfg_scale: float = 1.0
    batch_size: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    placed: Mapping[str, Placement] = field(default_factory=dict)
    recompute: bool = False
    compile: bool = False
    format: str = "png"

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("num", self.num, 1, MOST),
            ("seed", self.seed, 0, SEEDS - self.num),
            ("batch_size", self.at_once, 1, LARGEST_BATCH),
        ):
            if not least <= value <= most:
                raise InputError(f"{name} must be {least} to {most}, got {value}")
        check_choices(targets=self.targets, blend=self.blend, dtype=self.dtype, format=self.format)
        if not self.classifiers:
            raise InputError("classifier must be given at least once")
        if self.placed and not self.measured:
            raise InputError(f"placed can only be given with dtype {' or '.join(AUTO)}, got dtype {self.dtype}")
        if self.judge in self.classifiers:
            raise InputError(f"judge must be another network than the guide, or none, got the guide, {self.judge!r}")
        check_device(self.device)

    @property
    def measured(self) -> bool:
        """Whether a measurement chooses how networks are placed."""
        return self.dtype in AUTO

    @property
    def steps(self) -> int:
        """The number of steps of a sample."""
        return self.recipe.sampling()["steps"]

    @property
    def at_once(self) -> int:
        """The batch size, or its default."""
        if self.batch_size is not None:
            return self.batch_size
        return max((placement.block for placement in self.placed.values()), default=4 if self.device == "cpu" else 16)

    def placement(self, part: str) -> Placement:
        """Returns how the ``denoiser`` or a ``classifier`` is placed: as measured, else by dtype and batch size."""
        if part in self.placed:
            return self.placed[part]
        dtype = "float32" if self.measured else self.dtype
        return Placement(dtype=dtype, block=block_size(self.device, self.at_once))

    def settings(self) -> dict[str, Any]:
        """Returns all that makes the images, in plain values."""
        settings = asdict(self) | {"batch_size": self.at_once, "device": torch.device(self.device).type}
        settings |= {"targets": list(self.targets), "classifiers": list(self.classifiers)}
        settings["recipe"] = {"name": self.recipe.name, "settings": self.recipe.resolved()}
        return settings

    def record(self) -> dict[str, Any]:
        """Returns settings and versions, as ``run.yaml`` holds them."""
        packages = ["steersman", "torch", "torchvision", "diffusers", "timm"]
        packages += ["transformers"] if find_spec("transformers") else []
        versions = {"python": platform.python_version()} | {name: version(name) for name in packages}
        return self.settings() | {"versions": versions}


def differences(out: Path, run: Run, *, grows: bool = False) -> str:
    """Returns in a line how the settings of a run differ from those in a folder, where it may have more if it grows."""
    if not (record := out / "run.yaml").exists():
        return ""
    before = read_run(record, trusted=None)
    old, new = (_flat(either.settings()) for either in (before, run))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if grows and run.num > before.num and keys == ["num"]:
        return ""
    changes = [f"{key}: was {old.get(key)}, is {new.get(key)}" for key in keys[:SHOWN]]
    return "; ".join([*changes, *([f"and {len(keys) - SHOWN} more"] if len(keys) > SHOWN else [])])


def check_folder(out: Path, run: Run, *, grows: bool = False, instead: str = "give another --out") -> None:
    """Refuses a folder that holds a run with other settings, and says which, and what to do instead."""
    if other := differences(out, run, grows=grows):
        raise InputError(f"out: {str(out)!r} holds a run with other settings ({other}); {instead}")


def other_settings(path: Path, record: Mapping[str, Any], kind: str) -> list[str]:
    """Returns the keys but versions in which a YAML file of some kind differs from a record; none without a file."""
    if not path.exists():
        return []
    before = read_yaml(path, kind, trusted=None)
    return [key for key in {**record, **before} if key != "versions" and before.get(key) != record.get(key)]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested settings by dotted keys."""
    flat = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return flat


def read_run(path: Path, *, trusted: Collection[str] | None = ()) -> Run:
    """Returns the run in a ``run.yaml``, which may name trusted code; with None any code, for a run not drawn."""
    with about("run", path):
        content, hints = read_record(path, trusted=trusted), get_type_hints(Run)
        for key in ("versions", DRAWN):
            content.pop(key, None)
        recipe = content.pop("recipe")
        for key in content:
            if key not in hints:
                raise unknown("key of a run", key, hints)
        filled = {"title": "", **recipe} if isinstance(recipe, dict) else recipe
        settings = {key: typed(key, value, hints[key], LAX) for key, value in content.items()}
        return Run(**settings, recipe=filled_in(Recipe, filled, "recipe", "of the run").check())


def read_record(path: Path, *, trusted: Collection[str] | None = None) -> dict[str, Any]:
    """Returns the content of a ``run.yaml``, checked to be one; ``trusted`` as in `read_run`."""
    content = read_yaml(path, "run", trusted=trusted)
    for key in ("targets", "recipe"):
        if key not in content:
            raise InputError(f"run: {str(path)!r} must record a run, its {key} is missing")
    return content
