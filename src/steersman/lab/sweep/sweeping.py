"""A sweep: the missing cells are drawn, each is measured, and tables and plots are written.

    OUT/sweep.yaml                        the varied settings, and those that all cells share
    OUT/cells/NAME/                       a run each, with its evaluation.json
    OUT/sweep.csv, sweep.md, …            tables and plots (`.table`)
    OUT/grid.png                          the first images of each cell; a column shares its seed

A cell is finished when its ``metrics.json`` is there, which a run writes last. A sweep that was stopped continues with
the other cells.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from steersman.errors import InputError, about
from steersman.files import parse_yaml, read_json, replacing, writing_to
from steersman.lab.generate import generate_until_stopped, open_session
from steersman.lab.placement import shared_placement
from steersman.lab.report.images import grid
from steersman.lab.run import check_folder, other_settings
from steersman.lab.session import Networks, Session
from steersman.lab.stop import Stop
from steersman.lab.sweep.cells import Cell, Sweep
from steersman.lab.sweep.measure import Measure
from steersman.lab.sweep.table import Row, fronts, write_fronts, write_plots, write_table
from steersman.typed import typed

__all__ = ["Sweeping"]

SHOWN = 8  # images of each cell in the grid


class _NoiseError(BaseModel):
    broken: list[str]


class _Metrics(BaseModel):
    """The part of a run's ``metrics.json`` that a sweep shows."""

    network_evaluations: dict[str, float]
    seconds: float
    lost: list[str]
    noise_error: _NoiseError | None


class Sweeping:
    """A sweep with checked settings and loaded networks; nothing is written before `draw`."""

    def __init__(self, sweep: Sweep, out: Path) -> None:
        self.sweep, self.out, self.cells = sweep, out, sweep.cells()
        if placed := shared_placement(self.cells[0].run, out / "sweep.yaml"):
            self.sweep = sweep = replace(sweep, settings={**sweep.settings, "placed": placed})
            self.cells = sweep.cells()
        self.record = _record(sweep, self.cells)
        self._check_folder()
        run = self.cells[0].run
        self.measure = Measure(sweep, num=run.num, device=run.device)
        self.known = {cell.name: self.measure.known(self.folder(cell)) for cell in self.cells}
        missing, networks, rehearsed = self.missing(), Networks(), set()
        self.sessions: dict[str, Session] = {}
        for cell in self.cells:
            if cell not in missing and self.known[cell.name]:
                continue
            try:
                self.sessions[cell.name] = session = open_session(cell.run, networks)
                if (parts := (cell.run.denoiser, cell.run.classifiers)) not in rehearsed:
                    self.measure.rehearse(session)
                    rehearsed.add(parts)
            except InputError as error:
                raise InputError(f"cell {cell.name}: {error}") from error

    def _check_folder(self) -> None:
        if other_settings(self.out / "sweep.yaml", self.record, "sweep"):
            raise InputError(
                f"out: {str(self.out)!r} holds a sweep with other settings; use another folder, or its settings"
            )
        for cell in self.cells:
            check_folder(self.folder(cell), cell.run)

    def folder(self, cell: Cell) -> Path:
        """Returns a cell's folder."""
        return self.out / "cells" / cell.folder

    def missing(self) -> list[Cell]:
        """Returns the cells that are not drawn yet."""
        return [cell for cell in self.cells if not (self.folder(cell) / "metrics.json").is_file()]

    def count(self, cell: Cell) -> int:
        """Returns the number of images of a cell that is not drawn yet."""
        return cell.run.num * len(self.sessions[cell.name].targets)

    def draw(
        self,
        on_images: Callable[[float], object] = lambda count: None,
        on_cell: Callable[[Cell], None] = lambda cell: None,
        stop: Stop | None = None,
    ) -> None:
        """Draws the missing cells; ``on_images`` is called with fractions of new images, ``on_cell`` before a cell."""
        with writing_to(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            with replacing(self.out / "sweep.yaml") as path:
                path.write_text(yaml.safe_dump(self.record, sort_keys=False), encoding="utf-8")
        for cell in self.missing():
            on_cell(cell)
            self.known[cell.name] = None
            session, folder = self.sessions[cell.name], self.folder(cell)
            generate_until_stopped(session, folder, on_images=on_images, stop=stop)

    def compare(self, *, pareto: bool = False, on_cell: Callable[[Cell], None] = lambda cell: None) -> list[Row]:
        """Measures all cells, writes tables and plots, and returns a row for each cell.

        With ``pareto`` the cells that no other beats in quality and cost are marked and plotted.
        """
        rows = []
        for cell in self.cells:
            on_cell(cell)
            rows.append(self._row(cell))
        write_table(self.out, rows, about=self._about(), pareto=fronts(rows) if pareto else None)
        write_plots(self.out, rows)
        if pareto:
            write_fronts(self.out, rows)
        self._write_grid()
        return rows

    def _row(self, cell: Cell) -> Row:
        folder = self.folder(cell)
        with about("sweep", folder / "metrics.json"):
            metrics = typed("", read_json(folder / "metrics.json", "sweep"), _Metrics)
        return Row(
            name=cell.name,
            values=cell.values,
            figures=self.known[cell.name] or self.measure(self.sessions[cell.name], folder),
            evaluations=metrics.network_evaluations,
            seconds=metrics.seconds,
            lost=metrics.lost,
            broken=metrics.noise_error.broken if metrics.noise_error else [],
        )

    def _about(self) -> str:
        run = self.cells[0].run
        targets = ", ".join(run.targets or run.blend)
        return (
            f"{run.num} images of each target ({targets}) in each cell, seeds {run.seed} to {run.seed + run.num - 1}; "
            f"against {self.sweep.reference}. In brackets the 95% interval. Network evaluations are those of an image."
        )

    def _write_grid(self) -> None:
        rows = {}
        for cell in self.cells:
            if images := self.measure.images(self.folder(cell)):
                rows[cell.name] = next(images.batches(SHOWN))
        if len({first.shape[1:] for first in rows.values()}) == 1:  # denoisers of different sizes have no grid
            grid(rows, self.out / "grid.png", columns=SHOWN)


def _record(sweep: Sweep, cells: Sequence[Cell]) -> dict[str, Any]:
    """Returns the content of ``sweep.yaml``."""
    shared = _shared([cell.run.record() for cell in cells])
    record = {
        "varied": {key: list(values) for key, values in sweep.varied.items()},
        "reference": sweep.reference,
        "features": sweep.features,
        "figures": list(sweep.figures),
        "resamples": sweep.resamples,
        "versions": shared.pop("versions"),
        "shared": shared,
    }
    return parse_yaml(yaml.safe_dump(record, sort_keys=False))


def _shared(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the settings that are the same in all records."""
    first, shared = records[0], {}
    for key, value in first.items():
        values = [record.get(key) for record in records]
        sections = [each for each in values if isinstance(each, Mapping)]
        if all(each == value for each in values):
            shared[key] = value
        elif len(sections) == len(values) and (section := _shared(sections)):
            shared[key] = section
    return shared
