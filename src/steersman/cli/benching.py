"""The table of ``steersman bench``."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from steersman.cli.terminal import progress_bar
from steersman.files import write_json, writing_to
from steersman.lab.run import Run
from steersman.lab.speed.bench import bench

__all__ = ["time_it"]

MIB = 2**20


def time_it(run: Run, *, steps: int, repeats: int, out: Path | None) -> None:
    """Times a batch, prints the table, and writes a JSON file."""
    console = Console()
    with progress_bar(console) as progress:
        task = progress.add_task("pairs", total=repeats)
        figures, run = bench(run, steps=steps, repeats=repeats, on_pair=lambda: progress.advance(task))
    table = Table("", "seconds", "peak memory", box=None, pad_edge=False)
    table.add_row("floor", f"{figures['floor']:.3f}", f"{figures['peak_floor'] / MIB:.1f} MiB")
    table.add_row("ours", f"{figures['ours']:.3f}", f"{figures['peak'] / MIB:.1f} MiB")
    console.print(table)
    spread = f"{figures['least']:.3f} to {figures['most']:.3f} in {repeats}"
    spread += f"; {figures['ratio_cpu']:.3f} of processor seconds"
    console.print(f"ratio {figures['ratio']:.3f} ({spread})", highlight=False)
    console.print(f"{figures['steps']} steps of {figures['images']} images", highlight=False)
    needed = " and ".join(f"{count:g} evaluations of the {name}" for name, count in figures["evaluations"].items())
    console.print(f"an image needs {needed}", highlight=False)
    console.print(f"{figures['images_per_second']:.3g} images a second at {steps} steps", highlight=False)
    for part in ("denoiser", "classifier"):
        console.print(f"{part}: {run.placement(part)}", highlight=False, soft_wrap=True)
    if out is not None:
        with writing_to(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            write_json(out, figures)
