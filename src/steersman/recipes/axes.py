"""The axes of the design space as a recipe names them: for each axis its options, for each option its settings.

A recipe's section is a mapping with ``kind`` and that option's settings, a bare kind, or, for stabilizers, weights and
smoothings, a list of them. An axis with one option has no kind, and a bare value is its first setting. The settings are
the fields of the option's dataclass.
"""

import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from steersman import guidance
from steersman.errors import InputError, unknown
from steersman.guidance.step import Kept
from steersman.sampling import DDIM, DDPM, DPMpp, Heun, NamedScheduler, Particles, Recurrence
from steersman.schedule import Ratios, check_ratios, check_spacing
from steersman.trust import CODE, import_function
from steersman.typed import check_finite, finite, typed

__all__ = [
    "AXES",
    "FIXED",
    "build",
    "default_of",
    "describe",
    "meanings_of",
    "normal",
    "parts_of",
    "plain",
    "register",
    "settings_of",
]


@finite
class _Settings:
    """Base of the options that have no code of their own."""


def _option(text: str, **settings: tuple[Any, Any, str]) -> type:
    """Returns an option without code, from its description and the type, default and meaning of each setting."""
    fields = [(name, hint, dataclasses.field(default=default)) for name, (hint, default, _) in settings.items()]
    doc = "\n".join([text, "", "Attributes:", *(f"    {name}: {meaning}" for name, (*_, meaning) in settings.items())])
    return dataclasses.make_dataclass(
        "Settings", fields, bases=(_Settings,), namespace={"__doc__": doc}, frozen=True, kw_only=True
    )


@dataclass(frozen=True, kw_only=True)
@finite
class Sampling:
    """The levels that sampling visits.

    Attributes:
        steps: The number of steps.
        spacing: The spacing of the schedule's levels, ``linspace``, ``leading``, ``trailing``, ``karras`` or
            ``logsnr``; or falling ratios ``sigma / alpha``, such as ``[60, 3, 0.03]``: the same share of the steps goes
            from each to the next, evenly in the logarithm.
        ratio_min: Lower limit of the noise-to-signal ratio ``sigma / alpha``, before the clean image.
        ratio_max: Upper limit of the ratio, where sampling starts.
        clip: Whether the denoised image is clipped to [-1, 1] before each step.
        keeps: What clipping keeps: ``sample`` for ``x_t = alpha x0 + sigma eps``, or ``noise`` for the model's own eps,
            as with diffusers' DDIM.
    """

    steps: int = 50
    spacing: str | Ratios = "linspace"
    ratio_min: float = 0.0
    ratio_max: float = math.inf
    clip: bool = True
    keeps: Kept = "sample"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"sampling.steps must be at least 1, got {self.steps}")
        check_spacing(self.spacing, "sampling.spacing")
        check_ratios("sampling", self.ratio_min, self.ratio_max, apart=True)


AXES: dict[str, dict[str, type]] = {
    "objective": {
        "class": guidance.ClassProbability,
        "logit": guidance.TargetLogit,
        "binary": guidance.BinaryProbability,
    },
    "loss": {"none": _option("The log-likelihood itself."), "root": guidance.Root, "log": guidance.Log},
    "preprocess": {
        "image": _option(
            "The classifier's preprocessing.",
            transform=(
                Literal["own", "raw"],
                "own",
                "own: that of the classifier's training; raw: the sample as it is, as in EluCD's released code.",
            ),
            size=(
                int | None,
                None,
                "Height and width in pixels; none for the classifier's own. A network that was trained on smaller "
                "images, or takes its own size alone, keeps that.",
            ),
        )
    },
    "ensemble": {
        "sum": _option(
            "The weighted sum of the classifiers' log-likelihoods.",
            weights=(tuple[float, ...], (), "One for each classifier; an empty list for 1 each."),
        ),
        "switch": _option(
            "The first of two classifiers above the ratio sigma / alpha, the second below.",
            at=(float, 1.0, "The ratio sigma / alpha."),
        ),
        "verifier": _option("The first of two classifiers guides, the second weighs the particles."),
        "cone": _option(
            "The gradient of the second of two classifiers, projected onto a cone around that of the first (DVCE).",
            angle=(float, 30.0, "The cone's angle in degrees, from 0 to 90."),
        ),
    },
    "smoothing": {
        "none": _option("The classifier as it was trained."),
        "softplus": _option(
            "Every ReLU becomes log(1 + exp(beta a)) / beta (EluCD 4.3).", beta=(float, 8.0, "Sharpness, above 0.")
        ),
        "augment": guidance.Augmented,
        "montecarlo": guidance.MonteCarlo,
    },
    "input": {
        "denoised": guidance.Denoised,
        "lookahead": guidance.Lookahead,
        "noisy": guidance.Noisy,
        "rescaled": guidance.Rescaled,
    },
    "wrt": {
        "x0_hat": _option(
            "The gradient with respect to the classifier input.",
            ascents=(int, 1, "Steps of gradient ascent, each with a new gradient."),
        ),
        "x_t": _option("The gradient with respect to x_t, back through the denoiser."),
    },
    "stabilizer": {
        "none": guidance.Identity,
        "ema": guidance.Ema,
        "momentum": guidance.Momentum,
        "adam": guidance.Adam,
        "rms": guidance.Rms,
        "clip": guidance.Clip,
    },
    "weight": {
        "variance": guidance.Variance,
        "deviation": guidance.Deviation,
        "sine": guidance.Sine,
        "constant": guidance.Constant,
        "linear": guidance.Linear,
        "interval": guidance.Interval,
        "every": guidance.Every,
        "damped": guidance.Damped,
        "signal": guidance.Signal,
        "transition": guidance.Transition,
        "taper": guidance.Taper,
        "relative": guidance.Relative,
        "difference": guidance.Difference,
        "polyak": guidance.Polyak,
    },
    "injection": {
        "mean": guidance.Mean,
        "noise": guidance.NoisePrediction,
        "denoised": guidance.DenoisedImage,
        "sample": guidance.Sample,
        "spherical": guidance.Spherical,
    },
    "scale": {"factor": _option("The guidance scale s.", value=(float, 1.0, "Factor on the guidance update."))},
    "weighs": {
        "likelihood": _option(
            "Whether the guide's log-likelihood weighs particles.",
            particles=(bool, True, "false for a guide that leaves the weighing to others."),
        )
    },
    "sampler": {"ddpm": DDPM, "ddim": DDIM, "heun": Heun, "dpmpp": DPMpp, "diffusers": NamedScheduler},
    "sampling": {"levels": Sampling},
    "recurrence": {"repeat": Recurrence},
    "particles": {"candidates": Particles},
}
"""Axis to kind to dataclass. The first kind of an axis is its default."""

LISTS: dict[str, Callable[[tuple], Any]] = {
    "stabilizer": guidance.Chain,
    "weight": guidance.Product,
    "smoothing": tuple,
}
"""Axes that take a list of options, and what becomes of it."""

NONE = "none"
"""What stands for None in a setting, as null does in YAML; it is also the option of some axes that does nothing."""

FIXED = ("classifier", "objective")
"""Fields of an option that are not settings: the parts that it is built around."""

PROTOCOLS: dict[str, tuple[str, ...]] = {
    "objective": ("__call__",),
    "input": ("__call__", "needs_denoiser"),
    "stabilizer": ("init", "update"),
    "weight": ("__call__", "active", "needs_denoiser"),
    "injection": ("needs_signal", "point"),
    "sampler": ("init", "step", "noisy", "fixed"),
}
"""Axes that take a user's options, and what such a class must have."""

Option = TypeVar("Option", bound=type)


def register(axis: str, name: str) -> Callable[[Option], Option]:
    """Registers a class as an option of an axis for this process: in Python, YAML and ``--set``.

    The class is a frozen dataclass whose fields are the option's settings, each with a default. An objective with a
    classifier has a field ``classifier``, which is not a setting. The command line does not import your code: there
    ``module:PACKAGE.NAME:CLASS`` takes the place of the name, without registration.

    Args:
        axis: ``objective``, ``input``, ``stabilizer``, ``weight``, ``injection`` or ``sampler``.
        name: The option's name in recipes.

    Raises:
        InputError: The axis takes no options of one's own, the name is taken, or the class lacks what the axis needs.

    Example:
        >>> from dataclasses import dataclass
        >>> import steersman as sm
        >>> @sm.register("stabilizer", "sign")
        ... @dataclass(frozen=True)
        ... class Sign:
        ...     "The sign of each value of the gradient."
        ...
        ...     def init(self, x):
        ...         return ()
        ...
        ...     def update(self, g, state):
        ...         return g.sign(), state
        >>> sm.load_recipe("nrcg", {"stabilizer": "sign"}).resolved()["stabilizer"]
        {'kind': 'sign'}
    """
    if axis not in PROTOCOLS:
        raise unknown("axis that takes options of one's own", axis, PROTOCOLS)
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise InputError(f"name of an option must be of small letters, digits and '-', got {name!r}")

    def added(option: Option) -> Option:
        _check_option(axis, option)
        known = AXES[axis].get(name)
        # A cell of a notebook that is run again defines its class anew.
        if known is not None and (known.__module__, known.__qualname__) != (option.__module__, option.__qualname__):
            raise InputError(f"{axis} {name!r} is {known.__module__}.{known.__qualname__} already; choose another name")
        AXES[axis][name] = option
        return option

    return added


def _check_option(axis: str, option: type) -> None:
    """Refuses what cannot be an option of an axis."""
    called = getattr(option, "__name__", str(option))
    if not isinstance(option, type) or not dataclasses.is_dataclass(option):
        raise InputError(f"{axis} {called} must be a dataclass, such as @dataclass(frozen=True)")
    names = {name for base in option.__mro__ if base is not object for name in vars(base)}
    if missing := [name for name in PROTOCOLS[axis] if name not in names]:
        raise InputError(f"{axis} {called} must have {', '.join(PROTOCOLS[axis])}, lacks {', '.join(missing)}")
    for name, field in settings_of(option).items():
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InputError(f"{axis} {called}: the setting {name} must have a default")


def _option_of(axis: str, kind: str) -> type:
    """Returns an option by its name, or a user's by ``module:PACKAGE.NAME:CLASS``."""
    known = AXES[axis]
    if kind.startswith(CODE) and axis in PROTOCOLS:
        option: Any = import_function(kind.removeprefix(CODE), axis)
        _check_option(axis, option)
        return option
    if kind not in known:
        raise unknown(axis, kind, known)
    return known[kind]


def settings_of(option: type) -> dict[str, dataclasses.Field]:
    """Returns an option's settings by name."""
    return {field.name: field for field in dataclasses.fields(option) if field.name not in FIXED}


def default_of(setting: dataclasses.Field) -> Any:  # noqa: ANN401
    """Returns a setting's default."""
    factory = setting.default_factory
    return setting.default if factory is dataclasses.MISSING else factory()


def normal(axis: str, section: object) -> list[dict[str, Any]]:
    """Returns a section in its full form, a list of mappings with ``kind`` and every setting, checked."""
    known = AXES[axis]
    if isinstance(section, Sequence) and not isinstance(section, str):
        if axis not in LISTS:
            raise InputError(f"{axis} must be one of {', '.join(known)}, got a list")
        if not section:
            raise InputError(f"{axis} must be one or more of {', '.join(known)}, got an empty list")
        return [normal(axis, part)[0] for part in section]
    default = next(iter(known))
    bare = "kind" if len(known) > 1 else next(iter(settings_of(known[default])))
    given = dict(section) if isinstance(section, Mapping) else {bare: section}
    kind = str(given.pop("kind", default))
    option = _option_of(axis, kind)
    hints, fields = get_type_hints(option), settings_of(option)
    for key in given:
        if key not in fields:
            raise unknown(f"setting of {axis} {kind!r}", key, ["kind", *fields] if len(known) > 1 else fields)
    full: dict[str, Any] = {"kind": kind}
    for key, field in fields.items():
        value = given.get(key, default_of(field))
        if isinstance(value, str) and value.lower() == NONE and type(None) in get_args(hints[key]):
            value = None
        full[key] = typed(f"{axis}.{key}", value, hints[key])
        if not isinstance(full[key], Mapping):  # a scheduler's settings are compared with its own defaults
            check_finite(f"{axis}.{key}", full[key], default_of(field))
    return [full]


def plain(axis: str, section: object) -> dict[str, Any] | list[dict[str, Any]]:
    """Returns a section with every setting filled in, as it is written to a file.

    An option whose settings depend on one another fills them in by its own ``filled``.
    """
    full = normal(axis, section)
    for part in full:
        if (filled := getattr(_option_of(axis, part["kind"]), "filled", None)) is not None:
            part |= filled(**{key: value for key, value in part.items() if key != "kind"})
    if len(AXES[axis]) == 1:
        full[0].pop("kind")
    return full if len(full) > 1 else full[0]


def build(axis: str, section: object, **fixed: object) -> Any:  # noqa: ANN401
    """Returns the object that a section describes, around the fixed parts, such as the classifier of an objective."""
    parts = []
    for full in normal(axis, section):
        option = _option_of(axis, full.pop("kind"))
        names = {field.name for field in dataclasses.fields(option)}
        parts.append(option(**full, **{name: part for name, part in fixed.items() if name in names}))
    return parts[0] if len(parts) == 1 else LISTS[axis](tuple(parts))


def parts_of(axis: str, section: object) -> list[str]:
    """Returns the fields of a section's option that are not settings but parts, such as a classifier."""
    fields = dataclasses.fields(_option_of(axis, normal(axis, section)[0]["kind"]))
    return [field.name for field in fields if field.name in FIXED]


def describe(option: type) -> str:
    """Returns the first line of an option's docstring."""
    return (option.__doc__ or "").strip().splitlines()[0].replace("``", "")


def meanings_of(option: type) -> dict[str, str]:
    """Returns what each attribute of an option means, by the docstrings of the class and its bases."""
    meanings: dict[str, str] = {}
    for base in reversed(option.__mro__):
        _, _, section = inspect.cleandoc(vars(base).get("__doc__") or "").partition("Attributes:\n")
        for name, text in re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", section, re.MULTILINE):
            meanings[name] = " ".join(text.split()).replace("``", "")
    return meanings
