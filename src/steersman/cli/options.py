"""Options that several commands have, each declared once, and the groups in which they come.

A group is a dataclass with an option for each field. A command that `grouped` decorates takes groups like any other
parameter, and the command line has their options in their place.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import typer

__all__ = [
    "BatchSize",
    "Changes",
    "Conditioning",
    "Denoiser",
    "Device",
    "Execution",
    "Features",
    "Figures",
    "Judge",
    "Models",
    "NoGuidance",
    "Recipe",
    "Resamples",
    "Scale",
    "Seed",
    "Set",
    "Steps",
    "Targets",
    "Trust",
    "at_least",
    "grouped",
    "listed",
    "run_settings",
]

Seed = Annotated[int, typer.Option(help="Seed of the first image.")]
Denoiser = Annotated[str, typer.Option(help="Model: zoo:, adm:, dit:, edm:, folder or Hub ID.")]
Judge = Annotated[str, typer.Option(help="Classifier that only measures, or none.")]
Recipe = Annotated[str, typer.Option(help="Name, name/variant or file.")]
Steps = Annotated[int | None, typer.Option(help="Sampling steps; by default the recipe's.")]
Scale = Annotated[float | None, typer.Option(help="Guidance scale; by default the recipe's.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="AXIS.OPTION=VALUE", help="Change a setting of the recipe; repeat for more."),
]
NoGuidance = Annotated[bool, typer.Option("--no-guidance", help="Draw without guidance; the guide only measures.")]
BatchSize = Annotated[int | None, typer.Option(help="Batch size; by default 4 on a CPU, else 16.", show_default=False)]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or mps.")]
Trust = Annotated[
    list[str] | None,
    typer.Option(metavar="MODULE:…", help="Code in the file that may run; repeat for more."),
]
Features = Annotated[str, typer.Option(help="Network for the features of FID and cFID; see evaluate --help.")]
Figures = Annotated[
    str | None,
    typer.Option(
        help="Figures to measure, separated by commas: fid,cfid,accuracy/judge,…; by default all.", show_default=False
    ),
]
Resamples = Annotated[int, typer.Option(help="Half-samples drawn for the confidence intervals; 0 for no intervals.")]


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Which images to draw."""

    targets: Annotated[
        list[str] | None,
        typer.Option("--target", help="Class: name, index or text; repeat, or give all."),
    ] = None
    blend: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS=WEIGHT", help="Several classes at once; a negative weight repels."),
    ] = None
    num: Annotated[int, typer.Option(help="Images per target.")] = 16
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class Models:
    """The networks that draw."""

    denoiser: Denoiser = "zoo:sportballs"
    classifiers: Annotated[
        list[str] | None,
        typer.Option(
            "--classifier",
            help="Guide: imagenet:, zoo:, torchvision:, timm:, hf:, clip:, adm-classifier: or "
            "module:; repeat for more. By default imagenet:efficientnet-lite0.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Changes of a recipe's settings."""

    sampler: Annotated[str | None, typer.Option(help="Sampler, such as ddim; by default the recipe's.")] = None
    steps: Steps = None
    scale: Scale = None
    set_: Set = None

    def listed(self) -> tuple[str, ...]:
        """Returns each change as ``axis.option=value``, the short options last."""
        short = {"sampler.kind": self.sampler, "sampling.steps": self.steps, "scale": self.scale}
        return (*(self.set_ or ()), *(f"{key}={value}" for key, value in short.items() if value is not None))


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """What the denoiser is conditioned on."""

    label: Annotated[str | None, typer.Option(help="Label for the denoiser: name, index or target.")] = None
    prompt: Annotated[str | None, typer.Option(help="Prompt of a text-to-image model.")] = None
    negative_prompt: Annotated[str | None, typer.Option(help="Negative prompt of a text-to-image model.")] = None
    cfg_scale: Annotated[float, typer.Option(help="Classifier-free guidance scale.")] = 1.0


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How the networks run."""

    batch_size: BatchSize = None
    device: Device = "cpu"
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, auto or auto-float32.")] = "float32"
    checkpoint: Annotated[bool, typer.Option("--checkpoint", help="Recompute in the backward pass to save memory.")] = (
        False
    )
    compile: Annotated[bool, typer.Option("--compile", help="Compile the networks with torch.compile.")] = False


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Returns a command for typer, with one option for each field of every parameter that is a group."""
    signature = inspect.signature(command)
    groups = {name: each.annotation for name, each in signature.parameters.items() if is_dataclass(each.annotation)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        if name not in groups:
            parameters.append(parameter)
            continue
        hints = get_type_hints(groups[name], include_extras=True)
        parameters += [
            parameter.replace(name=field.name, default=field.default, annotation=hints[field.name])
            for field in fields(groups[name])
        ]

    @functools.wraps(command)
    def run(**given: Any) -> None:  # noqa: ANN401
        made = {
            name: kind(**{each.name: given.pop(each.name) for each in fields(kind)}) for name, kind in groups.items()
        }
        command(**given, **made)

    run.__signature__ = signature.replace(parameters=parameters)  # pyright: ignore[reportAttributeAccessIssue]
    return run


def run_settings(*groups: object, **others: object) -> dict[str, Any]:
    """Returns the fields of a `steersman.lab.run.Run` that option groups and others give; None leaves the default."""
    from steersman.lab.run import weights

    given = {name: value for group in groups for name, value in vars(group).items()} | others
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    settings = {name: value for name, value in settings.items() if value is not None}
    settings["blend"] = weights(settings.get("blend", ()))
    if settings.get("judge") == "none":
        settings["judge"] = None
    return settings


def at_least(least: int, **given: int | None) -> None:
    """Refuses options whose value is below the least one."""
    from steersman.errors import InputError

    for name, value in given.items():
        if value is not None and value < least:
            raise InputError(f"{name.replace('_', '-')} must be at least {least}, got {value}")


def listed(text: str) -> tuple[str, ...]:
    """Returns the names between commas."""
    return tuple(name.strip() for name in text.split(","))
