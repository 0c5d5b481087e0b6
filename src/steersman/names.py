"""Names of classes, and which of them is meant."""

from collections.abc import Sequence

from steersman.errors import InputError, unknown

__all__ = ["elsewhere", "resolve"]

ALIKE = 0.9  # share of the classes on whose names two lists of the same classes agree, at least


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


def elsewhere(index: int, names: Sequence[str], others: Sequence[str], kind: str = "class") -> int:
    """Returns the index of a class in another vocabulary.

    It is the same index where both have as many classes and the same ones, by nearly all of their names, or where one
    has but numbers for names; else that of the class of this name.

    Args:
        index: The class's.
        names: One name a class; synonyms within a name are separated by commas.
        others: Those of the other vocabulary.
        kind: What a class is called there in the errors.

    Raises:
        InputError: The other vocabulary has no class of this name, or several.
    """
    if len(names) == len(others):
        pairs = list(zip(_synonyms(names), _synonyms(others), strict=True))
        agreed = sum(bool(ours & theirs) for ours, theirs in pairs)
        if agreed >= ALIKE * len(names) or any(map(_numbered, (names, others))):
            return index
    return resolve(names[index].split(",")[0], others, kind)


def _synonyms(names: Sequence[str]) -> list[set[str]]:
    return [set(map(_fold, name.split(","))) for name in names]


def _numbered(names: Sequence[str]) -> bool:
    return all(name == str(index) for index, name in enumerate(names))


def _fold(name: str) -> str:
    return " ".join(name.casefold().split())
