"""Damaged and mislabelled files of every format end in one line, or load and put out finite values."""

import os
import re
import shutil
from collections import Counter
from random import Random

import pytest
import torch

from mutations.formats import FORMATS
from mutations.mutate import Mutation, mutations
from mutations.watched import watched

SLOW = ("unet folder", "dit folder", "dit", "clip")
MEMORY = 200 << 20  # bytes that a process may grow


def damage(path, mutation):
    if mutation.content is None:
        path.unlink()
        (os.mkfifo if mutation.kind == "pipe" else os.mkdir)(path)
    else:
        path.write_bytes(mutation.content)


def restored(path, content):
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)  # a pipe
    path.write_bytes(content)


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("name", "count"),
    [(name, 5 if name in SLOW else 20) for name in FORMATS]
    + [pytest.param(name, 300, marks=pytest.mark.long) for name in FORMATS],
)
def test_damaged_files(name, count, dit, clip, tmp_path):
    torch.manual_seed(0)
    format_ = FORMATS[name](tmp_path, dit, clip)
    with torch.no_grad():
        assert all(each.isfinite().all() for each in format_.show(format_.load()))
    wholes = {path: path.read_bytes() for path in format_.files}
    others = [*wholes.values(), b"\x80\x04N.", b"PK\x05\x06" + bytes(18), b"\x89PNG\r\n\x1a\n" + bytes(50)]
    chance = Random(f"{name} {count}")
    endless = [mutations(whole, others, chance) for whole in wholes.values()]
    made = [(path, next(each)) for _ in range(count) for path, each in zip(wholes, endless, strict=True)]
    chance.shuffle(made)
    made = [*((path, Mutation("pipe", None, True)) for path in wholes), *made[:count]]

    def load(path, mutation):
        def loaded():
            damage(path, mutation)
            try:
                found = format_.load()
            finally:
                restored(path, wholes[path])
            with torch.no_grad():
                finite = all(bool(each.isfinite().all()) for each in format_.show(found))
            return "" if finite or not mutation.structure else "not finite"

        return loaded

    found = watched(load(*each) for each in made)
    assert len(found) == len(made), (made[len(found) - 1], found[-1])
    wrong = []
    for (path, mutation), outcome in zip(made, found, strict=True):
        said = outcome.said
        clear = str(tmp_path) in said and len(said.splitlines()) == 1 and len(said) < 800
        spared = not re.search("MemoryError|Beartype|out of memory|enough memory|allocate", said)
        if outcome.kind == "failed" or (outcome.kind == "refused" and not (clear and spared)):
            wrong.append(f"{mutation.kind} of {path.name}: {outcome.kind} {outcome.said[:300]!r}")
    counts = Counter(each.kind for each in found)
    grown, slowest = max(each.grown for each in found) >> 20, max(each.seconds for each in found)
    print(f"\n{name}: {dict(counts)}, {sum(e.seconds for e in found):.1f} s, slowest {slowest:.2f} s, {grown} MiB")
    if os.environ.get("SHOW"):
        print(*wrong, sep="\n")
        return
    assert not wrong, "\n".join(wrong[:10])
    assert grown < MEMORY >> 20
