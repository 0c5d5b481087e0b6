"""Tunes with a tiny denoiser: what they write, that they go on, what they refuse, and that the recipe loads."""

import csv

import pytest

from steersman.cli import tune as terminal
from steersman.errors import InputError
from steersman.lab.generate import generate_until_stopped
from steersman.lab.run import read_run
from steersman.lab.tune import Bounds, Tune, Tuning, space_of
from steersman.recipes import load_recipe

REFERENCE = "sportballs?num=40&resolution=16"
CHANGES = ("weight=deviation", "preprocess.size=null", "sampling.steps=3")
SPACE = ("scale=0.5..50.0", "sampling.steps=2..4", "sampler=ddpm,ddim")


def tune(denoiser, *given, **settings):
    base = {"targets": ("baseball",), "num": 2, "seed": 1000, "denoiser": denoiser}
    base |= {"classifiers": ("zoo:sportballs-mobilenet",)} | settings.pop("base", {})
    defaults = {"recipes": ("nrcg",), "changes": CHANGES, "space": space_of(given or SPACE), "reference": REFERENCE}
    return Tune(**defaults | {"resamples": 8} | settings, settings=base)


def worked(tune, out, trials, **settings):
    tuning = Tuning(tune, out, **settings)
    with tuning.begun():
        return tuning.work(trials)


@pytest.fixture(scope="module")
def done(denoiser, tmp_path_factory):
    out = tmp_path_factory.mktemp("tune") / "out"
    terminal.carry_out(tune(denoiser), out, trials=4, bounds=Bounds())
    return out


def test_a_tune_writes_its_trials_a_table_plots_and_a_recipe(done):
    assert {path.name for path in done.iterdir()} == {
        *("tune.yaml", "study.log", "prices.json", "trials"),
        *("tune.csv", "recipe.yaml"),
        *(f"pareto-{name}.{end}" for name in ("accuracy", "distance") for end in ("pdf", "png")),
    }
    with (done / "tune.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["0", "1", "2", "3"]
    assert rows[0]["settings"] == "scale=15.0, sampling.steps=3, sampler=ddpm"  # the recipe's own
    assert (rows[0]["denoiser evaluations"], rows[0]["denoiser passes back"]) == (
        "3",
        "2",
    )  # the last step is without noise
    assert all(float(row["cost"]) > int(row["denoiser evaluations"]) and float(row["distance"]) > 0 for row in rows)
    assert any(row["pareto"] == "yes" for row in rows)


def test_the_recipe_loads_and_has_the_settings_of_its_trial(done):
    recipe = load_recipe(str(done / "recipe.yaml"))
    runs = [read_run(file) for file in sorted((done / "trials").glob("*/run.yaml"))]
    assert recipe.resolved() in [run.recipe.resolved() for run in runs]
    assert "accuracy by the judge" in recipe.expected[0] and "seeds 1000 to 1001" in recipe.notes


@pytest.mark.long
def test_a_tune_that_was_killed_goes_on_and_draws_no_trial_twice(done, denoiser, tmp_path, monkeypatch):
    drawn, generate = [], generate_until_stopped

    def interrupted(session, out, **settings):
        drawn.append(out.name)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return generate(session, out, **settings)

    monkeypatch.setattr("steersman.lab.tune.tuning.generate_until_stopped", interrupted)
    with pytest.raises(KeyboardInterrupt):
        worked(tune(denoiser), tmp_path, 4)
    trials = worked(tune(denoiser), tmp_path, 4)
    assert drawn == ["0000", "0001", "0002", "0002", "0003"]
    with (done / "tune.csv").open(newline="") as file:
        assert [trial.line for trial in trials] == [row["settings"] for row in csv.DictReader(file)]
    worked(tune(denoiser), tmp_path, 4)
    assert len(drawn) == 5
    assert len(worked(tune(denoiser), tmp_path, 5)) == 5 and len(drawn) == 6


@pytest.mark.long
def test_what_cannot_be_drawn_is_refused_with_its_reason_and_does_not_count(denoiser, tmp_path):
    space = ("injection=mean,spherical", "sampler=ddim,dpmpp", "scale=0.5..50.0")
    trials = worked(tune(denoiser, *space), tmp_path, 4)
    refused = [trial for trial in trials if not trial.drawn]
    assert len(trials) - len(refused) == 4
    assert refused and all("spherical" in trial.line and "injection" in trial.reason for trial in refused)
    assert all("\n" not in trial.reason for trial in refused)


@pytest.mark.long
def test_beyond_the_budget_nothing_is_drawn(denoiser, tmp_path, monkeypatch):
    monkeypatch.setattr("steersman.lab.tune.tuning.REFUSED", 3)
    with pytest.raises(
        InputError, match="3 proposals in a row cannot be drawn; the last: an image must cost at most budget, 1, got"
    ):
        worked(tune(denoiser, "sampling.steps=3..4"), tmp_path, 1, bounds=Bounds(budget=1))
    assert not (tmp_path / "trials").exists()


@pytest.mark.long
def test_settings_that_were_drawn_before_are_not_drawn_again(denoiser, tmp_path):
    trials = worked(tune(denoiser, "sampling.steps=2,3"), tmp_path, 4)
    assert {path.name for path in (tmp_path / "trials").iterdir()} == {
        f"{t.number:04d}" for t in trials if t.same is None
    }
    assert [trial.same is None for trial in trials].count(True) == 2
    for trial in trials:
        first = trials[trial.same if trial.same is not None else trial.number]
        assert (first.settings, first.accuracy, first.cost) == (trial.settings, trial.accuracy, trial.cost)
        assert first.same is None


REFUSED = [
    ({"space": {"scale": "3..1"}}, "search: a range must be LOW..HIGH with LOW < HIGH, got 3..1"),
    ({"base": {"judge": None}}, "judge must be given"),
    ({"base": {"num": 1}}, "num must be at least 2 to measure a distance, got 1"),
    ({"base": {"targets": ("zebra",)}}, "unknown class 'zebra'"),
    ({"recipes": ("nrgc",)}, "unknown recipe 'nrgc'"),
    ({"reference": "nowhere"}, "got 'nowhere'"),
    ({"reference": "sportballs?num=40"}, "must have the size of the samples, 16 by 16 pixels, got 64 by 64"),
]


@pytest.mark.few(3)
@pytest.mark.parametrize(("settings", "told"), REFUSED, ids=[told for _, told in REFUSED])
def test_what_cannot_be_searched_is_refused_before_anything_is_written(denoiser, tmp_path, settings, told):
    with pytest.raises(InputError) as error:
        Tuning(tune(denoiser, **settings), tmp_path / "out")
    assert told in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_tune_is_left_alone(done, denoiser):
    for other, named in (
        (tune(denoiser, base={"seed": 1}), "shared"),
        (tune(denoiser, "scale=1..3"), "space"),
        (tune(denoiser, seed=1), "seed"),
    ):
        with pytest.raises(InputError, match=rf"holds a tune with other settings \({named}\)"):
            Tuning(other, done)


@pytest.mark.long
def test_two_tunes_in_one_folder_are_refused(done, denoiser):
    first, second = (Tuning(tune(denoiser), done) for _ in range(2))
    with first.begun(), pytest.raises(InputError, match="out: "), second.begun():
        pass
