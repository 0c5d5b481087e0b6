"""A run on the terminal: a live progress bar, and a short table at the end."""

import shlex
from itertools import count
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from steersman.cli.terminal import progress_bar
from steersman.errors import InputError, require
from steersman.files import file_name
from steersman.lab.generate import Share, Summary, Unfinished, generate, open_session, status
from steersman.lab.report import Frames
from steersman.lab.run import Run, differences
from steersman.lab.session import Session
from steersman.lab.speed.placement import recorded_placement
from steersman.lab.stop import Stop
from steersman.trust import code_in

__all__ = ["carry_out", "default_folder", "tell"]

ANIMATED = 4  # images in an animation
NAMED = 8  # images that a line names, at most
COLUMNS = {
    ("accuracy", "guide"): ("guide sees it", ".0%"),
    ("accuracy", "judge"): ("judge sees it", ".0%"),
    ("probability", "guide"): ("guide's probability", ".0%"),
    ("probability", "judge"): ("judge's", ".0%"),
    ("similarity", "guide"): ("guide's similarity", ".3f"),
    ("similarity", "judge"): ("judge's similarity", ".3f"),
}


def default_folder(run: Run, *, overwrite: bool) -> Path:
    """Returns the folder of a run that is given none: ``outputs/TARGET``, numbered where other runs have that name."""
    named = file_name("-".join(run.targets or run.blend)).replace(" ", "-")
    for number in count(1):
        out = Path("outputs", named if number == 1 else f"{named}-{number}")
        if overwrite or not _holds_another(out, run):
            return out
    raise AssertionError


def _holds_another(out: Path, run: Run) -> bool:
    try:
        return differences(out, recorded_placement(run, out), grows=True) != ""
    except InputError:  # a file that cannot be read
        return True


def carry_out(run: Run, out: Path, *, share: Share, gif: bool = False, overwrite: bool = False) -> None:
    """Does a run, or what is left of it, with a progress bar, and prints its table."""
    if gif:
        require("lab", "matplotlib", what="--gif")
    console = Console(quiet=not share.first)
    with console.status("loading the networks"):
        session = open_session(run if overwrite else recorded_placement(run, out, wait=not share.first))
    for part in session.run.placed:
        console.print(f"{part}: {session.run.placement(part)}", highlight=False, soft_wrap=True)
    frames = Frames(count=ANIMATED, decode=session.denoiser.decode) if gif and share.first else None
    with progress_bar(console) as progress, Stop(launched=share.count > 1, quiet=not share.first) as stop:
        task = progress.add_task("images", total=run.num * len(session.targets))
        try:
            summary = generate(
                session,
                out,
                share=share,
                stop=lambda: bool(stop),
                on_images=lambda count: progress.advance(task, count),
                callbacks=[frames] if frames else [],
                overwrite=overwrite,
            )
        except Unfinished as unfinished:
            summary = unfinished
    if isinstance(summary, Unfinished):
        console.print(_unfinished(summary, session.run, out, stop, share), soft_wrap=True, markup=False)
        raise typer.Exit(stop.code or (1 if summary.gone or share.count == 1 else 0))
    if frames is not None and frames.images:
        frames.write(out / "animation.gif")
    if frames is not None and not frames.images:
        console.print("no animation: the first images were there before")
    _print(console, session, summary, out)
    if summary.lost or summary.nothing_survived:
        raise typer.Exit(1)


def _unfinished(found: Unfinished, run: Run, out: Path, stop: Stop, share: Share) -> str:
    """Returns how many images there are, why not all, and how to go on."""
    words = ["steersman", "sample", "--from", str(out / "run.yaml")]
    words += [word for spec in dict.fromkeys(code_in(run.settings())) for word in ("--trust", spec)]
    how = f"the same command goes on, or: {shlex.join(words)}"
    there = f"{found.done} of {found.total} images are there"
    if stop:
        return f"{there}; {how}"
    if found.gone or share.count == 1:
        return f"{there}, others went away while they were drawn; {how}"
    return f"{there}, the others are other processes'; to see how far they are: steersman sample --status {out}"


def tell(out: Path) -> None:
    """Prints how far the run in a folder is."""
    console, found = Console(), status(out)
    table = Table("target", box=None, pad_edge=False)
    for name in ("done", "lost", "missing"):
        table.add_column(name, justify="right")
    for name in found.done:
        table.add_row(escape(name), *map(str, (found.done[name], found.lost[name], found.missing(name))))
    if len(found.done) > 1:
        missing = sum(map(found.missing, found.done))
        table.add_row("all", str(sum(found.done.values())), str(sum(found.lost.values())), str(missing))
    console.print(table)
    processes = f"{found.processes} process{'es' if found.processes > 1 else ''} drawing"
    console.print(processes if found.processes else "not running")


def _print(console: Console, session: Session, summary: Summary, out: Path) -> None:
    metrics = summary.metrics
    table = Table(box=None, pad_edge=False)
    table.add_column("target")
    shown = [(figure, network) for figure, network in COLUMNS if metrics[figure][network] is not None]
    for each in shown:
        table.add_column(COLUMNS[each][0], justify="right")
    names = [target.name for target in session.targets]
    for name, figures in metrics.get("targets", {names[0]: metrics}).items():
        cells = [(figures[figure][network], COLUMNS[figure, network][1]) for figure, network in shown]
        table.add_row(escape(name), *("–" if cell is None else f"{cell:{form}}" for cell, form in cells))
    console.print(table)
    evaluations = metrics["network_evaluations"]
    console.print(
        f"{metrics['seconds']:.1f} s, {metrics['images_per_second']:.2f} images/s; an image took "
        f"{evaluations['denoiser']:g} evaluations of the denoiser and {evaluations['classifier']:g} of the guide"
    )
    if metrics["nonfinite_gradients"]:
        names = list(metrics["nonfinite_gradients_of"])
        listed = ", ".join(names[:NAMED]) + (f", … ({len(names)} images)" if len(names) > NAMED else "")
        console.print(f"{metrics['nonfinite_gradients']} gradients were not finite and were dropped: {escape(listed)}")
    for warning in summary.warnings:
        console.print(f"[yellow]{warning}[/yellow]")
    if summary.lost:
        console.print(f"[red]not finite and not written: {escape(', '.join(summary.lost))}[/red]", soft_wrap=True)
    console.print(escape(_closing(summary, out)), soft_wrap=True)


def _closing(summary: Summary, out: Path) -> str:
    """Returns the last line: where the images are, if any survived."""
    if summary.metrics["images"] == len(summary.lost):
        return f"no image survived; the record of the run is in {out}"
    return f"none of the images in {out} is worth a look" if summary.nothing_survived else f"images in {out}"
