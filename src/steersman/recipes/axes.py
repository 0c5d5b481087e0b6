"""The axes of the design space as a recipe names them: for each axis its options, for each option its settings.

A recipe's section is a mapping with ``kind`` and that option's settings, a bare kind, or, for stabilizers and
weights, a list of them: a chain, a product. An axis with one option has no kind, and a bare value is its first
setting. The settings are the fields of the option's dataclass, so there is one place for each name, default and bound.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from steersman.errors import InputError, unknown
from steersman.guidance import injection, input, objective, stabilizer, weight
from steersman.guidance.guide import Wrt
from steersman.sampling import DDIM, DDPM, DPMpp, Heun, NamedScheduler, Particles, Recurrence
from steersman.schedule import Spacing, check_ratios
from steersman.trust import CODE, import_function
from steersman.typed import check_finite, finite, typed

__all__ = [
    "AXES",
    "HandOver",
    "Preprocessing",
    "Softplus",
    "Unchanged",
    "Sampling",
    "build",
    "default_of",
    "describe",
    "normal",
    "option_of",
    "options",
    "plain",
    "register",
    "settings_of",
]


@dataclass(frozen=True, kw_only=True)
@finite
class Softplus:
    """Every ReLU of the classifier becomes ``log(1 + exp(beta a)) / beta`` (EluCD 4.3); one without stays as it is.

    Attributes:
        beta: The sharpness; the classifier as it was trained is the limit of large ones.
    """

    beta: float = 8.0


@dataclass(frozen=True, kw_only=True)
class Unsmoothed:
    """The classifier as it was trained."""


@dataclass(frozen=True, kw_only=True)
@finite
class Preprocessing:
    """What the classifier is fed.

    Attributes:
        transform: ``own`` for what it was trained with, ``raw`` for the sample as it is (EluCD's released code).
        size: The side in pixels to resize to, or None for its own; a network of a smaller size keeps that, and so does
            one that takes its own alone.
    """

    transform: Literal["own", "raw"] = "own"
    size: int | None = None


@dataclass(frozen=True, kw_only=True)
class Unchanged:
    """The log-likelihood itself.

    Attributes:
        objective: It gives it.
    """

    objective: objective.Objective


@dataclass(frozen=True, kw_only=True)
@finite
class Direct:
    """The gradient with respect to the view; the denoiser is never differentiated.

    Attributes:
        ascents: How often it is taken in a step, each time at the view moved by the updates before; more than once only
            with the injection denoised.
    """

    ascents: int = 1


@dataclass(frozen=True, kw_only=True)
class Through:
    """The gradient with respect to ``x_t``, back through the denoiser."""


@dataclass(frozen=True, kw_only=True)
@finite
class Sampling:
    """The levels that are visited.

    Attributes:
        steps: How many steps.
        spacing: Which of the schedule's levels.
        ratio_min: The smallest noise-to-signal ratio ``sigma / alpha`` among them, before the clean image.
        ratio_max: The largest, where the walk starts.
        clip: Whether the denoised image is clipped to [-1, 1] before each step.
        keeps: What clipping keeps: ``sample`` for ``x_t = alpha x0 + sigma eps``, or ``noise`` for the model's own eps,
            as with diffusers' DDIM.
    """

    steps: int = 50
    spacing: Spacing = "linspace"
    ratio_min: float = 0.0
    ratio_max: float = math.inf
    clip: bool = True
    keeps: injection.Kept = "sample"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"sampling.steps must be at least 1, got {self.steps}")
        if self.spacing not in get_args(Spacing):
            raise unknown("sampling.spacing", self.spacing, get_args(Spacing))
        check_ratios("sampling", self.ratio_min, self.ratio_max, apart=True)


@dataclass(frozen=True, kw_only=True)
@finite
class Together:
    """The log-likelihoods of several classifiers, weighted and added.

    Attributes:
        weights: One a classifier, in their order; none for 1 each. A negative one steers away.
    """

    weights: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
@finite
class HandOver:
    """The first of two classifiers at high noise, the second at low noise (EluCD, Table 2).

    Attributes:
        at: The noise-to-signal ratio ``sigma / alpha`` from which on down it is the second's turn.
    """

    at: float = 1.0


@dataclass(frozen=True, kw_only=True)
@finite
class Scale:
    """How strong the guidance is.

    Attributes:
        value: ``s``; comparable only among recipes with the same route, weight and injection.
    """

    value: float = 1.0


AXES: dict[str, dict[str, type]] = {
    "objective": {
        "class": objective.ClassProbability,
        "logit": objective.TargetLogit,
        "binary": objective.BinaryProbability,
    },
    "loss": {"none": Unchanged, "root": objective.Root, "log": objective.Log},
    "preprocess": {"image": Preprocessing},
    "ensemble": {"sum": Together, "switch": HandOver},
    "smoothing": {
        "none": Unsmoothed,
        "softplus": Softplus,
        "augment": objective.Augmented,
        "montecarlo": objective.MonteCarlo,
    },
    "input": {
        "denoised": input.Denoised,
        "lookahead": input.Lookahead,
        "noisy": input.Noisy,
        "rescaled": input.Rescaled,
    },
    "wrt": {"x0_hat": Direct, "x_t": Through},
    "stabilizer": {
        "none": stabilizer.Identity,
        "ema": stabilizer.Ema,
        "momentum": stabilizer.Momentum,
        "adam": stabilizer.Adam,
        "rms": stabilizer.Rms,
        "clip": stabilizer.Clip,
    },
    "weight": {
        "variance": weight.Variance,
        "deviation": weight.Deviation,
        "sine": weight.Sine,
        "constant": weight.Constant,
        "linear": weight.Linear,
        "interval": weight.Interval,
        "every": weight.Every,
        "signal": weight.Signal,
        "transition": weight.Transition,
        "taper": weight.Taper,
        "relative": weight.Relative,
        "difference": weight.Difference,
        "polyak": weight.Polyak,
    },
    "injection": {
        "mean": injection.Mean,
        "noise": injection.NoisePrediction,
        "denoised": injection.DenoisedImage,
        "sample": injection.Sample,
        "spherical": injection.Spherical,
    },
    "scale": {"factor": Scale},
    "sampler": {"ddpm": DDPM, "ddim": DDIM, "heun": Heun, "dpmpp": DPMpp, "diffusers": NamedScheduler},
    "sampling": {"levels": Sampling},
    "recurrence": {"repeat": Recurrence},
    "particles": {"candidates": Particles},
}
"""Axis to kind to dataclass. The first kind of an axis is its default."""

LISTS: dict[str, Callable[[tuple], Any]] = {
    "stabilizer": stabilizer.Chain,
    "weight": weight.Product,
    "smoothing": tuple,
}
"""Axes on which several options may stand together, and what they make."""

FIXED = ("classifier", "objective")
"""Fields of an option that are not settings: the parts that it is built around."""

assert set(get_args(Wrt)) == set(AXES["wrt"])


PROTOCOLS: dict[str, tuple[str, ...]] = {
    "objective": ("__call__",),
    "input": ("__call__", "needs_denoiser"),
    "stabilizer": ("init", "update"),
    "weight": ("__call__", "active", "needs_denoiser"),
    "injection": ("needs_signal", "point"),
    "sampler": ("init", "step", "noisy", "fixed"),
}
"""Axes that take options of one's own, and what such a class must have."""

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
    has = {name for each in option.__mro__ if each is not object for name in vars(each)}
    if missing := [each for each in PROTOCOLS[axis] if each not in has]:
        raise InputError(f"{axis} {called} must have {', '.join(PROTOCOLS[axis])}, lacks {', '.join(missing)}")
    for name, field in settings_of(option).items():
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InputError(f"{axis} {called}: the setting {name} must have a default")


def options(axis: str) -> dict[str, type]:
    """Returns an axis's options by name.

    Raises:
        InputError: There is no such axis.
    """
    if axis not in AXES:
        raise unknown("axis", axis, AXES)
    return AXES[axis]


def option_of(axis: str, kind: str) -> type:
    """Returns an option by its name, or a user's own by ``module:PACKAGE.NAME:CLASS``.

    Raises:
        InputError: There is no such option, or it is none.
    """
    known = options(axis)
    if kind.startswith(CODE) and axis in PROTOCOLS:
        option: Any = import_function(kind.removeprefix(CODE), axis)
        _check_option(axis, option)
        return option
    if kind not in known:
        raise unknown(axis, kind, known)
    return known[kind]


def settings_of(kind: type) -> dict[str, dataclasses.Field]:
    """Returns an option's settings by name."""
    return {field.name: field for field in dataclasses.fields(kind) if field.name not in FIXED}


def default_of(setting: dataclasses.Field) -> Any:  # noqa: ANN401
    """Returns a setting's default."""
    made = setting.default_factory
    return setting.default if made is dataclasses.MISSING else made()


def normal(axis: str, section: object) -> list[dict[str, Any]]:
    """Returns a section in its full form, a list of mappings with ``kind`` and every setting, checked.

    Raises:
        InputError: An unknown kind or key, or a value of the wrong type.
    """
    known = options(axis)
    if isinstance(section, Sequence) and not isinstance(section, str):
        if axis not in LISTS:
            raise InputError(f"{axis} must be one of {', '.join(known)}, got a list")
        if not section:
            raise InputError(f"{axis} must be one or more of {', '.join(known)}, got an empty list")
        return [normal(axis, each)[0] for each in section]
    default = next(iter(known))
    bare = "kind" if len(known) > 1 else next(iter(settings_of(known[default])))
    given = dict(section) if isinstance(section, Mapping) else {bare: section}
    kind = str(given.pop("kind", default))
    option = option_of(axis, kind)
    hints, fields = get_type_hints(option), settings_of(option)
    for key in given:
        if key not in fields:
            raise unknown(f"setting of {axis} {kind!r}", key, ["kind", *fields] if len(known) > 1 else fields)
    full: dict[str, Any] = {"kind": kind}
    for key, field in fields.items():
        value = given.get(key, default_of(field))
        full[key] = typed(f"{axis}.{key}", value, hints[key])
        if not isinstance(full[key], Mapping):  # a scheduler's settings are compared with its own defaults
            check_finite(f"{axis}.{key}", full[key], default_of(field))
    return [full]


def plain(axis: str, section: object) -> dict[str, Any] | list[dict[str, Any]]:
    """Returns a section with every setting filled in, as it is written to a file.

    An option whose settings depend on one another fills them in by its own ``filled``.
    """
    full = normal(axis, section)
    for each in full:
        if (filled := getattr(option_of(axis, each["kind"]), "filled", None)) is not None:
            each |= filled(**{key: value for key, value in each.items() if key != "kind"})
    if len(AXES[axis]) == 1:
        full[0].pop("kind")
    return full if len(full) > 1 else full[0]


def build(axis: str, section: object, **fixed: object) -> Any:  # noqa: ANN401
    """Returns the object that a section describes.

    Args:
        axis: The axis's name.
        section: The section.
        fixed: What is not a setting, such as the classifier of an objective.

    Raises:
        InputError: As in `normal`, or a value out of its range.
    """
    parts = []
    for full in normal(axis, section):
        kind = option_of(axis, full.pop("kind"))
        wanted = {field.name for field in dataclasses.fields(kind)}
        parts.append(kind(**full, **{name: part for name, part in fixed.items() if name in wanted}))
    return parts[0] if len(parts) == 1 else LISTS[axis](tuple(parts))


def describe(kind: type) -> str:
    """Returns the first sentence of an option's docstring."""
    return (kind.__doc__ or "").strip().splitlines()[0].replace("``", "")
