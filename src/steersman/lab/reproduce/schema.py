"""Reproductions: a published run and its figures, and what it needs.

    tables/NAME.yaml        networks, recipe, counts, reference, published figures, cost; and variants
    files.yaml              the published files: where to get them, and where to put them

Networks and sets are named as elsewhere, with ``{NAME}`` in place of the path of a file in ``files.yaml``. ``NAME`` or
``NAME/VARIANT`` names a bundled reproduction, a path your own. Needs are computed, not measured:

    memory = fixed + b image                                        b: images in a batch
    hours  = n (e tflop_denoiser + s tflop_guide) / rate / 3600     n: images; s: steps; e: evaluations of the denoiser
    disk   = n 3 side^2                                             bytes of the images, at most

e is s, or 2 s - 1 for Heun's method, which evaluates the denoiser twice in every step but the last.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from steersman.errors import InputError, about, unknown
from steersman.files import parse_yaml, read_text, read_yaml
from steersman.lab.metrics.evaluate import DISTANCES, FIGURES
from steersman.lab.metrics.features import DEFAULT
from steersman.recipes import Recipe, load_recipe
from steersman.typed import filled_in

__all__ = [
    "CARD",
    "RATE",
    "File",
    "Needs",
    "Reproduction",
    "filled",
    "load_reproduction",
    "needs",
    "reproduction_names",
]

PLACEHOLDER = re.compile(r"\{([\w-]+)\}")
ROOT = Path(str(resources.files("steersman.lab.reproduce")))
Side = Literal["guided", "unguided"]

CARD = "an RTX 4090"
RATE = 82.6 * 0.4
"""TFLOP a second: the card's float32 peak (NVIDIA's Ada whitepaper) times an assumed utilisation."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class File(_Part):
    """A published file or folder.

    Attributes:
        room: The folder that it belongs to.
        path: Its path there.
        gigabytes: Its approximate size.
        get: Its address, or how to get it.
    """

    room: Literal["models", "data"]
    path: str
    gigabytes: PositiveFloat
    get: str


class Tflop(_Part):
    """TFLOP for an image, of one evaluation of the denoiser and of the guide in one step."""

    denoiser: PositiveFloat
    guide: PositiveFloat


class Memory(_Part):
    """GiB, at any batch size and for each image of a batch."""

    fixed: PositiveFloat
    image: PositiveFloat


class Reproduction(_Part):
    """A published run.

    Attributes:
        name: Its name, with the variant's.
        title: One line about it.
        paper: The paper.
        table: Table or figure of the paper.
        notes: Further remarks, such as differences from the paper.
        recipe: The recipe, as `steersman.recipes.load_recipe` takes it.
        changes: Changes of its settings.
        denoiser: As in `steersman.lab.run.Run`.
        classifiers: The guide, as there.
        label: The denoiser's own label, as there.
        cfg_scale: The classifier-free guidance scale.
        targets: Classes or texts; or a number of classes, for all of them by their indices.
        num: Images in all, the same number for each target.
        batch_size: Batch size on a GPU.
        reference: Reference images, as `steersman evaluate` takes them; None for none.
        features: Network whose features are compared.
        published: The published figures of guided and of unguided images, by their names.
        side: Height and width of the images in pixels.
        tflop: Computation for an image, counted as in ``docs/footprint.md``.
        memory: GPU memory in float32, likewise.
        variants: Changes of all this, by name.
    """

    name: str
    title: str
    paper: str
    table: str
    notes: str = ""
    recipe: str
    changes: dict[str, Any] = {}
    denoiser: str
    classifiers: Annotated[tuple[str, ...], Field(min_length=1)]
    label: str | None = None
    cfg_scale: float = 1.0
    targets: PositiveInt | Annotated[tuple[str, ...], Field(min_length=1)]
    num: PositiveInt
    batch_size: PositiveInt
    reference: str | None = None
    features: str = DEFAULT
    published: dict[Side, dict[str, float | None]]
    side: PositiveInt
    tflop: Tflop
    memory: Memory
    variants: dict[str, dict[str, Any]] = {}

    def check(self) -> "Reproduction":
        """Returns itself; refuses a recipe, file or figure that does not exist."""
        self.load_recipe()
        self.files()
        for figure in (figure for figures in self.published.values() for figure in figures):
            if figure not in FIGURES:
                raise unknown("figure", figure, FIGURES)
            if figure in DISTANCES and self.reference is None:
                raise InputError(f"reference must be given, as {figure} needs one")
        return self

    def load_recipe(self, steps: int | None = None) -> Recipe:
        """Returns the recipe, with other steps if they are given."""
        steps_change = {} if steps is None else {"sampling.steps": steps}
        return load_recipe(self.recipe).changed(self.changes | steps_change).check()

    def files(self) -> dict[str, File]:
        """Returns the files that it needs, by their names."""
        content = parse_yaml(read_text(ROOT / "files.yaml"))
        found = {}
        for spec in (self.denoiser, *self.classifiers, self.features, self.reference or ""):
            for name in PLACEHOLDER.findall(spec):
                if name not in content:
                    raise unknown("file of files.yaml", name, content)
                found[name] = File.model_validate(content[name])
        return found


def filled(spec: str, paths: Mapping[str, Path]) -> str:
    """Returns the name of a network or set with paths in place of the files' names."""
    return PLACEHOLDER.sub(lambda match: str(paths[match[1]]), spec)


@cache
def reproduction_names() -> list[str]:
    """Returns the names of the bundled reproductions and of their variants."""
    names = []
    for file in sorted((ROOT / "tables").glob("*.yaml")):
        variants = parse_yaml(read_text(file)).get("variants", {})
        names += [file.stem, *(f"{file.stem}/{variant}" for variant in variants)]
    return names


def load_reproduction(name: str, *, trusted: Collection[str] = ()) -> Reproduction:
    """Returns a reproduction, checked."""
    if name.endswith((".yaml", ".yml")):
        with about("reproduction", name):
            return _parsed(Path(name).stem, read_yaml(Path(name), "reproduction", trusted=trusted))
    if name not in reproduction_names():
        raise unknown("reproduction", name, reproduction_names(), most=20)
    bundled, _, variant = name.partition("/")
    content = parse_yaml(read_text(ROOT / "tables" / f"{bundled}.yaml"))
    return _parsed(name, content, content["variants"][variant] if variant else {})


def _parsed(name: str, content: dict[str, Any], variant: Mapping[str, Any] | None = None) -> Reproduction:
    content = {"name": name, **content, **(variant or {})} if isinstance(content, dict) else content
    return filled_in(Reproduction, content, "reproduction", name).check()


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a reproduction needs.

    Attributes:
        paths: Where each of its files belongs, by the file's name.
        files: The files.
        steps: Sampling steps.
        tflop: Computation for an image.
        memory: GPU memory in GiB.
        hours: For all images.
        disk: In GB.
    """

    paths: dict[str, Path]
    files: dict[str, File]
    steps: int
    tflop: float
    memory: float
    hours: float
    disk: float

    @property
    def missing(self) -> list[str]:
        """The names of the files that are not there; an empty folder counts as missing."""
        return [
            name for name, path in self.paths.items() if not (path.is_file() or path.is_dir() and any(path.iterdir()))
        ]


def needs(
    wanted: Reproduction,
    rooms: Mapping[str, Path],
    *,
    num: int,
    batch_size: int,
    steps: int | None = None,
    guided: bool = True,
) -> Needs:
    """Returns what a reproduction needs for ``num`` images, with its files in the folders ``models`` and ``data``."""
    settings, files = wanted.load_recipe(steps).resolved(), wanted.files()
    steps = int(settings["sampling"]["steps"])
    evaluations = 2 * steps - 1 if settings["sampler"]["kind"] == "heun" else steps
    tflop = evaluations * wanted.tflop.denoiser + (steps * wanted.tflop.guide if guided else 0)
    return Needs(
        paths={name: rooms[file.room] / file.path for name, file in files.items()},
        files=files,
        steps=steps,
        tflop=tflop,
        memory=wanted.memory.fixed + batch_size * wanted.memory.image,
        hours=num * tflop / RATE / 3600,
        disk=num * 3 * wanted.side**2 / 1e9,
    )
