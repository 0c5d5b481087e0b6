"""``steersman bench``: what a batch costs beside its networks."""

from pathlib import Path
from typing import Annotated

import typer

from steersman.cli import options

__all__ = ["EPILOG", "bench"]

EPILOG = "Example: steersman bench --recipe nrcg --classifier zoo:sportballs-mobilenet"


def bench(
    target: Annotated[str, typer.Option(help="Class: name or index.")] = "0",
    denoiser: options.Denoiser = "zoo:sportballs",
    classifier: options.Classifiers = None,
    recipe: options.Recipe = "default",
    set_: options.Set = None,
    label: options.Label = None,
    prompt: options.Prompt = None,
    cfg_scale: options.CfgScale = 1.0,
    no_guidance: options.NoGuidance = False,
    batch_size: Annotated[int, typer.Option(help="Batch size.")] = 16,
    steps: Annotated[int, typer.Option(help="Sampling steps that are timed.")] = 8,
    repeats: Annotated[int, typer.Option(help="Timed repeats, alternating with the networks' calls alone.")] = 5,
    device: options.Device = "cpu",
    dtype: options.DType = "float32",
    checkpoint: options.Checkpoint = False,
    compile: options.Compile = False,
    out: Annotated[Path | None, typer.Option(help="Output file (JSON).")] = None,
) -> None:
    """Time a guided batch, and compare it with the time of its networks' calls alone."""
    given = locals()
    from steersman.cli.benching import time_it
    from steersman.errors import InputError
    from steersman.lab.run import Run
    from steersman.recipes import load_recipe

    for name, count in (("steps", steps), ("repeats", repeats)):
        if count < 1:
            raise InputError(f"{name} must be at least 1, got {count}")
    whole = load_recipe(recipe, set_ or ())
    settings = options.run_fields(given | {"target": [target], "judge": "none", "num": batch_size})
    run = Run(**settings, recipe=load_recipe(recipe, options.changes(set_, steps=steps)))
    time_it(run, steps=whole.sampling()["steps"], repeats=repeats, out=out)
