"""What makes a run, and its file: every resolved setting, the seeds, the versions."""

import math
import platform
from collections.abc import Collection, Iterable, Mapping
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
from steersman.lab.speed.placement import AUTO, DTYPES, Placement
from steersman.recipes import Recipe, load_recipe
from steersman.sampling.noise import SEEDS
from steersman.typed import filled_in, finite, typed

__all__ = [
    "DRAWN",
    "FORMATS",
    "LAX",
    "MOST",
    "TARGET",
    "Run",
    "check_device",
    "check_folder",
    "differences",
    "other_settings",
    "read_record",
    "read_run",
    "weights",
]

FORMATS = {"png": None, "npz": ".npz", "webdataset": ".tar"}
"""What images are written as, and the suffix of the files that several share."""

LAX = ConfigDict(coerce_numbers_to_str=True, allow_inf_nan=False)  # of what a file says, as YAML has it

MOST, LARGEST_BATCH = 10_000_000, 65_536  # images of a run, and of a batch

SHOWN = 3  # settings that a message names, at most

DRAWN = "drawn"  # under which ``run.yaml`` says what `steersman.lab.generate.store` needs to know of the images

TARGET = "target"
"""The label that is each image's target."""


@dataclass(frozen=True, kw_only=True)
@finite
class Run:
    """All that makes a run's images.

    Attributes:
        targets: Names or indices in the guide's vocabulary; ``all`` for every class that the denoiser has.
        blend: Instead of targets, weights by class, steered to all at once; a negative weight steers away.
        num: Images of each target.
        seed: The first image's seed; the others follow.
        denoiser: As `steersman.models.denoisers.load_denoiser` reads it.
        classifiers: The guide, as `models.classifiers.load_classifier` reads it; or several, the first of which also
            measures. Each knows the targets by its own names for them.
        judge: The network that judges, likewise; None for no judge.
        recipe: The settings of every axis.
        guided: Whether the guide steers; else it only measures.
        label: The denoiser's own label, for class-conditional ones: its number, its name or one of its synonyms;
            ``target`` for each image's target.
        prompt: What all images show, for denoisers that are told a text.
        negative_prompt: What they do not show; None for what such a denoiser takes without one.
        cfg_scale: The classifier-free scale; 1 for the conditional model alone.
        batch_size: Images at a time; by default 4 on a CPU, where several batches are drawn side by side, else 16.
        device: Where the networks run; its number is no setting, since equal devices draw equal images.
        dtype: In what: float32, bfloat16, float16; auto, what a short measurement finds fastest among the types that
            agree with float32; or auto-float32, the same without a change of type.
        placed: What it found, for ``denoiser`` and ``classifier``, and how far the types agree.
        checkpoint: Whether the denoiser computes its blocks again for a gradient, and keeps less.
        compile: Whether ``torch.compile`` compiles denoiser and classifiers.
        format: What images are written as: png, npz or webdataset.
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
    checkpoint: bool = False
    compile: bool = False
    format: str = "png"

    def __post_init__(self) -> None:
        for name, given, least, most in (
            ("num", self.num, 1, MOST),
            ("seed", self.seed, 0, SEEDS - self.num),
            ("batch_size", self.at_once, 1, LARGEST_BATCH),
        ):
            if not least <= given <= most:
                raise InputError(f"{name} must be {least} to {most}, got {given}")
        if self.targets and self.blend:
            raise InputError("target and blend must not be given together; give one of the two")
        if not self.targets and not self.blend:
            raise InputError("target must be given: names or indices of classes, all, or a blend of classes")
        if not self.classifiers:
            raise InputError("classifier must be given at least once")
        if self.dtype not in (allowed := (*DTYPES, *AUTO)):
            raise unknown("dtype", self.dtype, allowed)
        if self.placed and not self.measured:
            raise InputError(f"placed can only be given with dtype {' or '.join(AUTO)}, got dtype {self.dtype}")
        if self.format not in FORMATS:
            raise unknown("format", self.format, FORMATS)
        if self.judge in self.classifiers:
            raise InputError(f"judge must be another network than the guide, or none, got the guide, {self.judge!r}")
        check_device(self.device)

    @property
    def measured(self) -> bool:
        """Whether a measurement chooses how networks are placed."""
        return self.dtype in AUTO

    @property
    def at_once(self) -> int:
        """The batch size, or its default."""
        if self.batch_size is not None:
            return self.batch_size
        return max((each.block for each in self.placed.values()), default=4 if self.device == "cpu" else 16)

    def placement(self, part: str) -> Placement:
        """Returns how the ``denoiser`` is placed, or a ``classifier``; what was not measured, in float32."""
        block, dtype = block_size(self.device, self.at_once), "float32" if self.measured else self.dtype
        return self.placed.get(part) or Placement(dtype=dtype, block=block)

    def settings(self) -> dict[str, Any]:
        """Returns all that makes the images, in plain values."""
        settings = asdict(self) | {"batch_size": self.at_once, "device": torch.device(self.device).type}
        settings |= {"targets": list(self.targets), "classifiers": list(self.classifiers)}
        settings["recipe"] = {"name": self.recipe.name, "settings": self.recipe.resolved()}
        return settings

    def record(self) -> dict[str, Any]:
        """Returns settings and versions, as ``run.yaml`` holds them."""
        packages = ["steersman", "torch", "torchvision", "diffusers", "timm"]
        packages += [name for name in ("transformers",) if find_spec(name)]
        return self.settings() | {
            "versions": {"python": platform.python_version()} | {name: version(name) for name in packages}
        }


def weights(given: Iterable[str]) -> dict[str, float]:
    """Returns the weights that ``CLASS=WEIGHT`` says.

    Raises:
        InputError: One that says none, or a class twice.
    """
    found: dict[str, float] = {}
    for each in given:
        name, _, weight = each.rpartition("=")
        try:
            number = float(weight)
        except ValueError:
            number = math.nan
        if not name or not math.isfinite(number) or name in found:
            raise InputError(f"blend must be CLASS=WEIGHT, as in baseball=1, with each class once, got {each!r}")
        found[name] = number
    return found


def check_device(device: str) -> None:
    """Refuses a device that this machine does not have.

    Raises:
        InputError: It does not.
    """
    try:
        kind, number = (asked := torch.device(device)).type, asked.index or 0
    except RuntimeError:
        raise InputError(f"device must be cpu, cuda, cuda:0, … or mps, got {device!r}") from None
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(kind, False) or (kind == "cuda" and number >= torch.cuda.device_count()):
        here = ", ".join(name for name, there in available.items() if there)
        raise InputError(f"device must be one that this machine has ({here}), got {device!r}")


def differences(out: Path, run: Run, *, grows: bool = False) -> str:
    """Returns in which settings the run of a folder is another one, in a line; nothing where it is the same, or none.

    Args:
        out: The folder.
        run: The run.
        grows: Whether one with more images goes on with one of fewer.

    Raises:
        InputError: What the folder holds cannot be read.
    """
    before = out / "run.yaml"
    if not before.exists():
        return ""
    held = read_run(before, trusted=None)
    was, now = (_flat(each.settings()) for each in (held, run))
    other = [key for key in {**was, **now} if was.get(key) != now.get(key)]
    if grows and run.num > held.num and other == ["num"]:
        return ""
    said = [f"{key}: was {was.get(key)}, is {now.get(key)}" for key in other[:SHOWN]]
    return "; ".join([*said, *([f"and {len(other) - SHOWN} more"] if len(other) > SHOWN else [])])


def check_folder(out: Path, run: Run) -> None:
    """Refuses a folder that holds a run with other settings, and says which.

    Raises:
        InputError: It does, or what it holds cannot be read.
    """
    if other := differences(out, run):
        raise InputError(f"out: {str(out)!r} holds a run with other settings ({other}); use another folder")


def other_settings(path: Path, record: Mapping[str, Any], kind: str) -> list[str]:
    """Returns in which settings the record of a folder differs, none where there is no such file yet.

    Args:
        path: The record, a mapping in YAML.
        record: What it should be; of other versions, a folder is gone on with.
        kind: What is recorded, for the messages.

    Raises:
        InputError: It cannot be read.
    """
    if not path.exists():
        return []
    was = read_yaml(path, kind, trusted=None)
    return [key for key in {**record, **was} if key != "versions" and was.get(key) != record.get(key)]


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Returns nested settings by their dotted names."""
    found = {}
    for key, value in settings.items():
        name = f"{above}.{key}" if above else key
        found |= _flat(value, name) if isinstance(value, Mapping) and value else {name: value}
    return found


def read_run(path: Path, *, trusted: Collection[str] | None = ()) -> Run:
    """Returns the run that a ``run.yaml`` records.

    Args:
        path: The file.
        trusted: The code that it may name (`steersman.files`); None for a run that is compared, not drawn.

    Raises:
        InputError: The file cannot be read, is no such record, or names other code.
    """
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
    """Returns what a ``run.yaml`` holds, as it stands there.

    Args:
        path: The file.
        trusted: The code that it may name (`steersman.files`); None for a record that is compared or shown.

    Raises:
        InputError: The file cannot be read, is no such record, or names other code.
    """
    content = read_yaml(path, "run", trusted=trusted)
    for key in ("targets", "recipe"):
        if key not in content:
            raise InputError(f"run: {str(path)!r} must record a run, its {key} is missing")
    return content
