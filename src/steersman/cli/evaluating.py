"""An evaluation on the terminal: a progress bar, a table, and ``evaluation.json``."""

import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from steersman.cli.terminal import progress_bar
from steersman.errors import InputError, unknown
from steersman.files import write_json, writing_to
from steersman.lab.metrics.evaluate import DISTANCES, FIGURES
from steersman.lab.metrics.evaluate import evaluate as figures_of
from steersman.lab.metrics.features import load_extractor
from steersman.lab.metrics.images import ImageSet, read_images
from steersman.lab.metrics.intervals import Figure
from steersman.lab.metrics.statistics import measured, read_reference, write_statistics
from steersman.lab.run import check_device, read_run
from steersman.models.classifiers import Classifier, load_classifier
from steersman.trust import refuse_code

__all__ = ["Evaluation", "carry_out"]

JUDGE = "zoo:sportballs-judge"
FEW_REAL = 0.1  # a precision below which hardly a sample is like the reference
FORMS = {
    "accuracy/guide": ".1%",
    "accuracy/judge": ".1%",
    "kid": ".3g",
    "fid": ".4g",
    "cfid": ".4g",
    "clip_score": ".2f",
}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All that an evaluation is asked for; the options of ``steersman evaluate``, by their names."""

    samples: str
    reference: str | None
    target: str | None
    features: str
    guide: str | None
    judge: str | None
    figures: tuple[str, ...] | None
    save_statistics: Path | None
    resamples: int
    seed: int
    batch_size: int
    device: str
    trusted: tuple[str, ...]
    out: Path | None

    def __post_init__(self) -> None:
        for name, given, least in (
            ("resamples", self.resamples, 0),
            ("seed", self.seed, 0),
            ("batch-size", self.batch_size, 1),
        ):
            if given < least:
                raise InputError(f"{name} must be at least {least}, got {given}")
        for each in self.figures or ():
            if each not in FIGURES:
                raise unknown("figure", each, FIGURES)
        if self.reference is None and self.figures and set(self.figures) & DISTANCES.keys():
            named = ", ".join(each for each in self.figures if each in DISTANCES)
            raise InputError(f"reference must be given for {named}: images or saved statistics")


def carry_out(asked: Evaluation) -> None:
    """Does an evaluation with a progress bar, prints its table, and writes its file."""
    check_device(asked.device)
    console = Console()
    samples = read_images(asked.samples)
    reference = None if asked.reference is None else read_reference(asked.reference)
    with console.status("loading the networks"):
        specs, networks = _networks(asked)
        extractor = load_extractor(asked.features, device=asked.device)
    if asked.reference is None and asked.save_statistics is None and not any(networks.values()):
        raise InputError("reference, guide, judge or save-statistics must be given, got none of them")
    wanted = FIGURES if asked.figures is None else asked.figures
    with progress_bar(console) as progress:
        task = progress.add_task("images", total=None)
        settings = {"batch_size": asked.batch_size, "on_images": lambda count: progress.advance(task, count)}
        if asked.save_statistics is not None:
            write_statistics(asked.save_statistics, measured(samples, extractor, **settings))
        found = figures_of(
            samples,
            reference,
            features=extractor,
            target=asked.target,
            **networks,
            figures=wanted,
            resamples=asked.resamples,
            seed=asked.seed,
            strict=asked.figures is not None,
            **settings,
        )
    if asked.save_statistics is not None:
        console.print(f"statistics in {escape(str(asked.save_statistics))}", soft_wrap=True)
    if all(each.value is None for each in found.values()):
        if asked.save_statistics is not None:
            return
        raise InputError(f"evaluate: there is no figure to give; {'; '.join(_notes(found))}")
    _print(console, found)
    if (precision := found.get("precision")) and precision.value is not None and precision.value < FEW_REAL:
        console.print(
            f"[yellow]Only {precision.value:.0%} of the samples lie among the reference: they may be burnt or noise. "
            "Look at the pictures.[/yellow]"
        )
    _write(asked, samples, found, specs | {"features": extractor.name}, console)


def _networks(asked: Evaluation) -> tuple[dict[str, str | None], dict[str, Classifier | None]]:
    """Returns guide and judge by their specs: those named, else those of the samples' run, else the bundled judge."""
    record = Path(asked.samples.partition("?")[0], "run.yaml")
    run = read_run(record, trusted=None) if record.exists() else None
    own = {"guide": run and run.classifiers[0], "judge": run.judge if run else JUDGE}
    given = {"guide": asked.guide, "judge": asked.judge}
    refuse_code([own[name] for name in own if given[name] is None], record, asked.trusted)
    specs = {name: None if given[name] == "none" else given[name] or own[name] for name in own}
    # The run's guide sees as it saw when it guided.
    seen = run.recipe.classifier_settings() if run and asked.guide is None else {}
    networks = {
        name: load_classifier(spec, device=asked.device, **(seen if name == "guide" else {})) if spec else None
        for name, spec in specs.items()
    }
    return specs, networks


def _print(console: Console, found: dict[str, Figure]) -> None:
    table = Table("figure", box=None, pad_edge=False)
    table.add_column("value", justify="right")
    table.add_column("95% interval", justify="right")
    for name, figure in found.items():
        if figure.value is None:
            continue
        form = FORMS.get(name, ".3f")
        known = figure.low is not None and figure.high is not None
        interval = f"{figure.low:{form}} to {figure.high:{form}}" if known else "–"
        table.add_row(name, f"{figure.value:{form}}", interval)
    console.print(table)
    for note in _notes(found):
        console.print(note, soft_wrap=True, markup=False, highlight=False)


def _notes(found: dict[str, Figure]) -> list[str]:
    """Returns what is to be said of figures, of all that it is true of in one line."""
    of: dict[str, list[str]] = {}
    for name, figure in found.items():
        if figure.note is not None:
            of.setdefault(figure.note if figure.value is not None else f"not given, {figure.note}", []).append(name)
    return [f"{', '.join(names)}: {note}" for note, names in of.items()]


def _write(
    asked: Evaluation, samples: ImageSet, found: dict[str, Figure], by: dict[str, str | None], console: Console
) -> None:
    place = Path(asked.samples)
    folder = place if place.is_dir() else place.parent if place.is_file() else Path()
    out = asked.out or folder / "evaluation.json"
    packages = ("steersman", "torch", "torch-fidelity")
    content = {
        "figures": {name: asdict(figure) for name, figure in found.items()},
        "samples": {"from": asked.samples, "count": len(samples)},
        "reference": asked.reference,
        **by,
        **{key: getattr(asked, key) for key in ("target", "resamples", "seed")},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }
    with writing_to(out, "a file that can be written to"):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, content)
    console.print(f"figures in {escape(str(out))}", soft_wrap=True)
