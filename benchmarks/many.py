"""What many images cost beside their drawing: two processes against one, and memory over a long run.

python benchmarks/many.py processes --num 256       # bundled models: one process on one core, two on two
python benchmarks/many.py memory --num 2000         # a small model

efficiency      (seconds of one process) / (2 seconds of two processes), each from first to last image of all
memory          the resident set, in MiB, as a mean over the second and the last quarter of the run
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import mean

import torch
from kills import small, start

from steersman.lab.generate import generate, open_session
from steersman.lab.profiling import keep_freed
from steersman.lab.run import Run
from steersman.lab.session import Session
from steersman.recipes import load_recipe


def seconds(session: Session, out: Path, count: int) -> float:
    """Returns how long so many processes take."""
    began = time.monotonic()
    for process in [start(session, out, rank, count) for rank in range(count)]:
        os.waitpid(process, 0)
    assert (out / "metrics.json").exists()
    return time.monotonic() - began


def processes(room: Path, num: int, steps: int) -> dict[str, float]:
    """Returns the efficiency of two processes."""
    recipe = load_recipe("freedom", [f"sampling.steps={steps}", "recurrence.times=1"])
    run = Run(targets=("baseball",), num=num, classifiers=("zoo:sportballs-mobilenet",), recipe=recipe)
    session = open_session(run)
    one, two = (seconds(session, room / str(count), count) for count in (1, 2))
    return {"images": num, "one": round(one, 2), "two": round(two, 2), "efficiency": round(one / two / 2, 3)}


def resident() -> float:
    """Returns the process's resident set in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory(room: Path, num: int, steps: int) -> dict[str, float]:
    """Returns the memory of a run in its second and its last quarter."""
    session, held, done = open_session(small(room / "denoiser", num=num // 2)), [], 0.0

    def look(count: float) -> None:
        nonlocal done
        done += count
        held.append((done, resident()))

    generate(session, room / "out", on_images=look)
    second = mean(size for place, size in held if num / 4 < place <= num / 2)
    last = mean(size for place, size in held if place > 3 * num / 4)
    return {"images": num, "second": round(second, 1), "last": round(last, 1), "growth": round(last / second - 1, 4)}


def main() -> None:
    """Prints what was measured as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("processes", "memory"))
    parser.add_argument("--num", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4)
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed()  # as the command line does
    with tempfile.TemporaryDirectory() as room:
        measure = {"processes": processes, "memory": memory}[given.what]
        print(json.dumps(measure(Path(room), given.num, given.steps), indent=2))


if __name__ == "__main__":
    main()
