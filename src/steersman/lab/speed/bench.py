"""What a run costs beside its networks: our time over the floor, which is the same calls of them in a bare loop.

    ratio = seconds of a batch's walk / seconds of its networks' calls alone         (`steersman.lab.speed.calls`)

Both are timed in turn, several times, now one first and now the other, so that what else the machine does falls on
both; the ratio is the median of the pairs' own. The ratio of processor seconds, of all threads, hardly depends on what
else the machine does; on an accelerator it is of the host's work alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import torch

from steersman.batching import halving
from steersman.lab.run import Run
from steersman.lab.session import Session
from steersman.lab.speed.calls import Calls
from steersman.lab.speed.clock import timed
from steersman.lab.speed.memory import peak_memory
from steersman.precision import ieee
from steersman.sampling.watch import counting, evaluations

__all__ = ["Figures", "bench"]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured of a batch's walk.

    Attributes:
        steps: How many it took.
        images: How many images the batch has: fewer than were asked for where the memory does not hold them.
        calls: How often networks were called, with a block of images each.
        evaluations: How many evaluations of each network an image needed (`steersman.sampling.watch.evaluations`).
        floor: Seconds of the calls alone, the median.
        ours: Seconds of the walk, likewise.
        ratio: The median of what ours was over its floor.
        least: The least of them.
        most: The largest.
        ratio_cpu: The same of processor seconds, the median.
        images_per_second: By ours, for a walk of as many steps as `bench` was told.
        peak: The most bytes above the networks that the walk allocated at once.
        peak_floor: The calls alone, likewise.
    """

    steps: int
    images: int
    calls: int
    evaluations: Mapping[str, float]
    floor: float
    ours: float
    ratio: float
    least: float
    most: float
    ratio_cpu: float
    images_per_second: float
    peak: int
    peak_floor: int

    def record(self, run: Run) -> dict[str, Any]:
        """Returns the figures with what they are of, in plain values."""
        machine = torch.cuda.get_device_name(run.device) if run.device.startswith("cuda") else run.device
        of = {"device": machine, "threads": torch.get_num_threads(), "run": run.record()}
        return asdict(self) | of


@ieee()
def bench(
    run: Run, *, steps: int | None = None, repeats: int = 5, on_pair: Callable[[], object] = lambda: None
) -> tuple[Figures, Run]:
    """Returns the figures of one batch, and the run with what ``dtype: auto`` chose.

    Args:
        run: The run; of its images, the first batch is drawn.
        steps: For how many steps images a second are told; None for as many as the run takes.
        repeats: How many pairs are timed.
        on_pair: Called after each of them.

    Raises:
        InputError: A network that cannot be loaded, or a target or label that it does not know.
    """
    session = Session(run, rehearse=False)
    run = session.run
    jobs = [(target, seed) for target in session.targets for seed in range(run.seed, run.seed + run.num)][: run.at_once]
    walked = int(run.recipe.sampling()["steps"])

    def heard(size: int) -> tuple[Calls, Mapping[str, float]]:
        if size < len(jobs):
            session.fit(size)
        calls = Calls()
        with calls.of(session.networks), counting() as counts:
            session.draw(jobs[:size])
        return calls, evaluations(counts, session.counted, size)

    (calls, needed), size = halving(heard, len(jobs))
    jobs = jobs[:size]
    bare, walk, pairs = calls.play, partial(session.draw, jobs), []
    for place in range(repeats):
        order = (bare, walk) if place % 2 == 0 else (walk, bare)
        times = {each: timed(each, run.device) for each in order}
        pairs.append((times[bare], times[walk]))
        on_pair()
    floor, ours = (median(wall for wall, _ in each) for each in zip(*pairs, strict=True))
    ratios, of_cpu = ([second[by] / first[by] for first, second in pairs] for by in (0, 1))
    figures = Figures(
        steps=walked,
        images=size,
        calls=calls.count(),
        evaluations=needed,
        floor=floor,
        ours=ours,
        ratio=median(ratios),
        least=min(ratios),
        most=max(ratios),
        ratio_cpu=median(of_cpu),
        images_per_second=len(jobs) / ours * walked / (steps or walked),
        peak=peak_memory(walk, run.device),
        peak_floor=peak_memory(bare, run.device),
    )
    return figures, run
