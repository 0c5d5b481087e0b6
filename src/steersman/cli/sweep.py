"""``steersman sweep``: the same images under varied settings, compared."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steersman.cli import options
from steersman.cli.options import option
from steersman.cli.root import Terminal, require_lab

if TYPE_CHECKING:
    from steersman.lab.sweep import Row

__all__ = ["sweep"]


@options.grouped
def sweep(
    *,
    vary: Annotated[
        list[str],
        option(
            "Setting to vary, and its values: a setting of the recipe, recipe, classifier, denoiser, label, "
            "cfg-scale, guidance, or case for several settings under one name ('case={name: NAME, SETTING: "
            "VALUE}, …'). Put a value that contains commas in brackets or quotes. Repeat for all combinations.",
            metavar="AXIS.OPTION=A,B,C",
        ),
    ],
    reference: Annotated[str, option("Reference images, in the forms that evaluate takes.")],
    out: Annotated[Path, option("Output folder; finished combinations there are kept.")],
    recipe: options.RecipeName = "default",
    targets: options.Targets,
    features: options.Features = "zoo:sportballs-judge",
    figures: options.Figures = None,
    resamples: options.Resamples = 200,
    pareto: Annotated[bool, option("Show the cells that no other beats in both quality and cost.", "--pareto")] = False,
    models: options.Models,
    judge: options.Judge = "zoo:sportballs-judge",
    changes: options.Changes,
    conditioning: options.Conditioning,
    execution: options.Execution,
) -> None:
    """Draw the same seeds with all combinations of settings, and compare quality and cost in tables and plots.

    Example: steersman sweep nrcg --vary scale=5,15,45 --target baseball --reference sportballs --out scales
    """
    require_lab("sweep")
    settings = options.run_settings(targets, models, conditioning, execution, judge=judge)
    from steersman.lab.metrics.evaluate import FIGURES
    from steersman.lab.stop import Stop
    from steersman.lab.sweep import Sweep, Sweeping, varied
    from steersman.lab.sweep.sweeping import fronts

    terminal = Terminal()
    chosen = Sweep(
        recipe=recipe,
        changes=changes.listed(),
        settings=settings,
        varied=varied(vary),
        reference=reference,
        features=features,
        figures=options.listed(figures) or FIGURES,
        resamples=resamples,
    )
    with terminal.status("loading the networks"):
        sweeping = Sweeping(chosen, out)
    missing = sweeping.missing()
    with terminal.progress() as progress:
        drawing = progress.add_task("", total=sum(map(sweeping.count, missing)))
        sweeping.draw(
            on_images=lambda count: progress.advance(drawing, count),
            on_cell=lambda cell: progress.update(drawing, description=cell.name),
            stop=Stop(),
        )
        measuring = progress.add_task("measuring", total=len(sweeping.cells))
        rows = sweeping.compare(pareto=pareto, on_cell=lambda _: progress.advance(measuring))
    _print_rows(terminal, rows)
    if pareto:
        for figure, names in fronts(rows).items():
            terminal.print(f"best for their cost by {figure}: {'; '.join(names)}")
    if broken := [f"{row.name}: {len(row.broken)}" for row in rows if row.broken]:
        terminal.print(f"images that are burnt or noise: {'; '.join(broken)}", style="yellow")
    lost = [f"{row.name}: {name}" for row in rows for name in row.lost]
    terminal.lost(lost)
    drawn = f"{len(missing)} of {len(rows)} cells drawn, " if len(missing) < len(rows) else ""
    terminal.print(f"{drawn}tables and plots in {out}")
    if lost:
        raise typer.Exit(1)


def _print_rows(terminal: Terminal, rows: "list[Row]") -> None:
    from steersman.lab.report.tables import as_text
    from steersman.lab.sweep.sweeping import FRONTS, points

    figures = [name for name in FRONTS if points(rows, name)]
    varied = list(rows[0].values)
    lines = [
        [
            *row.values.values(),
            *(as_text(name, row.figures[name].value) for name in figures),
            f"{row.cost:g}",
            f"{row.seconds:.1f}",
        ]
        for row in rows
    ]
    terminal.table([*varied, *figures, "evaluations", "seconds"], lines, texts=len(varied))
