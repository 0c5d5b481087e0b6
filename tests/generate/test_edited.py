"""A run's file that somebody has edited by hand: what it says is done, or refused in one line."""

import shutil

import pytest
import yaml

from steersman.errors import InputError
from steersman.lab.data.images import read_images
from steersman.lab.generate import generate, status


@pytest.fixture(scope="module")
def done(session, tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    generate(session(num=2), folder)
    return folder


def edited(done, folder, change):
    shutil.copytree(done, folder)
    record = yaml.safe_load((folder / "run.yaml").read_text())
    change(record)
    (folder / "run.yaml").write_text(yaml.safe_dump(record))
    return folder


REFUSED = {
    "more images than there can be": (lambda record: record.update(num=10**9), "num must be"),
    "fewer than one": (lambda record: record.update(num=0), "num must be"),
    "fewer than there are": (lambda record: record.update(num=1), None),
    "another seed": (lambda record: record.update(seed=5), "seed: was 5, is 0"),
    "a seed beyond all": (lambda record: record.update(seed=2**64), "seed"),
    "another scale": (lambda record: record["recipe"]["settings"]["scale"].update(value=3.0), "value: was 3.0, is"),
    "an unknown key": (lambda record: record.update(nmu=3), "unknown key of a run 'nmu'; did you mean 'num'"),
    "a text for a number": (lambda record: record.update(num="many"), "num must be a valid integer"),
    "another format": (lambda record: record.update(format="npz"), "format: was npz, is png"),
    "no digest": (lambda record: record["drawn"].pop("digest"), "drawn.digest is missing"),
    "nothing of what is drawn": (lambda record: record.pop("drawn"), "drawn.targets is missing"),
    "no targets": (lambda record: record["drawn"].update(targets=[]), "drawn.targets"),
    "a list": (lambda record: record.update(recipe=[1]), "recipe"),
    "infinity": (lambda record: record.update(cfg_scale=float("inf")), "cfg_scale must be a finite number"),
}


@pytest.mark.few(3)
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", REFUSED)
def test_what_was_edited_is_refused_by_whoever_cannot_do_it(name, done, session, tmp_path):
    change, message = REFUSED[name]
    folder = edited(done, tmp_path / "run", change)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    if message is not None:
        with pytest.raises(InputError, match=message) as error:
            generate(session(num=2), folder)
        assert "\n" not in str(error.value) and str(folder) in str(error.value)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    else:
        assert generate(session(num=2), folder).metrics["images"] == 2
    for read in (status, lambda folder: len(read_images(folder))):
        try:
            assert read(folder)
        except InputError as error:
            assert "\n" not in str(error)


def test_targets_that_lead_out_of_the_folder_do_not(done, session, tmp_path):
    folder = edited(done, tmp_path / "run", lambda record: record["drawn"].update(targets=["../../a", "baseball"]))
    assert status(folder).done == {"../../a": 0, "baseball": 0}
    generate(session(num=2), folder, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
