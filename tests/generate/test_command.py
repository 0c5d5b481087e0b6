"""The command: how far a run is, how it is stopped, and that the other processes are silent."""

import os
import signal
import sys
import time

import pytest
import torch

from steersman.cli import main
from steersman.lab.generate import Store, status
from steersman.lab.stop import ECHO

SMALL = [
    "sampling.steps=12",
    "particles=1",
    "recurrence.times=1",
    "weight=deviation",
    "smoothing=none",
    "preprocess.size=null",
]


def arguments(denoiser, out, *more):
    changed = [word for change in SMALL for word in ("--set", change)]
    networks = ["--denoiser", denoiser, "--classifier", "zoo:sportballs-mobilenet", "--judge", "none"]
    return ["steersman", "sample", *networks, *changed, "--target", "baseball", "--out", str(out), *more]


def begun(argv, log, **environment):
    """Starts the command as a process of its own that shares what is imported."""
    if process := os.fork():
        return process
    try:
        torch.set_num_threads(1)
        os.environ.update(environment)
        for stream in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        sys.stdout, sys.stderr, sys.argv = open(1, "w", closefd=False), open(2, "w", closefd=False), argv
        main()
    except SystemExit as exit:
        sys.stdout.flush()
        os._exit(exit.code or 0)
    finally:
        os._exit(99)


def ended(process):
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.mark.few(9)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_with_the_step_at_hand(number, code, denoiser, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    process = begun(arguments(denoiser, out, "--num", "400"), log)
    until = time.monotonic() + 60
    while not list(out.glob("0*.png")) and time.monotonic() < until:
        time.sleep(0.02)
    assert status(out).processes == 1
    os.kill(process, number)
    while "stopping" not in log.read_text() and time.monotonic() < until:
        time.sleep(0.01)  # signals on the way together arrive in either order
    os.kill(process, signal.SIGTERM)  # what a launcher passes on is no second signal
    assert ended(process) == code
    store = Store.read(out)
    whole = len(store.records(range(400)))
    assert 0 < whole < 400
    assert "steersman: stopping after this step; again to stop now\n" in log.read_text()
    assert f"{whole} of 400 images are there; the same command goes on, or: steersman sample --from" in log.read_text()
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_a_second_signal_leaves_at_once(denoiser, tmp_path, monkeypatch):
    begins = tmp_path / "begins"
    monkeypatch.setattr("steersman.lab.generate.drawing._draw_batch", lambda *_: begins.touch() or time.sleep(600))
    out, log = tmp_path / "out", tmp_path / "log"
    process = begun(arguments(denoiser, out, "--num", "400"), log)
    until = time.monotonic() + 60
    while not begins.exists() and time.monotonic() < until:
        time.sleep(0.02)
    for _ in range(2):
        os.kill(process, signal.SIGINT)
        time.sleep(ECHO + 0.2)
    assert ended(process) == 130
    assert "stopping after this step" in log.read_text() and "images are there" not in log.read_text()


@pytest.mark.long
def test_folders_are_numbered_where_settings_differ(denoiser, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def sample(*more):
        words = arguments(denoiser, "x", "--set", "sampling.steps=1", *more)[1:]
        place = words.index("--out")
        code, out, err = call(*words[:place], *words[place + 2 :])
        return code, out + err

    assert "images in outputs/baseball\n" in sample("--num", "1")[1]
    assert "images in outputs/baseball-2\n" in sample("--num", "1", "--scale", "3")[1]
    assert "images in outputs/baseball-2\n" in sample("--num", "2", "--scale", "3")[1]
    assert "images in outputs/baseball\n" in sample("--num", "1")[1]
    before = (tmp_path / "outputs" / "baseball" / "000000.png").read_bytes()
    assert "images in outputs/baseball\n" in sample("--num", "1", "--scale", "4", "--overwrite")[1]
    assert (tmp_path / "outputs" / "baseball" / "000000.png").read_bytes() != before
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == ["baseball", "baseball-2"]
    code, said = call(*arguments(denoiser, "outputs/baseball", "--set", "sampling.steps=1", "--scale", "5")[1:])[::2]
    assert code == 2 and "recipe.settings.scale.value: was 4.0, is 5.0" in said
    assert "give another --out, or --overwrite to draw it anew" in said
    (tmp_path / "outputs" / "baseball" / "run.yaml").write_text("{")
    assert "images in outputs/baseball-3\n" in sample("--num", "1", "--scale", "6")[1]


def test_what_went_away_and_cannot_be_drawn_again_is_said_with_1(denoiser, call, tmp_path, monkeypatch):
    monkeypatch.setattr(Store, "write", lambda *_: None)
    code, said, _ = call(*arguments(denoiser, tmp_path, "--num", "2", "--set", "sampling.steps=1")[1:])
    assert code == 1
    assert "0 of 2 images are there, others went away while they were drawn; the same command goes on, or:" in said


@pytest.mark.long
def test_two_processes_share_a_run_and_only_the_first_speaks(denoiser, tmp_path, call):
    out, logs = tmp_path / "out", [tmp_path / "0", tmp_path / "1"]
    processes = [
        begun(arguments(denoiser, out, "--num", "12"), log, RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
        for rank, log in enumerate(logs)
    ]
    assert list(map(ended, processes)) == [0, 0]
    assert (out / "metrics.json").exists()
    assert "images in" in logs[0].read_text() or "the others are other processes'" in logs[0].read_text()
    assert logs[1].read_text() == ""
    _, said, _ = call("sample", "--status", out)
    assert "baseball    12     0        0" in said


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--status", "nowhere"], "run: 'nowhere/run.yaml' cannot be read (No such file or directory)"),
        (
            ["--status", ".", "--num", "3"],
            "--num must not be given with --status, which draws nothing; give --status alone",
        ),
        (["--target", "x", "--format", "jpeg"], "unknown format 'jpeg'"),
    ],
)
def test_bad_input_is_one_line(given, message, call):
    code, _, said = call("sample", *given)
    assert (code, said.count("\n")) == (2, 1)
    assert message in said
