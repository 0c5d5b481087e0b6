"""Names of classes, and which of them is meant.

Two names are the same whatever their case, and whether words are apart by spaces or underscores: ``Soccer_ball`` is
``soccer ball``. A class of ImageNet has further names, those of its WordNet synset: its id (``n02799071``) and its
synonyms. They count where no name of a class is the one that was given.
"""

import operator
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from steersman.errors import InputError, unknown

__all__ = ["each_class", "elsewhere", "fold", "further_names", "imagenet_names", "resolve", "same_class"]

ALIKE = 0.9  # share of the classes on whose names two lists of the same classes agree, at least
SYNSET = re.compile(r"n\d{8}")
DIGITS = 18  # of a number; a longer one is no index, and Python refuses to read one of thousands


def fold(name: str) -> str:
    """Returns a name in the form in which names are compared."""
    return " ".join(name.casefold().replace("_", " ").split())


def each_class(given: Any, kind: str = "class") -> list[int | str]:  # noqa: ANN401
    """Returns the indices and names of classes that were given, by Python, NumPy or torch, one or several.

    Args:
        given: An index or a name, or a list or array of these.
        kind: What a class is called in the errors.

    Raises:
        InputError: Something else.
    """
    values = given.tolist() if hasattr(given, "tolist") else given
    several = isinstance(values, Iterable) and not isinstance(values, str | bytes)
    return [each if isinstance(each, str) else _index(each, kind) for each in (values if several else [values])]


def _index(value: Any, kind: str) -> int:  # noqa: ANN401
    try:
        if isinstance(value, bool) or not -(2**63) <= (found := operator.index(value)) < 2**63:
            raise TypeError
    except (TypeError, ValueError):
        raise InputError(
            f"{kind} must be a class's index or name, or a list of one for each image, got {value!r}"
        ) from None
    return found


def resolve(target: str | int, names: Sequence[str], kind: str = "class") -> int:
    """Returns the index of a class.

    Args:
        target: An index in [0, K), as number or text, or a name: first a class's full name, then any of its synonyms,
            then what WordNet calls a class of ImageNet.
        names: One name a class; synonyms within a name are separated by commas.
        kind: What a class is called in the errors.

    Raises:
        InputError: The index is out of range, the name is unknown, or it names more than one class.
    """
    if isinstance(target, str):
        named = _named(target, names)
        if len(named) > 1:
            listed = ", ".join(f"{i} ({names[i]})" for i in named)
            raise InputError(f"{kind} {target!r} is ambiguous: {listed}; give the index")
        if named:
            return named[0]
        if not _is_number(fold(target)):
            raise unknown(kind, target, dict.fromkeys(s.strip() for n in names for s in n.split(",")))
        target = int(target)
    if not 0 <= target < len(names):
        raise InputError(f"{kind} index must be 0 to {len(names) - 1}, got {target}")
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
    if len(names) == len(others) and (_alike(names, others) or any(map(_numbered, (names, others)))):
        return index
    return resolve(names[index].split(",")[0], others, kind)


def same_class(names: Iterable[str], labels: Iterable[str]) -> set[str]:
    """Returns those labels that are one of some names of a class.

    Where none is as it stands, those that are one of the further names that WordNet has for it.

    Args:
        names: What the class is called.
        labels: What classes are called elsewhere.
    """
    known = {label: fold(label) for label in labels}
    wanted = set(map(fold, names))
    found = {label for label, folded in known.items() if folded in wanted}
    if found:
        return found
    further = {other for name in wanted for other in further_names(name)}
    return {label for label, folded in known.items() if folded in further}


def further_names(name: str) -> tuple[str, ...]:
    """Returns what else WordNet calls a class of ImageNet, folded, its id first; nothing for any other name.

    Args:
        name: A synset's id, or a name that is one synset's of ImageNet's thousand alone.
    """
    folded = fold(name)
    synset = folded if SYNSET.fullmatch(folded) else _synsets().get(folded)
    lemmas = _lemmas().get(synset or "")
    return () if synset is None or lemmas is None else (synset, *map(fold, lemmas.split(",")))


def imagenet_names() -> tuple[str, ...]:
    """Returns the names of ImageNet's 1000 classes in their usual order, synonyms separated by commas."""
    return tuple(_of_imagenet("imagenet-1k").values())


def _named(target: str, names: Sequence[str]) -> list[int]:
    """Returns the indices of all classes that a name may mean, by the first of the ways that finds any."""
    folded, vocabulary = fold(target), _vocabulary(tuple(names))
    found = vocabulary.full.get(folded) or vocabulary.synonyms.get(folded) or []
    if found or _is_number(folded) or not (further := further_names(folded)):
        return found
    if further[0] in (ids := list(_of_imagenet("imagenet-1k"))) and _is_the_thousand(tuple(names)):
        return [ids.index(further[0])]
    shared = Counter(index for name in set(further) for index in vocabulary.synonyms.get(name, ()))
    return [index for index in sorted(shared) if shared[index] == max(shared.values())]


@dataclass(frozen=True)
class _Vocabulary:
    """The indices of classes by their full names, and by each of their synonyms."""

    full: dict[str, list[int]]
    synonyms: dict[str, list[int]]


@lru_cache(maxsize=16)
def _vocabulary(names: tuple[str, ...]) -> _Vocabulary:
    full, synonyms = defaultdict(list), defaultdict(list)
    for index, (name, each) in enumerate(zip(names, _synonyms(names), strict=True)):
        full[fold(name)].append(index)
        for synonym in each:
            synonyms[synonym].append(index)
    return _Vocabulary(full=dict(full), synonyms=dict(synonyms))


@lru_cache(maxsize=16)
def _is_the_thousand(names: tuple[str, ...]) -> bool:
    """Returns whether names are those of ImageNet's thousand classes, in their usual order."""
    thousand = imagenet_names()
    return len(names) == len(thousand) and _alike(names, thousand)


@cache
def _lemmas() -> dict[str, str]:
    """Returns the names of each synset of ImageNet, separated by commas, by its id."""
    return _of_imagenet("imagenet-22k") | _of_imagenet("imagenet-1k")


@cache
def _synsets() -> dict[str, str]:
    """Returns the id of the one synset of ImageNet's thousand that has a name, by that name."""
    owners: dict[str, list[str]] = {}
    for synset, lemmas in _of_imagenet("imagenet-1k").items():
        for name in set(map(fold, lemmas.split(","))):
            owners.setdefault(name, []).append(synset)
    return {name: synsets[0] for name, synsets in owners.items() if len(synsets) == 1}


@cache
def _of_imagenet(subset: str) -> dict[str, str]:
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo(subset)
    return {synset: info.label_name_to_description(synset) for synset in info.label_names()}


def _alike(names: Sequence[str], others: Sequence[str]) -> bool:
    """Returns whether two lists of as many classes are of the same ones, by nearly all of their names."""
    pairs = zip(_synonyms(names), _synonyms(others), strict=True)
    return sum(bool(ours & theirs) for ours, theirs in pairs) >= ALIKE * len(names)


def _is_number(folded: str) -> bool:
    return folded.removeprefix("-").isdecimal() and len(folded) <= DIGITS


def _synonyms(names: Sequence[str]) -> list[set[str]]:
    return [set(map(fold, name.split(","))) for name in names]


def _numbered(names: Sequence[str]) -> bool:
    return all(name == str(index) for index, name in enumerate(names))
