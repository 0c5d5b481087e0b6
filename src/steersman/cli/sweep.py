"""``steersman sweep``: the same images under varied settings, compared."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["EPILOG", "sweep"]

EPILOG = "Example: steersman sweep nrcg --vary scale=5,15,45 --target baseball --reference sportballs --out scales"


def sweep(
    vary: Annotated[
        list[str],
        typer.Option(
            metavar="AXIS.OPTION=A,B,C",
            help="What is varied: a setting, recipe, classifier, denoiser, label, cfg-scale, guidance, or case, "
            "several together under a name ('case={name: NAME, SETTING: VALUE}, …'); a value with commas stands in "
            "brackets or quotes. Repeat for all combinations.",
        ),
    ],
    reference: Annotated[str, typer.Option(help="Images to compare with, as for evaluate.")],
    out: Annotated[Path, typer.Option(help="Folder to write; the cells that are whole there stay.")],
    recipe: Annotated[str, typer.Argument(help="Name, name/variant or file.")] = "default",
    target: Annotated[
        list[str] | None, typer.Option(help="Class to steer to, by name or index, or a text for CLIP; repeat, or all.")
    ] = None,
    blend: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS=WEIGHT", help="Several classes at once; a negative weight repels."),
    ] = None,
    num: Annotated[int, typer.Option(help="Images of each target in each cell.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the first image, in every cell.")] = 0,
    features: Annotated[str, typer.Option(help="Network in whose features sets are compared, as for evaluate.")] = (
        "zoo:sportballs-judge"
    ),
    figures: Annotated[
        str | None, typer.Option(help="Only these, by commas: fid,cfid,accuracy/judge,…", show_default=False)
    ] = None,
    resamples: Annotated[int, typer.Option(help="Random halves for the intervals; 0 for none.")] = 200,
    pareto: Annotated[
        bool, typer.Option("--pareto", help="Name the cells that no other beats in quality and cost, and plot both.")
    ] = False,
    denoiser: Annotated[str, typer.Option(help="Diffusion model.")] = "zoo:sportballs",
    classifier: Annotated[
        list[str] | None, typer.Option(help="Guide, imagenet:efficientnet-lite0 if none; repeat for several.")
    ] = None,
    judge: Annotated[str, typer.Option(help="Network that measures, or none.")] = "zoo:sportballs-judge",
    sampler: Annotated[str | None, typer.Option(help="Sampler, instead of the recipe's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps, instead of the recipe's.")] = None,
    scale: Annotated[float | None, typer.Option(help="Guidance scale, instead of the recipe's.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="AXIS.OPTION=VALUE", help="Change a setting of all cells.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="The denoiser's own label, or target.")] = None,
    cfg_scale: Annotated[float, typer.Option(help="Classifier-free scale, with a label.")] = 1.0,
    batch_size: Annotated[
        int | None, typer.Option(help="Images at a time, 4 on a CPU and 16 elsewhere if none.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")] = "float32",
) -> None:
    """Draw the same seeds under all combinations of settings, and compare: tables, plots, quality for the cost."""
    from steersman.cli.sweeping import carry_out
    from steersman.run import weights
    from steersman.sweep import Sweep, varied

    short = {"sampler.kind": sampler, "walk.steps": steps, "scale": scale}
    changes = [f"{key}={value}" for key, value in short.items() if value is not None]
    settings = {
        "targets": tuple(target or ()),
        "blend": weights(blend or ()),
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
    chosen = Sweep(
        recipe=recipe,
        changes=(*(set_ or ()), *changes),
        settings=settings,
        varied=varied(vary),
        reference=reference,
        features=features,
        resamples=resamples,
        **({"figures": tuple(each.strip() for each in figures.split(","))} if figures is not None else {}),
    )
    carry_out(chosen, out, pareto=pareto)
