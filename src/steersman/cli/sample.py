"""``steersman sample``: draw images, steered."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steersman.cli import options

if TYPE_CHECKING:
    from typer import Context
else:
    Context = typer.Context.__mro__[1]  # what a command is really given; typer's own class stands for it in types alone

__all__ = ["EPILOG", "sample"]

EPILOG = "Example: steersman sample --target baseball --num 16 --out balls"


def sample(
    context: Context,
    target: options.Targets = None,
    blend: options.Blend = None,
    num: options.Num = 16,
    seed: options.Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Output folder; by default outputs/TARGET.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that the folder holds.")] = False,
    denoiser: options.Denoiser = "zoo:sportballs",
    classifier: options.Classifiers = None,
    judge: options.Judge = "zoo:sportballs-judge",
    recipe: options.Recipe = "default",
    sampler: options.Sampler = None,
    steps: options.Steps = None,
    scale: options.Scale = None,
    set_: options.Set = None,
    label: options.Label = None,
    prompt: options.Prompt = None,
    negative_prompt: Annotated[str | None, typer.Option(help="Negative prompt for a text-to-image model.")] = None,
    cfg_scale: options.CfgScale = 1.0,
    no_guidance: options.NoGuidance = False,
    batch_size: options.BatchSize = None,
    device: options.Device = "cpu",
    dtype: options.DType = "float32",
    checkpoint: options.Checkpoint = False,
    compile: options.Compile = False,
    format: Annotated[str, typer.Option(help="png, npz or webdataset.")] = "png",
    gif: Annotated[bool, typer.Option("--gif", help="Also write GIFs of the images and gradients.")] = False,
    from_: Annotated[
        Path | None,
        typer.Option("--from", metavar="RUN.YAML", help="Continue a run; with --out, repeat it there."),
    ] = None,
    trust: options.Trust = None,
    status: Annotated[Path | None, typer.Option(metavar="DIR", help="Only print how far the run in DIR is.")] = None,
) -> None:
    """Draw images steered by a classifier; the same command again finishes an interrupted run."""
    given = locals()
    from steersman.cli.sampling import carry_out, default_folder, tell
    from steersman.errors import InputError
    from steersman.lab.generate import Share
    from steersman.lab.run import Run, read_run
    from steersman.recipes import load_recipe

    share = Share.from_environment()
    if status is not None:
        _alone(context, "status", "which draws nothing", ())
        return tell(status)
    if from_ is not None:
        _alone(context, "from", "whose file holds all settings", ("out", "overwrite", "gif", "trust"))
        run = read_run(from_, trusted=trust or ())
        run = replace(run, device=share.device(run.device))
        out = out or from_.parent
    else:
        if trust and not recipe.endswith((".yaml", ".yml")):
            raise InputError(
                "trust must be given with --from or a --recipe of one's own, whose file may name code; code given by "
                "an option is trusted"
            )
        settings = options.run_fields(given) | {"device": share.device(device)}
        changes = options.changes(set_, sampler=sampler, steps=steps, scale=scale)
        run = Run(**settings, recipe=load_recipe(recipe, changes, trusted=trust or ()))
    carry_out(run, out or default_folder(run, overwrite=overwrite), share=share, gif=gif, overwrite=overwrite)


def _alone(context: Context, option: str, why: str, others: tuple[str, ...]) -> None:
    """Refuses what was given beside an option that leaves it nothing to say."""
    from steersman.errors import InputError

    for name in context.params:
        if _typed(context, name) and (given := name.strip("_")) not in (option, *others):
            listed = " or ".join(f"--{each}" for each in others)
            instead = f"beside it give only {listed}" if others else f"give --{option} alone"
            raise InputError(f"--{given.replace('_', '-')} must not be given with --{option}, {why}; {instead}")


def _typed(context: Context, name: str) -> bool:
    """Whether an option was given on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
