"""Options that several commands have, each said once."""

import dataclasses
from collections.abc import Mapping
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
    "among",
    "changes",
    "listed",
    "run_fields",
]

Targets = Annotated[list[str] | None, typer.Option("--target", help="Class: name, index or text; repeat, or give all.")]
Blend = Annotated[
    list[str] | None, typer.Option(metavar="CLASS=WEIGHT", help="Several classes at once; a negative weight repels.")
]
Num = Annotated[int, typer.Option(help="Images per target.")]
Seed = Annotated[int, typer.Option(help="Seed of the first image.")]
Denoiser = Annotated[str, typer.Option(help="Model: zoo:, adm:, dit:, edm:, folder or Hub ID.")]
Classifiers = Annotated[
    list[str] | None,
    typer.Option(
        "--classifier",
        help="Guide: imagenet:, zoo:, torchvision:, timm:, hf:, clip:, adm-classifier: or module:; repeat for more. By "
        "default imagenet:efficientnet-lite0.",
    ),
]
Judge = Annotated[str, typer.Option(help="Network that measures the images, or none.")]
Recipe = Annotated[str, typer.Option(help="Name, name/variant or file.")]
Sampler = Annotated[str | None, typer.Option(help="Replaces the recipe's sampler.")]
Steps = Annotated[int | None, typer.Option(help="Replaces the recipe's number of steps.")]
Scale = Annotated[float | None, typer.Option(help="Replaces the recipe's guidance scale.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="AXIS.OPTION=VALUE", help="Change a setting of the recipe; repeat for more."),
]
Label = Annotated[str | None, typer.Option(help="Label for the denoiser: name, index or target.")]
Prompt = Annotated[str | None, typer.Option(help="Prompt for a text-to-image model.")]
CfgScale = Annotated[float, typer.Option(help="Classifier-free guidance scale.")]
NoGuidance = Annotated[bool, typer.Option("--no-guidance", help="Draw without guidance; the guide only measures.")]
BatchSize = Annotated[int | None, typer.Option(help="Batch size; by default 4 on a CPU, else 16.", show_default=False)]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or mps.")]
DType = Annotated[str, typer.Option(help="float32, bfloat16, float16, auto or auto-float32.")]
Checkpoint = Annotated[bool, typer.Option("--checkpoint", help="Recompute in the backward pass to save memory.")]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the networks with torch.compile.")]
Trust = Annotated[
    list[str] | None,
    typer.Option(metavar="MODULE:…", help="Allow this code, which a file names, to run."),
]
Features = Annotated[str, typer.Option(help="Network whose features are compared, in the forms that evaluate takes.")]
Resamples = Annotated[int, typer.Option(help="Half-samples drawn for the confidence intervals; 0 for no intervals.")]


def changes(
    set_: list[str] | None, *, sampler: str | None = None, steps: int | None = None, scale: float | None = None
) -> list[str]:
    """Returns the changes to a recipe that options say, the short ones last."""
    short = {"sampler.kind": sampler, "sampling.steps": steps, "scale": scale}
    return [*(set_ or ()), *(f"{key}={value}" for key, value in short.items() if value is not None)]


def run_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a `steersman.lab.run.Run` among a command's options, all but its recipe."""
    from steersman.lab.run import Run, weights

    found = among(Run, given)
    found |= {"targets": tuple(given["target"] or ()), "judge": None if given["judge"] == "none" else given["judge"]}
    if given["classifier"]:
        found["classifiers"] = tuple(given["classifier"])
    if "blend" in found:
        found["blend"] = weights(given["blend"] or ())
    if "no_guidance" in given:
        found["guided"] = not given["no_guidance"]
    return {name: value for name, value in found.items() if name != "recipe"}


def among(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values that a command's options give to the fields of a dataclass, by their names."""
    return {field.name: given[field.name] for field in dataclasses.fields(kind) if field.name in given}


def listed(text: str | None) -> tuple[str, ...] | None:
    """Returns the names between commas; None for None."""
    return None if text is None else tuple(each.strip() for each in text.split(","))
