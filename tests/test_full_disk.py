"""Where no more can be written, each command says so in one line, leaves nothing half-written, and goes on later."""

import os
import resource
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest

from metrics.written import write
from steersman.cli import main

SMALL = "--set sampling.steps=2 --set input=denoised --set weight=deviation --set smoothing=none --set particles=1"
NETWORKS = "--classifier zoo:sportballs-mobilenet --judge none --set recurrence.times=1 --set preprocess.size=null"
LONG = pytest.mark.long


def started(command, most):
    """Runs a command in a process in which no file can have more bytes; returns its exit code and what it said."""
    receive, send = os.pipe()
    process = os.fork()
    if not process:
        try:
            os.close(receive)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(send, 2)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
            sys.argv, sys.dont_write_bytecode = ["steersman", *map(str, command)], True
            main()
        except SystemExit as exit:
            sys.stderr.flush()
            os._exit(exit.code or 0)
        except BaseException:
            traceback.print_exc(file=sys.stderr)
            sys.stderr.flush()
        finally:
            os._exit(99)
    os.close(send)
    with os.fdopen(receive) as said:
        text = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), text


def command(name, denoiser, mnist, folder):
    drawn = f"--denoiser {denoiser} {SMALL} {NETWORKS} --target baseball --num 3 --out {folder / 'out'}"
    return {
        "sample": f"sample {drawn}",
        "sample npz": f"sample {drawn} --format npz",
        "sample webdataset": f"sample {drawn} --format webdataset",
        "train denoiser": f"train denoiser --out {folder / 'out'} --data {mnist} --widths 8,8 --attention 0 --images 4 "
        "--batch-size 4",
        "train classifier": f"train classifier --out {folder / 'out'} --data {mnist} --images 4 --batch-size 4 "
        "--architecture resnet10_narrow",
        "convert": f"convert {denoiser} {folder / 'out'}",
        "statistics": f"evaluate {folder / 'set'} --judge none --save-statistics {folder / 'out' / 'real.npz'}",
        "evaluate": f"evaluate {folder / 'set'} --target baseball --out {folder / 'out' / 'evaluation.json'}",
        "data": f"data sportballs --out {folder / 'out'} --num 3 --resolution 16",
    }[name].split()


QUICK = [("sample", 900), ("train denoiser", 60_000), ("convert", 3000), ("evaluate", 100), ("data", 200)]
MORE = [("sample", 0), ("sample npz", 2500), ("sample webdataset", 2500), ("statistics", 2000)]
MORE += [("train denoiser", 300), ("train classifier", 60_000)]


@pytest.mark.few(2)
@pytest.mark.parametrize(("name", "most"), [*QUICK, *(pytest.param(*each, marks=LONG) for each in MORE)])
def test_a_full_disk_is_one_line(name, most, denoiser, mnist, tmp_path):
    write(tmp_path / "set", np.zeros((3, 64, 64, 3), np.uint8))
    asked = command(name, denoiser, mnist, tmp_path)
    code, said = started(asked, most)
    assert (code, said.count("\n")) == (2, 1), said
    assert str(tmp_path / "out") in said and "File too large" in said
    found = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert all(path.stat().st_size < max(most, 1) for path in found)
    assert not [path for path in found if ".part" in str(path)]
    if (name, most) in MORE:
        code, said = started(asked, resource.RLIM_INFINITY)
        assert code == 0, said


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="there is no folder that takes no file from anybody")
@pytest.mark.parametrize("name", ["sample", "train denoiser", "convert", "statistics", "evaluate", "data"])
def test_a_folder_that_takes_no_file_is_one_line(name, denoiser, mnist, call, tmp_path):
    write(tmp_path / "set", np.zeros((3, 64, 64, 3), np.uint8))
    asked = [word.replace(str(tmp_path / "out"), "/proc") for word in command(name, denoiser, mnist, tmp_path)]
    code, _, said = call(*asked)
    assert (code, said.count("\n")) == (2, 1), said
    assert "/proc" in said
