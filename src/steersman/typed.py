"""Values in the types that settings have; what is wrong with one is said in a line."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from steersman.errors import LONGEST, InputError, shown, unknown

__all__ = ["brief", "check_finite", "filled_in", "finite", "typed"]

Made = TypeVar("Made", bound=type)
Model = TypeVar("Model", bound=BaseModel)


def finite(made: Made) -> Made:
    """Lets a dataclass of settings refuse numbers that are not finite; it stands below ``@dataclass``.

    A limit whose default is infinite may be infinite, as there is no limit then.
    """
    own = getattr(made, "__post_init__", None)

    def check(self: Any) -> None:  # noqa: ANN401
        for each in dataclasses.fields(self):
            check_finite(f"{type(self).__name__}.{each.name}", getattr(self, each.name), each.default)
        if own is not None:
            own(self)

    made.__post_init__ = check
    return made


def check_finite(name: str, value: object, default: object = None) -> None:
    """Refuses a number that is not finite, or is not the default; of a list or a mapping, each number in it.

    Raises:
        InputError: It is none.
    """
    if isinstance(value, Mapping):
        for key, each in value.items():
            check_finite(f"{name}.{key}", each)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for each in value:
            check_finite(name, each)
    elif isinstance(value, Real) and not math.isfinite(value) and value != default:
        raise InputError(f"{name} must be a finite number, got {float(value):g}")


def brief(value: object) -> str:
    """Returns settings in one line: those that differ from their defaults, and of a network its class alone."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return f"{type(value).__name__}({', '.join(_differing(value))})"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(brief, value))}]"
    said = repr(value)
    if "\n" in said:
        return f"{type(value).__name__}(…)"
    return said if len(said) <= LONGEST else shown(value)


def _differing(value: Any) -> Iterator[str]:  # noqa: ANN401
    for each in dataclasses.fields(value):
        made = each.default_factory
        default = each.default if made is dataclasses.MISSING else made()
        if each.repr and repr(held := getattr(value, each.name)) != repr(default):
            yield f"{each.name}={brief(held)}"


def typed(name: str, value: object, hint: Any, config: ConfigDict | None = None) -> Any:  # noqa: ANN401
    """Returns a value in the type that a setting has.

    Args:
        name: The setting's name.
        value: What was given.
        hint: The type.
        config: How strictly pydantic takes it.

    Raises:
        InputError: It cannot be had in that type.
    """
    try:
        return TypeAdapter(hint, config=config).validate_python(value)
    except ValidationError as error:
        raise InputError(_said(name, error)) from error


def filled_in(model: type[Model], content: object, kind: str, name: str) -> Model:
    """Returns a model with the values that a file holds.

    Args:
        model: The model, whose fields are the keys that the file may have.
        content: What the file holds.
        kind: What it is of, such as ``recipe``.
        name: Which.

    Raises:
        InputError: No mapping, an unknown key, or a value of another type.
    """
    if not isinstance(content, dict):
        keys = ", ".join(model.model_fields)
        raise InputError(f"{kind} {name!r} must hold a mapping with {keys}, got {shown(content)}")
    for key in content:
        if key not in model.model_fields:
            raise unknown(f"key of a {kind}", key, model.model_fields)
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{kind} {name!r}: {_said('', error)}") from error


def _said(name: str, error: ValidationError) -> str:
    """Returns the first of pydantic's complaints in a line that names what it is about."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, filter(lambda part: part != "", (name, *first["loc"]))))
    if first["type"] == "missing":
        return f"{where} is missing"
    said = first["msg"].removeprefix("Input ").removeprefix("Value error, ").partition(", unable to")[0]
    return f"{where} {said.replace('should be', 'must be', 1)}, got {shown(first['input'])}"
