"""A network's modules, as the records of its pickle tell of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from steersman.errors import InputError
from steersman.models.pickles import Record

__all__ = ["Module", "modules"]

DEEPEST = 8  # modules within modules; the networks read here are four deep


@dataclass(frozen=True, kw_only=True)
class Module:
    """One module.

    Attributes:
        kind: The name of its class.
        attributes: What it was set to, by name.
        tensors: Its own parameters and buffers, by name, in float32.
        children: The names of the modules within it, in their order.
    """

    kind: str
    attributes: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    children: tuple[str, ...]


def modules(root: Record) -> dict[str, Module]:
    """Returns a module and all within it by their names, ``""`` and ``"a.b"``.

    Raises:
        InputError: Modules that hold each other, that are not modules, or tensors that are not finite.
    """
    found: dict[str, Module] = {}
    pending, seen = [("", root)], {id(root)}
    while pending:
        name, record = pending.pop()
        if not isinstance(record, Record) or not isinstance(record.state, dict):
            raise InputError(f"{name}: it is no module")
        parts = [record.state.get(key, {}) for key in ("_parameters", "_buffers", "_modules")]
        if not all(isinstance(part, dict) and all(type(key) is str for key in part) for part in parts):
            raise InputError(f"{name}: it is no module")
        parameters, buffers, inner = ({key: each for key, each in part.items() if each is not None} for part in parts)
        tensors = {**parameters, **buffers}
        if not all(isinstance(each, Tensor) for each in tensors.values()):
            raise InputError(f"{name}: it is no module")
        if not all(bool(each.isfinite().all()) for each in tensors.values()):
            raise InputError(f"{name}: it is not finite")
        found[name] = Module(
            kind=record.name,
            attributes=record.state,
            tensors={leaf: each.float() for leaf, each in tensors.items()},
            children=tuple(inner),
        )
        for child, each in inner.items():
            if id(each) in seen or name.count(".") >= DEEPEST:
                raise InputError("its modules hold each other")
            seen.add(id(each))
            pending.append((f"{name}.{child}" if name else child, each))
    return found
