"""Names of classes, and which of them is meant."""

from collections.abc import Sequence

from steersman.errors import InputError, unknown

__all__ = ["resolve"]


def resolve(target: str | int, names: Sequence[str], kind: str = "class") -> int:
    """Returns the index of a class.

    Args:
        target: An index in [0, K), as number or text, or a name in any case: first a class's full name, then any of its
            synonyms.
        names: One name a class; synonyms within a name are separated by commas.
        kind: What a class is called in the errors.

    Raises:
        InputError: The index is out of range, the name is unknown, or it names more than one class.
    """
    if isinstance(target, str):
        full = _fold(target)
        named = [i for i, name in enumerate(names) if _fold(name) == full]
        named = named or [i for i, name in enumerate(names) if full in map(_fold, name.split(","))]
        if len(named) > 1:
            listed = ", ".join(f"{i} ({names[i]})" for i in named)
            raise InputError(f"{kind} {target!r} is ambiguous: {listed}; give the index")
        if named:
            return named[0]
        if not full.removeprefix("-").isdecimal():
            raise unknown(kind, target, dict.fromkeys(s.strip() for n in names for s in n.split(",")))
        target = int(full)
    if not 0 <= target < len(names):
        raise InputError(f"{kind} index {target} is out of range; allowed: 0 to {len(names) - 1}")
    return target


def _fold(name: str) -> str:
    return " ".join(name.casefold().split())
