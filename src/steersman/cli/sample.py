"""``steersman sample``: draw images, steered; a live progress bar, and a short table at the end."""

import shlex
from dataclasses import replace
from itertools import count, islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steersman.cli import options
from steersman.cli.options import option
from steersman.cli.root import Terminal
from steersman.errors import InputError, require
from steersman.lab.choices import FORMATS

if TYPE_CHECKING:
    from steersman.lab.generate import Share, Summary, Unfinished
    from steersman.lab.run import Run
    from steersman.lab.stop import Stop

__all__ = ["sample"]

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


@options.grouped
def sample(
    *,
    context: options.Context,
    targets: options.Targets,
    out: Annotated[Path | None, option("Output folder; by default outputs/TARGET.")] = None,
    overwrite: Annotated[bool, option("Replace the run in the output folder.", "--overwrite")] = False,
    models: options.Models,
    judge: options.Judge = "zoo:sportballs-judge",
    recipe: options.Recipe = "default",
    changes: options.Changes,
    conditioning: options.Conditioning,
    no_guidance: options.NoGuidance = False,
    execution: options.Execution,
    format: Annotated[str, option("png, npz or webdataset.", known=lambda: FORMATS)] = "png",
    gif: Annotated[bool, option("Also write GIFs of the images and gradients.", "--gif")] = False,
    from_: Annotated[
        Path | None, option("Continue a run; with --out, repeat it.", "--from", metavar="RUN.YAML")
    ] = None,
    trust: options.Trust = None,
    status: Annotated[Path | None, option("Only print the progress of the run in DIR.", metavar="DIR")] = None,
) -> None:
    """Draw images steered by a classifier; the same command again finishes an interrupted run.

    Example: steersman sample --target baseball --num 16 --out balls
    """
    if status is not None:
        _alone(context, "status", "which draws nothing", ())
        return _print_status(status)
    settings = {}
    if from_ is not None:
        _alone(context, "from", "whose file holds all settings", ("out", "overwrite", "gif", "trust"))
    elif trust and not recipe.endswith((".yaml", ".yml")):
        raise InputError(
            "trust must be given with --from or a --recipe of one's own, whose file may name code; code given by "
            "an option is trusted"
        )
    else:
        settings = options.run_settings(
            targets, models, conditioning, execution, judge=judge, guided=not no_guidance, format=format
        )
    from steersman.lab.generate import Share
    from steersman.lab.run import Run, read_run
    from steersman.recipes import load_recipe

    share = Share.from_environment()
    if from_ is not None:
        run = read_run(from_, trusted=trust or ())
        run = replace(run, device=share.device(run.device))
        out = out or from_.parent
    else:
        settings["device"] = share.device(execution.device)
        run = Run(**settings, recipe=load_recipe(recipe, changes.listed(), trusted=trust or ()))
    _draw(run, out or _default_folder(run, overwrite=overwrite), share=share, gif=gif, overwrite=overwrite)


def _alone(context: options.Context, option: str, why: str, others: tuple[str, ...]) -> None:
    """Refuses options that were given beside one that leaves them nothing to say."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        given = parameter.opts[0].removeprefix("--")
        if source is None or source.name != "COMMANDLINE" or given in (option, *others):
            continue
        instead = f"beside it give only --{' or --'.join(others)}" if others else f"give --{option} alone"
        raise InputError(f"--{given} must not be given with --{option}, {why}; {instead}")


def _default_folder(run: "Run", *, overwrite: bool) -> Path:
    """Returns ``outputs/TARGET``, numbered where that folder holds another run."""
    from steersman.files import file_name

    name = file_name("-".join(run.targets or run.blend)).replace(" ", "-")
    folders = (Path("outputs", name if number == 1 else f"{name}-{number}") for number in count(1))
    return next(out for out in folders if overwrite or not _holds_another(out, run))


def _holds_another(out: Path, run: "Run") -> bool:
    from steersman.lab.placement import recorded_placement
    from steersman.lab.run import differences

    try:
        return differences(out, recorded_placement(run, out), grows=True) != ""
    except InputError:  # a file that cannot be read
        return True


def _draw(run: "Run", out: Path, *, share: "Share", gif: bool, overwrite: bool) -> None:
    """Draws a run, or what is left of it, with a progress bar, and prints its table."""
    from steersman.lab.generate import Unfinished, generate, open_session
    from steersman.lab.placement import recorded_placement
    from steersman.lab.report import Frames
    from steersman.lab.stop import Stop

    if gif:
        require("lab", "matplotlib", what="--gif")
    terminal = Terminal(quiet=not share.first)
    with terminal.status("loading the networks"):
        session = open_session(run if overwrite else recorded_placement(run, out, wait=not share.first))
    for part in session.run.placed:
        terminal.print(f"{part}: {session.run.placement(part)}")
    # Of several processes, the first draws the first images.
    frames = Frames(count=ANIMATED, decode=session.denoiser.decode) if gif and share.first else None
    with terminal.progress() as progress, Stop(launched=share.count > 1, quiet=not share.first) as stop:
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
        terminal.print(_unfinished(summary, session.run, out, stop, share))
        raise typer.Exit(stop.code or (1 if summary.gone or share.count == 1 else 0))
    if frames is not None and frames.images:
        jobs = product((target.name for target in session.targets), range(session.run.num))
        rows = [f"{name}, seed {session.run.seed + number}" for name, number in islice(jobs, ANIMATED)]
        frames.write(out / "animation.gif", rows=rows)
    elif frames is not None:
        terminal.print("no animation: the first images were there before")
    _print_summary(terminal, summary, [target.name for target in session.targets], out)
    if summary.lost or summary.nothing_survived:
        raise typer.Exit(1)


def _unfinished(found: "Unfinished", run: "Run", out: Path, stop: "Stop", share: "Share") -> str:
    """Returns how many images there are, why not all, and how to go on."""
    from steersman.trust import code_in

    words = ["steersman", "sample", "--from", str(out / "run.yaml")]
    words += [word for spec in dict.fromkeys(code_in(run.settings())) for word in ("--trust", spec)]
    how = f"the same command goes on, or: {shlex.join(words)}"
    there = f"{found.done} of {found.total} images are there"
    if stop:
        return f"{there}; {how}"
    if found.gone or share.count == 1:
        return f"{there}, others went away while they were drawn; {how}"
    return f"{there}, the others are other processes'; to see how far they are: steersman sample --status {out}"


def _print_status(out: Path) -> None:
    """Prints how far the run in a folder is."""
    from steersman.lab.generate import status

    terminal, found = Terminal(), status(out)
    rows = [(name, found.done[name], found.lost[name], found.missing(name)) for name in found.done]
    if len(rows) > 1:
        rows.append(("all", *(sum(row[column] for row in rows) for column in (1, 2, 3))))
    terminal.table(("target", "done", "lost", "missing"), [list(map(str, row)) for row in rows])
    processes = f"{found.processes} process{'es' if found.processes > 1 else ''} drawing"
    terminal.print(processes if found.processes else "not running")


def _print_summary(terminal: Terminal, summary: "Summary", targets: list[str], out: Path) -> None:
    metrics = summary.metrics
    shown = [(figure, network) for figure, network in COLUMNS if metrics[figure][network] is not None]
    rows = []
    for name, figures in metrics.get("targets", {targets[0]: metrics}).items():
        cells = [(figures[figure][network], COLUMNS[figure, network][1]) for figure, network in shown]
        rows.append([name, *("–" if cell is None else f"{cell:{form}}" for cell, form in cells)])
    terminal.table(["target", *(COLUMNS[column][0] for column in shown)], rows)
    evaluations = metrics["network_evaluations"]
    terminal.print(
        f"{metrics['seconds']:.1f} s, {metrics['images_per_second']:.2f} images/s; an image took "
        f"{evaluations['denoiser']:g} evaluations of the denoiser and {evaluations['classifier']:g} of the guide"
    )
    if metrics["nonfinite_gradients"]:
        names = list(metrics["nonfinite_gradients_of"])
        listed = ", ".join(names[:NAMED]) + (f", … ({len(names)} images)" if len(names) > NAMED else "")
        terminal.print(f"{metrics['nonfinite_gradients']} gradients were not finite and were dropped: {listed}")
    for warning in summary.warnings:
        terminal.print(warning, style="yellow")
    terminal.lost(summary.lost)
    if metrics["images"] == len(summary.lost):
        terminal.print(f"no image survived; the record of the run is in {out}")
    elif summary.nothing_survived:
        terminal.print(f"none of the images in {out} is worth a look")
    else:
        terminal.print(f"images in {out}")
