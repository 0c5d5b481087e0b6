"""What an analysis shows while it runs, and at its end."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from steersman.cli.analyzing.scope import Scope
from steersman.cli.progress import progress_bar
from steersman.lab.analysis.parts import Key, Parts
from steersman.lab.report.curves import Curve
from steersman.memory import halving

__all__ = ["Measure", "carry_out", "print_curves"]

COLUMNS, FEWER = 6, 4  # levels in the table, and beside means with their intervals

Measure = Callable[[list[int], Callable[[], None]], Mapping[Key, Tensor]]
"""Measures some images by their numbers, and calls back after each step of all of them."""


def carry_out(
    console: Console,
    parts: Parts,
    scope: Scope,
    networks: Sequence[Any],
    steps: int,
    measure: Measure,
) -> None:
    """Measures what is still to be measured, with a progress bar, and writes each part.

    Where the memory does not hold a batch, smaller ones are taken: the figures are each image's own.

    Args:
        console: Where the progress is shown.
        parts: The parts.
        scope: The batch size, and where the networks run.
        networks: The denoiser and the classifiers that are measured.
        steps: How often the measurement of a batch calls back.
        measure: Measures a batch.
    """
    size = scope.batch_size
    todo = parts.todo(size)
    with progress_bar(console) as progress:
        left = sum(map(len, todo))
        task = progress.add_task(f"{left} of {parts.count} images", total=left * steps)

        def measured(places: list[int], size: int) -> list[tuple[list[int], Mapping[Key, Tensor]]]:
            scope.fit(networks, size)
            some = [places[first : first + size] for first in range(0, len(places), size)]
            return [(each, measure(each, partial(progress.advance, task, len(each)))) for each in some]

        for places in todo:
            found, size = halving(partial(measured, places), size)
            for each, values in found:
                parts.write(each, values)


def print_curves(
    console: Console, curves: Sequence[Curve], title: str, form: str, means: Sequence[str] | None = None
) -> None:
    """Prints curves at a few levels, noisiest first.

    Args:
        console: Where to.
        curves: They, all over the same levels.
        title: What they show.
        form: How a number is written.
        means: Each curve's mean over time as it is shown, where there is one.
    """
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
        table.add_row(escape(curve.title), *map(escape, cells))
    console.print(table)
