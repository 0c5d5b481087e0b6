"""``steersman reproduce``: papers' runs and benchmarks: what they need, and our figures beside the published ones."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from steersman.cli import options
from steersman.cli.options import argument, option
from steersman.cli.root import Terminal, require_lab
from steersman.errors import InputError

if TYPE_CHECKING:
    from steersman.lab.reproduce import Benchmarking, Work
    from steersman.lab.reproduce.reproduction import Located

__all__ = ["reproduce"]


@options.grouped
def reproduce(
    *,
    name: Annotated[
        str | None, argument("Name, name/variant or file; without it, all runs and benchmarks are listed.")
    ] = None,
    models: Annotated[Path, option("Folder with the published models.")] = Path("models"),
    data: Annotated[Path, option("Folder with reference images and statistics.")] = Path("data"),
    num: Annotated[
        int | None,
        option("Number of images: of a run in total, of a benchmark for each target; by default the paper's."),
    ] = None,
    methods: Annotated[
        str | None, option("Some methods of a benchmark, separated by commas; the unguided images are always drawn.")
    ] = None,
    searched: Annotated[
        int | None, option("Images of each target and scale with which a benchmark chooses each method's scale.")
    ] = None,
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

    A benchmark, such as tfg-cifar10, compares many methods.

    Example: steersman reproduce elucd-imagenet128/resnet101 --models weights --data sets --device cuda
    """
    require_lab("reproduce")
    from steersman.lab.reproduce import Benchmarking, Work, benchmark_names, load_benchmark, load_reproduction

    if name is None:
        return _print_all()
    options.at_least(2, num=num, searched=searched)
    options.at_least(1, batch_size=batch_size)
    options.at_least(0, resamples=resamples)
    rooms = {"models": models, "data": data}
    out = out or Path("outputs", name.replace("/", "-") + ("-unguided" if no_guidance else ""))
    settings: dict[str, Any] = {"rooms": rooms, "batch_size": batch_size, "device": device, "resamples": resamples}
    if name in benchmark_names():
        if steps is not None or no_guidance:
            raise InputError("steps and no-guidance must not be given for a benchmark, whose methods have their own")
        chosen = options.listed(methods) or ()
        benchmark = Benchmarking(
            wanted=load_benchmark(name), out=out, num=num, searched=searched, methods=chosen, **settings
        )
        if _is_ready(benchmark, run=run):
            _compare(benchmark)
        return
    if methods is not None or searched is not None:
        raise InputError(f"methods and searched are for benchmarks ({', '.join(benchmark_names())}), got {name}")
    wanted = load_reproduction(name, trusted=tuple(trust or ()))
    guided = not no_guidance
    if ("guided" if guided else "unguided") not in wanted.published:
        raise InputError(f"no-guidance must not be given for {wanted.name}, which has no unguided images")
    work = Work(wanted=wanted, out=out, num=num or wanted.num, steps=steps, guided=guided, **settings)
    if _is_ready(work, run=run):
        _draw(work)


def _is_ready(work: "Located", *, run: bool | None) -> bool:
    """Prints what is reproduced and what it needs; returns whether to draw."""
    from steersman.lab.reproduce import Work

    terminal, wanted = Terminal(), work.wanted
    terminal.print(f"{wanted.name}: {wanted.title} ({wanted.paper}; {wanted.table})", style="bold")
    if wanted.notes:
        terminal.print(wanted.notes.strip())
    _print_files(terminal, work)
    if isinstance(work, Work):
        _print_needs(terminal, work)
    _print_missing(terminal, work)
    if work.missing and run:
        missing = ", ".join(str(work.paths[name]) for name in work.missing)
        raise InputError(f"reproduce: {wanted.name} lacks {missing}; add what is missing, or leave out --run")
    return not work.missing and run is not False


def _draw(work: "Work") -> None:
    """Draws and measures a run, and prints its figures beside the published ones."""
    from steersman.lab.report.tables import as_text
    from steersman.lab.stop import Stop

    terminal = Terminal()
    with terminal.progress() as progress:
        drawing = progress.add_task("images", total=work.num)
        lost = work.draw(on_images=lambda count: progress.advance(drawing, count), stop=Stop())
        measuring = progress.add_task("measuring", total=None)
        figures = work.measure(on_images=lambda count: progress.advance(measuring, count))
    rows = []
    for figure, value in work.published.items():
        rows.append((figure, as_text(figure, figures.get(figure)), as_text(figure, value)))
    table = work.wanted.table
    terminal.table(("figure", f"ours, {work.num:,} images", f"{table}, {work.wanted.num:,}"), rows)
    terminal.print(f"images and figures in {work.out}")
    terminal.lost(lost)
    if lost:
        raise typer.Exit(1)


def _compare(benchmark: "Benchmarking") -> None:
    """Runs a benchmark, and prints its tables."""
    from steersman.lab.report.tables import as_text
    from steersman.lab.reproduce.benchmark import SIDES
    from steersman.lab.stop import Stop

    terminal = Terminal()
    with terminal.progress() as progress:
        task = progress.add_task("images", total=None)
        started = replace(
            benchmark,
            on_cell=lambda name, count: progress.reset(task, description=name, total=count),
            on_images=lambda count: progress.advance(task, count),
            stop=Stop(),
        )
        found = started.run()
    for side, rows in found.items():
        lines = [
            (
                row.values["case"],
                *(as_text(figure, row.figures[figure].value) for figure in ("accuracy/judge", "cfid", "diversity")),
                f"{row.cost:g}",
                f"{row.seconds:.0f}",
            )
            for row in rows
        ]
        terminal.table((SIDES[side], "accuracy/judge", "cfid", "diversity", "evaluations", "seconds"), lines)
    terminal.print(f"tables, images and figures in {benchmark.out}")


def _print_all() -> None:
    """Lists the bundled runs and benchmarks."""
    from steersman.lab.reproduce import benchmark_names, load_benchmark, load_reproduction, reproduction_names

    rows = []
    for wanted in map(load_reproduction, reproduction_names()):
        fid = wanted.published.get("guided", {}).get("fid")
        source = f"{wanted.paper.split(',')[0]}, {wanted.table}"
        rows.append((wanted.name, wanted.title, source, f"{wanted.num:,}", "–" if fid is None else f"{fid:g}"))
    for wanted in map(load_benchmark, benchmark_names()):
        source = f"{wanted.paper.split(',')[0]}, {wanted.table}"
        rows.append((wanted.name, wanted.title, source, f"{wanted.num * len(wanted.targets):,} a method", "–"))
    Terminal().table(("name", "what it is", "of", "images", "FID"), rows, texts=3)


def _print_files(terminal: Terminal, work: "Located") -> None:
    """Prints the files that are needed, and whether they are there."""
    files, missing = work.wanted.files(), work.missing
    states = {True: Text("missing", style="red"), False: "there"}
    rows = [(str(path), states[name in missing], f"{files[name].gigabytes:g}") for name, path in work.paths.items()]
    if rows:
        terminal.table(("file", "", "GB"), rows, texts=2)


def _print_needs(terminal: Terminal, work: "Work") -> None:
    """Prints the memory, time and space that a run needs."""
    from steersman.lab.reproduce.reproduction import CARD, RATE

    size = sum(file.gigabytes for file in work.wanted.files().values())
    terminal.print(
        f"GPU memory, estimated: {work.memory:.1f} GiB in float32 for batches of {work.on_a_gpu}\n"
        f"time, estimated: {work.hours:.3g} hours on {CARD} at {RATE:.0f} TFLOP a second, for {work.num:,} images of "
        f"{work.sampled} steps with {work.tflop:.3g} TFLOP each\n"
        f"disk: at most {work.disk:.2g} GB for the images, {size:.2g} GB for the files"
    )


def _print_missing(terminal: Terminal, work: "Located") -> None:
    """Prints how to get the files that are missing."""
    if work.missing:
        terminal.print("missing:")
    files = work.wanted.files()
    for name in work.missing:
        get, path = files[name].get, work.paths[name]
        curl = f"curl --create-dirs -Lo {shlex.quote(str(path))} {get}"
        terminal.print(f"  {curl if get.startswith('https://') else get.format(path=path)}")
