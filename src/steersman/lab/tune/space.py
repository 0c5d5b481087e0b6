"""What is searched: for each setting the values that it may take, from which a trial takes one.

    KEY: LOW..HIGH                a number between, a whole one where both ends are; by its logarithm where the ends are
                                  positive and a factor of 10 or more apart
    KEY: {any: [A, B, …]}         one of several; {any: {NAME: A, …}} where they have names
    case: {any: {NAME: {KEY: VALUE, …}, …}}      several settings together
    KEY: VALUE                    that value

Ranges and choices may stand anywhere inside a value, and those inside one of several are searched where that one is
chosen. Keys are what `steersman sweep --vary` varies.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from steersman.errors import InputError
from steersman.lab.report.tables import in_a_line
from steersman.lab.sweep import varied
from steersman.lab.sweep.cells import CASE, NAME
from steersman.typed import finite

__all__ = ["ANY", "Choosing", "Range", "Space", "check", "chosen", "options", "placed", "space_of"]

ANY = "any"
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"\s*({NUMBER})\.\.({NUMBER})\s*")
DECADE = 10.0
DIGITS = 3  # of a number that is searched, so that a recipe can be read

Space = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
@finite
class Range:
    """Numbers from one to another, both of them included.

    Attributes:
        low: The smallest.
        high: The largest.
        whole: Whether they are whole numbers.

    Raises:
        InputError: They are in the wrong order.
    """

    low: float
    high: float
    whole: bool

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise InputError(f"search: a range must be LOW..HIGH with LOW < HIGH, got {self.low:g}..{self.high:g}")

    @property
    def by_decades(self) -> bool:
        """Whether it is searched by the logarithm."""
        return self.low > 0 and self.high >= DECADE * self.low

    def nearest(self, number: float) -> float:
        """Returns the number in the range that is nearest to another one, with few digits."""
        near = min(max(number, self.low), self.high)
        return round(near) if self.whole else min(max(float(f"{near:.{DIGITS}g}"), self.low), self.high)


@runtime_checkable
class Choosing(Protocol):
    """What takes the values of a trial."""

    def number(self, name: str, range: Range) -> float:
        """Returns a number of a range."""
        ...

    def one_of(self, name: str, names: Sequence[str]) -> str:
        """Returns one of several names."""
        ...


def space_of(given: Iterable[str]) -> dict[str, Any]:
    """Returns the space that is said by ``KEY=LOW..HIGH`` or ``KEY=A,B,C`` each.

    Raises:
        InputError: As `steersman.lab.sweep.varied`, or a range in the wrong order.
    """
    found = {key: values[0] if len(values) == 1 else {ANY: values} for key, values in varied(given).items()}
    check(found)
    return found


def check(pattern: object) -> None:
    """Refuses what no value can be taken from.

    Raises:
        InputError: A range in the wrong order, a name twice in a choice, or a choice of nothing.
    """
    parts = pattern if isinstance(pattern, list) else pattern.values() if isinstance(pattern, Mapping) else ()
    for part in parts if (several := _options(pattern)) is None else several.values():
        check(part)
    _range(pattern)


def chosen(space: Space, choosing: Choosing) -> dict[str, Any]:
    """Returns a value of each setting, those of a case in its place.

    Raises:
        InputError: As `check`, or a case that is no mapping.
    """
    values: dict[str, Any] = {}
    for key, pattern in space.items():
        value = _chosen(pattern, choosing, key)
        if key != CASE:
            values[key] = value
        elif isinstance(value, Mapping):
            values |= {name: part for name, part in value.items() if name != NAME}
        else:
            raise InputError(f"{CASE} must be {{name: NAME, SETTING: VALUE, …}}, got {in_a_line(value)}")
    return values


def _chosen(pattern: Any, choosing: Choosing, path: str) -> Any:  # noqa: ANN401
    if (several := _options(pattern)) is not None:
        name = choosing.one_of(path, list(several))
        return _chosen(several[name], choosing, f"{path}={name}")
    if isinstance(pattern, Mapping):
        return {key: _chosen(part, choosing, f"{path}.{key}") for key, part in pattern.items()}
    if isinstance(pattern, list):
        return [_chosen(part, choosing, f"{path}.{place}") for place, part in enumerate(pattern)]
    range = _range(pattern)
    return pattern if range is None else range.nearest(choosing.number(path, range))


def placed(space: Space, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what would have to be chosen for given settings, as far as they lie in the space.

    A number beyond its range is taken for the nearest in it; of what matches nothing, nothing is said.

    Args:
        space: The space.
        settings: By axis, as `steersman.recipes.Recipe.resolved` gives them, and ``recipe``.

    Returns:
        A number or name for each that is chosen.
    """
    found: dict[str, Any] = {}
    for key, pattern in space.items():
        found |= _placed(pattern, settings if key == CASE else _at(settings, key), key) or {}
    return found


MISSING = object()


def _placed(pattern: Any, own: Any, path: str) -> dict[str, Any] | None:  # noqa: ANN401
    """Returns what is chosen in a pattern for a value; None where it does not match."""
    if own is MISSING:
        return None
    if (several := _options(pattern)) is not None:
        for name, option in several.items():
            if (inside := _placed(option, own, f"{path}={name}")) is not None:
                return {path: name, **inside}
        return None
    if isinstance(pattern, Mapping):
        parts = [(part, _at(own, str(key)), f"{path}.{key}") for key, part in pattern.items() if key != NAME]
    elif isinstance(pattern, list):
        if not isinstance(own, list) or len(own) != len(pattern):
            return None
        parts = [(part, mine, f"{path}.{place}") for place, (part, mine) in enumerate(zip(pattern, own, strict=True))]
    else:
        return _placed_value(pattern, own, path)
    each = [_placed(*part) for part in parts]
    if any(part is None for part in each):
        return None
    return {name: value for part in each for name, value in (part or {}).items()}


def _placed_value(pattern: object, own: object, path: str) -> dict[str, Any] | None:
    if isinstance(own, Mapping):  # a bare value stands for the kind, or for the first setting
        own = own.get("kind", next(iter(own.values())))
    if (range := _range(pattern)) is None:
        return {} if own == pattern else None
    if isinstance(own, bool) or not isinstance(own, int | float) or math.isnan(own):
        return None
    return {path: range.nearest(own)}


def _at(settings: Any, key: str) -> Any:  # noqa: ANN401
    """Returns the setting at ``axis.option`` or ``extra_guides.N.axis``, `MISSING` where there is none."""
    for part in key.split("."):
        if isinstance(settings, list) and part.isdecimal() and int(part) < len(settings):
            settings = settings[int(part)]
        elif isinstance(settings, Mapping) and part in settings:
            settings = settings[part]
        else:
            return MISSING
    return settings


def options(pattern: object) -> list[Any]:
    """Returns what a choice is among, what is no choice alone, and of nothing nothing."""
    found = _options(pattern)
    return [] if pattern is None else [pattern] if found is None else list(found.values())


def _options(pattern: object) -> dict[str, Any] | None:
    """Returns the options of a choice by their names, None for what is no choice."""
    if not isinstance(pattern, Mapping) or set(pattern) != {ANY}:
        return None
    given = pattern[ANY]
    if isinstance(given, Mapping):
        return {str(name): option for name, option in given.items()}
    if not isinstance(given, list) or not given:
        form = "{any: [A, B, …]} or {any: {NAME: A, …}}"
        raise InputError(f"search: a choice must be {form}, got {in_a_line(pattern)}")
    names = [str(each[NAME]) if isinstance(each, Mapping) and NAME in each else in_a_line(each) for each in given]
    if len(set(names)) < len(names):
        raise InputError(f"search: each value of a choice may be given only once, got {', '.join(names)}")
    return dict(zip(names, given, strict=True))


def _range(pattern: object) -> Range | None:
    """Returns the range that a text says, None where it says none."""
    if not isinstance(pattern, str) or (found := RANGE.fullmatch(pattern)) is None:
        return None
    low, high = found.groups()
    whole = all(re.fullmatch(r"[-+]?\d+", end) for end in (low, high))
    return Range(low=float(low), high=float(high), whole=whole)
