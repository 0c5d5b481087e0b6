"""What a search chooses from, how it is said, and where known settings lie in it."""

import re
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial

from steersman.errors import InputError
from steersman.lab.tune import TRIED, Tune
from steersman.lab.tune.search import ANY, Range, check, chosen, placed, space_of
from steersman.recipes import load_recipe


def test_a_range_is_whole_and_by_decades_as_its_ends_are():
    told = FixedTrial({"scale": 0.5, "steps": 8, "input.until": 0.25})
    space = space_of(["scale=0.01..1", "steps=4..32", "input.until=0.2..0.5"])
    assert chosen(space, told) == {"scale": 0.5, "steps": 8, "input.until": 0.25}
    assert told.distributions == {
        "scale": FloatDistribution(low=0.01, high=1, log=True),
        "steps": IntDistribution(low=4, high=32),
        "input.until": FloatDistribution(low=0.2, high=0.5),
    }
    assert Range(low=3, high=30, integer=True).by_decades and not Range(low=0, high=30, integer=True).by_decades


def test_numbers_have_few_digits_and_stay_within_their_range():
    between = Range(low=0.12345, high=0.98765, integer=False)
    assert [between.nearest(each) for each in (0.0, 0.123456, 0.45678, 2)] == [0.12345, 0.12345, 0.457, 0.98765]
    assert Range(low=2, high=8, integer=True).nearest(3.6) == 4


def test_what_stands_inside_one_of_several_is_asked_only_there():
    gated = "{name: gated, weight: [variance, {kind: interval, ratio_min: 0.1..2.0}]}"
    given = f"case={{name: plain, wrt: x0_hat}}, {gated}"
    space = space_of([given])
    plain = FixedTrial({"case": "plain"})
    assert chosen(space, plain) == {"wrt": "x0_hat"}
    assert plain.distributions == {"case": CategoricalDistribution(("plain", "gated"))}
    gated = FixedTrial({"case": "gated", "case=gated.weight.1.ratio_min": 0.5})
    assert chosen(space, gated) == {"weight": ["variance", {"kind": "interval", "ratio_min": 0.5}]}


def test_names_of_choices_are_their_values_or_given():
    told = FixedTrial({"wrt": "x_t", "sampler": "fast"})
    space = {"wrt": {ANY: ["x0_hat", "x_t"]}, "sampler": {ANY: {"fast": {"kind": "dpmpp"}, "slow": "ddpm"}}}
    assert chosen(space, told) == {"wrt": "x_t", "sampler": {"kind": "dpmpp"}}
    assert told.distributions == {
        "wrt": CategoricalDistribution(("x0_hat", "x_t")),
        "sampler": CategoricalDistribution(("fast", "slow")),
    }


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["scale=3..1"], "search: a range must be LOW..HIGH with LOW < HIGH, got 3..1"),
        (["case={name: a, scale: 1..3}, {name: b, scale: 3..1}"], "got 3..1"),
        (["wrt=x0_hat,x0_hat"], "search: each value of a choice may be given only once, got x0_hat, x0_hat"),
        (["sclae=1..3"], "unknown setting to vary 'sclae'; did you mean 'scale'"),
        (["scale"], "vary must be axis.option=a,b,c, as in scale=5,10,20, got 'scale'"),
    ],
)
def test_a_space_without_sense_is_refused(given, told):
    with pytest.raises(InputError, match=told.replace("(", r"\(")):
        check(space_of(given))


def test_settings_are_found_in_the_space_the_nearest_where_they_lie_beyond():
    settings = load_recipe("freedom", ["sampling.steps=24", "weight=[relative, {kind: every, k: 3}]"]).resolved()
    space = space_of(
        [
            "scale=0.1..10.0",
            "steps=4..40",
            "sampling.steps=4..40",
            "wrt=x0_hat,x_t",
            "sampler.eta=0,1",
            "extra_guides.0.scale=1..3",
        ]
    ) | {
        "weight": {ANY: {"plain": "relative", "gated": ["relative", {"kind": "every", "k": "2..4"}]}},
        "sampling.ratio_max": "1.0..100.0",
    }
    assert placed(space, settings) == {
        "scale": 0.1,
        "sampling.steps": 24,
        "wrt": "x_t",
        "sampler.eta": "1",
        "weight": "gated",
        "weight=gated.1.k": 3,
        "sampling.ratio_max": 100.0,
    }


@pytest.mark.parametrize("name", TRIED)
def test_a_recipe_lies_in_the_space_around_it(name):
    """What is chosen at its own point are its own settings, but for numbers beyond a range."""
    tune = Tune(
        recipes=(name,), changes=("sampling.steps=24",), reference="sportballs", settings={"targets": ("baseball",)}
    )
    (point,) = tune.points()
    if name == "default":  # its levels are a list, which is none of the spacings that are tried
        assert "sampling.spacing" not in point
        point["sampling.spacing"] = "logsnr"
    told = FixedTrial(point)
    values = chosen(tune.searched, told)
    assert set(told.distributions) == set(point)
    found, own = tune.run(values).recipe.resolved(), load_recipe(name, ["sampling.steps=24"]).resolved()
    beyond = {axis for axis in own if found[axis] != own[axis]}
    assert beyond <= {"sampling", "recurrence"}
    same = {"ratio_min": 0, "ratio_max": 0} | ({"spacing": 0} if name == "default" else {})
    assert found["sampling"] | same == own["sampling"] | same


def test_the_space_around_several_recipes_starts_with_each():
    tune = Tune(recipes=("freedom", "elucd-ddpm"), reference="sportballs")
    assert [point["case"] for point in tune.points()] == ["freedom", "elucd-ddpm"]
    assert [point["sampling.steps"] for point in tune.points()] == [50, 50]


def test_the_space_that_is_given_starts_with_the_recipes_own_settings_and_those_that_it_names():
    space = space_of(["scale=0.01..100.0", "recipe=nrcg,freedom"])
    points = Tune(recipes=("nrcg",), space=space, reference="sportballs").points()
    assert points == [{"recipe": "nrcg", "scale": 15.0}, {"recipe": "freedom", "scale": 0.02}]


def test_the_denoiser_is_not_searched():
    tune = Tune(space=space_of(["denoiser=a,b"]), reference="sportballs")
    with pytest.raises(InputError, match="search: denoiser cannot be searched"):
        tune.points()


def test_the_spaces_in_the_docs_are_spaces():
    page = (Path(__file__).parents[2] / "docs" / "tune.md").read_text()
    given = [quoted or plain for quoted, plain in re.findall(r"--search (?:'([^']+)'|(\S+))", page)]
    assert len(given) == 4
    for each in given:
        assert space_of([each])
