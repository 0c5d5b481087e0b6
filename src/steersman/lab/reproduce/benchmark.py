"""Benchmarks: guidance methods beside each other, on the same networks, targets and seeds.

    benchmarks/NAME.yaml     networks, targets, counts and published figures; and variants
    methods.yaml             the methods
    OUT/METHOD/own/          with the number of steps that the method's recipe has
    OUT/METHOD/equal/        with as many as an equal number of network evaluations allows
        search/              a sweep over values of the method's scale, on other seeds
        chosen/              images and figures with the value that was chosen
    OUT/reference.npz        the features of the reference
    OUT/benchmark.csv, .md   a row for each method at either cost
    OUT/own.png, equal.png   an image of each target for each method; a column shares its target and its seed

A value is chosen by accuracy and distance together. Of all values that were searched it has the largest

    accuracy - cFID / cFID of the unguided images,

with the accuracy by the first judge, on seeds that are reported nowhere else. No other value then has both a higher
accuracy and a lower cFID. A scale that was chosen by the accuracy alone would burn the images.

An evaluation is that of the denoiser or of a classifier; a pass back is not counted.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from steersman.batching import counting, evaluations
from steersman.errors import InputError, about, unknown
from steersman.files import parse_yaml, read_json, read_text, replacing, write_json, writing_to
from steersman.lab.data.images import ImageSet, read_images
from steersman.lab.generate import open_session
from steersman.lab.metrics.evaluate import FIGURES
from steersman.lab.metrics.features import load_extractor, statistics_of, write_statistics
from steersman.lab.metrics.intervals import RESAMPLES
from steersman.lab.report.images import grid
from steersman.lab.report.tables import as_text, in_a_line, markdown, write_figures
from steersman.lab.reproduce.reproduction import ROOT, Located, Part, Published, bundled, load_bundled
from steersman.lab.run import Run
from steersman.lab.session import Networks
from steersman.lab.stop import Stop
from steersman.lab.sweep import Row, Sweep, Sweeping
from steersman.lab.sweep.sweeping import COST, images_of
from steersman.recipes import Recipe, load_recipe
from steersman.typed import filled_in, typed

__all__ = ["SIDES", "Benchmark", "Benchmarking", "Method", "Side", "benchmark_names", "choose", "load_benchmark"]

Side = Literal["own", "equal"]
SIDES: dict[Side, str] = {"own": "own steps", "equal": "equal evaluations"}

UNGUIDED = "unguided"
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)  # of the scales of a method's recipe
MEASURED = ("accuracy/guide", "accuracy/judge", "cfid", "fid", "kid", "precision", "recall", "diversity")
SEARCH_SEED = 1_000_000
SEARCHED = ("accuracy/judge", "cfid")


class Method(Part):
    """A method of a benchmark.

    Attributes:
        recipe: Its recipe.
        changes: Changes of the recipe's settings.
        guide: Its classifier, by its name among the benchmark's guides.
        guided: Whether the classifier steers.
        label: The label that the denoiser is given; ``target`` for that of each image.
        search: The setting that is searched, as `steersman sweep --vary` names it, with its values. By default it is
            the scale of all guides, in multiples of the recipe's.
    """

    recipe: str = "default"
    changes: dict[str, Any] = {}
    guide: str = "plain"
    guided: bool = True
    label: str | None = None
    search: dict[str, list[Any]] | None = None

    def load(self) -> Recipe:
        """Returns the recipe with the changes."""
        return load_recipe(self.recipe).changed(self.changes).check()

    def values(self) -> list[dict[str, Any]]:
        """Returns the settings of each value that is searched, by their keys; none where there is nothing to choose."""
        if self.search is not None:
            return [{key: value} for key, values in self.search.items() for value in values]
        if not self.guided:
            return []
        settings = self.load().resolved()
        scales = {"scale": settings["scale"]["value"]}
        scales |= {f"extra_guides.{i}.scale": each["scale"]["value"] for i, each in enumerate(settings["extra_guides"])}
        return [{key: float(f"{factor * scale:.4g}") for key, scale in scales.items()} for factor in FACTORS]


class Benchmark(Published):
    """Methods to be compared.

    Attributes:
        denoiser: As in `steersman.lab.run.Run`.
        guides: Classifiers that guide, by name; most methods take the one called ``plain``.
        judges: Classifiers that only measure, the first of which also chooses the scales.
        targets: The classes.
        num: Images of each target.
        searched: Images of each target and value in the search.
        evaluations: Network evaluations of an image that all methods get on the side ``equal``.
        batch_size: Batch size on a GPU.
        reference: Reference images, with classes.
        features: Network whose features are compared.
        left_out: Methods that the networks do not allow.
        published: Published figures of methods, by their names.
    """

    denoiser: str
    guides: dict[str, str]
    judges: Annotated[tuple[str, ...], Field(min_length=1)]
    targets: Annotated[tuple[str, ...], Field(min_length=1)]
    num: Annotated[int, Field(ge=2)]
    searched: Annotated[int, Field(ge=2)]
    evaluations: PositiveFloat
    batch_size: PositiveInt
    reference: str
    features: str
    left_out: tuple[str, ...] = ()
    published: dict[str, dict[str, float]] = {}

    @property
    def methods(self) -> dict[str, Method]:
        """The methods by name."""
        return {name: each for name, each in _methods().items() if name not in self.left_out}

    @property
    def specs(self) -> tuple[str, ...]:
        """The names of all networks and sets."""
        return (self.denoiser, *self.guides.values(), *self.judges, self.features, self.reference)

    def check(self) -> "Benchmark":
        """Returns itself; refuses a method, guide, figure or file that does not exist."""
        self.files()
        for name in (*self.left_out, *self.published):
            if name not in _methods():
                raise unknown("method", name, _methods())
        for method in self.methods.values():
            if method.guide not in self.guides:
                raise unknown("guide", method.guide, self.guides)
        for figure in (figure for figures in self.published.values() for figure in figures):
            if figure not in FIGURES:
                raise unknown("figure", figure, FIGURES)
        return self


@cache
def _methods() -> dict[str, Method]:
    content = parse_yaml(read_text(ROOT / "methods.yaml"))
    return {name: filled_in(Method, settings, "method", name) for name, settings in content.items()}


def benchmark_names() -> list[str]:
    """Returns the names of the bundled benchmarks and of their variants."""
    return bundled("benchmarks")


def load_benchmark(name: str) -> Benchmark:
    """Returns a bundled benchmark, checked."""
    return load_bundled(Benchmark, "benchmarks", "benchmark", name).check()


def choose(rows: Sequence[Row], unguided: Row) -> Row:
    """Returns the row with the largest ``accuracy - cFID / cFID of the unguided images``."""
    distance = unguided.figures["cfid"].value
    if not distance:
        raise InputError(f"search: the unguided images must have a cFID above 0, got {distance}")

    def worth(row: Row) -> float:
        accuracy, cfid = (row.figures[figure].value for figure in SEARCHED)
        return -math.inf if accuracy is None or cfid is None else accuracy - cfid / distance

    return max(rows, key=worth)


class _Compared(NamedTuple):
    """The rows of some cases, and the images of the first; None if all were lost."""

    rows: list[Row]
    images: ImageSet | None


def _silent(*_: object) -> None:
    """Reports nothing."""


@dataclass(frozen=True, kw_only=True)
class Benchmarking(Located):
    """A benchmark to be run.

    Attributes:
        out: The output folder.
        num: Images of each target; None for the benchmark's, as for the next.
        searched: Images of each target and value in the search.
        methods: The names of some methods, beside which the unguided images are always drawn; none for all.
        batch_size: Batch size; None for the default on a CPU, and the benchmark's elsewhere.
        device: Device of the networks.
        resamples: Random halves for each interval.
        on_cell: Called before the images of a setting are drawn, with its name and their number.
        on_images: Called with fractions of new images.
        stop: What ends the run after the step at hand.
    """

    wanted: Benchmark
    out: Path
    num: int | None = None
    searched: int | None = None
    methods: Sequence[str] = ()
    batch_size: int | None = None
    device: str = "cpu"
    resamples: int = RESAMPLES
    on_cell: Callable[[str, int], object] = _silent
    on_images: Callable[[float], object] = _silent
    stop: Stop | None = None

    def __post_init__(self) -> None:
        for name in self.methods:
            if name not in self.wanted.methods:
                raise unknown("method", name, self.wanted.methods)

    @property
    def compared(self) -> dict[str, Method]:
        """The methods that are compared, the unguided images first."""
        known = self.wanted.methods
        return {UNGUIDED: known[UNGUIDED]} | {name: known[name] for name in known if name in (self.methods or known)}

    def run(self) -> dict[Side, list[Row]]:
        """Draws and measures what is missing, writes tables and grids, and returns a row for each method."""
        self._keep_reference()
        found: dict[Side, list[Row]] = {}
        for side in SIDES:
            images, found[side] = {}, []
            unguided: Row | None = None
            for name in self.compared:  # the unguided images first, on which the others' choice depends
                cases = self._cases(name, self._steps(name, side))
                folder = self.out / name / side
                rows = self._compare(folder / "search", cases).rows
                unguided = unguided or rows[0]
                best = choose(rows, unguided)
                chosen = self._compare(folder / "chosen", [cases[rows.index(best)]], final=True)
                found[side] += chosen.rows
                if chosen.images:
                    images[name] = _one_each(chosen.images)
            grid(images, self.out / f"{side}.png", columns=len(self.wanted.targets), zoom=2)
        self._write(found)
        return found

    def _cases(self, name: str, steps: int) -> list[dict[str, Any]]:
        """Returns a method's settings for each value that is searched, as a sweep takes them."""
        method, cases = self.wanted.methods[name], []
        own = {"recipe": method.recipe, **method.changes, "sampling.steps": steps}
        own |= {"classifier": self.filled(self.wanted.guides[method.guide])}
        own |= {"guidance": method.guided, "label": method.label}
        for value in method.values() or [{}]:
            shown = ", ".join(f"{key} {in_a_line(setting)}" for key, setting in value.items())
            cases.append({"name": f"{name}, {shown}" if shown else name, **own, **value})
        return cases

    @property
    def _reference(self) -> Path:
        return self.out / "reference.npz"

    def _keep_reference(self) -> None:
        """Writes the features of the reference, which all sweeps share, unless they are there."""
        if self._reference.exists():
            return
        extractor = load_extractor(self.filled(self.wanted.features), device=self.device)
        images = read_images(self.filled(self.wanted.reference))
        self.on_cell("reference", len(images))
        with writing_to(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        write_statistics(self._reference, statistics_of(images, extractor, on_images=self.on_images))

    def _sweep(self, cases: Sequence[Mapping[str, Any]], *, final: bool = False) -> Sweep:
        wanted = self.wanted
        num, seed = (self.num or wanted.num, 0) if final else (self.searched or wanted.searched, SEARCH_SEED)
        settings = {"targets": wanted.targets, "num": num, "seed": seed, "device": self.device}
        settings |= {"denoiser": self.filled(wanted.denoiser), "judge": self.filled(wanted.judges[0])}
        if self.batch_size or self.device != "cpu":
            settings["batch_size"] = self.batch_size or wanted.batch_size
        return Sweep(
            varied={"case": cases},
            settings=settings,
            reference=str(self._reference),
            features=self.filled(wanted.features),
            figures=MEASURED if final else SEARCHED,
            judges=tuple(map(self.filled, wanted.judges[1:])) if final else (),
            resamples=self.resamples if final else 0,
            baseline=False,  # the unguided images are a method of their own
        )

    def _compare(self, folder: Path, cases: Sequence[Mapping[str, Any]], *, final: bool = False) -> _Compared:
        """Draws and measures what is missing of some cases."""
        sweeping = Sweeping(self._sweep(cases, final=final), folder)
        sweeping.draw(self.on_images, lambda cell: self.on_cell(cell.values["case"], sweeping.count(cell)), self.stop)
        return _Compared(sweeping.compare(), images_of(sweeping.folder(sweeping.cells[0])))

    def _steps(self, name: str, side: Side) -> int:
        """Returns the number of steps of a method; for an equal cost as measured once."""
        file, own = self.out / name / side / "steps.json", int(self.wanted.methods[name].load().sampling()["steps"])
        if side == "own":
            return own
        if not file.exists():
            steps = self._affordable(name, own)
            with writing_to(file.parent):
                file.parent.mkdir(parents=True, exist_ok=True)
                write_json(file, {"steps": steps})
        with about("benchmark", file):
            return typed("steps", read_json(file)["steps"], int)

    def _affordable(self, name: str, steps: int) -> int:
        """Returns the most steps whose images cost no more evaluations than the benchmark allows; at least 1."""
        networks = Networks()

        @cache
        def cost(steps: int) -> float:
            (cell, *_) = self._sweep(self._cases(name, steps)[:1]).cells()
            return _evaluations(replace(cell.run, targets=cell.run.targets[:1]), networks)

        limit = self.wanted.evaluations
        steps = max(1, int(steps * limit / cost(steps)))
        while steps > 1 and cost(steps) > limit:
            steps -= 1
        while cost(steps + 1) <= limit:
            steps += 1
        return steps

    def _write(self, found: Mapping[Side, Sequence[Row]]) -> None:
        """Writes both tables as one of CSV, and as two of Markdown."""
        exact, parts = [], []
        published = [name for name in FIGURES if any(name in each for each in self.wanted.published.values())]
        for side, rows in found.items():
            lines = []
            for row in rows:
                name, _, value = row.values["case"].partition(", ")
                cells: dict[str, Any] = {"method": name, "chosen": value, **row.figures}
                cells |= {f"{network} evaluations": row.evaluations[network] for network in COST}
                count = (self.num or self.wanted.num) * len(self.wanted.targets)
                cells |= {"seconds": row.seconds / count, "lost": len(row.lost), "burnt or noise": len(row.broken)}
                cells |= {f"published {each}": self.wanted.published.get(name, {}).get(each) for each in published}
                lines.append(cells)
            exact += [{"cost": SIDES[side], **cells} for cells in lines]
            texts = [[as_text(key.removeprefix("published "), cell) for key, cell in line.items()] for line in lines]
            parts.append(f"## {SIDES[side].capitalize()}\n\n{markdown(list(lines[0]), texts, texts=2)}")
        write_figures(self.out / "benchmark.csv", exact)
        with replacing(self.out / "benchmark.md") as beside:
            beside.write_text("\n".join((self._about(), *parts)), encoding="utf-8")

    def _about(self) -> str:
        wanted, num = self.wanted, self.num or self.wanted.num
        return (
            f"{num} images of each target ({', '.join(wanted.targets)}) for each method, seeds 0 to {num - 1}; "
            f"distances to {wanted.reference} in the features of {wanted.features}; judges "
            f"{', '.join(wanted.judges)}. In brackets the 95% interval. Evaluations and seconds are an image's.\n"
        )


def _one_each(images: ImageSet) -> Float[Tensor, "K C H W"]:
    """Returns the first image of each label."""
    labels = images.labels or ()
    first = [labels.index(name) for name in dict.fromkeys(labels)]
    return next(images.some(first).batches(len(first)))


@torch.no_grad()
def _evaluations(run: Run, networks: Networks) -> float:
    """Returns the number of network evaluations that one image of a run needs."""
    session = open_session(run, networks, rehearse=False)
    with counting() as counts:
        session.draw([(session.targets[0], run.seed)])
    return sum(evaluations(counts, session.counted, 1).values())
