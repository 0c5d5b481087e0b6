"""A reproduction on the terminal: what there is, what it needs, and our figures beside the published ones."""

import shlex
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from steersman.cli.terminal import progress_bar
from steersman.errors import InputError
from steersman.lab.metrics.intervals import Figure
from steersman.lab.report.tables import with_interval
from steersman.lab.reproduce import Needs, Reproduction, Work, load_reproduction, needs, reproduction_names
from steersman.lab.reproduce.schema import CARD, RATE
from steersman.lab.run import check_device
from steersman.lab.stop import Stop

__all__ = ["Asked", "carry_out", "list_all"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The options of ``steersman reproduce``, by their names; ``rooms`` are its folders."""

    name: str
    rooms: dict[str, Path]
    num: int | None
    steps: int | None
    guided: bool
    batch_size: int | None
    device: str
    resamples: int
    run: bool | None
    trusted: tuple[str, ...]
    out: Path | None

    def __post_init__(self) -> None:
        for name, given, least in (
            ("num", self.num, 2),
            ("batch-size", self.batch_size, 1),
            ("resamples", self.resamples, 0),
        ):
            if given is not None and given < least:
                raise InputError(f"{name} must be at least {least}, got {given}")


def list_all() -> None:
    """Lists the bundled reproductions."""
    table = Table("reproduction", "what it is", "of", "images", "FID", box=None, pad_edge=False)
    for name in reproduction_names():
        each = load_reproduction(name)
        fid = each.published.get("guided", {}).get("fid")
        of = f"{each.paper.split(',')[0]}, {each.table}"
        table.add_row(name, each.title, of, f"{each.num:,}", "–" if fid is None else f"{fid:g}")
    Console().print(table)


def carry_out(asked: Asked) -> None:
    """Tells what a reproduction needs, and does it where all is there."""
    console = Console(highlight=False, soft_wrap=True)
    check_device(asked.device)
    wanted = load_reproduction(asked.name, trusted=asked.trusted)
    side = "guided" if asked.guided else "unguided"
    if side not in wanted.published:
        raise InputError(f"no-guidance must not be given for {wanted.name}, which has no unguided images")
    num = asked.num or wanted.num
    batch_size = asked.batch_size or wanted.batch_size
    found = needs(wanted, asked.rooms, num=num, batch_size=batch_size, steps=asked.steps, guided=asked.guided)
    _tell(console, wanted, found, num, batch_size)
    if found.missing:
        _tell_missing(console, found)
        if asked.run:
            listed = ", ".join(str(found.paths[name]) for name in found.missing)
            raise InputError(f"reproduce: {wanted.name} lacks {listed}; add what is missing, or leave out --run")
    if found.missing or asked.run is False:
        return
    work = Work(
        wanted=wanted,
        paths=found.paths,
        out=asked.out or Path("outputs", wanted.name.replace("/", "-") + ("" if asked.guided else "-unguided")),
        num=num,
        steps=asked.steps,
        guided=asked.guided,
        batch_size=asked.batch_size or (None if asked.device == "cpu" else wanted.batch_size),
        device=asked.device,
        resamples=asked.resamples,
    )
    with progress_bar(console) as progress:
        drawing = progress.add_task("images", total=num)
        lost = work.draw(on_images=lambda count: progress.advance(drawing, count), stop=Stop())
        measuring = progress.add_task("measuring", total=None)
        figures = work.measure(on_images=lambda count: progress.advance(measuring, count))
    _compare(console, wanted, figures, wanted.published[side], num)
    console.print(f"images and figures in {escape(str(work.out))}")
    if lost:
        console.print(f"[red]not finite and not written: {escape(', '.join(lost))}[/red]")
        raise typer.Exit(1)


def _tell(console: Console, wanted: Reproduction, found: Needs, num: int, batch_size: int) -> None:
    console.print(
        f"[bold]{wanted.name}[/bold]: {escape(wanted.title)} ({escape(wanted.paper)}; {escape(wanted.table)})"
    )
    if wanted.notes:
        console.print(wanted.notes.strip(), markup=False)
    table = Table("file", "GB", "", box=None, pad_edge=False)
    for name, path in found.paths.items():
        there = "[red]missing[/red]" if name in found.missing else "there"
        table.add_row(escape(str(path)), f"{found.files[name].gigabytes:g}", there)
    console.print(table)
    files = sum(file.gigabytes for file in found.files.values())
    console.print(
        f"GPU memory, counted: {found.memory:.1f} GiB in float32 at batches of {batch_size}\n"
        f"time, computed: {found.hours:.3g} hours of {CARD} for {num:,} images of {found.steps} steps, "
        f"{found.tflop:.3g} TFLOP each, at {RATE:.0f} TFLOP a second, an assumption\n"
        f"disk: {found.disk:.2g} GB of images at most, {files:.2g} GB of files"
    )


def _tell_missing(console: Console, found: Needs) -> None:
    console.print("missing:")
    for name in found.missing:
        get, path = found.files[name].get, found.paths[name]
        how = (
            f"curl --create-dirs -Lo {shlex.quote(str(path))} {get}"
            if get.startswith("https://")
            else get.format(path=path)
        )
        console.print(f"  {how}", markup=False)


def _compare(
    console: Console, wanted: Reproduction, found: dict[str, Figure], published: dict[str, float | None], num: int
) -> None:
    table = Table("figure", f"ours, {num:,} images", f"{wanted.table}, {wanted.num:,}", box=None, pad_edge=False)
    for name, value in published.items():
        ours = found.get(name, Figure())
        table.add_row(
            name, escape(with_interval(name, ours.value, ours.low, ours.high)), with_interval(name, value, None, None)
        )
    console.print(table)
