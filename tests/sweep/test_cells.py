"""Which runs a sweep is made of."""

import pytest

from steersman.errors import InputError
from steersman.lab.sweep.cells import Sweep, varied
from steersman.recipes import load_recipe

BASE = {"targets": ("baseball",), "num": 2, "seed": 5, "classifiers": ("zoo:sportballs-mobilenet",)}


def sweep(*given, **settings):
    return Sweep(
        **{"recipe": "nrcg", "settings": BASE, "varied": varied(given), "reference": "sportballs", "features": "judge"}
        | settings
    )


def test_the_cells_are_the_cross_product_on_the_same_seeds():
    *cells, unguided = sweep("scale=1,2.5", "stabilizer.beta=0.5,0.9,0.99").cells()
    assert (unguided.name, unguided.folder, unguided.run.guided) == ("unguided", "unguided", False)
    found = [(c.run.recipe.resolved()["scale"], c.run.recipe.resolved()["stabilizer"]["beta"]) for c in cells]
    assert found == [({"value": s}, b) for s in (1, 2.5) for b in (0.5, 0.9, 0.99)]
    assert {(cell.run.num, cell.run.seed, cell.run.targets) for cell in cells} == {(2, 5, ("baseball",))}
    assert cells[4].values == {"scale": "2.5", "stabilizer.beta": "0.9"}
    assert cells[4].name == "scale=2.5, stabilizer.beta=0.9"
    assert cells[4].folder == "scale=2.5,stabilizer.beta=0.9"
    assert len({cell.folder for cell in cells}) == 6


def test_values_with_commas_stand_in_brackets_or_quotes():
    assert varied(["weight=[deviation, {kind: interval, ratio_min: 0.5}],variance", "label='a, b',c"]) == {
        "weight": [["deviation", {"kind": "interval", "ratio_min": 0.5}], "variance"],
        "label": ["a, b", "c"],
    }
    first, second, _ = sweep("weight=[deviation, {kind: interval, ratio_min: 0.5}],variance").cells()
    assert [each["kind"] for each in first.run.recipe.resolved()["weight"]] == ["deviation", "interval"]
    assert second.run.recipe.resolved()["weight"]["kind"] == "variance"


def test_recipes_and_classifiers_vary_whole_and_changes_hold_in_all():
    cells = sweep(
        "recipe=nrcg/ema90,nrcg/adam", "classifier=zoo:a,[zoo:a, zoo:b]", changes=("sampling.steps=7",)
    ).cells()
    assert [cell.run.recipe.name for cell in cells[:4]] == ["nrcg/ema90", "nrcg/ema90", "nrcg/adam", "nrcg/adam"]
    assert [cell.name for cell in cells[4:]] == [
        "unguided, classifier=zoo:a",
        "unguided, classifier=['zoo:a', 'zoo:b']",
    ]
    assert [cell.run.classifiers for cell in cells[:2]] == [("zoo:a",), ("zoo:a", "zoo:b")]
    assert {cell.run.recipe.sampling()["steps"] for cell in cells} == {7}


def test_a_case_is_several_settings_under_a_name():
    robust, plain, *_ = sweep(
        "case={name: robust, recipe: nrcg/robust, classifier: zoo:robust, scale: 3},{recipe: nrcg/none, steps: 9}"
    ).cells()
    assert (robust.run.recipe.name, robust.run.classifiers) == ("nrcg/robust", ("zoo:robust",))
    assert robust.run.recipe.resolved()["scale"] == {"value": 3}
    assert plain.run.recipe.sampling()["steps"] == 9
    assert [cell.name for cell in (robust, plain)] == ["case=robust", "case=recipe=nrcg/none steps=9"]


def test_what_else_makes_a_run_can_be_varied():
    cells = sweep("guidance=true,false", "label=1,null", "cfg-scale=1,2", settings=BASE | {"label": "x"}).cells()
    assert [(cell.run.guided, cell.run.label, cell.run.cfg_scale) for cell in cells[:4]] == [
        *((True, label, scale) for label in ("1", None) for scale in (1.0, 2.0))
    ]
    assert not cells[4].run.guided
    assert not any(cell.unguided for cell in cells)  # where guidance is varied, nothing is added


def test_without_guidance_a_cell_is_drawn_for_each_setting_that_still_matters():
    *_, first, second = sweep("scale=1,2", "steps=4,8", changes=("recurrence.times=3",)).cells()
    assert [first.values, second.values] == [{"scale": "", "steps": "4"}, {"scale": "", "steps": "8"}]
    assert [first.name, second.name] == ["unguided, steps=4", "unguided, steps=8"]
    assert first.run.recipe.sampling()["recurrence"].times == 1


def test_a_scale_may_be_a_multiple_of_each_recipes_own():
    cells = sweep("recipe=nrcg,dps", "scale=0.5x,2x").cells()
    own = [load_recipe(name).resolved()["scale"]["value"] for name in ("nrcg", "dps")]
    scales = [cell.run.recipe.resolved()["scale"]["value"] for cell in cells if not cell.unguided]
    assert scales == [factor * scale for scale in own for factor in (0.5, 2)]
    assert cells[0].name == "recipe=nrcg, scale=0.5x"


REFUSED = [
    ([], "vary must be given at least once"),
    (["scale"], "vary must be axis.option=a,b,c, as in scale=5,10,20, got 'scale'"),
    (["scale="], "vary must be axis.option=a,b,c, as in scale=5,10,20, got 'scale='"),
    (["=1"], "vary must be axis.option=a,b,c, as in scale=5,10,20, got '=1'"),
    (["scale=[1"], "vary: the values must be a YAML list without brackets, got 'scale=[1'"),
    (["scale=1", "scale=2"], "vary: scale may be given only once"),
    (["scael=1"], "unknown setting to vary 'scael'; did you mean 'scale' or"),
    (["seed=1,2"], "unknown setting to vary 'seed'"),
    (["case=a"], "case must be {name: NAME, SETTING: VALUE, …}, got a"),
    (["case={num: 3}"], "unknown setting to vary 'num'"),
]


@pytest.mark.parametrize(("given", "told"), REFUSED)
def test_what_cannot_be_varied_is_refused(given, told):
    with pytest.raises(InputError) as error:
        varied(given)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


IMPOSSIBLE = [
    (["scale=1,strong"], "cell scale=strong: scale.value must be a valid number, got 'strong'"),
    (
        ["stabilizer.beta=0.9", "scale=1,.nan"],
        "varied.scale must be a finite number, got nan",
    ),
    (["stabilizer.betta=0.9"], "cell stabilizer.betta=0.9: unknown setting of stabilizer 'ema' 'betta'"),
    (["recipe=nrcg,nrgc"], "cell recipe=nrgc: unknown recipe 'nrgc'; did you mean 'nrcg'?"),
    (["guidance=1"], "cell guidance=1: guidance must be true or false, got 1"),
    (["cfg-scale=much"], "cell cfg-scale=much: cfg-scale must be a number, got much"),
    (["classifier=[[a]]"], "classifier must be a name, or a list of names, got [[a]]"),
    (["scale=1,1"], "vary: each value may be given only once, but a value of scale is given twice"),
    (["scale=1,1.0"], "cells must differ in their settings, but scale=1 and scale=1.0 have the same ones"),
]


@pytest.mark.parametrize(("given", "told"), IMPOSSIBLE)
def test_a_cell_that_cannot_be_is_named(given, told):
    with pytest.raises(InputError) as error:
        sweep(*given).cells()
    assert told in str(error.value)
    assert "\n" not in str(error.value)
