"""A file that names code runs none of it, unless the user names the same code."""

import numpy as np
import pytest
import yaml

from metrics.written import write
from steersman.errors import InputError
from steersman.files import read_yaml
from steersman.lab.run import Run, read_run
from steersman.recipes import load_recipe
from steersman.trust import code_in

CODE = "module:helper:make"


@pytest.fixture
def pixels():
    return lambda count: np.zeros((count, 64, 64, 3), np.uint8)


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """The current folder, with a module that leaves a trace when it is imported."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "helper.py").write_text('open("RAN", "w").close()\n')


def record(**settings):
    return {"targets": ["baseball"], "recipe": {"name": "default", "settings": {}}, **settings}


@pytest.mark.parametrize(
    "settings",
    [
        {"classifiers": [CODE]},
        {"classifiers": ["zoo:sportballs-mobilenet", CODE]},
        {"judge": CODE},
        {"denoiser": CODE},
        {"recipe": {"name": "x", "settings": {"objective": {"kind": CODE}}}},
        {"judge": "module:http.server:test"},
        {"anything": {"deep": [{CODE: 1}]}},
    ],
)
def test_a_run_of_somebody_elses(settings, call, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(record(**settings)))
    code, _, said = call("sample", "--from", "run.yaml")
    named = next(code_in(settings))
    assert (code, said.count("\n")) == (2, 1)
    assert f"'run.yaml' names code to import and run, '{named}'; if you trust it, add --trust {named}" in said
    assert not (tmp_path / "RAN").exists()


def test_what_the_user_names_is_run(call, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(record(classifiers=[CODE])))
    code, _, said = call("sample", "--from", "run.yaml", "--trust", CODE)
    assert code == 2 and "unknown function of module 'helper' 'make'" in said
    assert (tmp_path / "RAN").exists()
    assert read_run(tmp_path / "run.yaml", trusted=[CODE]).classifiers == (CODE,)


def test_trust_without_a_file_is_not_dropped(call):
    code, _, said = call("sample", "--target", "baseball", "--trust", CODE)
    assert (code, said.count("\n")) == (2, 1) and "trust must be given with --from" in said


@pytest.mark.parametrize("network", ["classifiers", "judge"])
def test_a_folder_of_samples(network, call, pixels, tmp_path):
    write(tmp_path / "samples", pixels(3))
    run = Run(targets=("baseball",), **{network: (CODE,) if network == "classifiers" else CODE})
    (tmp_path / "samples" / "run.yaml").write_text(yaml.safe_dump(run.record()))
    code, _, said = call("evaluate", "samples", "--resamples", 0)
    assert code == 2 and f"names code to import and run, '{CODE}'" in said
    option = "guide" if network == "classifiers" else "judge"
    code, _, said = call("evaluate", "samples", f"--{option}", "none", "--resamples", 0, "--out", "x.json")
    assert "names code" not in said
    assert not (tmp_path / "RAN").exists()


def test_recipes_and_reproductions(call, tmp_path):
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"title": "t", "settings": {"scale": CODE}}))
    with pytest.raises(InputError, match="names code to import and run, 'module:helper:make'"):
        load_recipe("own.yaml")
    (tmp_path / "table.yaml").write_text(yaml.safe_dump({"title": "t", "features": CODE}))
    code, _, said = call("reproduce", "table.yaml")
    assert code == 2 and f"'table.yaml' names code to import and run, '{CODE}'" in said
    code, _, said = call("reproduce", "table.yaml", "--trust", CODE)
    assert code == 2 and "names code" not in said


def test_what_is_only_compared_may_name_code(tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"a": CODE}))
    assert read_yaml(tmp_path / "run.yaml", "run", trusted=None) == {"a": CODE}
    with pytest.raises(InputError, match="names code"):
        read_yaml(tmp_path / "run.yaml", "run")
