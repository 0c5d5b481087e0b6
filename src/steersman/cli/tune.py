"""``steersman tune``: the settings that give the most for what they cost, for one's own models."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["EPILOG", "tune"]

BUNDLED = "zoo:sportballs"

EPILOG = "Example: steersman tune freedom --target baseball --classifier zoo:sportballs-mobilenet --out tuned"


def tune(
    out: Annotated[Path, typer.Option(help="Folder to write; the trials that are finished there stay.")],
    recipe: Annotated[
        list[str] | None,
        typer.Argument(help="Recipes to search around, their own settings first; some that suit most if none."),
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="Class to steer to, by name or index; repeat, or all.")
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AXIS.OPTION=LOW..HIGH",
            help="What is searched instead, a range or a,b,c: whatever sweep varies. Repeat for more.",
        ),
    ] = None,
    trials: Annotated[int, typer.Option(help="Trials to draw, with those that are there.")] = 50,
    num: Annotated[int, typer.Option(help="Images of each target in each trial.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the first image, in every trial; none that you report.")] = 1000,
    accuracy: Annotated[
        float | None,
        typer.Option(help="The judge's that the recipe must reach; as sure as the surest may be if none."),
    ] = None,
    distance: Annotated[float | None, typer.Option(help="The largest that it may have.")] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            help="The most that an image may cost, in evaluations of the denoiser: then the nearest is taken."
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Images to compare with, as for evaluate; sportballs for its own denoiser.", show_default=False
        ),
    ] = None,
    features: Annotated[str, typer.Option(help="Network in whose features sets are compared, as for evaluate.")] = (
        "zoo:sportballs-judge"
    ),
    search_seed: Annotated[int, typer.Option(help="Seed of the search.")] = 0,
    denoiser: Annotated[str, typer.Option(help="Diffusion model.")] = "zoo:sportballs",
    classifier: Annotated[
        list[str] | None, typer.Option(help="Guide, imagenet:efficientnet-lite0 if none; repeat for several.")
    ] = None,
    judge: Annotated[str, typer.Option(help="Network that measures.")] = "zoo:sportballs-judge",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="AXIS.OPTION=VALUE", help="Change a setting of the recipes.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="The denoiser's own label, or target.")] = None,
    cfg_scale: Annotated[float, typer.Option(help="Classifier-free scale, with a label.")] = 1.0,
    batch_size: Annotated[
        int | None, typer.Option(help="Images at a time, 4 on a CPU and 16 elsewhere if none.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")] = "float32",
) -> None:
    """Search the settings that give the most for their cost: accuracy, distance, time. Writes a recipe."""
    from steersman.cli.tuning import carry_out
    from steersman.errors import InputError
    from steersman.tune import TRIED, Bounds, Tune, space_of

    if trials < 1:
        raise InputError(f"trials: {trials} given; allowed: 1 and more")
    if search and len(recipe or ()) > 1:
        raise InputError(f"recipe: {len(recipe or ())} given with --search; allowed: one, or --search recipe=A,B")
    if reference is None and denoiser != BUNDLED:
        raise InputError("reference: none given; allowed: images of the targets, as for evaluate")
    settings = {
        "targets": tuple(target or ()),
        "num": num,
        "seed": seed,
        "denoiser": denoiser,
        **({"classifiers": tuple(classifier)} if classifier else {}),
        "judge": None if judge == "none" else judge,
        "label": label,
        "cfg_scale": cfg_scale,
        "batch_size": batch_size,
        "device": device,
        "dtype": dtype,
    }
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
