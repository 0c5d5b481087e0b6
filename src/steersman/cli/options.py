"""Options that several commands have, each said once."""

from typing import Annotated, Any

import typer

__all__ = [
    "BatchSize",
    "Blend",
    "CfgScale",
    "Checkpoint",
    "Classifiers",
    "Compile",
    "DType",
    "Denoiser",
    "Device",
    "Features",
    "Judge",
    "Label",
    "NoGuidance",
    "Num",
    "Prompt",
    "Recipe",
    "Resamples",
    "Sampler",
    "Scale",
    "Seed",
    "Set",
    "Steps",
    "Targets",
    "Trust",
    "changes",
    "fields",
]

Targets = Annotated[list[str] | None, typer.Option("--target", help="Class: name, index, or text; repeat, or all.")]
Blend = Annotated[
    list[str] | None, typer.Option(metavar="CLASS=WEIGHT", help="Several classes at once; a negative weight repels.")
]
Num = Annotated[int, typer.Option(help="Images of each target.")]
Seed = Annotated[int, typer.Option(help="Seed of the first image.")]
Denoiser = Annotated[str, typer.Option(help="zoo:, adm:, dit:, edm:, folder, or id of the hub.")]
Classifiers = Annotated[
    list[str] | None,
    typer.Option(
        "--classifier",
        help="Guide, imagenet:efficientnet-lite0 if none; or zoo:, torchvision:, timm:, hf:, clip:, adm-classifier:, "
        "module:; repeat.",
    ),
]
Judge = Annotated[str, typer.Option(help="Network that measures, or none.")]
Recipe = Annotated[str, typer.Option(help="Name, name/variant or file.")]
Sampler = Annotated[str | None, typer.Option(help="Sampler, instead of the recipe's.")]
Steps = Annotated[int | None, typer.Option(help="Steps, instead of the recipe's.")]
Scale = Annotated[float | None, typer.Option(help="Guidance scale, instead of the recipe's.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="AXIS.OPTION=VALUE", help="Change a setting.")]
Label = Annotated[str | None, typer.Option(help="Denoiser's label: name, index, or target.")]
Prompt = Annotated[str | None, typer.Option(help="Text to draw, for a text-to-image model.")]
CfgScale = Annotated[float, typer.Option(help="Classifier-free scale.")]
NoGuidance = Annotated[bool, typer.Option("--no-guidance", help="Draw unsteered; the guide only measures.")]
BatchSize = Annotated[int | None, typer.Option(help="Images at a time; 4 on a CPU, else 16.", show_default=False)]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")]
DType = Annotated[str, typer.Option(help="float32, bfloat16, float16, auto or auto-float32.")]
Checkpoint = Annotated[bool, typer.Option("--checkpoint", help="Less memory on the route through.")]
Compile = Annotated[bool, typer.Option("--compile", help="With torch.compile.")]
Trust = Annotated[
    list[str] | None,
    typer.Option(metavar="MODULE:…", help="Code of a file that may be run."),
]
Features = Annotated[str, typer.Option(help="Network in whose features sets are compared, as for evaluate.")]
Resamples = Annotated[int, typer.Option(help="Random halves for the intervals; 0 for none.")]


def changes(
    set_: list[str] | None, *, sampler: str | None = None, steps: int | None = None, scale: float | None = None
) -> list[str]:
    """Returns the changes to a recipe that options say, the short ones last."""
    short = {"sampler.kind": sampler, "walk.steps": steps, "scale": scale}
    return [*(set_ or ()), *(f"{key}={value}" for key, value in short.items() if value is not None)]


def fields(
    *,
    target: list[str] | None,
    classifier: list[str] | None,
    judge: str,
    **others: Any,  # noqa: ANN401
) -> dict[str, Any]:
    """Returns the fields of a `steersman.run.Run` that options say; the others have a field's name themselves."""
    classifiers = {"classifiers": tuple(classifier)} if classifier else {}
    return {"targets": tuple(target or ()), **classifiers, "judge": None if judge == "none" else judge, **others}
