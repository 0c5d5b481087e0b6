"""The cells of a sweep: every combination of the values of what is varied, each a run on the same seeds.

    AXIS=…, AXIS.OPTION=…      a setting of the recipe, as --set takes it
    recipe, classifier, …      what else makes a run (`OTHERS`), as `steersman sample` takes it; steps: sampling.steps
    case={name: robust, recipe: nrcg/robust, classifier: NAME}, …      several of these together, under a name

What stands after the equals sign is the inside of a YAML list: commas separate the values, a value with commas of its
own is a list or mapping in brackets, or a text in quotes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from steersman.errors import InputError, unknown
from steersman.files import file_name, parse_yaml
from steersman.lab.metrics.evaluate import FIGURES
from steersman.lab.metrics.features import DEFAULT
from steersman.lab.metrics.intervals import RESAMPLES
from steersman.lab.report.tables import in_a_line
from steersman.lab.run import Run
from steersman.recipes import load_recipe
from steersman.recipes.axes import AXES
from steersman.recipes.schema import ALSO
from steersman.typed import finite

__all__ = ["CASE", "NAME", "RECIPE", "Cell", "Sweep", "varied"]

CASE, NAME, RECIPE = "case", "name", "recipe"
SHORT = {"steps": "sampling.steps"}


def _text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError
    return str(value)


def _text_or_none(value: object) -> str | None:
    return None if value is None else _text(value)


def _texts(value: object) -> tuple[str, ...]:
    return tuple(map(_text, value if isinstance(value, list) else [value]))


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError
    return float(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


OTHERS: dict[str, tuple[str, Callable[[object], Any], str]] = {
    "classifier": ("classifiers", _texts, "a name, or a list of names"),
    "denoiser": ("denoiser", _text, "a name"),
    "label": ("label", _text_or_none, "a name, or null"),
    "cfg-scale": ("cfg_scale", _number, "a number"),
    "guidance": ("guided", _flag, "true or false"),
}
"""What can be varied beside a recipe's settings: the field of `Run`, its value from YAML, and what it must be."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination.

    Attributes:
        values: What it has of everything that is varied, as a text.
        run: Its run.
    """

    values: Mapping[str, str]
    run: Run

    @property
    def name(self) -> str:
        """What it is called."""
        return ", ".join(f"{key}={value}" for key, value in self.values.items())

    @property
    def folder(self) -> str:
        """Its folder's name."""
        return file_name(self.name.replace(", ", ","))


@dataclass(frozen=True, kw_only=True)
@finite
class Sweep:
    """Runs that differ in what is varied, and what they are measured against.

    Attributes:
        recipe: The recipe of all cells, where none is varied.
        changes: Changes of its settings, each ``axis.option=value``.
        settings: What else makes the runs, fields of `Run`; what is varied goes before all of these.
        varied: The values of each.
        reference: The images that the samples are compared with, as `steersman evaluate` takes them.
        features: The network in whose features, likewise.
        figures: Which of `steersman.lab.metrics.evaluate.FIGURES`.
        resamples: Random halves that each interval is from, as there.
    """

    recipe: str = "default"
    changes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    varied: Mapping[str, Sequence[Any]]
    reference: str
    features: str = DEFAULT
    figures: tuple[str, ...] = FIGURES
    resamples: int = RESAMPLES

    def cells(self) -> list[Cell]:
        """Returns all cells, checked as far as it goes without networks; the last that is varied runs fastest.

        Raises:
            InputError: A setting that is unknown or out of range, or two cells with the same settings.
        """
        cells: list[Cell] = []
        for chosen in product(*self.varied.values()):
            values = dict(zip(self.varied, chosen, strict=True))
            called = {key: _title(value) if key == CASE else in_a_line(value) for key, value in values.items()}
            try:
                cells.append(Cell(values=called, run=self.run(_apart(values))))
            except InputError as error:
                name = ", ".join(f"{key}={value}" for key, value in called.items())
                raise InputError(f"cell {name}: {error}") from error
        records: dict[str, str] = {}
        for cell in cells:
            same = records.setdefault(repr(cell.run.record()), cell.name)
            if same != cell.name:
                raise InputError(f"cells must differ in their settings, but {same} and {cell.name} have the same ones")
        if len({cell.folder for cell in cells}) < len(cells):
            raise InputError(
                f"vary: each value may be given only once, but a value of {', '.join(self.varied)} is given twice"
            )
        return cells

    def run(self, chosen: Mapping[str, Any]) -> Run:
        """Returns the run of a value of each of some settings, which need not be those that are varied.

        Raises:
            InputError: A setting that is unknown or out of range.
        """
        changes, fields, name = {}, dict(self.settings), self.recipe
        for key, value in chosen.items():
            if key == RECIPE:
                name = str(value)
            elif key in OTHERS:
                field, convert, form = OTHERS[key]
                try:
                    fields[field] = convert(value)
                except (TypeError, ValueError):
                    raise InputError(f"{key} must be {form}, got {in_a_line(value)}") from None
            else:
                changes[SHORT.get(key, key)] = value
        recipe = load_recipe(name, self.changes)
        return Run(**fields, recipe=recipe.changed(changes).check())


def varied(given: Iterable[str]) -> dict[str, list[Any]]:
    """Returns the values of what is varied, from ``KEY=A,B,C`` each.

    Raises:
        InputError: One that says none, or twice, or that cannot be varied.
    """
    found: dict[str, list[Any]] = {}
    for each in given:
        key, equals, text = each.partition("=")
        key = key.strip()
        try:
            values = parse_yaml(f"[{text}\n]") if equals else None
        except InputError as error:
            raise InputError(f"vary: the values must be a YAML list without brackets, got {each!r}") from error
        if not key or not isinstance(values, list) or not values:
            raise InputError(f"vary must be axis.option=a,b,c, as in scale=5,10,20, got {each!r}")
        if key in found:
            raise InputError(f"vary: {key} may be given only once, with all its values")
        for name in {name for value in values for name in _apart({key: value})}:
            if name not in (RECIPE, *OTHERS, *SHORT) and name.partition(".")[0] not in (*AXES, ALSO):
                raise unknown("setting to vary", name, [CASE, RECIPE, *OTHERS, *SHORT, *AXES, ALSO])
        found[key] = values
    if not found:
        raise InputError("vary must be given at least once, as axis.option=a,b,c, such as scale=5,10,20")
    return found


def _apart(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns values with a case's settings in its place."""
    single: dict[str, Any] = {}
    for key, value in values.items():
        if key != CASE:
            single[key] = value
        elif isinstance(value, Mapping):
            single |= {str(name): part for name, part in value.items() if name != NAME}
        else:
            raise InputError(f"{CASE} must be {{name: NAME, SETTING: VALUE, …}}, got {in_a_line(value)}")
    return single


def _title(case: Mapping[str, Any]) -> str:
    """Returns a case's name, or what it holds."""
    return in_a_line(
        case.get(NAME) or " ".join(f"{key}={in_a_line(value)}" for key, value in case.items()) or "as it is"
    )
