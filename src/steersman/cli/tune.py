"""``steersman tune``: the settings that give the most for what they cost, for one's own models."""

from pathlib import Path
from typing import Annotated

import typer

from steersman.cli import options

__all__ = ["EPILOG", "tune"]

BUNDLED = "zoo:sportballs"

EPILOG = "Example: steersman tune freedom --target baseball --classifier zoo:sportballs-mobilenet --out tuned"


def tune(
    out: Annotated[Path, typer.Option(help="Output folder; trials that are finished there are kept.")],
    recipe: Annotated[
        list[str] | None,
        typer.Argument(
            help="Recipes to search around, starting from their own settings; by default, some that suit most models."
        ),
    ] = None,
    target: options.Targets = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AXIS.OPTION=LOW..HIGH",
            help="Setting to search in place of those around the recipes: a range, or values a,b,c; whatever sweep "
            "--vary takes. Repeat for more.",
        ),
    ] = None,
    trials: Annotated[int, typer.Option(help="Trials in all, those in the folder included.")] = 50,
    num: options.Num = 16,
    seed: Annotated[
        int, typer.Option(help="Seed of the first image in every trial; do not report results on these seeds.")
    ] = 1000,
    accuracy: Annotated[
        float | None,
        typer.Option(
            help="Lower limit on the judge's accuracy; by default the lower end of the most accurate trial's interval."
        ),
    ] = None,
    distance: Annotated[float | None, typer.Option(help="Upper limit on cFID.")] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            help="Upper limit on the cost of an image, in denoiser evaluations; without --distance, the trial with the "
            "least cFID below it is taken."
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Reference images, in the forms that evaluate takes; by default sportballs, for its own denoiser.",
            show_default=False,
        ),
    ] = None,
    features: options.Features = "zoo:sportballs-judge",
    search_seed: Annotated[int, typer.Option(help="Seed of the search algorithm.")] = 0,
    denoiser: options.Denoiser = BUNDLED,
    classifier: options.Classifiers = None,
    judge: options.Judge = "zoo:sportballs-judge",
    set_: options.Set = None,
    label: options.Label = None,
    cfg_scale: options.CfgScale = 1.0,
    batch_size: options.BatchSize = None,
    device: options.Device = "cpu",
    dtype: options.DType = "float32",
) -> None:
    """Search for the settings with the best accuracy and cFID for their cost, and write them as a recipe."""
    given = locals()
    from steersman.cli.tuning import carry_out
    from steersman.errors import InputError
    from steersman.lab.tune import TRIED, Bounds, Tune, space_of

    if trials < 1:
        raise InputError(f"trials must be at least 1, got {trials}")
    if search and len(recipe or ()) > 1:
        raise InputError(f"with --search, give one recipe, or several as --search recipe=A,B; got {len(recipe or ())}")
    if reference is None and denoiser != BUNDLED:
        raise InputError("reference must be given: images of the targets, in the forms that evaluate takes")
    chosen = Tune(
        recipes=tuple(recipe or (TRIED[:1] if search else TRIED)),
        changes=tuple(set_ or ()),
        settings=options.run_fields(given),
        space=space_of(search) if search else None,
        reference=reference or "sportballs",
        features=features,
        seed=search_seed,
    )
    carry_out(chosen, out, trials=trials, bounds=Bounds(accuracy=accuracy, distance=distance, budget=budget))
