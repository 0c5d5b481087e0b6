"""Memory that the C library keeps: steps that take it again find it as they left it."""

import os
import platform
import subprocess
import sys
from importlib import import_module

import pytest

from steersman.cli import main
from steersman.lab.profiling import SETTINGS, keep_freed

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is told")

STEPS = """
import resource
import torch
from steersman.lab.profiling import keep_freed

def step():
    torch.ones(2**24)

def faults(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
as_it_comes = faults(10)
kept = keep_freed()
faults(10)  # until the heap has room
print(kept, as_it_comes, faults(10))
"""


@pytest.mark.long
def test_what_steps_free_is_not_mapped_anew():
    ours = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    done = subprocess.run([sys.executable, "-c", STEPS], env=ours, capture_output=True, text=True, check=True)
    kept, before, after = done.stdout.split()
    assert kept == "True" and int(after) < int(before) / 10


@pytest.mark.parametrize("name", ["MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"])
def test_settings_of_ones_own_are_left_alone(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv(name, "65536")
    assert not keep_freed()


def test_the_command_line_asks_for_it(monkeypatch: pytest.MonkeyPatch):
    asked: list[bool] = []
    monkeypatch.setattr(import_module("steersman.cli.root"), "keep_freed", lambda: asked.append(True))
    monkeypatch.setattr(sys, "argv", ["steersman", "recipes", "list"])
    with pytest.raises(SystemExit):
        main()
    assert asked
