"""``steersman bench``: what a batch costs beside its networks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from steersman.cli import options
from steersman.cli.options import option
from steersman.cli.root import Terminal

__all__ = ["bench"]

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class _Execution(options.Execution):
    batch_size: Annotated[int, option("Number of images in the batch.")] = 16


@options.grouped
def bench(
    *,
    target: Annotated[str, option("Class name or index.")] = "0",
    models: options.Models,
    recipe: options.Recipe = "default",
    set_: options.Set = None,
    conditioning: options.Conditioning,
    no_guidance: options.NoGuidance = False,
    steps: Annotated[int, option("Number of sampling steps to time.")] = 8,
    repeats: Annotated[int, option("Number of timed repeats, each next to the network calls alone.")] = 5,
    execution: _Execution,
    out: Annotated[Path | None, option("Output file (JSON).")] = None,
) -> None:
    """Time a guided batch, and compare it with the time of its network calls alone.

    Example: steersman bench --recipe nrcg --classifier zoo:sportballs-mobilenet
    """
    options.at_least(1, steps=steps, repeats=repeats)
    settings = options.run_settings(models, conditioning, execution, targets=[target], judge="none")
    from steersman.files import write_json, writing_to
    from steersman.lab.bench import bench
    from steersman.lab.run import Run
    from steersman.recipes import load_recipe

    settings |= {"num": execution.batch_size, "guided": not no_guidance}
    whole = load_recipe(recipe, set_ or ())
    run = Run(**settings, recipe=load_recipe(recipe, options.Changes(set_=set_, steps=steps).listed()))
    terminal = Terminal()
    with terminal.progress() as progress:
        task = progress.add_task("pairs", total=repeats)
        figures, run = bench(
            run, steps=whole.sampling()["steps"], repeats=repeats, on_pair=lambda: progress.advance(task)
        )
    rows = [(name, figures[name], figures[peak] / MIB) for name, peak in (("floor", "peak_floor"), ("ours", "peak"))]
    terminal.table(
        ("", "seconds", "peak memory"), [(name, f"{time:.3f}", f"{peak:.1f} MiB") for name, time, peak in rows]
    )
    terminal.print(
        f"ratio {figures['ratio']:.3f} ({figures['least']:.3f} to {figures['most']:.3f} in {repeats}; "
        f"{figures['ratio_cpu']:.3f} of processor seconds)"
    )
    terminal.print(f"{figures['steps']} steps of {figures['images']} images")
    needed = " and ".join(f"{count:g} evaluations of the {name}" for name, count in figures["evaluations"].items())
    terminal.print(f"an image needs {needed}")
    terminal.print(f"{figures['images_per_second']:.3g} images a second at {whole.sampling()['steps']} steps")
    for part in ("denoiser", "classifier"):
        terminal.print(f"{part}: {run.placement(part)}")
    if out is not None:
        with writing_to(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            write_json(out, figures)
