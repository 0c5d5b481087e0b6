"""Memory that the C library keeps: steps that take it again find it as they left it."""

import os
import subprocess
import sys
from importlib import import_module

import pytest

from steersman.cli import main

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted as Linux does")

STEPS = """
import resource
import torch
from steersman.speed.allocator import keep_freed

def step():
    held = [torch.ones(2**21) for _ in range(4)]

def faults(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
faults(3)
as_it_comes = faults(10)
kept = keep_freed()
faults(3)
print(kept, as_it_comes, faults(10))
"""


def steps(**environment: str) -> tuple[bool, int, int]:
    """Returns whether memory is kept, and the page faults of ten steps of 32 MiB before and after."""
    done = subprocess.run(
        [sys.executable, "-c", STEPS], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    kept, before, after = done.stdout.split()
    return kept == "True", int(before), int(after)


def test_what_steps_free_is_not_mapped_anew():
    kept, before, after = steps()
    if not kept:
        pytest.skip("this C library is not glibc")
    assert after < before / 10


@pytest.mark.parametrize("name", ["MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"])
def test_settings_of_ones_own_are_left_alone(name: str):
    kept, _, _ = steps(**{name: "65536"})
    assert not kept


def test_the_command_line_asks_for_it(monkeypatch: pytest.MonkeyPatch):
    asked: list[bool] = []
    monkeypatch.setattr(import_module("steersman.cli.app"), "keep_freed", lambda: asked.append(True))
    monkeypatch.setattr(sys, "argv", ["steersman", "recipes", "list"])
    with pytest.raises(SystemExit):
        main()
    assert asked
