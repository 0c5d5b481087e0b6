"""``steersman sweep``: the same images under varied settings, compared."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steersman.cli import options
from steersman.cli.options import argument, option
from steersman.cli.root import Terminal, require_lab
from steersman.errors import InputError
from steersman.names import recipe_file, recipe_names

if TYPE_CHECKING:
    from steersman.lab.sweep import Row

__all__ = ["sweep"]


@options.grouped
def sweep(
    *,
    vary: Annotated[
        list[str] | None,
        option(
            "Setting to vary, and its values: a setting of the recipe, recipe, classifier, denoiser, label, "
            "cfg-scale, guidance, or case for several settings under one name ('case={name: NAME, SETTING: "
            "VALUE}, …'). A scale such as 2x is a multiple of the recipe's own. Put a value that contains commas in "
            "brackets or quotes. Repeat for all combinations.",
            metavar="AXIS.OPTION=A,B,C",
        ),
    ] = None,
    reference: Annotated[str, option("Reference images, in the forms that evaluate takes.")],
    out: Annotated[Path, option("Output folder; finished combinations there are kept.")],
    recipe: Annotated[
        list[str] | None,
        argument("Recipes to compare: name, name/variant or YAML file.", check=recipe_file, known=recipe_names),
    ] = None,
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

    The same seeds without guidance are drawn too.

    Example: steersman sweep nrcg dps --vary scale=0.5x,1x,2x --target baseball --reference sportballs --out scales
    """
    require_lab("sweep")
    settings = options.run_settings(targets, models, conditioning, execution, judge=judge)
    from steersman.lab.metrics.evaluate import FIGURES
    from steersman.lab.report.tables import few_images
    from steersman.lab.stop import Stop
    from steersman.lab.sweep import Sweep, Sweeping, varied
    from steersman.lab.sweep.cells import RECIPE
    from steersman.lab.sweep.sweeping import fronts

    terminal, recipes = Terminal(), recipe or ["default"]
    values = varied(vary or ()) if vary or len(recipes) == 1 else {}
    if len(recipes) > 1 and RECIPE in values:
        raise InputError(f"recipe must be given once, as arguments or by --vary, got {', '.join(recipes)} and --vary")
    chosen = Sweep(
        recipe=recipes[0],
        changes=changes.listed(),
        settings=settings,
        varied={RECIPE: recipes, **values} if len(recipes) > 1 else values,
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
    _print_rows(terminal, rows, sweeping.measure.extractor.name)
    for warning in few_images(sweeping.cells[0].run.num):
        terminal.print(warning, style="yellow")
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


def _print_rows(terminal: Terminal, rows: "list[Row]", features: str) -> None:
    from steersman.lab.report.tables import as_text, title
    from steersman.lab.sweep.sweeping import FRONTS, points

    figures = [name for name in FRONTS if points(rows, name)]
    varied = list(rows[0].values)
    lines = [
        [
            *row.shown.values(),
            *(as_text(name, row.figures[name], "\n") for name in figures),
            f"{row.cost:g}",
            f"{row.seconds:.1f}",
        ]
        for row in rows
    ]
    titles = [title(name, features).replace(" (", "\n(") for name in figures]
    terminal.table([*varied, *titles, "evaluations", "seconds"], lines, texts=len(varied))
