"""Recipes: strict, complete, and the same after a round trip through a file."""

import math
from dataclasses import replace

import pytest
import yaml

from steersman.errors import InputError
from steersman.guidance import (
    Adam,
    Augmented,
    Chain,
    Clip,
    Denoised,
    DenoisedImage,
    Ema,
    Interval,
    Log,
    Mean,
    MonteCarlo,
    Noisy,
    Product,
    Root,
    Signal,
    Sine,
    TargetLogit,
    Transition,
    Translated,
    Variance,
)
from steersman.recipes import load_recipe, recipe_names
from steersman.recipes.axes import AXES, build, settings_of
from steersman.schedule import VP


def flat(image, level=None):
    """A classifier that finds all of two classes alike."""
    return image.new_zeros(len(image), 2)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_fills_in_every_setting(name):
    resolved = load_recipe(name).resolved()
    assert list(resolved) == [*AXES, "extra_guides"]
    sections = [*resolved.items(), *(each for guide in resolved.pop("extra_guides") for each in guide.items())]
    for axis, section in sections:
        if axis == "extra_guides":
            continue
        for full in section if isinstance(section, list) else [section]:
            kinds = AXES[axis]
            kind = kinds[full["kind"]] if len(kinds) > 1 else next(iter(kinds.values()))
            assert set(settings_of(kind)) == set(full) - {"kind"}


@pytest.mark.few(3)
@pytest.mark.parametrize("name", recipe_names())
def test_the_resolved_settings_written_as_a_file_make_the_same_recipe(name, tmp_path):
    resolved = load_recipe(name).resolved()
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump({"title": "own", "settings": resolved}))
    assert load_recipe(str(file)).resolved() == resolved


def test_the_papers_settings():
    """nrCG's SportBalls and CelebA settings, and EluCD's Table 7, as published."""
    (nrcg,) = load_recipe("nrcg").bind_prepared(classifier=flat)
    assert (nrcg.wrt, nrcg.scale, nrcg.stabilizer, nrcg.weight) == ("x_t", 15, Ema(beta=0.99), Variance())
    (celeba,) = load_recipe("nrcg/celeba").bind_prepared(classifier=flat)
    assert (celeba.scale, type(celeba.objective).__name__) == (150, "BinaryProbability")
    (adam,) = load_recipe("nrcg/adam").bind_prepared(classifier=flat)
    assert adam.stabilizer == Adam(beta1=0.9, beta2=0.999, eps=1e-4)
    elucd = load_recipe("elucd-ddpm")
    (guide,) = elucd.bind_prepared(classifier=flat)
    assert (guide.wrt, guide.scale, guide.weight) == ("x0_hat", 1, Sine(gamma=0.3))
    assert (guide.objective.joint, guide.objective.marginal) == (1, 0.5)
    assert elucd.classifier_settings() == {"preprocess": "own", "size": None, "softplus": 3.0, "adapt": True}
    assert elucd.sampling()["steps"] == 250


def test_a_list_is_a_chain_or_a_product():
    recipe = load_recipe(
        "nrcg", ["stabilizer=[{kind: clip, norm: 2}, ema]", "weight=[variance, {kind: interval, ratio_min: 1}]"]
    )
    (guide,) = recipe.bind_prepared(classifier=flat)
    assert guide.stabilizer == Chain((Clip(norm=2.0), Ema()))
    assert guide.weight == Product((Variance(), Interval(ratio_min=1.0, ratio_max=math.inf)))


def test_a_change_of_kind_starts_from_that_kinds_defaults():
    recipe = load_recipe("nrcg/adam", ["stabilizer.kind=ema"])
    assert recipe.resolved()["stabilizer"] == {"kind": "ema", "beta": 0.99}
    assert load_recipe("nrcg", ["stabilizer.beta=0.5"]).resolved()["stabilizer"] == {"kind": "ema", "beta": 0.5}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("nrgc", [], "unknown recipe 'nrgc'; did you mean 'nrcg'"),
        ("nrcg/ema98", [], "unknown variant of nrcg 'ema98'; did you mean 'ema99'"),
        ("nrcg", ["stabiliser.beta=1"], "unknown axis 'stabiliser'; did you mean 'stabilizer'"),
        ("nrcg", ["stabilizer.bta=1"], "unknown setting of stabilizer 'ema' 'bta'; did you mean 'beta'"),
        ("nrcg", ["stabilizer.beta=much"], "stabilizer.beta must be a valid number, got 'much'"),
        ("nrcg", ["stabilizer.beta=2"], "stabilizer.beta must be at least 0 and below 1, got 2.0"),
        ("nrcg", ["input=nosy"], "unknown input 'nosy'; did you mean 'noisy'"),
        ("nrcg", ["sampling.steps=0"], "sampling.steps must be at least 1, got 0"),
        ("nrcg", ["beta"], "--set must be axis.option=value, as in stabilizer.beta=0.9, got 'beta'"),
        ("nrcg", ["input=[noisy, noisy]"], "input must be one of denoised, lookahead, noisy, rescaled, got a list"),
        ("nrcg", ["scale=.nan"], "scale.value must be a finite number, got nan"),
        ("nrcg", ["extra_guides=noisy"], "extra_guides must be a list of mappings of objective, loss, "),
        ("nrcg", ["extra_guides=[{sampling: 3}]"], "extra_guides.0: unknown axis of a further guide 'sampling'"),
        ("nrcg", ["extra_guides=[{}, {input: nosy}]"], "extra_guides.1: unknown input 'nosy'; did you mean 'noisy'"),
        ("nrcg", ["extra_guides=[{scale: .nan}]"], "extra_guides.0: scale.value must be a finite number, got nan"),
        (
            "nrcg",
            ["extra_guides.0.scale=3"],
            "extra_guides must be extra_guides.N.axis with N below 0, the number of further guides, "
            "got extra_guides.0.scale",
        ),
        (
            "nrcg",
            ["extra_guides=[{}]", "extra_guides.0=3"],
            "extra_guides must be extra_guides.N.axis with N below 1, the number of further guides, got extra_guides.0",
        ),
        (
            "nrcg",
            ["extra_guides=[{wrt: {kind: x0_hat, ascents: 2}}]"],
            "extra_guides.0: wrt.ascents must be 1 unless wrt is",
        ),
        (
            "nrcg",
            ["extra_guides=[{smoothing: softplus}]"],
            "extra_guides.0.smoothing must have softplus None, as the first guide, which has the same classifier, "
            "got 8.0",
        ),
        (
            "nrcg",
            ["ensemble=verifier"],
            "ensemble: verifier must have particles to weigh, particles.count of 2 or more, got 1",
        ),
        ("nrcg", ["loss=rot"], "unknown loss 'rot'; did you mean 'root'"),
        ("nrcg", ["sampling.keeps=nose"], "sampling.keeps must be 'noise' or 'sample', got 'nose'"),
        ("absent.yaml", [], "'absent.yaml' cannot be read (No such file or directory)"),
        ("default", ["objective.marginal=.nan"], "objective.marginal must be a finite number, got nan"),
    ],
)
def test_bad_input_is_one_line_that_says_what_is_allowed(name, changes, message):
    with pytest.raises(InputError) as error:
        load_recipe(name, changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no YAML"),
        ("- a", "must hold a mapping with name, title"),
        ("title: t\nsetings: {}", "unknown key of a recipe 'setings'; did you mean 'settings'"),
        ("title: t", "settings is missing"),
        ("title: t\nsettings: {inputt: noisy}", "unknown axis 'inputt'; did you mean 'input'"),
    ],
)
def test_a_bad_file_is_refused(text, message, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        load_recipe(str(file))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("axis", "kind"), [(axis, kind) for axis, kinds in AXES.items() for kind in kinds])
def test_every_option_builds_from_its_defaults(axis, kind):
    section = {"kind": kind} if len(AXES[axis]) > 1 else {}
    parts = {"classifier": flat, "objective": TargetLogit(classifier=flat)}
    assert isinstance(build(axis, section, **parts), AXES[axis][kind])


def test_a_classifier_of_noisy_images_sees_them():
    def noise_aware(image, level=None):
        return flat(image, level)

    noise_aware.schedule = VP.linear()
    (guide,) = load_recipe("adm-cg").bind_prepared(noise_aware)
    assert guide.input == Noisy()
    for changes, message in (
        (["input=denoised"], "^input must be noisy .*, got denoised"),
        (["extra_guides=[{input: lookahead}]"], "^extra_guides.0: input must be noisy .*, got lookahead"),
    ):
        recipe = load_recipe("adm-cg", changes)
        assert recipe.bind_prepared(flat)
        for classifiers in ((noise_aware,), (flat, (noise_aware, {0: 0}))):
            with pytest.raises(InputError, match=message):
                recipe.bind_prepared(*classifiers)


def test_none_is_null_where_a_setting_may_be_none():
    sizes = {text: load_recipe("nrcg", [f"preprocess.size={text}"]) for text in ("32", "none", "None", "null")}
    assert [recipe.classifier_settings()["size"] for recipe in sizes.values()] == [32, None, None, None]


def test_smoothings_stand_together():
    recipe = load_recipe("nrcg", ["smoothing=[{kind: softplus, beta: 5}, {kind: augment, copies: 2}, montecarlo]"])
    assert recipe.classifier_settings()["softplus"] == 5
    (guide,) = recipe.bind_prepared(classifier=flat)
    assert guide.objective == MonteCarlo(objective=Augmented(objective=TargetLogit(classifier=flat), copies=2))
    with pytest.raises(InputError, match="smoothing must have softplus once at most, got it 2 times"):
        load_recipe("nrcg", ["smoothing=[softplus, softplus]"])


def test_a_further_guide_is_the_first_but_for_what_is_said():
    """TFG's two routes: the objective, the view and the averaging are the first guide's."""
    first, second = load_recipe("tfg").bind_prepared(classifier=flat)
    assert (first.wrt, first.scale, first.injection, first.ascents) == ("x_t", 1, Mean(), 1)
    assert first.weight == Product((Transition(), Signal()))
    assert (second.wrt, second.scale, second.injection, second.ascents) == ("x0_hat", 0.25, DenoisedImage(), 4)
    assert second.weight == Transition()
    assert (second.objective, second.input) == (first.objective, first.input) == (first.objective, Denoised())


def test_a_further_guide_changes_by_its_number():
    recipe = load_recipe(
        "tfg/imagenet", ["extra_guides.0.scale=0.1", "extra_guides.0.wrt.ascents=2", "input.clip=false"]
    )
    (own,) = recipe.resolved()["extra_guides"]
    assert (own["scale"], own["wrt"]) == ({"value": 0.1}, {"kind": "x0_hat", "ascents": 2})
    assert own["input"] == {"kind": "denoised", "clip": False, "guided": False}
    assert recipe.changed({"extra_guides": []}).resolved()["extra_guides"] == []


def test_the_last_change_of_a_further_guide_holds():
    changes = ["extra_guides=[{weight: constant}]", "extra_guides.0.weight.kind=linear", "extra_guides.0.weight=signal"]
    _, second = load_recipe("nrcg", changes).bind_prepared(classifier=flat)
    assert second.weight == Signal()


def test_a_verifier_weighs_in_the_place_of_each_guide_that_would():
    changes = ["ensemble=verifier", "particles.count=2", "loss=root", "scale=3"]
    changes.append("extra_guides=[{weighs: false, input: noisy, scale: 2}]")
    known = {0: 1, 1: 0}
    first, second, other = load_recipe("nrcg", changes).bind_prepared(flat, (flat, known))
    alone = load_recipe("nrcg", ["loss=root"]).bind_prepared(flat)[0].objective
    translated = Root(objective=Translated(objective=alone.objective, classes=known))
    assert (first.objective, first.scale, first.weighs) == (alone, 3, False)
    assert second == replace(first, objective=translated, scale=0, weighs=True)
    assert (other.objective, other.scale, other.weighs, other.input) == (alone, 2, False, Noisy())


def test_each_guide_has_its_loss_over_all_classifiers():
    recipe = load_recipe("nrcg", ["loss=root", "extra_guides=[{loss: log}, {loss: none}]"])
    root, log, plain = recipe.bind_prepared(flat, (flat, {0: 1, 1: 0}))
    assert root.objective == Root(objective=plain.objective)
    assert log.objective == Log(objective=plain.objective)
    assert len(plain.objective.terms) == 2
