"""Reproductions: a published run and its figures, what it needs, and our images and figures beside them.

    tables/NAME.yaml        networks, recipe, counts, reference, published figures, cost; and variants
    files.yaml              the published files: where to get them, and where to put them
    OUT/samples/SEED/       a run for each target, whose first seed is SEED
    OUT/evaluation.json     our figures and the published ones

Networks and sets are named as elsewhere, with ``{NAME}`` in place of the path of a file in ``files.yaml``. ``NAME`` or
``NAME/VARIANT`` names a bundled reproduction, a path your own. Of n images of K targets, image i has the seed i and the
target ``floor(i K / n)``. Needs are computed, not measured:

    memory = fixed + b image                                        b: images in a batch
    hours  = n (e tflop_denoiser + s tflop_guide) / rate / 3600     n: images; s: steps; e: evaluations of the denoiser
    disk   = n 3 side^2                                             bytes of the images, at most

e is s, or 2 s - 1 for Heun's method, which evaluates the denoiser twice in every step but the last.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from jaxtyping import UInt8
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from torch import Tensor

from steersman.errors import InputError, about, unknown
from steersman.files import parse_yaml, read_json, read_text, read_yaml, write_json
from steersman.lab.data.images import ImageSet, read_images
from steersman.lab.generate import generate_until_stopped, open_session
from steersman.lab.metrics.evaluate import DISTANCES, FIGURES, evaluate
from steersman.lab.metrics.features import DEFAULT, Extractor, Statistics, load_extractor, read_reference
from steersman.lab.metrics.intervals import RESAMPLES, Figure
from steersman.lab.run import Run, check_folder
from steersman.lab.session import Networks
from steersman.lab.stop import Stop
from steersman.recipes import Recipe, load_recipe
from steersman.typed import filled_in, typed

__all__ = [
    "CARD",
    "RATE",
    "ROOT",
    "Located",
    "Part",
    "Published",
    "Reproduction",
    "Work",
    "bundled",
    "load_bundled",
    "load_reproduction",
    "reproduction_names",
]

Own = TypeVar("Own", bound="Published")

PLACEHOLDER = re.compile(r"\{([\w-]+)\}")
ROOT = Path(str(resources.files("steersman.lab.reproduce")))
Side = Literal["guided", "unguided"]

CARD = "an RTX 4090"
RATE = 82.6 * 0.4
"""TFLOP a second: the card's float32 peak (NVIDIA's Ada whitepaper) times an assumed utilisation."""


class Part(BaseModel):
    """A section of a bundled file."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _File(Part):
    """A published file or folder: its path in one of the two folders, and its address or how to get it."""

    room: Literal["models", "data"]
    path: str
    gigabytes: PositiveFloat
    get: str


class _Tflop(Part):
    """TFLOP for an image, of one evaluation of the denoiser and of the guide in one step."""

    denoiser: PositiveFloat
    guide: PositiveFloat


class _Memory(Part):
    """GiB, at any batch size and for each image of a batch."""

    fixed: PositiveFloat
    image: PositiveFloat


class Published(Part, ABC):
    """What a paper measured, as a bundled file says it.

    Attributes:
        name: Its name, with the variant's.
        title: One line about it.
        paper: The paper.
        table: Table or figure of the paper.
        notes: Further remarks, such as differences from the paper.
        variants: Changes of all this, by name.
    """

    name: str
    title: str
    paper: str
    table: str
    notes: str = ""
    variants: dict[str, dict[str, Any]] = {}

    @property
    @abstractmethod
    def specs(self) -> tuple[str, ...]:
        """The names of all networks and sets."""

    def files(self) -> dict[str, _File]:
        """Returns the files that it needs, by their names."""
        content = parse_yaml(read_text(ROOT / "files.yaml"))
        found = {}
        for name in (name for spec in self.specs for name in PLACEHOLDER.findall(spec)):
            if name not in content:
                raise unknown("file of files.yaml", name, content)
            found[name] = _File.model_validate(content[name])
        return found


class Reproduction(Published):
    """A published run.

    Attributes:
        recipe: The recipe, as `steersman.recipes.load_recipe` takes it.
        changes: Changes of its settings.
        denoiser: As in `steersman.lab.run.Run`, as are `classifiers`, `label` and `cfg_scale`.
        targets: Classes or texts; or a number of classes, for all of them by their indices.
        num: Images in all, the same number for each target.
        batch_size: Batch size on a GPU.
        reference: Reference images, as `steersman evaluate` takes them; None for none.
        features: Network whose features are compared.
        published: The published figures of guided and of unguided images, by their names.
        side: Height and width of the images in pixels.
        tflop: Computation for an image, counted as in ``docs/footprint.md``.
        memory: GPU memory in float32, likewise.
    """

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
    tflop: _Tflop
    memory: _Memory

    @property
    def specs(self) -> tuple[str, ...]:
        """The names of all networks and sets."""
        return (self.denoiser, *self.classifiers, self.features, self.reference or "")

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


@cache
def bundled(folder: str) -> list[str]:
    """Returns the names of the bundled files of a folder and of their variants."""
    names = []
    for file in sorted((ROOT / folder).glob("*.yaml")):
        variants = parse_yaml(read_text(file)).get("variants", {})
        names += [file.stem, *(f"{file.stem}/{variant}" for variant in variants)]
    return names


def load_bundled(kind: type[Own], folder: str, what: str, name: str) -> Own:
    """Returns a bundled file, or a variant of one, as what it describes."""
    if name not in bundled(folder):
        raise unknown(what, name, bundled(folder), most=20)
    file, _, variant = name.partition("/")
    content = parse_yaml(read_text(ROOT / folder / f"{file}.yaml"))
    return filled_in(kind, {"name": name} | content | (content["variants"][variant] if variant else {}), what, name)


def reproduction_names() -> list[str]:
    """Returns the names of the bundled reproductions and of their variants."""
    return bundled("tables")


def load_reproduction(name: str, *, trusted: Collection[str] = ()) -> Reproduction:
    """Returns a reproduction, checked."""
    if name.endswith((".yaml", ".yml")):
        with about("reproduction", name):
            content = {"name": Path(name).stem} | read_yaml(Path(name), "reproduction", trusted=trusted)
            return filled_in(Reproduction, content, "reproduction", content["name"]).check()
    return load_bundled(Reproduction, "tables", "reproduction", name).check()


@dataclass(frozen=True, kw_only=True)
class Located:
    """What a paper measured, and where its published files are.

    Attributes:
        wanted: What the paper measured.
        rooms: The folders of published files, ``models`` and ``data``.
    """

    wanted: Published
    rooms: Mapping[str, Path]

    @cached_property
    def paths(self) -> dict[str, Path]:
        """Where each of the files that it needs belongs, by the file's name."""
        return {name: self.rooms[file.room] / file.path for name, file in self.wanted.files().items()}

    @property
    def missing(self) -> list[str]:
        """The names of the files that are not there; an empty folder counts as missing."""
        return [
            name for name, path in self.paths.items() if not (path.is_file() or path.is_dir() and any(path.iterdir()))
        ]

    def filled(self, spec: str) -> str:
        """Returns the name of a network or set with paths in place of the files' names."""
        return PLACEHOLDER.sub(lambda match: str(self.paths[match[1]]), spec)


@dataclass(frozen=True, kw_only=True)
class Work(Located):
    """A reproduction to be drawn, and what it needs.

    Attributes:
        out: The output folder.
        num: Images in all.
        steps: Sampling steps; None for the recipe's.
        guided: Whether the images are guided.
        batch_size: Images in a batch; None for the default on a CPU, and the reproduction's elsewhere.
        device: Device of the networks.
        resamples: Random halves for each interval.
    """

    wanted: Reproduction
    out: Path
    num: int
    steps: int | None = None
    guided: bool = True
    batch_size: int | None = None
    device: str = "cpu"
    resamples: int = RESAMPLES

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe, with the steps that are asked for."""
        return self.wanted.load_recipe(self.steps)

    @property
    def sampled(self) -> int:
        """Number of sampling steps."""
        return int(self.recipe.sampling()["steps"])

    @property
    def on_a_gpu(self) -> int:
        """The batch size on a GPU."""
        return self.batch_size or self.wanted.batch_size

    @property
    def tflop(self) -> float:
        """Computation for an image."""
        steps, tflop = self.sampled, self.wanted.tflop
        evaluations = 2 * steps - 1 if self.recipe.resolved()["sampler"]["kind"] == "heun" else steps
        return evaluations * tflop.denoiser + (steps * tflop.guide if self.guided else 0)

    @property
    def hours(self) -> float:
        """Hours of the card for all images."""
        return self.num * self.tflop / RATE / 3600

    @property
    def memory(self) -> float:
        """GPU memory in GiB."""
        return self.wanted.memory.fixed + self.on_a_gpu * self.wanted.memory.image

    @property
    def disk(self) -> float:
        """GB of images."""
        return self.num * 3 * self.wanted.side**2 / 1e9

    @cached_property
    def run(self) -> Run:
        """The run of the first target; those of the others differ in target and seeds."""
        wanted = self.wanted
        return Run(
            targets=self._targets[:1],
            denoiser=self.filled(wanted.denoiser),
            classifiers=tuple(map(self.filled, wanted.classifiers)),
            judge=None,
            recipe=self.recipe,
            guided=self.guided,
            label=wanted.label,
            cfg_scale=wanted.cfg_scale,
            batch_size=self.batch_size if self.device == "cpu" else self.on_a_gpu,
            device=self.device,
        )

    @cached_property
    def runs(self) -> dict[Path, Run]:
        """The run of each target that has an image, by its folder."""
        count, found = len(self._targets), {}
        for k, target in enumerate(self._targets):
            begin, end = (-(-i * self.num // count) for i in (k, k + 1))
            if begin < end:
                run = replace(self.run, targets=(target,), seed=begin, num=end - begin)
                found[self.out / "samples" / f"{begin:06d}"] = run
        return found

    @property
    def _targets(self) -> tuple[str, ...]:
        targets = self.wanted.targets
        return tuple(map(str, range(targets))) if isinstance(targets, int) else targets

    @property
    def published(self) -> dict[str, float | None]:
        """The published figures of such images."""
        return self.wanted.published["guided" if self.guided else "unguided"]

    @property
    def figures(self) -> list[str]:
        """The figures that were published and can be measured on this number of images."""
        return [name for name in FIGURES if name in self.published and self.num >= DISTANCES.get(name, (1, 1))[0]]

    @cached_property
    def extractor(self) -> Extractor:
        """The network whose features are compared."""
        return load_extractor(self.filled(self.wanted.features), device=self.device)

    @cached_property
    def reference(self) -> ImageSet | Statistics | None:
        """The reference images."""
        return None if self.wanted.reference is None else read_reference(self.filled(self.wanted.reference))

    def draw(self, *, on_images: Callable[[float], object] = lambda count: None, stop: Stop | None = None) -> list[str]:
        """Draws the missing images, and returns the names of all images that became non-finite.

        A run whose ``metrics.json`` is there is finished; of one that was stopped, the missing images are drawn.
        """
        _ = self.extractor, self.reference  # refused now rather than after days
        for folder, run in self.runs.items():
            check_folder(folder, run)
        missing = {folder: run for folder, run in self.runs.items() if not (folder / "metrics.json").is_file()}
        networks = Networks()
        for i, (folder, run) in enumerate(missing.items()):
            session = open_session(run, networks, rehearse=i == 0)  # the others differ in target and seeds alone
            generate_until_stopped(session, folder, on_images=on_images, stop=stop)
        lost: list[str] = []
        for path in (folder / "metrics.json" for folder in self.runs):
            with about("reproduce", path):
                lost += typed("lost", read_json(path)["lost"], list[str])
        return lost

    def measure(self, *, on_images: Callable[[int], object] = lambda count: None) -> dict[str, Figure]:
        """Returns the figures of the images, and writes them beside the published ones."""
        run = self.run
        found = evaluate(
            _joined([read_images(folder) for folder in self.runs if any(folder.glob("[0-9]*.png"))]),
            self.reference,
            features=self.extractor,
            guide=Networks().classifier(run.classifiers[0], device=run.device, **run.recipe.classifier_settings()),
            figures=self.figures,
            resamples=self.resamples,
            on_images=on_images,
        )
        content = {
            "reproduction": self.wanted.name,
            "images": self.num,
            "guided": self.guided,
            "figures": {name: asdict(figure) for name, figure in found.items()},
            "published": self.wanted.published,
        }
        write_json(self.out / "evaluation.json", content)
        return found


def _joined(sets: Sequence[ImageSet]) -> ImageSet:
    """Returns several sets as one."""
    owners = [(images, index) for images in sets for index in images.indices]

    def read(chosen: Sequence[int]) -> UInt8[Tensor, "B 3 H W"]:
        return torch.cat([images.read([index]) for images, index in (owners[i] for i in chosen)])

    labels = tuple(label for images in sets for label in images.labels or ())
    return ImageSet(spec="samples", indices=range(len(owners)), read=read, labels=labels)
