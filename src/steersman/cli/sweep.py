"""``steersman sweep``: the same images under varied settings, compared."""

from pathlib import Path
from typing import Annotated

import typer

from steersman.cli import options

__all__ = ["EPILOG", "sweep"]

EPILOG = "Example: steersman sweep nrcg --vary scale=5,15,45 --target baseball --reference sportballs --out scales"


def sweep(
    vary: Annotated[
        list[str],
        typer.Option(
            metavar="AXIS.OPTION=A,B,C",
            help="What to vary, and its values: a setting, recipe, classifier, denoiser, label, cfg-scale, guidance, "
            "or case for several settings under one name ('case={name: NAME, SETTING: VALUE}, …'). Put a value with "
            "commas in brackets or quotes. Repeat for all combinations.",
        ),
    ],
    reference: Annotated[str, typer.Option(help="Reference images, in the forms that evaluate takes.")],
    out: Annotated[Path, typer.Option(help="Output folder; cells that are finished there are kept.")],
    recipe: Annotated[str, typer.Argument(help="Recipe: name, name/variant or file.")] = "default",
    target: options.Targets = None,
    blend: options.Blend = None,
    num: options.Num = 16,
    seed: options.Seed = 0,
    features: options.Features = "zoo:sportballs-judge",
    figures: Annotated[
        str | None,
        typer.Option(
            help="Figures to measure, with commas between them: fid,cfid,accuracy/judge,…; by default all.",
            show_default=False,
        ),
    ] = None,
    resamples: options.Resamples = 200,
    pareto: Annotated[
        bool,
        typer.Option(
            "--pareto", help="Print the cells that no other beats in both quality and cost, and plot the two."
        ),
    ] = False,
    denoiser: options.Denoiser = "zoo:sportballs",
    classifier: options.Classifiers = None,
    judge: options.Judge = "zoo:sportballs-judge",
    sampler: options.Sampler = None,
    steps: options.Steps = None,
    scale: options.Scale = None,
    set_: options.Set = None,
    label: options.Label = None,
    cfg_scale: options.CfgScale = 1.0,
    batch_size: options.BatchSize = None,
    device: options.Device = "cpu",
    dtype: options.DType = "float32",
) -> None:
    """Draw the same seeds with all combinations of settings, and compare quality and cost in tables and plots."""
    given = locals()
    from steersman.cli.sweeping import carry_out
    from steersman.lab.sweep import Sweep, varied

    chosen = Sweep(
        recipe=recipe,
        changes=tuple(options.changes(set_, sampler=sampler, steps=steps, scale=scale)),
        settings=options.run_fields(given),
        varied=varied(vary),
        reference=reference,
        features=features,
        resamples=resamples,
        **({} if figures is None else {"figures": options.listed(figures)}),
    )
    carry_out(chosen, out, pareto=pareto)
