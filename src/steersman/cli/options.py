"""Options that several commands have, each declared once, and the groups in which they come.

A group is a dataclass with an option for each field. A command that `grouped` decorates takes groups like any other
parameter, and the command line has their options in their place; a group as a default gives the options' defaults.
"""

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from steersman.errors import InputError
from steersman.lab.choices import AUTO, DEVICES, TYPES, check_choices, check_device, weights
from steersman.names import denoiser_names, network_names, recipe_file, recipe_names

if TYPE_CHECKING:
    from typer import Context
else:
    Context = typer.Context.__mro__[1]  # what a command is really given; typer's own class stands for it in types alone

__all__ = [
    "BatchSize",
    "Changes",
    "Conditioning",
    "Context",
    "Denoiser",
    "Device",
    "Execution",
    "Features",
    "Figures",
    "Judge",
    "Models",
    "NoGuidance",
    "Recipe",
    "RecipeName",
    "Resamples",
    "Scale",
    "Seed",
    "Set",
    "Steps",
    "Targets",
    "Trust",
    "argument",
    "at_least",
    "classifier_names",
    "grouped",
    "listed",
    "numbers",
    "option",
    "run_settings",
]

Number = TypeVar("Number", int, float)


Check = Callable[[str], object]
Known = Callable[[], Iterable[str]]


def option(
    help: str, *names: str, metavar: str | None = None, check: Check | None = None, known: Known | None = None
) -> Any:  # noqa: ANN401
    """Returns the description of an option; a flag that is named, as ``--gif``, has no opposite ``--no-gif``.

    ``check`` refuses a value before the command begins; ``known`` returns the values that the shell completes.
    """
    return typer.Option(*names, metavar=metavar, help=help, callback=_checked(check), autocompletion=_completed(known))


def argument(help: str, *, check: Check | None = None, known: Known | None = None) -> Any:  # noqa: ANN401
    """Returns the description of an argument, as `option` does."""
    return typer.Argument(help=help, callback=_checked(check), autocompletion=_completed(known))


def _checked(check: Check | None) -> Callable[[Context, Any], Any] | None:
    def checked(context: Context, value: Any) -> Any:  # noqa: ANN401
        if check is not None and value is not None and not context.resilient_parsing:
            for each in [value] if isinstance(value, str) else value:
                check(each)
        return value

    return check and checked


def _completed(known: Known | None) -> Callable[[str], list[str]] | None:
    def completed(incomplete: str) -> list[str]:
        return [name for name in known() if name.startswith(incomplete)] if known else []

    return known and completed


def classifier_names() -> list[str]:
    """Returns the classifiers that come with the package or beside it."""
    return ["imagenet:efficientnet-lite0", *(f"zoo:{name}" for name in network_names())]


Seed = Annotated[int, option("Seed of the first image.")]
Denoiser = Annotated[
    str,
    option(
        "Model: zoo:, adm:, dit:, edm:, folder or Hub ID.", known=lambda: [f"zoo:{name}" for name in denoiser_names()]
    ),
]
Judge = Annotated[str, option("Classifier that only measures, or none.", known=lambda: ["none", *classifier_names()])]
Recipe = Annotated[str, option("Name, name/variant or file.", check=recipe_file, known=recipe_names)]
RecipeName = Annotated[str, argument("Recipe: name, name/variant or YAML file.", check=recipe_file, known=recipe_names)]
Steps = Annotated[int | None, option("Sampling steps; by default the recipe's.")]
Scale = Annotated[float | None, option("Guidance scale; by default the recipe's.")]
Set = Annotated[
    list[str] | None, option("Change a setting of the recipe; repeat for more.", "--set", metavar="AXIS.OPTION=VALUE")
]
NoGuidance = Annotated[bool, option("Draw without guidance; the guide only measures.", "--no-guidance")]
BatchSize = Annotated[int | None, option("Batch size; by default 4 on a CPU, else 16.")]
Device = Annotated[str, option("cpu, cuda, cuda:1 or mps.", check=check_device, known=lambda: DEVICES)]
Trust = Annotated[list[str] | None, option("Code in the file that may run; repeat for more.", metavar="MODULE:…")]
Features = Annotated[str, option("Network for the features of FID and cFID; see evaluate --help.")]
Figures = Annotated[str | None, option("Figures to measure, with commas: fid,cfid,accuracy/judge,…; by default all.")]
Resamples = Annotated[int, option("Half-samples drawn for the confidence intervals; 0 for no intervals.")]


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Which images to draw."""

    targets: Annotated[list[str] | None, option("Class: name, index, text or A|B; repeat, or all.", "--target")] = None
    blend: Annotated[list[str] | None, option("Classes to mix; negative weights repel.", metavar="CLASS=WEIGHT")] = None
    num: Annotated[int, option("Images per target.")] = 16
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class Models:
    """The networks that draw."""

    denoiser: Denoiser = "zoo:sportballs"
    classifiers: Annotated[
        list[str] | None,
        option(
            "Guide: imagenet:, zoo:, torchvision:, timm:, hf:, clip:, adm-classifier: or module:; repeat for "
            "more. By default imagenet:efficientnet-lite0.",
            "--classifier",
            known=classifier_names,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Changes of a recipe's settings."""

    sampler: Annotated[str | None, option("Sampler, such as ddim; by default the recipe's.")] = None
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

    label: Annotated[str | None, option("Label for the denoiser: name, index or target.")] = None
    prompt: Annotated[str | None, option("Prompt of a text-to-image model.")] = None
    negative_prompt: Annotated[str | None, option("Negative prompt of a text-to-image model.")] = None
    cfg_scale: Annotated[float, option("Classifier-free guidance scale.")] = 1.0


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How the networks run."""

    batch_size: BatchSize = None
    device: Device = "cpu"
    dtype: Annotated[
        str, option("float32, bfloat16, float16, auto or auto-float32.", known=lambda: (*TYPES, *AUTO))
    ] = "float32"
    recompute: Annotated[bool, option("Recompute in the backward pass to save memory.", "--recompute")] = False
    compile: Annotated[bool, option("Compile the networks with torch.compile.", "--compile")] = False


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Returns a command for typer, with one option for each field of every parameter that is a group."""
    signature = inspect.signature(command)
    annotations = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    groups: dict[str, Any] = {name: kind for name, kind in annotations.items() if is_dataclass(kind)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        if name not in groups:
            parameters.append(parameter)
            continue
        hints = get_type_hints(groups[name], include_extras=True)
        for field in fields(groups[name]):
            default = getattr(parameter.default, field.name, field.default)
            default = inspect.Parameter.empty if default is MISSING else default
            parameters.append(parameter.replace(name=field.name, default=default, annotation=hints[field.name]))

    @functools.wraps(command)
    def run(**given: Any) -> None:  # noqa: ANN401
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    run.__signature__ = signature.replace(parameters=parameters)  # pyright: ignore[reportAttributeAccessIssue]
    return run


def run_settings(*groups: object, **others: object) -> dict[str, Any]:
    """Returns the fields of a `steersman.lab.run.Run` that option groups and others give; None leaves the default.

    What can be refused without torch is refused here.
    """
    given = {name: value for group in groups for name, value in vars(group).items()} | others
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    settings = {name: value for name, value in settings.items() if value is not None}
    settings["blend"] = weights(settings.get("blend", ()))
    if settings.get("judge") == "none":
        settings["judge"] = None
    check_choices(**{name: settings[name] for name in ("targets", "blend", "dtype", "format") if name in settings})
    return settings


def at_least(least: int, **given: int | None) -> None:
    """Refuses options whose value is below the least one."""
    for name, value in given.items():
        if value is not None and value < least:
            raise InputError(f"{name.replace('_', '-')} must be at least {least}, got {value}")


def numbers(name: str, text: str, kind: type[Number] = float) -> list[Number]:
    """Returns the numbers between commas."""
    try:
        return [kind(number) for number in text.split(",")]
    except ValueError:
        named = "whole numbers" if kind is int else "numbers"
        raise InputError(f"{name} must be {named} with commas between them, got {text!r}") from None


def listed(text: str | None) -> tuple[str, ...] | None:
    """Returns the names between commas; None without a text."""
    return None if text is None else tuple(name.strip() for name in text.split(","))
