"""A run on the terminal: a live progress bar, and a short table at the end."""

from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from steersman.cli.progress import progress_bar
from steersman.generate import Session, Summary
from steersman.report import Frames
from steersman.run import Run

__all__ = ["carry_out"]

ANIMATED = 4  # images in an animation
COLUMNS = {
    ("accuracy", "guide"): ("guide sees it", ".0%"),
    ("accuracy", "judge"): ("judge sees it", ".0%"),
    ("probability", "guide"): ("guide's probability", ".0%"),
    ("probability", "judge"): ("judge's", ".0%"),
    ("similarity", "guide"): ("guide's similarity", ".3f"),
    ("similarity", "judge"): ("judge's similarity", ".3f"),
}


def carry_out(run: Run, out: Path, *, gif: bool = False) -> None:
    """Does a run with a progress bar, and prints its table.

    Args:
        run: The run.
        out: Its folder.
        gif: Whether to animate the first images.

    Raises:
        typer.Exit: With 1, where an image became non-finite.
    """
    console = Console()
    with console.status("loading the networks"):
        session = Session(run)
    frames = Frames(count=ANIMATED, decode=session.denoiser.decode) if gif else None
    count = run.num * len(session.targets)
    with progress_bar(console) as progress:
        steps = run.recipe.walk()["steps"] * -(-count // run.at_once)
        task = progress.add_task(f"{count} images", total=steps)
        summary = session.generate(out, on_step=lambda: progress.advance(task), callbacks=[frames] if frames else [])
    if frames is not None:
        frames.write(out / "animation.gif")
    _print(console, session, summary, out)
    if summary.lost:
        raise typer.Exit(1)


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
        console.print(f"{metrics['nonfinite_gradients']} gradients were not finite and were dropped")
    for warning in summary.warnings:
        console.print(f"[yellow]{warning}[/yellow]")
    if summary.lost:
        console.print(f"[red]not finite and not written: {escape(', '.join(summary.lost))}[/red]")
    console.print(f"images in {escape(str(out))}", soft_wrap=True)
