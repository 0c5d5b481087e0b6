"""Every command that takes long is ended by a signal in one line, with nothing lost, and goes on where it was."""

import os
import signal
import time

import numpy as np
import pytest
import yaml
from rich.progress import Progress

from metrics.written import write
from steersman.lab.stop import ECHO, Interrupted, Interruptible, Stop

SMALL = (
    "sampling.steps=4",
    "input=denoised",
    "weight=deviation",
    "smoothing=none",
    "particles=1",
    "recurrence.times=1",
)
BALLS = "sportballs?num=40&resolution=16"


@pytest.fixture
def commands(denoiser, tmp_path):
    """Each command with the word that stands in its line."""
    networks = ["--denoiser", denoiser, "--classifier", "zoo:sportballs-mobilenet", "--batch-size", 1]
    changes = [word for change in (*SMALL, "preprocess.size=null") for word in ("--set", change)]
    drawn = [*networks, *changes, "--target", "baseball", "--num", 3, "--out", tmp_path / "out"]
    write(tmp_path / "set", np.zeros((3, 64, 64, 3), np.uint8))
    table = {
        **{"title": "t", "paper": "p", "table": "Table 1", "side": 16, "num": 4, "batch_size": 1},
        **{"recipe": "elucd-ddpm", "changes": {"scale": 1.0}},
        **{"denoiser": denoiser, "classifiers": ["zoo:sportballs-mobilenet"], "targets": ["baseball", "volleyball"]},
        **{"reference": BALLS, "features": "zoo:sportballs-judge", "published": {"guided": {"cfid": 1.0}}},
        **{"tflop": {"denoiser": 1.0, "guide": 1.0}, "memory": {"fixed": 1.0, "image": 1.0}},
    }
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(table))
    return {
        "sample": ["sample", *drawn],
        "sweep": ["sweep", "--vary", "scale=1,4", "--reference", BALLS, "--resamples", 2, *drawn],
        "tune": ["tune", "nrcg", "--search", "scale=1.0..4.0", "--trials", 2, "--reference", BALLS, *drawn],
        "reproduce": ["reproduce", tmp_path / "table.yaml", "--steps", 4, "--resamples", 2, "--out", tmp_path / "out"],
        "evaluate": ["evaluate", tmp_path / "set", "--batch-size", 1, "--target", "baseball"],
        "analyze": ["analyze", "accuracy", *networks, "--data", "sportballs?num=3&resolution=16", "--count", 2]
        + ["--out", tmp_path / "out"],
        "bench": ["bench", *networks[:4], "--batch-size", 1, "--steps", 1, "--repeats", 2],
    }


@pytest.fixture
def interrupted(call, monkeypatch):
    """Runs a command to which a signal comes as its progress bar moves on for the n-th time."""

    def run(command, number, at):
        count, advance = [0], Progress.advance

        def moved(*arguments, **settings):
            count[0] += 1
            if count[0] == at:
                os.kill(os.getpid(), number)
            return advance(*arguments, **settings)

        with monkeypatch.context() as patch:
            patch.setattr(Progress, "advance", moved)
            return call(*command)

    return run


LONG = pytest.mark.long


@pytest.mark.parametrize(
    ("name", "number"), [("evaluate", 2), ("evaluate", 15), pytest.param("analyze", 15, marks=LONG), ("bench", 2)]
)
def test_what_measures_ends_where_it_is(name, number, commands, interrupted, call, tmp_path):
    code, _, err = interrupted(commands[name], number, 4 if name == "analyze" else 2)
    assert (code, err) == (128 + number, "steersman: interrupted; the same command goes on with what is not finished\n")
    assert not [path for path in tmp_path.rglob(".*") if path.name != ".cache"]
    assert not (tmp_path / "set" / "evaluation.json").exists()
    if name == "analyze":
        parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "parts").iterdir()}
        assert parts
        assert call(*commands[name])[0] == 0
        assert {path: path.stat().st_mtime_ns for path in parts} == parts


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("sweep", 15),
        pytest.param("sample", 2, marks=LONG),
        *(pytest.param(each, 2, marks=LONG) for each in ("tune", "reproduce")),
    ],
)
def test_what_draws_writes_what_is_finished_and_goes_on(name, number, commands, interrupted, call, tmp_path):
    code, said, err = interrupted(commands[name], number, 6)
    lines = (said + err).splitlines()
    assert code == 128 + number
    assert sum("the same command goes on" in line for line in lines) == 1
    assert not any("Traceback" in line for line in lines)
    images = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("0*.png")}
    assert images
    assert not [path for path in (tmp_path / "out").rglob(".*")]
    code, said, _ = call(*commands[name])
    assert code == 0 and "Traceback" not in said
    assert {path: path.stat().st_mtime_ns for path in images} == images


@LONG
def test_a_signal_while_a_sweep_measures_ends_it_where_it_is(commands, interrupted, call, tmp_path):
    code, _, err = interrupted(commands["sweep"], signal.SIGTERM, 2 * 3 * 4 + 2)
    assert (code, err) == (143, "steersman: interrupted; the same command goes on with what is not finished\n")
    assert not (tmp_path / "out" / "sweep.csv").exists()
    code, said, _ = call(*commands["sweep"])
    assert code == 0 and "0 of 2 cells drawn" in said


def test_a_second_signal_ends_a_measurement_that_does_not_end():
    if process := os.fork():
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 130
        return
    try:
        with Interruptible():
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except Interrupted:  # as a thread may, for which it is waited
                time.sleep(ECHO + 0.1)
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        os._exit(99)


def test_whoever_waits_for_signals_further_in_is_asked_first():
    with pytest.raises(Interrupted) as interrupted, Interruptible():
        with Stop(quiet=True) as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.code == 143
        os.kill(os.getpid(), signal.SIGINT)
    assert interrupted.value.code == 130
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
