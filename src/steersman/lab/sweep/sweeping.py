"""A sweep: the missing cells are drawn, each is measured, and tables and plots are written.

    OUT/sweep.yaml          the varied settings, and those that all cells share
    OUT/cells/NAME/         a run each, with its evaluation.json
    OUT/sweep.csv           a row for each cell: varied values, figures with the ends of their intervals, network
                            evaluations of an image, seconds
    OUT/sweep.md, .tex      the same, rounded, without figures that no cell has
    OUT/fid.csv, .png, .pdf, …  each figure over the first varied setting whose values are numbers, a curve for each
                            combination of the others; a dot for each cell if there is no such setting
    OUT/pareto-….png        quality over cost
    OUT/grid.png            the first images of each cell; a column shares its seed

The same seeds without guidance are a cell of their own. A cell is finished when its ``metrics.json`` is there, which a
run writes last. A sweep that was stopped continues with the other cells. Cost is the number of evaluations of the
denoiser and of the guide that an image needed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml

from steersman.errors import InputError, about
from steersman.files import parse_yaml, read_json, replacing, write_json, write_yaml, writing_to
from steersman.lab.data.images import ImageSet, read_images
from steersman.lab.generate import generate_until_stopped, open_session
from steersman.lab.metrics.evaluate import DISTANCES, evaluate
from steersman.lab.metrics.features import DEFAULT, Statistics, load_extractor, read_reference, statistics_of
from steersman.lab.metrics.intervals import Figure
from steersman.lab.report.images import grid
from steersman.lab.report.plots import Curve, Pair, front, write_curves, write_dots, write_front
from steersman.lab.report.tables import as_text, latex, markdown, title, write_figures
from steersman.lab.run import check_folder, other_settings
from steersman.lab.session import Networks, Session
from steersman.lab.stop import Stop
from steersman.lab.sweep.cells import Cell, Study, Sweep
from steersman.models.classifiers import load_classifier
from steersman.typed import typed

__all__ = ["COST", "FRONTS", "Measure", "Row", "Sweeping", "fronts", "images_of", "points", "write_table"]

SHOWN = 8  # images of each cell in the grid
FEW = max(samples for samples, _ in DISTANCES.values())  # images that every figure can be measured on

FRONTS = {"accuracy/judge": True, "accuracy/guide": True, "fid": False, "cfid": False}
"""The figures of quality that are compared with the cost, and whether a larger one is better."""

COST = ("denoiser", "classifier")
UNGUIDED = "unguided"
LABELS = {"scale": "guidance scale", "steps": "sampling steps", "sampling.steps": "sampling steps"}


class Measure:
    """Measures the runs of a study against its reference, whose features are taken once.

    A figure that needs more images than there are stays undefined, as do all of a run without images.
    """

    def __init__(self, study: Study, *, num: int, device: str) -> None:
        self.study, self.num = study, num
        self.given = read_reference(study.reference)
        self.extractor = load_extractor(study.features, device=device)
        self.judges = {f"accuracy/{name}": load_classifier(name, device=device) for name in study.judges}
        self.names = (*study.figures, *self.judges)
        # The settings as `steersman evaluate` records them; None stands for those of the run.
        self.asked: dict[str, Any] = {"reference": study.reference, "features": self.extractor.name}
        self.asked |= {"target": None, "guide": None, "judge": None, "judges": list(study.judges)}
        self.asked |= {"resamples": study.resamples, "seed": 0}

    @cached_property
    def reference(self) -> Statistics:
        """The reference's features."""
        return self.given if isinstance(self.given, Statistics) else statistics_of(self.given, self.extractor)

    def rehearse(self, session: Session) -> dict[str, Figure]:
        """Measures a few grey images of a session's size, so that errors come before the first image is drawn."""
        with torch.no_grad():
            blank = torch.zeros(1, *session.denoiser.shape, device=session.run.device)
            size = (3, *session.denoiser.decode(blank).shape[2:])
        names = tuple(target.name for target in session.targets for _ in range(min(self.num, FEW)))
        grey = ImageSet(
            spec="samples",
            indices=range(len(names)),
            read=lambda chosen: torch.full((len(chosen), *size), 128, dtype=torch.uint8),
            labels=names,
        )
        return self._figures(session, grey, resamples=0)

    def __call__(self, session: Session, folder: Path) -> dict[str, Figure]:
        """Returns the figures of the images in a run's folder, and writes them there."""
        images = images_of(folder)
        if images is None:
            return dict.fromkeys(self.names, Figure())
        figures = self._figures(session, images, resamples=self.study.resamples)
        content = {
            "figures": {name: asdict(figure) for name, figure in figures.items()},
            "samples": {"from": str(folder), "count": len(images)},
            **self.asked,
        }
        write_json(folder / "evaluation.json", content)
        return figures

    def known(self, folder: Path) -> dict[str, Figure] | None:
        """Returns the figures in a run's folder; None if there are none, or they are of another evaluation."""
        try:
            content = read_json(folder / "evaluation.json")
            if any(content[key] != value for key, value in self.asked.items()):
                return None
            return {name: typed(name, content["figures"][name], Figure) for name in self.names}
        except (InputError, TypeError, KeyError):
            return None

    def _figures(self, session: Session, images: ImageSet, *, resamples: int) -> dict[str, Figure]:
        ours = min(images.labels.count(each) for each in images.classes) if images.labels else len(images)
        theirs = math.inf if self.reference.features is None else len(self.reference.features)
        least = {name: DISTANCES.get(name, (1, 1)) for name in self.study.figures}
        settings: dict[str, Any] = {"features": self.extractor, "guide": session.guide}
        settings["target"] = session.targets[0].name if len(session.targets) == 1 else None
        found = evaluate(
            images,
            self.reference,
            judge=session.judge,
            figures=[name for name, (samples, real) in least.items() if ours >= samples and theirs >= real],
            resamples=resamples,
            **settings,
        )
        for name, judge in self.judges.items():
            accuracy = evaluate(images, None, judge=judge, figures=("accuracy/judge",), **settings)
            found[name] = accuracy["accuracy/judge"]
        return dict.fromkeys(self.names, Figure()) | found


def images_of(folder: Path) -> ImageSet | None:
    """Returns the images of a run; None if all were lost."""
    try:
        return read_images(folder)
    except InputError:
        return None


@dataclass(frozen=True, kw_only=True)
class Row:
    """The results of a cell.

    Attributes:
        name: The cell's name.
        values: The varied values.
        figures: The figures.
        evaluations: Network evaluations of an image, of ``denoiser`` and ``classifier``.
        seconds: Time that drawing took.
        lost: Images that became non-finite and were not written.
        broken: Images that are burnt or noise (`steersman.lab.evaluation`).
        unguided: Whether it is without guidance; values that do not matter there are empty.
    """

    name: str
    values: Mapping[str, str]
    figures: Mapping[str, Figure]
    evaluations: Mapping[str, float]
    seconds: float
    lost: Sequence[str]
    broken: Sequence[str] = ()
    unguided: bool = False

    @property
    def shown(self) -> Mapping[str, str]:
        """The varied values as tables show them."""
        if not self.unguided:
            return self.values
        first = next((key for key, value in self.values.items() if not value), next(iter(self.values)))
        named = ", ".join(filter(None, (self.values[first], "unguided")))
        return {key: value or "–" for key, value in self.values.items()} | {first: named}

    @property
    def cost(self) -> float:
        """Network evaluations of an image."""
        return sum(self.evaluations[name] for name in COST)


class Sweeping:
    """A sweep with checked settings and loaded networks; nothing is written before `draw`."""

    def __init__(self, sweep: Sweep, out: Path) -> None:
        self.out, self.file = out, out / "sweep.yaml"
        self.sweep = sweep.placed(sweep.cells()[0].run, self.file)
        self.cells = self.sweep.cells()
        self.record = _record(self.sweep, [cell for cell in self.cells if not cell.unguided])
        if other := other_settings(self.file, self.record, "sweep"):
            raise InputError(
                f"out: {str(out)!r} holds a sweep with other settings ({', '.join(other)}); give another --out, or the "
                "same settings"
            )
        for cell in self.cells:
            check_folder(self.folder(cell), cell.run)
        run = self.cells[0].run
        self.measure = Measure(self.sweep, num=run.num, device=run.device)
        self.sessions: dict[str, Session] = {}
        missing, networks, rehearsed = self.missing(), Networks(), set()
        for cell in self.cells:
            if cell not in missing and self.measure.known(self.folder(cell)):
                continue
            try:
                self.sessions[cell.name] = session = open_session(cell.run, networks)
                # What a measurement may refuse depends on the networks, not on the settings of the recipe.
                if (parts := (cell.run.denoiser, cell.run.classifiers)) not in rehearsed:
                    self.measure.rehearse(session)
                    rehearsed.add(parts)
            except InputError as error:
                raise InputError(f"cell {cell.name}: {error}") from error

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
            write_yaml(self.file, self.record)
        for cell in self.missing():
            on_cell(cell)
            folder = self.folder(cell)
            (folder / "evaluation.json").unlink(missing_ok=True)  # of images that are not there any more
            generate_until_stopped(self.sessions[cell.name], folder, on_images=on_images, stop=stop)

    def compare(self, *, pareto: bool = False, on_cell: Callable[[Cell], None] = lambda cell: None) -> list[Row]:
        """Measures all cells, writes tables and plots, and returns a row for each cell.

        With ``pareto`` the cells that no other beats in quality and cost are marked and plotted.
        """
        rows = []
        for cell in self.cells:
            on_cell(cell)
            rows.append(self._row(cell))
        features = self.measure.extractor.name
        write_table(self.out, rows, about=self._about(), pareto=fronts(rows) if pareto else None, features=features)
        _write_plots(self.out, rows, features)
        if pareto:
            _write_fronts(self.out, rows, features)
        self._write_grid()
        return rows

    def _row(self, cell: Cell) -> Row:
        folder = self.folder(cell)
        figures = self.measure.known(folder) or self.measure(self.sessions[cell.name], folder)
        with about("sweep", folder / "metrics.json"):
            metrics = read_json(folder / "metrics.json", "sweep")
            results = {"evaluations": metrics["network_evaluations"], "seconds": metrics["seconds"]}
            results |= {"lost": metrics["lost"], "broken": (metrics["noise_error"] or {"broken": []})["broken"]}
            named = {"name": cell.name, "values": cell.values, "unguided": cell.unguided}
            return typed("", {**named, "figures": figures, **results}, Row)

    def _about(self) -> str:
        run = self.cells[0].run
        targets = ", ".join(run.targets or run.blend)
        return (
            f"{run.num} images of each target ({targets}) in each cell, seeds {run.seed} to {run.seed + run.num - 1}; "
            f"against {self.sweep.reference} by features of {self.measure.extractor.name}. In brackets the 95% "
            "interval. Network evaluations are those of an image."
        )

    def _write_grid(self) -> None:
        rows = {}
        for cell in self.cells:
            if images := images_of(self.folder(cell)):
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
        "judges": list(sweep.judges),
        "resamples": sweep.resamples,
        "versions": shared.pop("versions"),
        "shared": shared,
    }
    return parse_yaml(yaml.safe_dump(record, sort_keys=False))  # in the types in which it is read again


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


def points(rows: Sequence[Row], figure: str) -> list[Pair]:
    """Returns cost and figure of the cells that have the figure."""
    qualities = [(row, row.figures.get(figure, Figure())) for row in rows]
    return [Pair(name=row.name, x=Figure(row.cost), y=y) for row, y in qualities if y.value is not None]


def fronts(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Returns the names of the cells that no other dominates, for each figure of quality."""
    found = {name: front(points(rows, name), larger=larger) for name, larger in FRONTS.items()}
    return {name: [point.name for point in best] for name, best in found.items() if best}


def write_table(
    out: Path,
    rows: Sequence[Row],
    *,
    about: str,
    pareto: Mapping[str, Sequence[str]] | None,
    features: str = DEFAULT,
) -> None:
    """Writes ``sweep.csv``, and ``sweep.md`` and ``sweep.tex`` to read, without figures that no cell has."""
    present = [name for name in rows[0].figures if any(row.figures[name].value is not None for row in rows)]
    broken, baseline = (any(getattr(row, name) for row in rows) for name in ("broken", "unguided"))
    exact, read = [], []
    for row in rows:
        evaluations = {f"{name} evaluations": row.evaluations[name] for name in COST}
        counts = {"lost": len(row.lost), "broken": len(row.broken)}
        exact.append({**row.values, **row.figures, **counts, **evaluations, "seconds": row.seconds})
        exact[-1] |= {UNGUIDED: "yes" if row.unguided else ""} if baseline else {}
        shown = {**row.shown, **{title(name, features): as_text(name, row.figures[name]) for name in present}}
        shown |= {name: f"{count:g}" for name, count in evaluations.items()} | {"seconds": f"{row.seconds:.1f}"}
        read.append(shown | ({"burnt or noise": str(len(row.broken))} if broken else {}))
        if pareto is not None:
            best = [name for name, names in pareto.items() if row.name in names]
            exact[-1]["pareto"], read[-1]["best for its cost by"] = " ".join(best), ", ".join(best)
    write_figures(out / "sweep.csv", exact)
    header, lines, texts = list(read[0]), [list(shown.values()) for shown in read], len(rows[0].values)
    for name, text in (
        ("sweep.md", f"{about}\n\n{markdown(header, lines, texts=texts)}"),
        ("sweep.tex", f"% {about}\n% \\usepackage{{booktabs}}\n{latex(header, lines, texts=texts)}"),
    ):
        with replacing(out / name) as beside:
            beside.write_text(text, encoding="utf-8")


def _write_plots(out: Path, rows: Sequence[Row], features: str) -> None:
    """Writes accuracy, FID and cFID over the varied values, each as CSV and PNG, if any cell has them."""
    guided = [row for row in rows if not row.unguided]
    horizontal = next((key for key in rows[0].values if all(_number(row.values[key]) for row in guided)), None)
    for figure in FRONTS:
        path, found = out / figure.replace("/", "-"), points(rows, figure)
        if not found:
            continue
        if horizontal is None:
            write_dots(path, found, figure=title(figure, features))
        else:
            curves = _curves(rows, horizontal, figure)
            logarithmic = horizontal.partition(".")[0] == "scale" and min(min(curve.x) for curve in curves) > 0
            label = LABELS.get(horizontal, horizontal)
            label += ", as a multiple of each recipe's" if rows[0].values[horizontal].endswith("x") else ""
            write_curves(path, curves, x=label, y=title(figure, features), log_x=logarithmic)


def _write_fronts(out: Path, rows: Sequence[Row], features: str) -> None:
    """Plots each figure of quality over the cost, and names the non-dominated cells."""
    cost = "network evaluations an image, denoiser and guide"
    for name in fronts(rows):
        path = out / f"pareto-{name.replace('/', '-')}.png"
        write_front(path, points(rows, name), larger=FRONTS[name], x=cost, y=title(name, features))


def _curves(rows: Sequence[Row], horizontal: str, figure: str) -> list[Curve]:
    """Returns a figure's curve for each combination of the other varied values; one value for all x is a level line."""
    groups: dict[str, list[tuple[float, Figure]]] = {}
    known = [x for row in rows for x in _number(row.values[horizontal])]
    for row in rows:
        others = [f"{key}={value}" for key, value in row.values.items() if value and key != horizontal]
        name = ", ".join([UNGUIDED, *others] if row.unguided else others or ["guided"])
        for x in _number(row.values[horizontal]) or (min(known), max(known)):
            groups.setdefault(name, []).append((x, row.figures[figure]))
    found = {name: [point for point in group if point[1].value is not None] for name, group in groups.items()}
    return [Curve.of(name, *map(list, zip(*group, strict=True))) for name, group in found.items() if group]


def _number(text: str) -> list[float]:
    """Returns a number, or the factor of a multiple; nothing for another text."""
    try:
        number = float(text.removesuffix("x"))
    except ValueError:
        return []
    return [number] if math.isfinite(number) else []
