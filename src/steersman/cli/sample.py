"""``steersman sample``: draw images, steered."""

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
    target: Annotated[
        list[str] | None, typer.Option(help="Class by name or index, text for CLIP; repeat, or all.")
    ] = None,
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
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    gif: Annotated[bool, typer.Option("--gif", help="Also animate images and gradients.")] = False,
    from_: Annotated[Path | None, typer.Option("--from", metavar="RUN.YAML", help="Repeat a recorded run.")] = None,
) -> None:
    """Draw images with a diffusion model, steered by a classifier."""
    from steersman.cli.sampling import carry_out
    from steersman.errors import InputError
    from steersman.files import file_name
    from steersman.recipes import load_recipe
    from steersman.run import Run, read_run, weights

    if from_ is not None:
        given = [name for name in context.params if _typed(context, name) and name not in ("from_", "out", "gif")]
        if given:
            option = given[0].strip("_").replace("_", "-")
            raise InputError(f"--{option}: given with --from, whose file holds all settings; allowed: --out, --gif")
        run = read_run(from_)
    else:
        short = {"sampler.kind": sampler, "walk.steps": steps, "scale": scale}
        changes = [f"{key}={value}" for key, value in short.items() if value is not None]
        run = Run(
            targets=tuple(target or ()),
            blend=weights(blend or ()),
            num=num,
            seed=seed,
            denoiser=denoiser,
            **({"classifiers": tuple(classifier)} if classifier else {}),
            judge=None if judge == "none" else judge,
            recipe=load_recipe(recipe, [*(set_ or ()), *changes]),
            guided=not no_guidance,
            label=label,
            prompt=prompt,
            negative_prompt=negative_prompt,
            cfg_scale=cfg_scale,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
        )
    named = "-".join(run.targets or run.blend)
    carry_out(run, out or Path("outputs", file_name(named).replace(" ", "-")), gif=gif)


def _typed(context: Context, name: str) -> bool:
    """Whether an option was given on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
