"""``steersman evaluate``: the figures of a set of samples, as a table and as ``evaluation.json``."""

import platform
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from steersman.cli import options
from steersman.cli.options import argument, option
from steersman.cli.root import Terminal, require_lab
from steersman.errors import InputError, unknown

if TYPE_CHECKING:
    from steersman.lab.metrics.intervals import Figure
    from steersman.lab.run import Run

__all__ = ["evaluate"]

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


@options.grouped
def evaluate(
    *,
    samples: Annotated[
        str,
        argument("Images: folder of a run or of images, FILE.npz, cifar10:, mnist:, or sportballs[?num=1000&seed=0]."),
    ],
    reference: Annotated[
        str | None, option("Reference images, in the same forms, or FILE.npz with statistics of steersman or EDM.")
    ] = None,
    target: Annotated[str | None, option("Class that the samples should show; by default their labels.")] = None,
    features: Annotated[
        str,
        option(
            "Network for the features of FID, KID and the like: inception, a classifier (its last features), "
            "clip:ID, dinov2 or module:PACKAGE.NAME:FACTORY."
        ),
    ] = JUDGE,
    guide: Annotated[str | None, option("Classifier that guided, or none; by default that of the run.")] = None,
    judge: Annotated[str | None, option("Classifier that only measures, or none; by default that of the run.")] = None,
    figures: options.Figures = None,
    save_statistics: Annotated[
        Path | None, option("Write the samples' features to FILE, for use as a reference.", metavar="FILE")
    ] = None,
    resamples: options.Resamples = 200,
    seed: Annotated[int, option("Seed of the half-samples.")] = 0,
    batch_size: Annotated[int, option("Batch size.")] = 64,
    device: options.Device = "cpu",
    trust: options.Trust = None,
    out: Annotated[Path | None, option("Output file; by default evaluation.json beside the samples.")] = None,
) -> None:
    """Measure samples: accuracy, FID, cFID, KID, precision, recall, density, coverage, CLIP score, with intervals.

    Example: steersman evaluate outputs/baseball --reference 'sportballs?num=2048&seed=99'
    """
    require_lab("evaluate")
    from importlib.metadata import version

    from steersman.files import write_json, writing_to
    from steersman.lab.data.images import read_images
    from steersman.lab.metrics.evaluate import DISTANCES, FIGURES
    from steersman.lab.metrics.evaluate import evaluate as figures_of
    from steersman.lab.metrics.features import load_extractor, read_reference, statistics_of, write_statistics
    from steersman.lab.run import read_run
    from steersman.models.classifiers import load_classifier

    options.at_least(0, resamples=resamples, seed=seed)
    options.at_least(1, batch_size=batch_size)
    wanted = options.listed(figures)
    for name in wanted or ():
        if name not in FIGURES:
            raise unknown("figure", name, FIGURES)
    if reference is None and (needy := [name for name in wanted or () if name in DISTANCES]):
        raise InputError(f"reference must be given for {', '.join(needy)}: images or saved statistics")
    terminal = Terminal()
    images = read_images(samples)
    real = None if reference is None else read_reference(reference)
    with terminal.status("loading the networks"):
        record = Path(samples.partition("?")[0], "run.yaml")
        run = read_run(record, trusted=None) if record.exists() else None
        specs = _specs(run, record, {"guide": guide, "judge": judge}, trust or ())
        # The run's guide sees as it saw when it guided.
        seen = {"guide": run.recipe.classifier_settings() if run and guide is None else {}, "judge": {}}
        networks = {
            name: load_classifier(spec, device=device, **seen[name]) if spec else None for name, spec in specs.items()
        }
        extractor = load_extractor(features, device=device)
    if reference is None and save_statistics is None and not any(specs.values()):
        raise InputError("reference, guide, judge or save-statistics must be given, got none of them")
    with terminal.progress() as progress:
        task = progress.add_task("images", total=None)
        settings = {"batch_size": batch_size, "on_images": lambda count: progress.advance(task, count)}
        if save_statistics is not None:
            write_statistics(save_statistics, statistics_of(images, extractor, **settings))
        found = figures_of(
            images,
            real,
            features=extractor,
            target=target,
            **networks,
            figures=wanted or FIGURES,
            resamples=resamples,
            seed=seed,
            strict=wanted is not None,
            **settings,
        )
    if save_statistics is not None:
        terminal.print(f"statistics in {save_statistics}")
    if all(figure.value is None for figure in found.values()):
        if save_statistics is not None:
            return
        raise InputError(f"evaluate: there is no figure to give; {'; '.join(_notes(found))}")
    _print_figures(terminal, found, extractor.name)
    folder = Path(samples)
    folder = folder if folder.is_dir() else folder.parent if folder.is_file() else Path()
    out = out or folder / "evaluation.json"
    packages = ("steersman", "torch", "torch-fidelity")
    content = {
        "figures": {name: asdict(figure) for name, figure in found.items()},
        "samples": {"from": samples, "count": len(images)},
        "reference": reference,
        **specs,
        "features": extractor.name,
        "target": target,
        "resamples": resamples,
        "seed": seed,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }
    with writing_to(out, "a file that can be written to"):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, content)
    terminal.print(f"figures in {out}")


def _specs(
    run: "Run | None", record: Path, given: dict[str, str | None], trusted: Collection[str]
) -> dict[str, str | None]:
    """Returns how guide and judge load: those named, else those of the samples' run, else the bundled judge."""
    from steersman.trust import refuse_code

    own = {"guide": run and run.classifiers[0], "judge": run.judge if run else JUDGE}
    refuse_code([own[name] for name in own if given[name] is None], record, trusted)
    return {name: None if given[name] == "none" else given[name] or own[name] for name in own}


def _print_figures(terminal: Terminal, found: "dict[str, Figure]", features: str) -> None:
    from steersman.lab.report.tables import title

    rows = []
    for name, figure in found.items():
        if figure.value is not None:
            form = FORMS.get(name, ".3f")
            known = figure.low is not None and figure.high is not None
            interval = f"{figure.low:{form}} to {figure.high:{form}}" if known else "–"
            rows.append((title(name, features), f"{figure.value:{form}}", interval))
    terminal.table(("figure", "value", "95% interval"), rows)
    for note in _notes(found):
        terminal.print(note)
    if (precision := found.get("precision")) and precision.value is not None and precision.value < FEW_REAL:
        terminal.print(
            f"Only {precision.value:.0%} of the samples are like the reference (precision): they may be burnt or "
            "noise. Look at the pictures.",
            style="yellow",
        )


def _notes(found: "dict[str, Figure]") -> list[str]:
    """Returns the notes on figures, one line for all that share it."""
    names: dict[str, list[str]] = {}
    for name, figure in found.items():
        if figure.note is not None:
            names.setdefault(figure.note if figure.value is not None else f"not given, {figure.note}", []).append(name)
    return [f"{', '.join(of_note)}: {note}" for note, of_note in names.items()]
