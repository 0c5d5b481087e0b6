"""A tune on the terminal: a progress bar over its trials, and the front at the end."""

from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from steersman.cli.terminal import progress_bar
from steersman.errors import InputError
from steersman.files import writing_to
from steersman.lab.report.tables import with_interval
from steersman.lab.stop import Stop
from steersman.lab.tune import Bounds, Trial, Tune, Tuning, choose
from steersman.lab.tune.search import Proposal
from steersman.lab.tune.trials import write_plots, write_recipe, write_table

__all__ = ["carry_out"]


def carry_out(tune: Tune, out: Path, *, trials: int, bounds: Bounds) -> None:
    """Does a tune with a progress bar, prints its front, and writes the recipe that is chosen."""
    console = Console()
    with console.status("loading the networks"):
        tuning = Tuning(tune, out, bounds)
    with tuning.begun():
        found = _drawn(console, tuning, trials)
        front = tuning.search.front()
        console.print(_table([trial for trial in found if trial.number in front]))
        with writing_to(out):
            write_table(out / "tune.csv", found, front)
            write_plots(out, found)
            refused = len(found) - len(tuning.drawn)
            said = f"{len(tuning.drawn)} trials" + (f", {refused} refused" if refused else "")
            console.print(f"{said}; table and plots in {out}", markup=False, soft_wrap=True)
            try:
                chosen = choose(found, bounds)
            except InputError as error:
                console.print(f"no recipe is written: {error}", markup=False, soft_wrap=True)
                raise typer.Exit(1) from None
            write_recipe(out / "recipe.yaml", chosen, tuning.sweep.run(chosen.settings), tune.reference)
    console.print(f"taken: {_line(chosen)}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"steersman sample --recipe {out / 'recipe.yaml'} …", markup=False, highlight=False, soft_wrap=True)


def _drawn(console: Console, tuning: Tuning, trials: int) -> list[Trial]:
    """Returns all trials, each of which is printed when it is finished."""
    before = len(tuning.drawn)
    with progress_bar(console) as progress:
        whole = progress.add_task("trials", total=max(trials, before), completed=before)
        drawing = progress.add_task("", total=None, visible=False)

        def begin(proposal: Proposal, count: int) -> None:
            progress.reset(drawing, total=count, description=f"trial {proposal.number}", visible=True)

        def end(trial: Trial) -> None:
            progress.update(whole, completed=len(tuning.drawn))
            console.print(_line(trial), markup=False, highlight=False, soft_wrap=True)

        return tuning.work(
            trials,
            on_run=begin,
            on_images=lambda count: progress.advance(drawing, count),
            on_trial=end,
            stop=Stop(),
        )


def _line(trial: Trial) -> str:
    """Returns a trial in a line."""
    if trial.reason is not None:
        return f"trial {trial.number} refused. {trial.reason}"
    accuracy, distance, cost = _figures(trial)
    return f"trial {trial.number}: judge {accuracy}, distance {distance}, cost {cost}; {trial.line}"


def _table(trials: list[Trial]) -> Table:
    table = Table("trial", box=None, pad_edge=False, title="no other is better in all three", title_justify="left")
    for name in ("judge", "distance", "cost"):
        table.add_column(name, justify="right")
    table.add_column("settings")
    for trial in sorted(trials, key=lambda trial: trial.cost or 0.0):
        table.add_row(str(trial.number), *_figures(trial), escape(trial.line))
    return table


def _figures(trial: Trial) -> tuple[str, str, str]:
    accuracy = with_interval("accuracy/judge", trial.accuracy.value, None, None)
    distance = with_interval("cfid", trial.distance.value, None, None)
    return accuracy, distance, f"{trial.cost:g}"
