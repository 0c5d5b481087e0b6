"""``steersman reproduce``: the papers' own runs: what they need, and our figures beside the published ones."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from steersman.cli import options
from steersman.cli.options import argument, option
from steersman.cli.root import Terminal, require_lab
from steersman.errors import InputError

if TYPE_CHECKING:
    from steersman.lab.reproduce import Work

__all__ = ["reproduce"]


@options.grouped
def reproduce(
    *,
    name: Annotated[
        str | None, argument("Name, name/variant or file; without it, all reproductions are listed.")
    ] = None,
    models: Annotated[Path, option("Folder with the published models.")] = Path("models"),
    data: Annotated[Path, option("Folder with reference images and statistics.")] = Path("data"),
    num: Annotated[int | None, option("Total number of images; by default the paper's.")] = None,
    steps: options.Steps = None,
    no_guidance: Annotated[bool, option("Reproduce the paper's unguided images.", "--no-guidance")] = False,
    batch_size: Annotated[int | None, option("Batch size; by default 4 on a CPU, else as listed.")] = None,
    device: options.Device = "cpu",
    resamples: options.Resamples = 200,
    run: Annotated[
        bool | None,
        option(
            "--run fails if a file is missing, --no-run only lists what is needed; by default the images are "
            "drawn if no file is missing.",
            "--run/--no-run",
        ),
    ] = None,
    trust: options.Trust = None,
    out: Annotated[Path | None, option("Output folder, where a run continues; by default outputs/NAME.")] = None,
) -> None:
    """Reproduce a paper's images and figures: list the files that it needs and, if all are there, draw and measure.

    Example: steersman reproduce elucd-imagenet128/resnet101 --models weights --data sets --device cuda
    """
    require_lab("reproduce")
    from steersman.lab.report.tables import as_text
    from steersman.lab.reproduce import Work, load_reproduction
    from steersman.lab.stop import Stop

    if name is None:
        return _print_all()
    options.at_least(2, num=num)
    options.at_least(1, batch_size=batch_size)
    options.at_least(0, resamples=resamples)
    wanted = load_reproduction(name, trusted=tuple(trust or ()))
    guided = not no_guidance
    if ("guided" if guided else "unguided") not in wanted.published:
        raise InputError(f"no-guidance must not be given for {wanted.name}, which has no unguided images")
    work = Work(
        wanted=wanted,
        rooms={"models": models, "data": data},
        out=out or Path("outputs", wanted.name.replace("/", "-") + ("" if guided else "-unguided")),
        num=num or wanted.num,
        steps=steps,
        guided=guided,
        batch_size=batch_size,
        device=device,
        resamples=resamples,
    )
    terminal = Terminal()
    terminal.print(f"{wanted.name}: {wanted.title} ({wanted.paper}; {wanted.table})", style="bold")
    if wanted.notes:
        terminal.print(wanted.notes.strip())
    _print_needs(terminal, work)
    if work.missing and run:
        missing = ", ".join(str(work.paths[name]) for name in work.missing)
        raise InputError(f"reproduce: {wanted.name} lacks {missing}; add what is missing, or leave out --run")
    if work.missing or run is False:
        return
    with terminal.progress() as progress:
        drawing = progress.add_task("images", total=work.num)
        lost = work.draw(on_images=lambda count: progress.advance(drawing, count), stop=Stop())
        measuring = progress.add_task("measuring", total=None)
        figures = work.measure(on_images=lambda count: progress.advance(measuring, count))
    rows = []
    for figure, value in work.published.items():
        rows.append((figure, as_text(figure, figures.get(figure)), as_text(figure, value)))
    terminal.table(("figure", f"ours, {work.num:,} images", f"{wanted.table}, {wanted.num:,}"), rows)
    terminal.print(f"images and figures in {work.out}")
    terminal.lost(lost)
    if lost:
        raise typer.Exit(1)


def _print_all() -> None:
    """Lists the bundled reproductions."""
    from steersman.lab.reproduce import load_reproduction, reproduction_names

    rows = []
    for wanted in map(load_reproduction, reproduction_names()):
        fid = wanted.published.get("guided", {}).get("fid")
        source = f"{wanted.paper.split(',')[0]}, {wanted.table}"
        rows.append((wanted.name, wanted.title, source, f"{wanted.num:,}", "–" if fid is None else f"{fid:g}"))
    Terminal().table(("reproduction", "what it is", "of", "images", "FID"), rows, texts=3)


def _print_needs(terminal: Terminal, work: "Work") -> None:
    """Prints the files, memory and time that a reproduction needs, and how to get what is missing."""
    from steersman.lab.reproduce.reproduction import CARD, RATE

    files, missing = work.wanted.files(), work.missing
    states = {True: Text("missing", style="red"), False: "there"}
    rows = [(str(path), states[name in missing], f"{files[name].gigabytes:g}") for name, path in work.paths.items()]
    terminal.table(("file", "", "GB"), rows, texts=2)
    size = sum(file.gigabytes for file in files.values())
    terminal.print(
        f"GPU memory, estimated: {work.memory:.1f} GiB in float32 for batches of {work.on_a_gpu}\n"
        f"time, estimated: {work.hours:.3g} hours on {CARD} at {RATE:.0f} TFLOP a second, for {work.num:,} images of "
        f"{work.sampled} steps with {work.tflop:.3g} TFLOP each\n"
        f"disk: at most {work.disk:.2g} GB for the images, {size:.2g} GB for the files"
    )
    if missing:
        terminal.print("missing:")
    for name in missing:
        get, path = files[name].get, work.paths[name]
        curl = f"curl --create-dirs -Lo {shlex.quote(str(path))} {get}"
        terminal.print(f"  {curl if get.startswith('https://') else get.format(path=path)}")
