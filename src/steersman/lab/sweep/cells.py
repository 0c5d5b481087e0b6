"""The cells of a sweep: every combination of the varied values, each a run with the same seeds.

    AXIS=…, AXIS.OPTION=…      a setting of the recipe, as --set takes it
    recipe, classifier, …      other settings of a run (`OTHERS`); steps is sampling.steps
    case={name: robust, recipe: nrcg/robust, classifier: NAME}, …      several settings together, under a name

    scale=0.5x, 1x, 2x         multiples of the recipe's own scale

The text after the equals sign is the inside of a YAML list: commas separate the values; a value that contains commas is
a list or mapping in brackets, or a text in quotes.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, StrictBool

from steersman.errors import InputError, unknown
from steersman.files import file_name, parse_yaml
from steersman.lab.metrics.evaluate import FIGURES
from steersman.lab.metrics.features import DEFAULT
from steersman.lab.metrics.intervals import RESAMPLES
from steersman.lab.placement import shared_placement
from steersman.lab.report.tables import in_a_line
from steersman.lab.run import LAX, Run
from steersman.recipes import load_recipe
from steersman.recipes.axes import AXES
from steersman.recipes.schema import EXTRA
from steersman.typed import finite, typed

__all__ = ["CASE", "NAME", "RECIPE", "Cell", "Study", "Sweep", "flattened", "settings_line", "varied"]

Own = TypeVar("Own", bound="Study")

CASE, NAME, RECIPE = "case", "name", "recipe"
SHORT = {"steps": "sampling.steps"}
MULTIPLE = re.compile(r"(\d+\.?\d*|\.\d+)x")  # of a recipe's own scale


def _no_flag(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must not be true or false")
    return value


_Texts = Annotated[tuple[str, ...], BeforeValidator(lambda value: value if isinstance(value, list) else [value])]
_Number = Annotated[float, BeforeValidator(_no_flag)]  # pydantic takes true for 1

OTHERS: dict[str, tuple[str, Any, str]] = {
    "classifier": ("classifiers", _Texts, "a name, or a list of names"),
    "denoiser": ("denoiser", str, "a name"),
    "label": ("label", str | None, "a name, or null"),
    "cfg-scale": ("cfg_scale", _Number, "a number"),
    "guidance": ("guided", StrictBool, "true or false"),
}
"""What can be varied besides a recipe's settings: the field of `Run`, its type, and how messages call it."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What the runs of a sweep or of a tune share, and what they are measured against.

    Attributes:
        changes: Changes of a recipe's settings, each ``axis.option=value``.
        settings: Other settings of the runs, fields of `Run`.
        reference: Reference images, as `steersman evaluate` takes them.
        features: Network whose features are compared.
        figures: Some of `steersman.lab.metrics.evaluate.FIGURES`.
        resamples: Random halves for each interval.
        judges: Further classifiers that measure; ``accuracy/NAME`` is a figure of each.
    """

    changes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    reference: str
    features: str = DEFAULT
    figures: tuple[str, ...] = FIGURES
    resamples: int = RESAMPLES
    judges: tuple[str, ...] = ()

    def placed(self: Own, run: Run, file: Path) -> Own:
        """Returns the study with all runs placed as its file says, else as is fastest for this one; see ``dtype``."""
        placed = shared_placement(run, file)
        return replace(self, settings={**self.settings, "placed": placed}) if placed else self

    def _run(self, recipe: str, chosen: Mapping[str, Any]) -> Run:
        """Returns the run of a recipe with some settings chosen, which may name another recipe."""
        changes, fields = {}, dict(self.settings)
        for key, value in chosen.items():
            if key == RECIPE:
                recipe = str(value)
            elif key in OTHERS:
                name, hint, form = OTHERS[key]
                try:
                    fields[name] = typed(key, value, hint, LAX)
                except InputError:
                    raise InputError(f"{key} must be {form}, got {in_a_line(value)}") from None
            else:
                changes[SHORT.get(key, key)] = value
        loaded = load_recipe(recipe, self.changes)
        if multiple := MULTIPLE.fullmatch(str(changes.get("scale"))):
            changes["scale"] = float(multiple[1]) * loaded.resolved()["scale"]["value"]
        return Run(**fields, recipe=loaded.changed(changes).check())


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination of the varied values, as texts, and its run; without guidance, of those that matter there."""

    values: Mapping[str, str]
    run: Run
    unguided: bool = False

    @property
    def name(self) -> str:
        """The values in one line."""
        known = settings_line({key: value for key, value in self.values.items() if value})
        return ", ".join(filter(None, ("unguided", known))) if self.unguided else known

    @property
    def folder(self) -> str:
        """Name of the cell's folder."""
        return file_name(self.name.replace(", ", ","))


@dataclass(frozen=True, kw_only=True)
@finite
class Sweep(Study):
    """Runs that differ in the varied settings.

    Attributes:
        recipe: The recipe of all cells, if none is varied.
        varied: The values of each varied setting.
        baseline: Whether cells without guidance are added.
    """

    recipe: str = "default"
    varied: Mapping[str, Sequence[Any]]
    baseline: bool = True

    def cells(self) -> list[Cell]:
        """Returns all cells, the last varied setting first, checked as far as possible without networks.

        The last ones are the baseline, without guidance: one for all cells that differ in guidance alone, and none
        where guidance is varied.
        """
        cells: list[Cell] = []
        for combination in product(*self.varied.values()):
            values = dict(zip(self.varied, combination, strict=True))
            titles = {key: _title(value) if key == CASE else in_a_line(value) for key, value in values.items()}
            try:
                cells.append(Cell(values=titles, run=self._run(self.recipe, flattened(values))))
            except InputError as error:
                raise InputError(f"cell {settings_line(titles)}: {error}") from error
        names: dict[str, str] = {}  # of the first cell with these settings
        for cell in cells:
            same = names.setdefault(repr(cell.run.record()), cell.name)
            if same != cell.name:
                raise InputError(f"cells must differ in their settings, but {same} and {cell.name} have the same ones")
        if len({cell.folder for cell in cells}) < len(cells):
            raise InputError(
                f"vary: each value may be given only once, but a value of {', '.join(self.varied)} is given twice"
            )
        return cells + (_unguided(cells) if self.baseline and all(cell.run.guided for cell in cells) else [])


def _unguided(cells: Sequence[Cell]) -> list[Cell]:
    """Returns a cell without guidance for each combination of the settings that still matter."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        run, settings = cell.run, cell.run.recipe.resolved()
        same = (run.denoiser, run.classifiers, run.label, run.cfg_scale, settings["sampler"], settings["sampling"])
        groups.setdefault(repr(same), []).append(cell)
    values = {key: [{cell.values[key] for cell in group} for group in groups.values()] for key in cells[0].values}
    matter = [key for key, each in values.items() if all(len(one) == 1 for one in each) and len(set.union(*each)) > 1]
    return [
        Cell(
            values={key: value if key in matter else "" for key, value in first.values.items()},
            run=replace(first.run, guided=False, recipe=first.run.recipe.changed({"recurrence.times": 1}).check()),
            unguided=True,
        )
        for first, *_ in groups.values()
    ]


def varied(given: Iterable[str]) -> dict[str, list[Any]]:
    """Returns the values of each varied setting, from texts ``KEY=A,B,C``."""
    found: dict[str, list[Any]] = {}
    for text in given:
        key, equals, inside = text.partition("=")
        key = key.strip()
        try:
            values = parse_yaml(f"[{inside}\n]") if equals else None  # a comment ends with its line, before the bracket
        except InputError as error:
            raise InputError(f"vary: the values must be a YAML list without brackets, got {text!r}") from error
        if not key or not isinstance(values, list) or not values:
            raise InputError(f"vary must be axis.option=a,b,c, as in scale=5,10,20, got {text!r}")
        if key in found:
            raise InputError(f"vary: {key} may be given only once, with all its values")
        for name in {name for value in values for name in flattened({key: value})}:
            if name not in (RECIPE, *OTHERS, *SHORT) and name.partition(".")[0] not in (*AXES, EXTRA):
                raise unknown("setting to vary", name, [CASE, RECIPE, *OTHERS, *SHORT, *AXES, EXTRA])
        found[key] = values
    if not found:
        raise InputError("vary must be given at least once, as axis.option=a,b,c, such as scale=5,10,20")
    return found


def flattened(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings with those of a case in its place."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if key != CASE:
            flat[key] = value
        elif isinstance(value, Mapping):
            flat |= {str(name): part for name, part in value.items() if name != NAME}
        else:
            raise InputError(f"{CASE} must be {{name: NAME, SETTING: VALUE, …}}, got {in_a_line(value)}")
    return flat


def settings_line(settings: Mapping[str, Any]) -> str:
    """Returns settings in one line, ``KEY=VALUE, …``."""
    return ", ".join(f"{key}={in_a_line(value)}" for key, value in settings.items())


def _title(case: Mapping[str, Any]) -> str:
    """Returns the name of a case, or its settings."""
    return in_a_line(case.get(NAME) or settings_line(case).replace(", ", " ") or "as it is")
