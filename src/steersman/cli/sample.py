"""``steersman sample``: draw images, steered."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from typer import Context
else:
    Context = typer.Context.__mro__[1]  # what a command is really given; typer's own class stands for it in types alone

__all__ = ["EPILOG", "sample"]

EPILOG = "Example: steersman sample --target baseball --num 16 --out balls"


def sample(
    context: Context,
    target: Annotated[list[str] | None, typer.Option(help="Class: name, index, or text; repeat, or all.")] = None,
    blend: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS=WEIGHT", help="Several classes at once; a negative weight repels."),
    ] = None,
    num: Annotated[int, typer.Option(help="Images of each target.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the first image.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder to write, outputs/TARGET if none.")] = None,
    denoiser: Annotated[str, typer.Option(help="zoo:, adm:, dit:, edm:, folder, or id of the hub.")] = "zoo:sportballs",
    classifier: Annotated[
        list[str] | None,
        typer.Option(
            help="Guide, imagenet:efficientnet-lite0 if none; or zoo:, torchvision:, timm:, hf:, clip:, "
            "adm-classifier:, module:; repeat."
        ),
    ] = None,
    judge: Annotated[str, typer.Option(help="Network that measures, or none.")] = "zoo:sportballs-judge",
    recipe: Annotated[str, typer.Option(help="Name, name/variant or file.")] = "default",
    sampler: Annotated[str | None, typer.Option(help="Sampler, instead of the recipe's.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps, instead of the recipe's.")] = None,
    scale: Annotated[float | None, typer.Option(help="Guidance scale, instead of the recipe's.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="AXIS.OPTION=VALUE", help="Change a setting.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="Denoiser's label: name, index, or target.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Text to draw, for a text-to-image model.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="Text to draw away from.")] = None,
    cfg_scale: Annotated[float, typer.Option(help="Classifier-free scale.")] = 1.0,
    no_guidance: Annotated[
        bool, typer.Option("--no-guidance", help="Draw unsteered; the guide only measures.")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(help="Images at a time; 4 on a CPU, else 16.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")] = "float32",
    checkpoint: Annotated[bool, typer.Option("--checkpoint", help="Less memory on the route through.")] = False,
    compile: Annotated[bool, typer.Option("--compile", help="With torch.compile.")] = False,
    format: Annotated[str, typer.Option(help="png, npz or webdataset.")] = "png",
    gif: Annotated[bool, typer.Option("--gif", help="Also animate images and gradients.")] = False,
    from_: Annotated[
        Path | None,
        typer.Option("--from", metavar="RUN.YAML", help="Go on with a run; with --out, repeat it."),
    ] = None,
    status: Annotated[Path | None, typer.Option(metavar="DIR", help="Only tell how far a run is.")] = None,
) -> None:
    """Draw images, steered by a classifier; the same command again draws what is missing."""
    from steersman.cli.sampling import carry_out, tell
    from steersman.files import file_name
    from steersman.generate import Share
    from steersman.recipes import load_recipe
    from steersman.run import Run, read_run, weights

    share = Share.told()
    if status is not None:
        _alone(context, "status", "which draws nothing", ())
        return tell(status)
    if from_ is not None:
        _alone(context, "from", "whose file holds all settings", ("out", "gif"))
        run = read_run(from_)
        run = replace(run, device=share.device(run.device))
        out = out or from_.parent
    else:
        short = {"sampler.kind": sampler, "walk.steps": steps, "scale": scale}
        changes = [f"{key}={value}" for key, value in short.items() if value is not None]
        run = Run(
            targets=tuple(target or ()),
            blend=weights(blend or ()),
            num=num,
            seed=seed,
            denoiser=denoiser,
            classifiers=tuple(classifier) if classifier else Run.classifiers,
            judge=None if judge == "none" else judge,
            recipe=load_recipe(recipe, [*(set_ or ()), *changes]),
            guided=not no_guidance,
            label=label,
            prompt=prompt,
            negative_prompt=negative_prompt,
            cfg_scale=cfg_scale,
            batch_size=batch_size,
            device=share.device(device),
            dtype=dtype,
            checkpoint=checkpoint,
            compile=compile,
            format=format,
        )
    named = "-".join(run.targets or run.blend)
    carry_out(run, out or Path("outputs", file_name(named).replace(" ", "-")), share=share, gif=gif)


def _alone(context: Context, option: str, why: str, others: tuple[str, ...]) -> None:
    """Refuses what was given beside an option that leaves it nothing to say."""
    from steersman.errors import InputError

    for name in context.params:
        if _typed(context, name) and (given := name.strip("_")) not in (option, *others):
            allowed = ", ".join(f"--{each}" for each in others) or "it alone"
            raise InputError(f"--{given.replace('_', '-')}: given with --{option}, {why}; allowed: {allowed}")


def _typed(context: Context, name: str) -> bool:
    """Whether an option was given on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
