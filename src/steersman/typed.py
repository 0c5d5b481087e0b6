"""Settings: values in the types that they have; what is wrong with one is said in a line."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from steersman.errors import LONGEST, InputError, shown, unknown

__all__ = ["brief", "check_finite", "filled_in", "finite", "typed"]

Made = TypeVar("Made", bound=type)
Model = TypeVar("Model", bound=BaseModel)


def finite(made: Made) -> Made:
    """Lets a dataclass refuse numbers that are not finite, but for infinite defaults; to put below ``@dataclass``."""
    own = getattr(made, "__post_init__", None)

    def check(self: Any) -> None:  # noqa: ANN401
        for field in dataclasses.fields(self):
            check_finite(f"{type(self).__name__}.{field.name}", getattr(self, field.name), field.default)
        if own is not None:
            own(self)

    made.__post_init__ = check
    return made


def check_finite(name: str, value: object, default: object = None) -> None:
    """Refuses a number that is neither finite nor the default; of a list or a mapping, each number in it."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            check_finite(f"{name}.{key}", part)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for part in value:
            check_finite(name, part)
    elif isinstance(value, Real) and not math.isfinite(value) and value != default:
        raise InputError(f"{name} must be a finite number, got {float(value):g}")


def brief(value: object) -> str:
    """Returns settings in one line: those that differ from their defaults, and of a network its class alone."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = []
        for field in dataclasses.fields(value):
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            if field.repr and repr(part := getattr(value, field.name)) != repr(default):
                parts.append(f"{field.name}={brief(part)}")
        return f"{type(value).__name__}({', '.join(parts)})"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(brief, value))}]"
    text = repr(value)
    if "\n" in text:
        return f"{type(value).__name__}(…)"
    return text if len(text) <= LONGEST else shown(value)


def typed(name: str, value: object, hint: Any, config: ConfigDict | None = None) -> Any:  # noqa: ANN401
    """Returns a value in the type of a setting, as strictly as pydantic's config says, or refuses it by name."""
    try:
        return TypeAdapter(hint, config=config).validate_python(value)
    except ValidationError as error:
        raise InputError(_line(name, error)) from error


def filled_in(model: type[Model], content: object, kind: str, name: str) -> Model:
    """Returns a model with the values of a file; ``kind`` and ``name`` say in messages what the file is."""
    if not isinstance(content, dict):
        keys = ", ".join(model.model_fields)
        raise InputError(f"{kind} {name!r} must hold a mapping with {keys}, got {shown(content)}")
    for key in content:
        if key not in model.model_fields:
            raise unknown(f"key of a {kind}", key, model.model_fields)
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{kind} {name!r}: {_line('', error)}") from error


def _line(name: str, error: ValidationError) -> str:
    """Returns the first of pydantic's complaints in a line that names the setting."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, filter(lambda part: part != "", (name, *first["loc"]))))
    if first["type"] == "missing":
        return f"{where} is missing"
    text = first["msg"].removeprefix("Input ").removeprefix("Value error, ").partition(", unable to")[0]
    return f"{where} {text.replace('should be', 'must be', 1)}, got {shown(first['input'])}"
