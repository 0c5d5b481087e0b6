"""A sweep on the terminal: a progress bar over its cells, and a table at the end."""

from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from steersman.cli.terminal import progress_bar
from steersman.lab.report.tables import with_interval
from steersman.lab.stop import Stop
from steersman.lab.sweep import Cell, Row, Sweep, Sweeping
from steersman.lab.sweep.table import FRONTS, fronts, points

__all__ = ["carry_out"]


def carry_out(sweep: Sweep, out: Path, *, pareto: bool = False) -> None:
    """Does a sweep with a progress bar, and prints its table."""
    console = Console()
    with console.status("loading the networks"):
        sweeping = Sweeping(sweep, out)
    missing = sweeping.missing()
    with progress_bar(console) as progress:
        drawing = progress.add_task("", total=sum(map(sweeping.count, missing)))
        sweeping.draw(
            on_images=lambda count: progress.advance(drawing, count),
            on_cell=lambda cell: progress.update(drawing, description=escape(cell.name)),
            stop=Stop(),
        )
        measuring = progress.add_task("measuring", total=len(sweeping.cells))
        rows = sweeping.compare(pareto=pareto, on_cell=lambda _: progress.advance(measuring))
    _print(console, sweeping.cells, rows)
    if pareto:
        for figure, names in fronts(rows).items():
            console.print(f"by {figure}, no other is as good for less: {escape('; '.join(names))}", soft_wrap=True)
    lost = [f"{row.name}: {each}" for row in rows for each in row.lost]
    if broken := [f"{row.name}: {len(row.broken)}" for row in rows if row.broken]:
        console.print(f"[yellow]burnt images or noise: {escape('; '.join(broken))}[/yellow]", soft_wrap=True)
    if lost:
        console.print(f"[red]not finite and not written: {escape('; '.join(lost))}[/red]", soft_wrap=True)
    drawn = f"{len(missing)} of {len(rows)} cells drawn, " if len(missing) < len(rows) else ""
    console.print(f"{drawn}tables and plots in {escape(str(out))}", soft_wrap=True)
    if lost:
        raise typer.Exit(1)


def _print(console: Console, cells: list[Cell], rows: list[Row]) -> None:
    figures = [name for name in FRONTS if points(rows, name)]
    table = Table(*map(escape, cells[0].values), box=None, pad_edge=False)
    for name in (*figures, "evaluations", "seconds"):
        table.add_column(name, justify="right")
    for row in rows:
        shown = [with_interval(name, row.figures[name].value, None, None) for name in figures]
        cells_of_row = [*map(escape, row.values.values()), *map(escape, shown), f"{row.cost:g}", f"{row.seconds:.1f}"]
        table.add_row(*cells_of_row)
    console.print(table)
