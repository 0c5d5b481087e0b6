"""Options of one's own: registered in Python, or named as ``module:`` in ``--set``, YAML and run.yaml."""

from dataclasses import dataclass

import numpy as np
import pytest
import yaml
from PIL import Image

from steersman.errors import InputError
from steersman.recipes import load_recipe
from steersman.recipes.axes import AXES, register

SIGN = '''
from dataclasses import dataclass

@dataclass(frozen=True)
class Sign:
    """The sign of each value of the gradient."""

    factor: float = 1.0

    def init(self, x):
        return ()

    def update(self, g, state):
        return self.factor * g.sign(), state

class Bare:
    pass

@dataclass(frozen=True)
class Lacking:
    def init(self, x):
        return ()
'''


def define():
    """Runs the cell of a notebook that defines and registers it."""

    @register("stabilizer", "sign")
    @dataclass(frozen=True)
    class Sign:
        """The sign of each value of the gradient."""

        factor: float = 1.0

        def init(self, x):
            return ()

        def update(self, g, state):
            return self.factor * g.sign(), state

    return Sign


@pytest.fixture
def sign():
    return define()


def test_a_registered_option_is_one_in_python_yaml_and_set(sign, tmp_path):
    (tmp_path / "own.yaml").write_text("title: own\nsettings: {stabilizer: {kind: sign, factor: 2}}\n")
    for recipe in (
        load_recipe(str(tmp_path / "own.yaml")),
        load_recipe("nrcg", ["stabilizer=sign", "stabilizer.factor=2"]),
        load_recipe("nrcg", {"stabilizer": {"kind": "sign", "factor": 2}}),
    ):
        assert recipe.resolved()["stabilizer"] == {"kind": "sign", "factor": 2.0}
        assert recipe.bind_prepared(lambda image, level: image)[0].stabilizer == sign(factor=2.0)
    chain = (
        load_recipe("nrcg", ["stabilizer=[ema, {kind: sign}]"]).bind_prepared(lambda image, level: image)[0].stabilizer
    )
    assert chain.links[1] == sign()


def test_its_settings_are_checked_as_the_bundled_ones(sign):
    with pytest.raises(InputError, match=r"unknown setting of stabilizer 'sign' 'factr'; did you mean 'factor'"):
        load_recipe("nrcg", ["stabilizer={kind: sign, factr: 2}"])
    with pytest.raises(InputError, match="stabilizer.factor must be a finite number, got nan"):
        load_recipe("nrcg", ["stabilizer={kind: sign, factor: .nan}"])


def test_a_cell_that_is_run_again_replaces_it_and_another_class_does_not(sign):
    again = define()
    assert again is not sign
    assert AXES["stabilizer"]["sign"] is again
    with pytest.raises(InputError, match="stabilizer 'ema' is steersman.*Ema already; choose another name"):
        register("stabilizer", "ema")(again)


@pytest.mark.long
def test_a_file_of_ten_lines_on_the_command_line(call, tmp_path, monkeypatch):
    """By --set; again by run.yaml, and by a recipe in YAML, where files that name code need to be trusted."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "signs.py").write_text(SIGN)
    named, few = "module:signs:Sign", ("--denoiser", "zoo:mnist", "--target", "7", "--num", 1, "--steps", 2)
    few += ("--classifier", "zoo:mnist-lenet")
    code, _, err = call("sample", *few, "--recipe", "nrcg", "--set", f"stabilizer={named}", "--out", "o")
    assert code == 0, err
    run = yaml.safe_load((tmp_path / "o" / "run.yaml").read_text())
    assert run["recipe"]["settings"]["stabilizer"] == {"kind": named, "factor": 1.0}
    code, _, err = call("sample", "--from", "o/run.yaml", "--out", "again")
    assert code == 2
    assert f"names code to import and run, '{named}'; if you trust it, add --trust {named}" in err
    assert call("sample", "--from", "o/run.yaml", "--out", "again", "--trust", named)[0] == 0
    images = [Image.open(tmp_path / out / "000000.png") for out in ("o", "again")]
    assert np.array_equal(*map(np.asarray, images))
    (tmp_path / "own.yaml").write_text(f"title: own\nsettings: {{stabilizer: '{named}', scale: 5}}\n")
    code, _, err = call("sample", *few, "--recipe", "own.yaml", "--out", "yaml")
    assert code == 2
    assert "if you trust it, add --trust" in err
    assert call("sample", *few, "--recipe", "own.yaml", "--out", "yaml", "--trust", named)[0] == 0


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("module:signs:Sing", "unknown function of module 'signs' 'Sing'; did you mean 'Sign'"),
        ("module:nowhere:Sign", "stabilizer: module 'nowhere' cannot be imported"),
        ("module:signs", "stabilizer must be given as module:PACKAGE.NAME:FUNCTION, got 'module:signs'"),
        ("module:signs:Bare", "stabilizer Bare must be a dataclass, such as @dataclass"),
        ("module:signs:Lacking", "stabilizer Lacking must have init, update, lacks update"),
    ],
)
def test_what_is_no_option_is_refused(named, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "signs.py").write_text(SIGN)
    with pytest.raises(InputError, match=said):
        load_recipe("nrcg", {"stabilizer": named})


def test_what_cannot_be_registered_is_refused(sign):
    @dataclass(frozen=True)
    class Open:
        beta: float

        def init(self, x):
            return ()

        def update(self, g, state):
            return g, state

    with pytest.raises(InputError, match="unknown axis that takes options of one's own 'wrt'"):
        register("wrt", "mine")
    with pytest.raises(InputError, match="must be of small letters, digits and '-', got 'my sign'"):
        register("stabilizer", "my sign")
    with pytest.raises(InputError, match="stabilizer Open: the setting beta must have a default"):
        register("stabilizer", "open")(Open)
