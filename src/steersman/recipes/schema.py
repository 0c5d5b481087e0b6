"""Recipes: a published method, or one's own, as a file.

A recipe is a YAML file: what it is, the settings of each axis (`steersman.recipes.axes`), and variants that change
some of them. ``NAME`` or ``NAME/VARIANT`` names a bundled one, a path one's own. Unknown keys are refused with the
known ones.

The settings describe one guide; under ``extra_guides`` there may stand further ones, each a mapping of what is other
than with the first.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from steersman.errors import InputError, about, notice, shown, unknown
from steersman.files import parse_yaml, read_text
from steersman.guidance import Guide, Noisy, Sum, Switch, Toward, Translated
from steersman.guidance.objective import Logits, Objective
from steersman.recipes.axes import AXES, HandOver, Unchanged, build, normal, plain
from steersman.sampling import Particles, Recurrence, Sampler
from steersman.schedule import Level
from steersman.trust import refuse_code
from steersman.typed import filled_in

if TYPE_CHECKING:
    from steersman.models.classifiers import Classifier

__all__ = ["ALSO", "Guides", "Recipe", "load_recipe", "recipe_names"]

BUNDLED = Path(str(resources.files("steersman.recipes")))
AVERAGES = ("augment", "montecarlo")
PARTS = ("input", "stabilizer", "weight", "injection")
ALSO = "extra_guides"
OWN = ("objective", "loss", "smoothing", *PARTS, "wrt", "scale")
"""The axes on which a further guide may differ from the first."""


class Guides(list[Guide]):
    """A recipe's guides, bound to their classifier, with all else that the recipe says.

    Args:
        recipe: The recipe.
        classifier: The classifier whose vocabulary the targets are of, prepared as the recipe says.

    Attributes:
        sampler: How the recipe steps.
        sampling: The recipe's other settings of sampling, as `steersman.sampling.sample` takes them.
        recurrence: How often it repeats steps.
        particles: How many particles an image has, and which of them go on.
    """

    def __init__(self, recipe: "Recipe", classifier: Logits) -> None:
        super().__init__()
        self.recipe, self.classifier = recipe, classifier
        self.sampler, self.sampling = recipe.sampler(), recipe.sampling()
        self.recurrence: Recurrence = self.sampling["recurrence"]
        self.particles: Particles = self.sampling["particles"]


class Recipe(BaseModel):
    """A guidance method as settings: a point in the design space, with its source.

    Attributes:
        name: The recipe's name, with that of the variant.
        title: A description in one line.
        paper: The paper; empty for a method of this library.
        equations: The equations, tables and algorithms of the paper.
        notes: Remarks, such as values that are not from the paper.
        expected: Published or measured figures for these settings.
        settings: The section of each axis; a missing section has its defaults.
        variants: Changes of the settings, by the variant's name.

    Example:
        >>> import steersman as sm
        >>> recipe = sm.load_recipe("nrcg")
        >>> recipe.settings["stabilizer"]
        {'kind': 'ema', 'beta': 0.99}
        >>> recipe.changed({"stabilizer.beta": 0.9}).resolved()["stabilizer"]
        {'kind': 'ema', 'beta': 0.9}
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    paper: str = ""
    equations: str = ""
    notes: str = ""
    expected: tuple[str, ...] = ()
    settings: dict[str, Any]
    variants: dict[str, dict[str, Any]] = {}

    def changed(self, changes: Mapping[str, object], name: str | None = None) -> "Recipe":
        """Returns the recipe with some settings changed; its variants stay.

        Args:
            changes: By axis (a whole section) or by ``axis.option`` (one setting of it); a section whose kind changes
                starts from that kind's defaults. By ``extra_guides``, their list, or by ``extra_guides.N.axis`` and
                ``extra_guides.N.axis.option`` what is other with one of them, the first of them 0.
            name: A new name, if it gets one.

        Raises:
            InputError: An unknown axis, option, or value.
        """
        settings = dict(self.settings)
        for key, value in changes.items():
            axis, _, option = key.partition(".")
            if axis == ALSO:
                settings[ALSO] = _further(settings.get(ALSO, []), option, value)
                continue
            if axis not in AXES:
                raise unknown("axis", axis, [*AXES, ALSO])
            settings[axis] = _changed(axis, settings.get(axis, {}), option, value)
        return self.model_copy(update={"settings": settings, "name": name or self.name})

    def resolved(self) -> dict[str, Any]:
        """Returns every axis's section with every setting filled in, and the further guides' under ``extra_guides``."""
        first, *further = self._each()
        own = [{axis: plain(axis, each.settings.get(axis, {})) for axis in OWN} for each in further]
        return {axis: plain(axis, first.settings.get(axis, {})) for axis in AXES} | {ALSO: own}

    def check(self) -> "Recipe":
        """Returns the recipe, all of whose sections can be built.

        Raises:
            InputError: One cannot.
        """
        for axis in self.settings:
            if axis not in AXES and axis != ALSO:
                raise unknown("axis", axis, [*AXES, ALSO])
        handed_over = isinstance(self._build("ensemble"), HandOver)
        self.guides(_no_classifier, *[(_no_classifier, {})] * handed_over)
        self.classifier_settings()
        self.sampler()
        self.sampling()
        return self

    def _each(self) -> list["Recipe"]:
        """Returns a recipe a guide: this one without the further ones, and that with the changes of each."""
        settings = dict(self.settings)
        recipes: list[Recipe] = [self.model_copy(update={"settings": settings})]
        for place, changes in enumerate(_further([], "", settings.pop(ALSO, []))):
            with _of_guide(place):
                for axis in (key.partition(".")[0] for key in changes):
                    if axis not in OWN:
                        raise unknown("axis of a further guide", axis, OWN)
                recipes.append(recipes[0].changed(changes))
        return recipes

    def _build(self, axis: str, **fixed: object) -> Any:  # noqa: ANN401
        return build(axis, self.settings.get(axis, {}), **fixed)

    def classifier_settings(self) -> dict[str, Any]:
        """Returns the settings with which `models.classifiers.load_classifier` loads the guide's classifier."""
        seen = self._build("preprocess")
        softplus, *others = [each._softplus() for each in self._each()]
        for place, other in enumerate(others):
            if other != softplus:
                raise InputError(
                    f"{ALSO}.{place}.smoothing must have softplus {softplus}, as the first guide, which has the same "
                    f"classifier, got {other}"
                )
        return {"preprocess": seen.transform, "size": seen.size, "softplus": softplus, "adapt": True}

    def _softplus(self) -> float | None:
        """Returns the sharpness of the classifier's softened ReLUs, or None for the classifier as it was trained."""
        given = [part["beta"] for part in self._smoothing() if part["kind"] == "softplus"]
        if len(given) > 1:
            raise InputError(f"smoothing must have softplus once at most, got it {len(given)} times")
        return given[0] if given else None

    def _smoothing(self) -> list[dict[str, Any]]:
        return normal("smoothing", self.settings.get("smoothing", {}))

    def bind(
        self, classifier: "str | Path | Classifier", *others: "str | Path | Classifier", device: str | None = None
    ) -> Guides:
        """Returns the recipe's guides for a classifier, prepared as the recipe says: its input, size and smoothing.

        Args:
            classifier: The classifier that steers, as `models.classifiers.load_classifier` takes it, or the object.
                The object stays as it is; its weights are shared.
            others: Further classifiers that steer with it, likewise; a target means the class of its name there.
            device: Where classifiers that are loaded here lie; the CPU by default.

        Raises:
            InputError: A classifier that cannot be loaded, that the recipe does not suit, or that is none, such as a
                network whose input is not stated.
        """
        first, *further = (self._prepared(each, device) for each in (classifier, *others))
        return self.guides(first, *((each, _shared(first, each)) for each in further))

    def _prepared(self, classifier: "str | Path | Classifier", device: str | None) -> "Classifier":
        from steersman.models.classifiers import Classifier, load_classifier, prepared

        settings = self.classifier_settings()
        if isinstance(classifier, str | Path):
            return load_classifier(str(classifier), device=device or "cpu", **settings)
        if isinstance(classifier, Classifier):
            return prepared(classifier, **settings)
        raise InputError(
            "classifier must be a text such as 'timm:resnet50', a folder, or a steersman.Classifier, got "
            f"{type(classifier).__name__}; wrap a network as Classifier(network, preprocess=..., names=...)"
        )

    def guides(
        self,
        classifier: Logits,
        *others: tuple[Logits, Mapping[int, int]],
        blend: Sequence[tuple[float, Sequence[int]]] = (),
    ) -> "Guides":
        """Returns the guides, for classifiers that are prepared as `classifier_settings` says; `bind` prepares them.

        Args:
            classifier: The one whose vocabulary the targets are of.
            others: Further ones, each with the number there of every target.
            blend: Instead of the targets, weights, each of a class that has a number for every classifier; a negative
                one steers away.

        Raises:
            InputError: Several classifiers do not suit the recipe's way to combine them.
        """
        guides = Guides(self, classifier)
        for place, each in enumerate(self._each(), -1):
            with _of_guide(place):
                guides.append(each._guide(classifier, *others, blend=blend))
        return guides

    def _guide(
        self,
        classifier: Logits,
        *others: tuple[Logits, Mapping[int, int]],
        blend: Sequence[tuple[float, Sequence[int]]],
    ) -> Guide:
        """Returns the guide of a recipe without further ones."""
        choices = {axis: self._build(axis) for axis in PARTS}
        knows_noise = any(getattr(each, "schedule", None) is not None for each in (classifier, *(c for c, _ in others)))
        if knows_noise and not isinstance(choices["input"], Noisy):
            kind = normal("input", self.settings.get("input", {}))[0]["kind"]
            raise InputError(
                f"input must be noisy for a classifier of noisy images, which takes their noise level, got {kind}"
            )
        (wrt,) = normal("wrt", self.settings.get("wrt", {}))
        objectives = [self._objective(each) for each in (classifier, *(each for each, _ in others))]
        if blend:
            objectives = [
                Sum([(weight, Toward(objective=each, target=numbers[place])) for weight, numbers in blend])
                for place, each in enumerate(objectives)
            ]
        else:
            named = zip(objectives[1:], others, strict=True)
            objectives[1:] = [Translated(objective=each, classes=classes) for each, (_, classes) in named]
        loss = self._build("loss", objective=self._combined(objectives))
        return Guide(
            objective=loss.objective if isinstance(loss, Unchanged) else loss,
            scale=self._build("scale").value,
            wrt=wrt["kind"],
            ascents=wrt.get("ascents", 1),
            **choices,
        )

    def _objective(self, classifier: Logits) -> Objective:
        objective = self._build("objective", classifier=classifier)
        if getattr(classifier, "binary", False):
            notice(
                "the classifier is binary: the objective is that of its one logit f for one class, of -f for the other"
            )
        if getattr(classifier, "multilabel", False):
            notice("the classifier is multi-label: the objective is that of the target's own logit alone")
        for part in self._smoothing():
            if part["kind"] in AVERAGES:
                objective = build("smoothing", part, objective=objective)
        return objective

    def _combined(self, objectives: Sequence[Objective]) -> Objective:
        several, count = self._build("ensemble"), len(objectives)
        if isinstance(several, HandOver):
            if count != 2:
                raise InputError(f"ensemble: switch must have two classifiers, --classifier twice, got {count}")
            return Switch(above=objectives[0], below=objectives[1], at=several.at)
        weights = several.weights or (1.0,) * count
        if len(weights) != count:
            raise InputError(f"ensemble.weights must hold one for each of {count} classifiers, got {len(weights)}")
        return Sum(list(zip(weights, objectives, strict=True))) if weights != (1.0,) else objectives[0]

    def sampler(self) -> Sampler:
        """Returns the sampler."""
        return self._build("sampler")

    def sampling(self) -> dict[str, Any]:
        """Returns how the levels are walked, as `steersman.sampling.sample` takes it."""
        walk = self._build("sampling")
        chosen = {axis: self._build(axis) for axis in ("recurrence", "particles")}
        return vars(walk) | chosen


def _shared(classifier: "Classifier", other: "Classifier") -> dict[int, int]:
    """Returns the index in another classifier of each class that both know."""
    found = ((index, other.find(classifier.title(index))) for index in range(len(classifier.names)))
    return {index: there for index, there in found if there is not None}


def _no_classifier(image: Tensor, level: Level | None = None) -> Tensor:
    """Stands where a classifier will, while a recipe is checked."""
    raise AssertionError("a recipe is checked without its classifier")


@contextmanager
def _of_guide(place: int) -> Iterator[None]:
    """Tells of an error which of the further guides has it; the first guide is at -1."""
    try:
        yield
    except InputError as error:
        if place < 0:
            raise
        raise InputError(f"{ALSO}.{place}: {error}") from error


def _further(guides: object, place: str, value: object) -> list[dict[str, Any]]:
    """Returns the further guides with one changed at ``N.axis`` or ``N.axis.option``; without a place, the new ones."""
    if not place:
        guides = value
    if not isinstance(guides, Sequence) or not all(isinstance(each, Mapping) for each in guides):
        raise InputError(f"{ALSO} must be a list of mappings of {', '.join(OWN)}, got {shown(guides)}")
    further = [{str(key): part for key, part in each.items()} for each in guides]
    if place:
        number, _, key = place.partition(".")
        if not key or not number.isdecimal() or int(number) >= len(further):
            raise InputError(
                f"--set {ALSO} must be {ALSO}.N.axis with N below {len(further)}, the number of further guides, got "
                f"{ALSO}.{place}"
            )
        further[int(number)].pop(key, None)
        further[int(number)][key] = value
    return further


def _changed(axis: str, section: object, option: str, value: object) -> object:
    if not option:
        return value
    if isinstance(section, list):
        raise InputError(f"{axis}.{option} cannot be set, as {axis} is a list here; set all of it, --set {axis}='[…]'")
    full = normal(axis, section)[0]
    if option == "kind" and value != full["kind"]:
        return {"kind": value}
    changed = {**full, option: value}
    normal(axis, changed)
    return changed


def recipe_names(*, variants: bool = True) -> list[str]:
    """Returns the names of the bundled recipes, with ``NAME/VARIANT`` for each variant unless ``variants`` is False.

    Example:
        >>> import steersman as sm
        >>> [name for name in sm.recipe_names() if name.startswith("nrcg")][:3]
        ['nrcg', 'nrcg/none', 'nrcg/denoised']
    """
    names = []
    for file in sorted(BUNDLED.iterdir()):
        if file.name.endswith(".yaml"):
            name = file.name.removesuffix(".yaml")
            listed = parse_yaml(read_text(file)).get("variants", {}) if variants else {}
            names += [name, *(f"{name}/{variant}" for variant in listed)]
    return names


def load_recipe(
    name: str | Path | Recipe,
    changes: Iterable[str] | Mapping[str, object] = (),
    *,
    scale: float | None = None,
    trusted: Collection[str] = (),
) -> Recipe:
    """Loads a recipe and checks it.

    Args:
        name: ``NAME``, ``NAME/VARIANT``, a path to a YAML file, or a recipe.
        changes: Settings to change, each ``axis.option=value`` with a YAML value, or a mapping from ``axis.option`` to
            the value.
        scale: The guidance scale, in place of the recipe's.
        trusted: The code that a file may name (`steersman.files`), such as ``module:mine:Sign``.

    Raises:
        InputError: There is no such recipe, the file is not a recipe, a key is unknown or a value is out of range.

    Example:
        >>> import steersman as sm
        >>> recipe = sm.load_recipe("nrcg", {"stabilizer": "adam", "sampling.steps": 25}, scale=5)
        >>> recipe.resolved()["scale"]
        {'value': 5.0}
        >>> recipe.bind("zoo:mnist-lenet")[0].stabilizer
        Adam(beta1=0.9, beta2=0.999, eps=0.0001, corrected=False)
    """
    changes = dict(changes) if isinstance(changes, Mapping) else _assignments(changes)
    if scale is not None:
        changes["scale"] = scale
    if isinstance(name, Recipe):
        return name.changed(changes).check()
    name = str(name)
    bundled, _, variant = name.partition("/")
    file = BUNDLED / f"{bundled}.yaml"
    if name.endswith((".yaml", ".yml")):
        with about("recipe", name):
            recipe = _parse(name, read_text(Path(name)), trusted).check()
    elif "." not in bundled and file.is_file():
        recipe = _parse(bundled, read_text(file))
        if variant and variant not in recipe.variants:
            raise unknown(f"variant of {bundled}", variant, recipe.variants)
        if variant:
            recipe = recipe.changed(recipe.variants[variant], name)
    else:
        raise unknown("recipe", name, recipe_names())
    return recipe.changed(changes, recipe.name).check()


def _parse(name: str, text: str, trusted: Collection[str] = ()) -> Recipe:
    content = parse_yaml(text)
    if isinstance(content, dict):
        refuse_code([content.get("settings"), content.get("variants")], name, trusted)
        content = {"name": Path(name).stem, **content}
    return filled_in(Recipe, content, "recipe", name)


def _assignments(changes: Iterable[str]) -> dict[str, object]:
    parsed = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not key:
            raise InputError(f"--set must be axis.option=value, as in stabilizer.beta=0.9, got {shown(change)}")
        try:
            parsed[key.strip()] = parse_yaml(value)
        except InputError as error:
            raise InputError(f"--set {shown(change)}: {error}") from error
    return parsed
