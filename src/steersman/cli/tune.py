"""``steersman tune``: the settings that give the most for what they cost, for one's own models."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steersman.cli import options
from steersman.cli.options import argument, option
from steersman.cli.root import Terminal, require_lab
from steersman.errors import InputError
from steersman.names import recipe_file, recipe_names

if TYPE_CHECKING:
    from steersman.lab.tune import Bounds, Trial, Tune, Tuning
    from steersman.lab.tune.search import Proposal

__all__ = ["tune"]

BUNDLED = "zoo:sportballs"


@dataclass(frozen=True, kw_only=True)
class _Targets(options.Targets):
    seed: Annotated[int, option("Seed of the first image in every trial; do not report results on these seeds.")] = 1000


@options.grouped
def tune(
    *,
    out: Annotated[Path, option("Output folder; finished trials there are kept.")],
    recipe: Annotated[
        list[str] | None,
        argument(
            "Recipes to search around, starting from their own settings; by default some that suit most models.",
            check=recipe_file,
            known=recipe_names,
        ),
    ] = None,
    targets: _Targets,
    search: Annotated[
        list[str] | None,
        option(
            "Setting to search, instead of settings near the recipes: a range, or values a,b,c as for sweep "
            "--vary. Repeat for more.",
            metavar="AXIS.OPTION=LOW..HIGH",
        ),
    ] = None,
    trials: Annotated[int, option("Number of trials, including those already in the folder.")] = 50,
    accuracy: Annotated[
        float | None,
        option("Lower limit on the judge's accuracy; by default the lower end of the most accurate trial's interval."),
    ] = None,
    distance: Annotated[float | None, option("Upper limit on cFID.")] = None,
    budget: Annotated[
        float | None,
        option(
            "Upper limit on the cost of an image, in denoiser evaluations; without --distance, the trial within "
            "it that has the lowest cFID is chosen."
        ),
    ] = None,
    reference: Annotated[
        str | None,
        option("Reference images, in the forms that evaluate takes; by default sportballs, for its own denoiser."),
    ] = None,
    features: options.Features = "zoo:sportballs-judge",
    search_seed: Annotated[int, option("Seed of the search algorithm.")] = 0,
    models: options.Models,
    judge: options.Judge = "zoo:sportballs-judge",
    set_: options.Set = None,
    conditioning: options.Conditioning,
    execution: options.Execution,
) -> None:
    """Search for the settings with the best accuracy and cFID for their cost, and write them as a recipe.

    Example: steersman tune freedom --target baseball --classifier zoo:sportballs-mobilenet --out tuned
    """
    require_lab("tune")
    options.at_least(1, trials=trials)
    if search and len(recipe or ()) > 1:
        raise InputError(f"with --search, give one recipe, or several as --search recipe=A,B; got {len(recipe or ())}")
    if reference is None and models.denoiser != BUNDLED:
        raise InputError("reference must be given: images of the targets, in the forms that evaluate takes")
    settings = options.run_settings(targets, models, conditioning, execution, judge=judge)
    from steersman.lab.tune import TRIED, Bounds, Tune, space_of

    chosen = Tune(
        recipes=tuple(recipe or (TRIED[:1] if search else TRIED)),
        changes=tuple(set_ or ()),
        settings=settings,
        space=space_of(search) if search else None,
        reference=reference or "sportballs",
        features=features,
        seed=search_seed,
    )
    carry_out(chosen, out, trials=trials, bounds=Bounds(accuracy=accuracy, distance=distance, budget=budget))


def carry_out(tune: "Tune", out: Path, *, trials: int, bounds: "Bounds") -> None:
    """Does a tune with a progress bar, prints its front, and writes the recipe that is chosen."""
    from steersman.files import writing_to
    from steersman.lab.tune import Tuning, choose
    from steersman.lab.tune.tuning import write_plots, write_recipe, write_table

    terminal = Terminal()
    with terminal.status("loading the networks"):
        tuning = Tuning(tune, out, bounds)
    with tuning.begun():
        found = _draw(terminal, tuning, trials)
        front = tuning.search.front()
        terminal.table(
            ("trial", "settings", "judge", "distance", "cost"),
            [
                (str(trial.number), trial.line, *_figures(trial))
                for trial in sorted(found, key=lambda trial: trial.cost or 0.0)
                if trial.number in front
            ],
            texts=2,
            title="no other is better in all three",
        )
        with writing_to(out):
            write_table(out / "tune.csv", found, front)
            write_plots(out, found)
            refused = len(found) - len(tuning.drawn)
            counts = f"{len(tuning.drawn)} trials" + (f", {refused} refused" if refused else "")
            terminal.print(f"{counts}; table and plots in {out}")
            try:
                chosen = choose(found, bounds)
            except InputError as error:
                terminal.print(f"no recipe is written: {error}")
                raise typer.Exit(1) from None
            write_recipe(out / "recipe.yaml", chosen, tuning.tune.run(chosen.settings), tune.reference)
    terminal.print(f"taken: {_line(chosen)}")
    terminal.print(f"steersman sample --recipe {out / 'recipe.yaml'} …")


def _draw(terminal: Terminal, tuning: "Tuning", trials: int) -> "list[Trial]":
    """Returns all trials, each of which is printed when it is finished."""
    from steersman.lab.stop import Stop

    before = len(tuning.drawn)
    with terminal.progress() as progress:
        finished = progress.add_task("trials", total=max(trials, before), completed=before)
        drawing = progress.add_task("", total=None, visible=False)

        def begin(proposal: "Proposal", count: int) -> None:
            progress.reset(drawing, total=count, description=f"trial {proposal.number}", visible=True)

        def end(trial: "Trial") -> None:
            progress.update(finished, completed=len(tuning.drawn))
            terminal.print(_line(trial))

        return tuning.work(
            trials,
            on_run=begin,
            on_images=lambda count: progress.advance(drawing, count),
            on_trial=end,
            stop=Stop(),
        )


def _line(trial: "Trial") -> str:
    """Returns a trial in a line."""
    if trial.reason is not None:
        return f"trial {trial.number} refused. {trial.reason}"
    accuracy, distance, cost = _figures(trial)
    return f"trial {trial.number}: judge {accuracy}, distance {distance}, cost {cost}; {trial.line}"


def _figures(trial: "Trial") -> tuple[str, str, str]:
    from steersman.lab.report.tables import as_text

    accuracy = as_text("accuracy/judge", trial.accuracy.value)
    distance = as_text("cfid", trial.distance.value)
    return accuracy, distance, f"{trial.cost:g}"
