"""Values in the types that settings have; what is wrong with one is said in a line."""

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from steersman.errors import InputError, unknown

__all__ = ["filled_in", "typed"]

Model = TypeVar("Model", bound=BaseModel)


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
        said = error.errors()[0]["msg"].removeprefix("Input should be ")
        raise InputError(f"{name}: {value!r} given; allowed: {said}") from error


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
    keys = ", ".join(model.model_fields)
    if not isinstance(content, dict):
        raise InputError(f"{kind}: {name!r} holds {type(content).__name__}; allowed: a mapping with {keys}")
    for key in content:
        if key not in model.model_fields:
            raise unknown(f"key of a {kind}", key, model.model_fields)
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{kind}: {name!r}, {where}: {first['msg']}; allowed: {keys}") from error
