"""Reproductions: a published run with its figures, as a file.

    tables/NAME.yaml        networks, recipe, counts, reference, what was published, what it costs; and variants
    files.yaml              the files that others published: where from, and where to put them

Networks and sets are said as elsewhere, with ``{NAME}`` where the path of a file of ``files.yaml`` belongs. ``NAME`` or
``NAME/VARIANT`` names a bundled reproduction, a path one's own. Unknown keys are refused with the known ones.
"""

import re
from collections.abc import Collection, Iterator, Mapping
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

__all__ = ["File", "Reproduction", "filled", "load_reproduction", "reproduction_names"]

PLACE = re.compile(r"\{([\w-]+)\}")
ROOT = Path(str(resources.files("steersman.lab.reproduce")))
Side = Literal["guided", "unguided"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class File(_Part):
    """A file or folder that others published.

    Attributes:
        room: The folder that it belongs to.
        path: Where in that.
        gigabytes: About how large it is.
        get: Its address, or what to do to have it.
    """

    room: Literal["models", "data"]
    path: str
    gigabytes: PositiveFloat
    get: str


class Tflop(_Part):
    """TFLOP for an image: of an evaluation of the denoiser, and of the guide's part of a step."""

    denoiser: PositiveFloat
    guide: PositiveFloat


class Memory(_Part):
    """GiB: what there is at any batch size, and what each image of a batch adds."""

    fixed: PositiveFloat
    image: PositiveFloat


class Reproduction(_Part):
    """A published run.

    Attributes:
        name: Its name, the variant's included.
        title: What it is, in a line.
        paper: The paper.
        table: Which table or figure of it.
        notes: What else one must know, such as what is not as in the paper.
        recipe: As `steersman.recipes.load_recipe` takes it.
        changes: Changes of its settings.
        denoiser: As `steersman.lab.run.Run` has it; so the following three.
        classifiers: The guide.
        label: The denoiser's own label.
        cfg_scale: The classifier-free scale.
        targets: Classes or texts; or how many classes there are, for each of them by its number.
        num: Images in all, of each target equally many.
        batch_size: Images at a time on a GPU.
        reference: What the images are compared with, as `steersman evaluate` takes it; None for nothing.
        features: The network in whose features.
        published: The figures, by their names, of guided and of unguided images.
        side: The images' height and width in pixels.
        tflop: What an image takes, counted as in ``docs/footprint.md``.
        memory: What a card holds, counted likewise, in float32.
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
        """Returns the reproduction, whose recipe, files and figures there are.

        Raises:
            InputError: There is no such recipe, setting, file or figure.
        """
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
        recipe, taken = load_recipe(self.recipe), {} if steps is None else {"sampling.steps": steps}
        return recipe.changed(self.changes | taken).check()

    def files(self) -> dict[str, File]:
        """Returns the files that it needs, by their names."""
        known, found = _files(), {}
        for name in (name for spec in self._specs() for name in PLACE.findall(spec)):
            if name not in known:
                raise unknown("file of files.yaml", name, known)
            found[name] = known[name]
        return found

    def _specs(self) -> Iterator[str]:
        yield from (self.denoiser, *self.classifiers, self.features)
        if self.reference is not None:
            yield self.reference


def filled(spec: str, paths: Mapping[str, Path]) -> str:
    """Returns what is said of a network or set, with the paths of the files in their places."""
    return PLACE.sub(lambda found: str(paths[found[1]]), spec)


def reproduction_names() -> list[str]:
    """Returns the names of the bundled reproductions, ``NAME/VARIANT`` among them."""
    names = []
    for file in sorted((ROOT / "tables").iterdir()):
        if file.name.endswith(".yaml"):
            name = file.name.removesuffix(".yaml")
            variants = parse_yaml(read_text(file)).get("variants", {})
            names += [name, *(f"{name}/{variant}" for variant in variants)]
    return names


def load_reproduction(name: str, *, trusted: Collection[str] = ()) -> Reproduction:
    """Returns a reproduction, checked.

    Args:
        name: ``NAME``, ``NAME/VARIANT``, or a path to a YAML file.
        trusted: The code that the file may name (`steersman.files`).

    Raises:
        InputError: No such reproduction, a file that is none, an unknown key, a value out of range, or other code.
    """
    bundled, _, variant = name.partition("/")
    if name.endswith((".yaml", ".yml")):
        with about("reproduction", name):
            content = read_yaml(Path(name), "reproduction", trusted=trusted)
            return _parsed(Path(name).stem, content)
    if name not in reproduction_names():
        raise unknown("reproduction", name, reproduction_names(), most=20)
    return _parsed(bundled, parse_yaml(read_text(ROOT / "tables" / f"{bundled}.yaml")), variant)


def _parsed(name: str, content: dict[str, Any], variant: str = "") -> Reproduction:
    content = {"name": f"{name}/{variant}" if variant else name, **content}
    content |= content["variants"][variant] if variant else {}
    return filled_in(Reproduction, content, "reproduction", name).check()


@cache
def _files() -> dict[str, File]:
    content = parse_yaml(read_text(ROOT / "files.yaml"))
    return {name: File.model_validate(each) for name, each in content.items()}
