"""``steersman bench``: what a batch costs beside its networks."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["EPILOG", "bench"]

EPILOG = "Example: steersman bench --recipe nrcg --classifier zoo:sportballs-mobilenet"


def bench(
    target: Annotated[str, typer.Option(help="Class by name or index.")] = "0",
    denoiser: Annotated[str, typer.Option(help="As for sample.")] = "zoo:sportballs",
    classifier: Annotated[list[str] | None, typer.Option(help="As for sample.")] = None,
    recipe: Annotated[str, typer.Option(help="Name, name/variant or file.")] = "default",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="AXIS.OPTION=VALUE", help="Change a setting.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="As for sample.")] = None,
    prompt: Annotated[str | None, typer.Option(help="As for sample.")] = None,
    cfg_scale: Annotated[float, typer.Option(help="Classifier-free scale.")] = 1.0,
    no_guidance: Annotated[bool, typer.Option("--no-guidance", help="Draw unsteered.")] = False,
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 16,
    steps: Annotated[int, typer.Option(help="Steps of the walk that is timed.")] = 8,
    repeats: Annotated[int, typer.Option(help="How often it is timed, in turn with the floor.")] = 5,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")] = "float32",
    checkpoint: Annotated[bool, typer.Option("--checkpoint", help="Less memory on the route through.")] = False,
    compile: Annotated[bool, typer.Option("--compile", help="With torch.compile.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Time a batch against its networks' calls alone."""
    from steersman.cli.benching import time_it
    from steersman.errors import InputError
    from steersman.recipes import load_recipe
    from steersman.run import Run

    for name, given in (("steps", steps), ("repeats", repeats)):
        if given < 1:
            raise InputError(f"{name}: {given} given; allowed: 1 and more")
    whole = load_recipe(recipe, set_ or ())
    run = Run(
        targets=(target,),
        num=batch_size,
        denoiser=denoiser,
        classifiers=tuple(classifier) if classifier else Run.classifiers,
        judge=None,
        recipe=load_recipe(recipe, [*(set_ or ()), f"walk.steps={steps}"]),
        guided=not no_guidance,
        label=label,
        prompt=prompt,
        cfg_scale=cfg_scale,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        checkpoint=checkpoint,
        compile=compile,
    )
    time_it(run, steps=whole.walk()["steps"], repeats=repeats, out=out)
