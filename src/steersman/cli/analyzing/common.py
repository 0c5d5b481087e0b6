"""What the analyses share: the networks, the noise levels to visit, and what a terminal shows."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from rich.table import Table
from torch import Tensor

from steersman.batching import Batches, block_size
from steersman.cli.root import Terminal
from steersman.errors import InputError
from steersman.guidance import ClassifierInput
from steersman.lab.analysis.forward import choose
from steersman.lab.analysis.parts import Key, Parts
from steersman.lab.report.plots import Curve
from steersman.lab.run import check_device
from steersman.models.classifiers import Classifier, load_classifier
from steersman.models.classifiers.spec import Unstated
from steersman.models.denoisers import load_denoiser
from steersman.recipes.axes import build
from steersman.schedule import Level

__all__ = ["Measure", "Scope", "carry_out", "floats", "print_curves"]


@dataclass(frozen=True, kw_only=True)
class Scope:
    """The networks of an analysis, the levels that it visits, and where it runs.

    Attributes:
        denoiser: As `steersman.models.denoisers.load_denoiser` reads it.
        classifiers: Each ``[NAME=]SPEC``; the default if None.
        views: What classifiers are shown; ``x_t`` and ``x0_hat`` if None.
        preprocess: How classifiers are fed.
        size: At what side in pixels.
        times: Levels to visit, by their times, separated by commas.
        every: Or every K-th.
        count: Or so many.
        batch_size: Images at a time.
        device: Where the networks run.
    """

    denoiser: str
    classifiers: Sequence[str] | None = None
    views: Sequence[str] | None = None
    preprocess: str = "own"
    size: int | None = None
    times: str | None = None
    every: int | None = None
    count: int | None = None
    batch_size: int = 16
    device: str = "cpu"

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Scope":
        """Returns the scope that a command's options say."""
        named = {"classifiers": given.get("classifier"), "views": given.get("input")}
        return cls(**{field.name: given[field.name] for field in fields(cls) if field.name in given} | named)

    def settings(self) -> dict[str, Any]:
        """Returns what of it makes the figures."""
        made = ("denoiser", "preprocess", "size", "times", "every", "count")
        return {name: getattr(self, name) for name in made} | {"classifiers": self.specs(), "views": list(self.shown())}

    def specs(self) -> dict[str, str]:
        """Returns each classifier by its name."""
        found: dict[str, str] = {}
        for each in self.classifiers or ("imagenet:efficientnet-lite0",):
            name, named, spec = each.partition("=")
            name, spec = (name, spec) if named and ":" not in name else (each, each)
            if name in found:
                raise InputError(f"classifier: each name may be given only once, as NAME=SPEC, got {name!r} twice")
            found[name] = spec
        return found

    def shown(self) -> dict[str, ClassifierInput]:
        """Returns the views by name."""
        return {name: build("input", name) for name in self.views or ("noisy", "denoised")}

    def load_denoiser(self) -> Any:  # noqa: ANN401
        """Returns the denoiser, in blocks of one size."""
        check_device(self.device)
        denoiser = load_denoiser(self.denoiser, device=self.device)
        self.fit([denoiser], self.batch_size)
        return denoiser

    def load_classifiers(self, **settings: Any) -> dict[str, Classifier]:  # noqa: ANN401
        """Returns the classifiers by name, in blocks of one size, fed as said here or in the settings."""
        settings = {"preprocess": self.preprocess, "size": self.size} | settings
        found = {}
        for name, spec in self.specs().items():
            found[name] = load_classifier(spec, device=self.device, **settings)
            if isinstance(found[name].preprocess, Unstated):
                raise found[name].preprocess.refusal()
        self.fit(found.values(), self.batch_size)
        return found

    def fit(self, parts: Iterable[Any], size: int) -> None:
        """Has denoiser and classifiers see blocks of one size, for batches of a size that is at most the batch size."""
        block = block_size(self.device, size)
        for each in parts:
            each.block = block if size == self.batch_size else min(block, size)

    def places(self, levels: Sequence[Level]) -> list[int]:
        """Returns the places of the levels to visit among all."""
        times = None if self.times is None else floats("times", self.times)
        return choose(levels, times=times, every=self.every, count=self.count)


def floats(name: str, text: str) -> list[float]:
    """Returns the numbers that stand between commas."""
    try:
        return [float(each) for each in text.split(",")]
    except ValueError:
        raise InputError(f"{name} must be numbers with commas between them, got {text!r}") from None


COLUMNS, FEWER = 6, 4  # levels in the table, and beside means with their intervals

Measure = Callable[[list[int], Callable[[], None]], Mapping[Key, Tensor]]
"""Measures some images by their numbers, and calls back after each step of all of them."""


def carry_out(
    console: Terminal,
    parts: Parts,
    scope: Scope,
    networks: Sequence[Any],
    steps: int,
    measure: Measure,
) -> None:
    """Measures what is still to be measured, with a progress bar, and writes each part.

    Where the memory does not hold a batch, smaller ones are taken: the figures are each image's own.
    """
    todo = parts.todo(scope.batch_size)
    batches = Batches(scope.batch_size, on_halved=partial(scope.fit, networks))
    with console.progress() as progress:
        left = sum(map(len, todo))
        task = progress.add_task(f"{left} of {parts.count} images", total=left * steps)

        def measured(places: list[int]) -> tuple[list[int], Mapping[Key, Tensor]]:
            return places, measure(places, partial(progress.advance, task, len(places)))

        for places in todo:
            for some, values in batches.map(measured, places):
                parts.write(some, values)


def print_curves(
    console: Terminal, curves: Sequence[Curve], title: str, form: str, means: Sequence[str] | None = None
) -> None:
    """Prints curves at a few levels, noisiest first."""
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    table.add_column("at")
    x = curves[0].x
    columns = FEWER if means else COLUMNS
    places = sorted({round(i * (len(x) - 1) / (columns - 1)) for i in range(columns)})
    for place in places:
        table.add_column(f"{x[place]:.3g}", justify="right", no_wrap=True)
    if means:
        table.add_column("over time", justify="right", no_wrap=True)
    for row, curve in enumerate(curves):
        cells = [f"{curve.y[place]:{form}}" for place in places] + ([means[row]] if means else [])
        table.add_row(curve.title, *cells)
    console.print(table, soft_wrap=False)
