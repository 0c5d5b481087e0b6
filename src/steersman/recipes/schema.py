"""Recipes: a published method, or one's own, as a file.

A recipe is a YAML file with a title, the settings of each axis (`steersman.recipes.axes`), and variants that change
some of them. ``NAME`` or ``NAME/VARIANT`` names a bundled one, a path one's own. The settings describe one guide;
``extra_guides`` lists further ones, each a mapping of the axes on which it differs from the first.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from steersman.errors import InputError, about, notice, shown, unknown
from steersman.files import parse_yaml, read_text
from steersman.guidance import Cone, Guide, Noisy, Sum, Switch, Toward, Translated
from steersman.guidance.objective import Logits, Objective
from steersman.guidance.target import Target
from steersman.names import recipe_file
from steersman.recipes.axes import AXES, build, normal, parts_of, plain
from steersman.sampling import Particles, Recurrence, Sampler
from steersman.schedule import Level
from steersman.trust import refuse_code
from steersman.typed import filled_in

if TYPE_CHECKING:
    from steersman.models.classifiers import Classifier

__all__ = ["EXTRA", "Guides", "Recipe", "load_recipe", "shared_classes"]

AVERAGES = ("augment", "montecarlo")
PARTS = ("input", "stabilizer", "weight", "injection")
PAIRS = ("switch", "verifier", "cone")
"""Ensembles of two classifiers with a part each."""
EXTRA = "extra_guides"
OWN = ("objective", "loss", "smoothing", *PARTS, "wrt", "scale", "weighs")
"""The axes on which an extra guide may differ from the first."""


class Guides(list[Guide]):
    """A recipe's guides, bound to their classifier, with the rest of the recipe.

    Attributes:
        recipe: The recipe.
        classifier: The classifier whose vocabulary the targets are of, prepared as the recipe says; None where the
            objective needs none.
        sampler: The sampler.
        sampling: The other settings of sampling, as `steersman.sampling.sample` takes them.
        recurrence: How often steps are repeated.
        particles: The particles of an image and their resampling.
    """

    def __init__(self, recipe: "Recipe", classifier: Logits | None) -> None:
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

    def __repr__(self) -> str:
        return f"Recipe({self.name!r}, settings={self.settings})"

    def changed(self, changes: Mapping[str, object], name: str | None = None) -> "Recipe":
        """Returns the recipe with some settings changed; its variants stay.

        Args:
            changes: By axis (a whole section) or by ``axis.option`` (one setting of it); a section whose kind changes
                starts from that kind's defaults. By ``extra_guides``, their list, or by ``extra_guides.N.axis`` and
                ``extra_guides.N.axis.option`` a change of one of them, the first of them 0.
            name: A new name, if it gets one.

        Raises:
            InputError: An unknown axis, option, or value.
        """
        settings = dict(self.settings)
        for key, value in changes.items():
            axis, _, option = key.partition(".")
            if axis == EXTRA:
                settings[EXTRA] = _extra(settings.get(EXTRA, []), option, value)
                continue
            if axis not in AXES:
                raise unknown("axis", axis, [*AXES, EXTRA])
            settings[axis] = _changed(axis, settings.get(axis, {}), option, value)
        return self.model_copy(update={"settings": settings, "name": name or self.name})

    def resolved(self) -> dict[str, Any]:
        """Returns every axis's section with every setting filled in, and those of the extra guides."""
        first, *extra = self._recipes()
        own = [{axis: plain(axis, recipe.settings.get(axis, {})) for axis in OWN} for recipe in extra]
        return {axis: plain(axis, first.settings.get(axis, {})) for axis in AXES} | {EXTRA: own}

    def check(self) -> "Recipe":
        """Returns the recipe, or refuses it where a section cannot be built."""
        for axis in self.settings:
            if axis not in AXES and axis != EXTRA:
                raise unknown("axis", axis, [*AXES, EXTRA])
        pair = self._sections("ensemble")[0]["kind"] in PAIRS
        self.bind_prepared(_no_classifier, *[(_no_classifier, {})] * pair)
        self.classifier_settings()
        return self

    @property
    def needs_classifier(self) -> bool:
        """Whether an objective of the recipe has a classifier; ours all have."""
        return any(
            "classifier" in parts_of("objective", recipe.settings.get("objective", {})) for recipe in self._recipes()
        )

    def bind(
        self,
        classifier: "str | Path | Classifier | None" = None,
        *others: "str | Path | Classifier",
        device: str | None = None,
    ) -> Guides:
        """Returns the recipe's guides for a classifier, prepared as the recipe says: its input, size and smoothing.

        Args:
            classifier: The classifier, as `steersman.load_classifier` takes it, or the object, which is not changed;
                None where the objective is one of your own without a classifier.
            others: Further classifiers that guide with it; a target means the class of its name there.
            device: The device of classifiers that are loaded here; the CPU by default.

        Raises:
            InputError: A classifier that cannot be loaded, that the recipe does not suit, or that is none, such as a
                network whose input is not stated.
        """
        if classifier is None:
            if self.needs_classifier:
                raise InputError("classifier must be given, as the recipe's objective needs one, got none")
            return self.bind_prepared(None)
        first, *further = (self._prepared(each, device) for each in (classifier, *others))
        return self.bind_prepared(first, *((other, shared_classes(first, other)) for other in further))

    def bind_prepared(
        self,
        classifier: Logits | None,
        *others: tuple[Logits, Mapping[int, int | Sequence[int]]],
        blend: Sequence[tuple[float, Sequence[Target]]] = (),
    ) -> Guides:
        """Returns the guides for classifiers that were loaded with `classifier_settings`.

        Args:
            classifier: The classifier whose classes the targets are; None where the objective needs none.
            others: Further classifiers, each with the index there of every target, or the indices of a set.
            blend: In place of targets, weights, each of a class or set by its indices for every classifier; a negative
                weight steers away.

        Raises:
            InputError: A classifier that the recipe does not suit.
        """
        guides = Guides(self, classifier)
        for index, recipe in enumerate(self._recipes(), -1):
            with _about_guide(index):
                guides += recipe._guides(classifier, *others, blend=blend)
        return guides

    def classifier_settings(self) -> dict[str, Any]:
        """Returns the settings with which `steersman.models.classifiers.load_classifier` loads the classifier."""
        (preprocess,) = self._sections("preprocess")
        softplus, *others = [recipe._softplus() for recipe in self._recipes()]
        for index, other in enumerate(others):
            if other != softplus:
                raise InputError(
                    f"{EXTRA}.{index}.smoothing must have softplus {softplus}, as the first guide, which has the same "
                    f"classifier, got {other}"
                )
        return {"preprocess": preprocess["transform"], "size": preprocess["size"], "softplus": softplus, "adapt": True}

    def sampler(self) -> Sampler:
        """Returns the sampler."""
        return self._build("sampler")

    def sampling(self) -> dict[str, Any]:
        """Returns the other settings of sampling, as `steersman.sampling.sample` takes them."""
        return vars(self._build("sampling")) | {axis: self._build(axis) for axis in ("recurrence", "particles")}

    def _recipes(self) -> list["Recipe"]:
        """Returns a recipe for each guide: this one without the extra ones, and that with the changes of each."""
        settings = dict(self.settings)
        recipes: list[Recipe] = [self.model_copy(update={"settings": settings})]
        for index, changes in enumerate(_extra([], "", settings.pop(EXTRA, []))):
            with _about_guide(index):
                for axis in (key.partition(".")[0] for key in changes):
                    if axis not in OWN:
                        raise unknown("axis of a further guide", axis, OWN)
                recipes.append(recipes[0].changed(changes))
        return recipes

    def _sections(self, axis: str) -> list[dict[str, Any]]:
        return normal(axis, self.settings.get(axis, {}))

    def _build(self, axis: str, **fixed: object) -> Any:  # noqa: ANN401
        return build(axis, self.settings.get(axis, {}), **fixed)

    def _softplus(self) -> float | None:
        """Returns the sharpness of the classifier's softened ReLUs, or None for the classifier as it was trained."""
        given = [part["beta"] for part in self._sections("smoothing") if part["kind"] == "softplus"]
        if len(given) > 1:
            raise InputError(f"smoothing must have softplus once at most, got it {len(given)} times")
        return given[0] if given else None

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

    def _guides(
        self,
        classifier: Logits | None,
        *others: tuple[Logits, Mapping[int, int | Sequence[int]]],
        blend: Sequence[tuple[float, Sequence[Target]]],
    ) -> list[Guide]:
        """Returns the guide of a recipe without extra ones; where a verifier weighs in its place, both."""
        choices = {axis: self._build(axis) for axis in PARTS}
        classifiers = [classifier, *(other for other, _ in others)]
        knows_noise = any(getattr(each, "schedule", None) is not None for each in classifiers)
        if knows_noise and not isinstance(choices["input"], Noisy):
            raise InputError(
                "input must be noisy for a classifier of noisy images, which takes their noise level, got "
                f"{self._sections('input')[0]['kind']}"
            )
        objectives = [self._objective(each) for each in classifiers]
        if blend:
            objectives = [
                Sum([(weight, Toward(objective=objective, target=indices[number])) for weight, indices in blend])
                for number, objective in enumerate(objectives)
            ]
        else:
            pairs = zip(objectives[1:], others, strict=True)
            objectives[1:] = [Translated(objective=objective, classes=classes) for objective, (_, classes) in pairs]
        objective, *verifier = self._combined(objectives)
        if self._sections("loss")[0]["kind"] != "none":
            objective, *verifier = (self._build("loss", objective=each) for each in (objective, *verifier))
        (wrt,) = self._sections("wrt")
        guide = Guide(
            objective=objective,
            scale=self._build("scale").value,
            wrt=wrt["kind"],
            ascents=wrt.get("ascents", 1),
            weighs=self._build("weighs").particles,
            **choices,
        )
        if not verifier or not guide.weighs:
            return [guide]
        return [replace(guide, weighs=False), replace(guide, objective=verifier[0], scale=0.0)]

    def _objective(self, classifier: Logits | None) -> Objective:
        """Returns the objective of one classifier, with the averages of the smoothing."""
        objective = self._build("objective", classifier=classifier)
        if getattr(classifier, "binary", False):
            notice(
                "the classifier is binary: the objective is that of its one logit f for one class, of -f for the other"
            )
        if getattr(classifier, "multilabel", False):
            notice("the classifier is multi-label: the objective is that of the target's own logit alone")
        for part in self._sections("smoothing"):
            if part["kind"] in AVERAGES:
                objective = build("smoothing", part, objective=objective)
        return objective

    def _combined(self, objectives: Sequence[Objective]) -> Sequence[Objective]:
        """Returns the ensemble of the classifiers' objectives, and the verifier's where it weighs by itself."""
        (ensemble,), count = self._sections("ensemble"), len(objectives)
        kind = ensemble["kind"]
        if kind in PAIRS and count != 2:
            raise InputError(f"ensemble: {kind} must have two classifiers, --classifier twice, got {count}")
        if kind == "verifier":
            if (particles := self._build("particles")).count < 2:
                raise InputError(
                    f"ensemble: verifier must have particles to weigh, particles.count of 2 or more, got "
                    f"{particles.count}"
                )
            return objectives
        if kind == "cone":
            return [Cone(around=objectives[0], within=objectives[1], angle=ensemble["angle"])]
        if kind == "switch":
            return [Switch(above=objectives[0], below=objectives[1], at=ensemble["at"])]
        weights = ensemble["weights"] or (1.0,) * count
        if len(weights) != count:
            raise InputError(f"ensemble.weights must hold one for each of {count} classifiers, got {len(weights)}")
        return [Sum(list(zip(weights, objectives, strict=True)))] if weights != (1.0,) else objectives


def shared_classes(
    classifier: "Classifier", other: "Classifier", wanted: Iterable[int] | None = None
) -> dict[int, tuple[int, ...]]:
    """Returns the classes in another classifier of each class that both know, of all or of those that are wanted.

    A class may be several there, as ``dog`` is in ImageNet, or a part of one.
    """
    indices = list(range(len(classifier.names)) if wanted is None else wanted)
    found = {index: there for index in indices if (there := other.find(classifier.title(index))) is not None}
    if len(found) < len(indices) and not classifier.open_vocabulary:  # which takes each name for a text of its own
        for there in range(len(other.names)):
            for index in classifier.find(other.title(there)) or ():
                found.setdefault(index, (there,))
    return found


def _no_classifier(image: Tensor, level: Level | None = None) -> Tensor:
    """Takes the place of the classifier while a recipe is checked."""
    raise AssertionError("a recipe is checked without its classifier")


@contextmanager
def _about_guide(index: int) -> Iterator[None]:
    """Names the extra guide in an error; the first guide has the index -1."""
    try:
        yield
    except InputError as error:
        if index < 0:
            raise
        raise InputError(f"{EXTRA}.{index}: {error}") from error


def _extra(guides: object, place: str, value: object) -> list[dict[str, Any]]:
    """Returns the extra guides with a change at ``N.axis`` or ``N.axis.option``; without a place, the new ones."""
    if not place:
        guides = value
    if not isinstance(guides, Sequence) or not all(isinstance(guide, Mapping) for guide in guides):
        raise InputError(f"{EXTRA} must be a list of mappings of {', '.join(OWN)}, got {shown(guides)}")
    extra = [{str(key): part for key, part in guide.items()} for guide in guides]
    if place:
        number, _, key = place.partition(".")
        if not key or not number.isdecimal() or int(number) >= len(extra):
            raise InputError(
                f"--set {EXTRA} must be {EXTRA}.N.axis with N below {len(extra)}, the number of further guides, got "
                f"{EXTRA}.{place}"
            )
        extra[int(number)].pop(key, None)  # the last change holds
        extra[int(number)][key] = value
    return extra


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
    if not isinstance(name, str | Path):
        raise InputError(f"a recipe must be a name, a file or a steersman.Recipe, got {type(name).__name__}")
    file, variant = recipe_file(name := str(name))
    with about("recipe", name):
        recipe = _parse(str(file), read_text(file), trusted).check()
    if variant:
        recipe = recipe.changed(recipe.variants[variant], name)
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
