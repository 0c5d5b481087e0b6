"""Names that users give: of classes, of what is bundled, and of models with options.

Names of classes are compared without case and with underscores as spaces: ``Soccer_ball`` is ``soccer ball``. A class
of ImageNet has further names, the id (``n02799071``) and the synonyms of its WordNet synset; they count where no class
has the given name itself. A name of WordNet above some classes of ImageNet, such as ``dog``, means all of these, as the
table in ``wordnet/`` says; so does ``NAME|NAME`` mean both.

Nothing here imports torch before a class of ImageNet is asked for, so that a wrong name is refused at once.
"""

import operator
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml

from steersman.errors import InputError, about, notice, unknown

__all__ = [
    "OR",
    "ZOO",
    "classes_of",
    "denoiser_names",
    "each_class",
    "elsewhere",
    "imagenet_names",
    "index_ranges",
    "network_names",
    "recipe_file",
    "recipe_names",
    "resolve",
    "same_class",
    "search_classes",
    "split_options",
]

PACKAGE = Path(__file__).parent
ZOO, RECIPES = PACKAGE / "models" / "zoo", PACKAGE / "recipes"

OR = "|"  # between the names of classes of which any is meant

ALIKE = 0.9  # the smallest share of names on which two lists of the same classes agree
SYNSET = re.compile(r"n\d{8}")
DIGITS = 18  # of an index; int() refuses text of thousands
SHOWN = 3  # classes that a notice names


def network_names() -> list[str]:
    """Returns the names of the bundled classifiers."""
    return sorted(path.stem for path in ZOO.glob("*.safetensors"))


def denoiser_names() -> list[str]:
    """Returns the names of the bundled denoisers."""
    return sorted(path.parent.name for path in ZOO.glob("*/unet"))


def recipe_names(*, variants: bool = True) -> list[str]:
    """Returns the names of the bundled recipes, with ``NAME/VARIANT`` for each variant unless ``variants`` is False.

    Example:
        >>> import steersman as sm
        >>> [name for name in sm.recipe_names() if name.startswith("nrcg")][:3]
        ['nrcg', 'nrcg/none', 'nrcg/denoised']
    """
    names = []
    for file in sorted(RECIPES.glob("*.yaml")):
        names += [file.stem, *(f"{file.stem}/{variant}" for variant in (_variants(file) if variants else ()))]
    return names


def recipe_file(name: str) -> tuple[Path, str]:
    """Returns the file of a recipe, and the variant in it that is meant, empty for none.

    Raises:
        InputError: There is no bundled recipe or variant of that name, or no such file.
    """
    if name.endswith((".yaml", ".yml")):
        with about("recipe", name):
            Path(name).stat()
        return Path(name), ""
    bundled, _, variant = name.partition("/")
    file = RECIPES / f"{bundled}.yaml"
    if "." in bundled or not file.is_file():
        raise unknown("recipe", name, recipe_names())
    if variant and variant not in (known := _variants(file)):
        raise unknown(f"variant of {bundled}", variant, known)
    return file, variant


def _variants(file: Path) -> list[str]:
    """Returns the names of the variants in a bundled recipe."""
    content = yaml.load(file.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return list(content.get("variants", {}))


def split_options(text: str, allowed: Iterable[str], kind: str = "option") -> tuple[str, dict[str, str]]:
    """Returns the name and the options of ``NAME?KEY=VALUE&KEY=VALUE``; kind is what an unknown key is called.

    A value may be a path with ``&`` in it: text that cannot be an option continues the value before it.
    """
    name, _, query = text.partition("?")
    options: dict[str, str] = {}
    last = None
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if key in allowed:
            options[key], last = value, key
        elif last is not None and options[last] and not (equals and key.isidentifier()):
            options[last] += f"&{part}"
        else:
            raise unknown(kind, key, allowed)
    return name, options


def each_class(given: Any, kind: str = "class") -> list[int | str]:  # noqa: ANN401
    """Returns the indices and names in one index or name, or in a list or array of these, as Python's own."""
    values = given.tolist() if hasattr(given, "tolist") else given
    several = isinstance(values, Iterable) and not isinstance(values, str | bytes)
    return [value if isinstance(value, str) else _index(value, kind) for value in (values if several else [values])]


def _index(value: Any, kind: str) -> int:  # noqa: ANN401
    try:
        if isinstance(value, bool) or not -(2**63) <= (index := operator.index(value)) < 2**63:
            raise TypeError
    except (TypeError, ValueError):
        raise InputError(
            f"{kind} must be a class's index or name, or a list of one for each image, got {value!r}"
        ) from None
    return index


def resolve(target: str | int, names: Sequence[str], kind: str = "class") -> int:
    """Returns the index of a class.

    A target is an index in [0, K), as a number or text, or a name: first a class's full name, then any of its synonyms
    (separated by commas), then WordNet's names for a class of ImageNet.
    """
    if isinstance(target, str):
        indices = _indices(target, names)
        if len(indices) > 1:
            matches = ", ".join(f"{i} ({names[i]})" for i in indices)
            raise InputError(f"{kind} {target!r} is ambiguous: {matches}; give the index")
        if indices:
            return indices[0]
        if not _is_number(_fold(target)):
            raise unknown(kind, target, dict.fromkeys(s.strip() for n in names for s in n.split(",")))
        target = int(target)
    if not 0 <= target < len(names):
        raise InputError(f"{kind} index must be 0 to {len(names) - 1}, got {target}")
    return target


def classes_of(
    target: str | int, names: Sequence[str], kind: str = "class", tell: Callable[[str], object] = notice
) -> tuple[int, ...]:
    """Returns the indices of the classes that a target means, in ascending order.

    A class's own name, synonym or index means this class alone. Any other name is one of several joined by ``|``, or
    one of WordNet's above some of the classes, which is told.
    """
    if isinstance(target, str) and not _indices(target, names) and not _is_number(_fold(target)):
        if OR in target:
            return tuple(sorted({index for part in target.split(OR) for index in classes_of(part, names, kind, tell)}))
        ids = _below(target, kind)
        indices = tuple(index for index, synset in enumerate(_synset_of_each(tuple(names))) if synset in ids)
        if indices:
            titles = ", ".join(names[index].split(",")[0] for index in indices[:SHOWN])
            whose = "ImageNet" if _is_imagenet(tuple(names)) else "the classifier"
            more = ", …" if len(indices) > SHOWN else ""
            tell(f"target {target!r} is {len(indices)} classes of {whose} (WordNet): {titles}{more}")
            return indices
    return (resolve(target, names, kind),)


def index_ranges(indices: Sequence[int]) -> str:
    """Returns indices in ascending order as a short text, such as ``2-4 7``."""
    starts = [index for index in indices if index - 1 not in indices]
    ends = [index for index in indices if index + 1 not in indices]
    return " ".join(f"{start}-{end}" if end > start else f"{start}" for start, end in zip(starts, ends, strict=True))


def elsewhere(index: int, names: Sequence[str], others: Sequence[str], kind: str = "class") -> int:
    """Returns the index of a class among the names of another model.

    It is the same index where both lists have as many classes and nearly all names agree, or where the names of one are
    numbers; else that of the class with this name.
    """
    if len(names) == len(others) and (_alike(names, others) or any(map(_numbered, (names, others)))):
        return index
    return resolve(names[index].split(",")[0], others, kind)


def same_class(names: Iterable[str], labels: Iterable[str]) -> set[str]:
    """Returns the labels that are one of a class's names, else one of WordNet's further names for it.

    Of a set of classes these are all labels that mean one of them.
    """
    folded = {label: _fold(label) for label in labels}
    wanted = set(map(_fold, names))
    if direct := {label for label, name in folded.items() if name in wanted}:
        return direct
    further = {other for name in wanted for other in _further_names(name)}
    if alike := {label for label, name in folded.items() if name in further}:
        return alike
    if parts := [name.split(OR) for name in wanted if OR in name]:
        return {label for name in parts[0] for label in same_class([name], labels)}
    synsets = {label: synset for label, synset in zip(folded, _synset_of_each(tuple(folded)), strict=True) if synset}
    ids = {synset for name in wanted for synset in _below(name)} if synsets else set()
    return {label for label, synset in synsets.items() if synset in ids}


def search_classes(text: str, names: Sequence[str]) -> tuple[list[int], dict[str, list[int]]]:
    """Returns the classes one of whose names contains a text, and the classes of each of WordNet's names that does."""
    wanted = _fold(text)
    classes = [index for index, name in enumerate(names) if wanted in _fold(name)]
    synsets = _synset_of_each(tuple(names))
    ids = list(_imagenet("imagenet-1k")) if any(synsets) else []
    above: dict[tuple[int, ...], str] = {}
    for name, meanings in _sets().items() if ids else ():
        if wanted in name and len(meanings) == 1:
            below = {ids[index] for indices in meanings.values() for index in indices}
            indices = tuple(index for index, synset in enumerate(synsets) if synset in below)
            if len(indices) > 1:
                above.setdefault(indices, name)  # its synonyms mean the same
    return classes, {name: list(indices) for indices, name in above.items()}


def imagenet_names() -> tuple[str, ...]:
    """Returns the names of ImageNet's 1000 classes in their usual order, synonyms separated by commas."""
    return tuple(_imagenet("imagenet-1k").values())


def _below(name: str, kind: str = "class") -> set[str]:
    """Returns the ids of ImageNet's classes below a name of WordNet; none for any other name."""
    meanings = _sets().get(_fold(name), {})
    if len(meanings) > 1:
        listed = " or ".join(map(repr, meanings))
        raise InputError(f"{kind} {name!r} is ambiguous, as WordNet has {len(meanings)} meanings of it; give {listed}")
    ids = list(_imagenet("imagenet-1k")) if meanings else []
    return {ids[index] for indices in meanings.values() for index in indices}


@cache
def _sets() -> dict[str, dict[str, list[int]]]:
    """Returns the classes below each of WordNet's names, of each meaning by another of its names."""
    found: dict[str, dict[str, list[int]]] = defaultdict(dict)
    for line in (PACKAGE / "wordnet" / "sets.txt").read_text(encoding="utf-8").splitlines():
        names, _, ranges = line.rpartition(": ")
        bounds = [tuple(map(int, part.split("-"))) for part in ranges.split()]
        indices = [index for bound in bounds for index in range(bound[0], bound[-1] + 1)]
        synonyms = names.split(", ")
        for name in synonyms:
            found[_fold(name)][next((other for other in synonyms if other != name), name)] = indices
    return dict(found)


def _fold(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


def _synonyms(names: Sequence[str]) -> list[set[str]]:
    return [set(map(_fold, name.split(","))) for name in names]


def _alike(names: Sequence[str], others: Sequence[str]) -> bool:
    """Returns whether two lists of as many classes are of the same ones, by nearly all of their names."""
    pairs = zip(_synonyms(names), _synonyms(others), strict=True)
    return sum(bool(ours & theirs) for ours, theirs in pairs) >= ALIKE * len(names)


def _is_number(name: str) -> bool:
    return name.removeprefix("-").isdecimal() and len(name) <= DIGITS


def _numbered(names: Sequence[str]) -> bool:
    return all(name == str(index) for index, name in enumerate(names))


def _indices(target: str, names: Sequence[str]) -> list[int]:
    """Returns the indices of all classes that a name may mean, by the first kind of names that has any."""
    name, (full, synonyms) = _fold(target), _vocabulary(tuple(names))
    indices = full.get(name) or synonyms.get(name) or []
    if indices or _is_number(name) or not (further := _further_names(name)):
        return indices
    if further[0] in (ids := list(_imagenet("imagenet-1k"))) and _is_imagenet(tuple(names)):
        return [ids.index(further[0])]
    shared = Counter(index for other in set(further) for index in synonyms.get(other, ()))
    return [index for index in sorted(shared) if shared[index] == max(shared.values())]


@lru_cache(maxsize=16)
def _vocabulary(names: tuple[str, ...]) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Returns the indices of classes by their full names, and by each of their synonyms."""
    full, by_synonym = defaultdict(list), defaultdict(list)
    for index, (name, synonyms) in enumerate(zip(names, _synonyms(names), strict=True)):
        full[_fold(name)].append(index)
        for synonym in synonyms:
            by_synonym[synonym].append(index)
    return dict(full), dict(by_synonym)


@lru_cache(maxsize=16)
def _is_imagenet(names: tuple[str, ...]) -> bool:
    """Returns whether these are the names of ImageNet's thousand classes, in their usual order."""
    thousand = imagenet_names()
    return len(names) == len(thousand) and _alike(names, thousand)


def _further_names(name: str) -> tuple[str, ...]:
    """Returns WordNet's names of one class of ImageNet, its id first; none for any other name."""
    synset = name if SYNSET.fullmatch(name) else _synsets().get(name, "")
    lemmas = (_imagenet("imagenet-1k").get(synset) or _imagenet("imagenet-22k").get(synset)) if synset else None
    return () if lemmas is None else (synset, *map(_fold, lemmas.split(",")))


@lru_cache(maxsize=16)
def _synset_of_each(names: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the id of each class's synset, empty where its names say none or several."""
    if _is_imagenet(names):
        return tuple(_imagenet("imagenet-1k"))
    ids = [{further[0] for name in synonyms if (further := _further_names(name))} for synonyms in _synonyms(names)]
    return tuple(each.pop() if len(each) == 1 else "" for each in ids)


@cache
def _synsets() -> dict[str, str]:
    """Returns the ids of ImageNet's thousand synsets by the names that only one of them has."""
    owners: dict[str, list[str]] = defaultdict(list)
    for synset, lemmas in _imagenet("imagenet-1k").items():
        for name in set(map(_fold, lemmas.split(","))):
            owners[name].append(synset)
    return {name: synsets[0] for name, synsets in owners.items() if len(synsets) == 1}


@cache
def _imagenet(subset: str) -> dict[str, str]:
    """Returns the names of each synset, separated by commas, by its id."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo(subset)
    return {synset: info.label_name_to_description(synset) for synset in info.label_names()}
