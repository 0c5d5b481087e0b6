"""Kills processes that draw a run, at random moments, until it has been done so often, and looks what became of it.

    python benchmarks/kills.py --kills 100

Each time one to three processes draw a run of one of the formats, and one of them, or all, is killed; what is left goes
on to its end. Then the run is started again, with another number of processes. What must hold:

    missing, damaged    images that are not there, or not whole, when a run has come to its end: 0
    again               images that were whole before, but have been drawn again: 0. Each drawing leaves its own time
    other               images that differ from those of a run that nobody killed, by more than 1 of 255: 0

The processes are forked from one that has the networks loaded: a small U-Net of random weights, a bundled classifier.
"""

import argparse
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from steersman.lab.generate import Share, Store, Unfinished, generate, open_session
from steersman.lab.run import Run
from steersman.lab.session import Networks, Session
from steersman.recipes import load_recipe

FORMATS = ("png", "npz", "webdataset")
CHANGES = ("sampling.steps=3", "particles=1", "recurrence.times=1", "weight=deviation", "smoothing=none")
LONGEST = 1.5  # seconds before a kill


def small(folder: Path, **settings) -> Run:
    """Returns a run that is soon drawn, of a denoiser that is written into a folder."""
    from diffusers import DDPMScheduler

    from steersman.lab.train.denoiser import unet

    torch.manual_seed(0)
    unet(16, 0, widths=(8, 16)).save_pretrained(folder / "unet")
    DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction").save_pretrained(
        folder / "scheduler"
    )
    return Run(
        targets=("baseball", "volleyball"),
        denoiser=str(folder),
        classifiers=("zoo:sportballs-mobilenet",),
        judge=None,
        recipe=load_recipe("default", [*CHANGES, "preprocess.size=null"]),
        batch_size=2,
        **settings,
    )


def start(session: Session, out: Path, rank: int, count: int) -> int:
    """Returns the number of a process that draws its share."""
    process = os.fork()
    if process:
        return process
    try:
        torch.set_num_threads(1)
        with suppress(Unfinished):
            generate(session, out, share=Share(rank=rank, count=count, local=rank))
        os._exit(0)
    finally:  # whatever was raised
        os._exit(1)


def one_kill(session: Session, out: Path, chance: random.Random) -> int:
    """Draws a run with some processes of which one or all are killed, and returns how many were.

    Raises:
        RuntimeError: One that was not killed has failed.
    """
    count = chance.choice((1, 2, 3))
    processes = [start(session, out, rank, count) for rank in range(count)]
    time.sleep(chance.uniform(0, LONGEST))
    killed = 0
    for process in processes if chance.random() < 0.5 else [chance.choice(processes)]:
        os.kill(process, signal.SIGKILL)
    for process in processes:
        _, status = os.waitpid(process, 0)
        killed += os.WIFSIGNALED(status)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            raise RuntimeError("a process has failed")
    return killed


def whole(store: Store) -> dict[int, str]:
    """Returns what the images say that are whole, by their place."""
    return {place: record.text() for place, record in store.records(range(len(store))).items()}


def pixels(store: Store) -> list[np.ndarray]:
    """Returns all images of a run that is finished."""
    return [pixels.astype(int) for pixels in store.pixels(range(len(store))).values()]


def kill(room: Path, *, kills: int, num: int, seed: int = 0) -> Counter:
    """Returns how often what happened."""
    chance, found, networks = random.Random(seed), Counter(), Networks()
    run = small(room / "denoiser", num=num)
    sessions = {name: open_session(replace(run, format=name), networks) for name in FORMATS}
    generate(sessions["png"], room / "undisturbed")
    expected = pixels(Store.read(room / "undisturbed"))
    while found["kills"] < kills:
        name, out = chance.choice(FORMATS), room / f"{found['runs']}"
        found["runs"] += 1
        before: dict[int, str] = {}
        while not (out / "metrics.json").exists():
            if found["kills"] < kills:
                killed = one_kill(sessions[name], out, chance)
                found["kills"] += killed > 0
                found["processes"] += killed
            else:
                generate(sessions[name], out)
            if (out / "run.yaml").exists():
                after = whole(Store.read(out))
                found["again"] += sum(after.get(place) != text for place, text in before.items())
                before = after
        store = Store.read(out)
        found["images"] += len(store)
        found["missing, damaged"] += len(store) - len(whole(store))
        found["other"] += sum(np.abs(x - y).max() > 1 for x, y in zip(pixels(store), expected, strict=True))
        found["left behind"] += sum(path.name.endswith(".part") for path in out.rglob(".*"))
    return found


def main() -> None:
    """Prints the counts as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--num", type=int, default=16, help="images of each of two targets")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as room:
        found = kill(Path(room), kills=given.kills, num=given.num, seed=given.seed)
    names = ("kills", "processes", "runs", "images", "missing, damaged", "again", "other", "left behind")
    print(json.dumps({name: int(found[name]) for name in names}, indent=2))


if __name__ == "__main__":
    main()
