"""``dtype: auto`` or ``auto-float32``: which type, memory layout and block size is fastest for the networks of a run.

Denoiser and classifiers are timed on a block of noise and of images, with a gradient where guidance takes one. Each
gets what takes the least time an image, or the default unless that is slower by `GAIN`, among the types whose outputs
agree with float32 (`steersman.lab.speed.agreement`). A block that the memory does not hold is halved until it does.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from steersman.batching import memory_permitting
from steersman.errors import InputError, about, notice
from steersman.files import read_yaml
from steersman.lab.run import AGREES, AUTO, LAYOUTS, Placement, Run, read_run
from steersman.lab.session import Session, load_session, set_layout
from steersman.lab.speed.agreement import Reference
from steersman.lab.speed.profiling import timed
from steersman.precision import ieee
from steersman.schedule import CLEAN
from steersman.typed import typed

__all__ = ["SIDE_BY_SIDE", "choose_placement", "recorded_placement", "shared_placement"]

SIDE_BY_SIDE = 4  # batches that a CPU draws at the same time, each with its share of the threads
BLOCKS = (4, 8, 16)
"""Block sizes on a CPU; an accelerator sees a batch as a whole."""
GAIN = 1.05
REPEATS = 3
MUCH_SLOWER = 4  # times as slow an image as the fastest: a larger block would not make up for it
LONG_CALL = 5.0  # seconds of a call that is not repeated
LONG_MEASUREMENT = 60.0  # seconds after which only parts without any measurement are measured
WAIT, PATIENCE = 0.2, 900.0  # seconds between two looks for run.yaml, and until it is given up

Times = dict[Placement, float]
"""Seconds an image."""
Ask = Callable[[int], Callable[[], object]]
"""From a block size to a call that runs a network on one block."""


def recorded_placement(run: Run, out: Path, *, wait: bool = False) -> Run:
    """Returns a run with the placement in the folder's ``run.yaml``, which another process may be about to write."""
    record, until = out / "run.yaml", time.monotonic() + PATIENCE
    while run.measured and not run.placed and (record.exists() or wait):
        if record.exists():
            return replace(run, placed=read_run(record, trusted=None).placed)
        if time.monotonic() > until:
            raise InputError(
                f"out: {str(out)!r} must get a run.yaml from the process of rank 0, which has written none for "
                f"{PATIENCE:g} s; see whether that process still runs, and start all again"
            )
        time.sleep(WAIT)
    return run


def shared_placement(run: Run, record: Path) -> Mapping[str, Placement]:
    """Returns one placement for all runs of a sweep or tune: that in its file, else the fastest for the first run."""
    if not run.measured:
        return run.placed
    if not record.exists():
        return choose_placement(run).placed
    with about("out", record):
        shared = read_yaml(record, "out", trusted=None)["shared"]
        return typed("placed", shared.get("placed", {}), dict[str, Placement])


@ieee()
def choose_placement(run: Run) -> Run:
    """Returns a run whose ``dtype`` asks for a measurement with the fastest placement; any other as it is."""
    if not run.measured or run.placed:
        return run
    times: dict[str, Times] = {"denoiser": {}, "classifier": {}}
    cosines: dict[str, dict[str, float]] = {part: {} for part in times}
    exact, *others = AUTO[run.dtype if run.device != "mps" else "auto-float32"]
    reference, until = None, time.monotonic() + LONG_MEASUREMENT
    with _threads_of_a_batch(run.device):
        for dtype in (exact, *others):
            session = None
            with memory_permitting():
                session = load_session(replace(run, dtype=dtype, judge=None, compile=False))
            if session is None:
                continue
            _measure(session, times, until)
            if dtype == exact and others:
                reference = Reference(session)
            elif reference is not None:
                faster = [part for part, measured in times.items() if measured and _fastest(measured).dtype == dtype]
                for part, least in reference.cosines(session, faster).items():
                    cosines[part][dtype] = least
            del session  # before the next one is loaded beside it
    if not times["denoiser"] or (run.guided and not times["classifier"]):
        raise InputError(
            f"the memory of {run.device} must hold one image in one of the types {', '.join((exact, *others))}, but "
            "holds it in none; use a device with more memory, or a recipe whose gradient is with respect to x0_hat "
            "(wrt x0_hat)"
        )
    placed = {part: _chosen(part, times[part], cosines[part], exact, run.device) for part in times if times[part]}
    return replace(run, placed=placed)


@contextmanager
def _threads_of_a_batch(device: str) -> Iterator[None]:
    """Computes with as many threads as each of the batches that a CPU draws side by side has."""
    threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(threads // min(SIDE_BY_SIDE, threads))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _chosen(part: str, times: Times, cosines: Mapping[str, float], exact: str, device: str) -> Placement:
    """Returns the fastest placement of a part whose type agrees with the exact one."""
    if all(placement.dtype != exact for placement in times):
        fastest = _fastest(times)
        notice(
            f"the memory of {device} does not hold the {part} in {exact}, so that it runs in {fastest.dtype} without a "
            "comparison of the two"
        )
        return fastest
    agreeing = {exact, *(dtype for dtype, cosine in cosines.items() if cosine > AGREES)}
    fastest = _fastest({placement: seconds for placement, seconds in times.items() if placement.dtype in agreeing})
    return replace(fastest, cosines=cosines)


def _fastest(times: Times) -> Placement:
    """Returns the placement with the least time, or the first one, the default, unless that is clearly slower."""
    first, best = next(iter(times)), min(times, key=times.__getitem__)
    return best if times[first] > GAIN * times[best] else first


def _measure(session: Session, times: dict[str, Times], until: float) -> None:
    """Adds the times of a session in each layout and block; after a moment only those of parts without any."""
    run = session.run
    for layout, (part, networks, ask) in product(LAYOUTS, list(_parts(session))):
        for network in networks:
            set_layout(network, layout)
        blocks, fits = list(_blocks(run, len(session.targets))), False
        while blocks and not (times[part] and time.monotonic() > until):
            block, best = blocks.pop(0), min(times[part].values(), default=float("inf"))
            seconds = None
            with memory_permitting():
                seconds = _seconds(ask(block), run.device, best * block) / block
            if seconds is None:
                blocks = [block // 2] if block > 1 and not fits else []  # larger blocks do not fit either
                continue
            fits, times[part][Placement(dtype=run.dtype, layout=layout, block=block)] = True, seconds
            if seconds > MUCH_SLOWER * best:
                break


def _blocks(run: Run, targets: int) -> tuple[int, ...]:
    if run.device != "cpu":
        return (run.at_once,)
    largest = run.batch_size or max(run.num * targets, BLOCKS[0])
    return tuple(block for block in BLOCKS if block <= largest) or BLOCKS[:1]


def _parts(session: Session) -> Iterator[tuple[str, list[nn.Module], Ask]]:
    """Yields each part of a session with its networks and, given a block size, a call that runs them on a block."""
    denoiser, target = session.denoiser, session.targets[0]
    level = denoiser.schedule.levels(2)[1]
    differentiated = any(guide.differentiates_denoiser for guide in session.guides)

    def noise(block: int) -> Tensor:
        for network in (denoiser, *session.classifiers):
            network.block = block
        generator = torch.Generator().manual_seed(0)
        return torch.randn(block, *denoiser.shape, generator=generator).to(session.run.device)

    def denoise(block: int) -> Callable[[], object]:
        condition = session.conditioning([target] * block)
        return partial(_run, [lambda x_t: denoiser(x_t, level, **condition).x0_hat], noise(block), differentiated)

    def classify(block: int) -> Callable[[], object]:
        with torch.no_grad():
            images = denoiser.decode(noise(block)).clamp(-1, 1)
        targets = torch.full((block,), target.guide, device=images.device)
        objectives = [lambda image, guide=guide: guide.objective(image, targets, CLEAN) for guide in session.guides]
        return partial(_run, objectives, images, True)

    yield "denoiser", [denoiser.network], denoise
    if session.guides:
        yield "classifier", [classifier.network for classifier in session.classifiers], classify


def _run(functions: Sequence[Callable[[Tensor], Tensor]], x: Tensor, differentiated: bool) -> None:
    """Evaluates functions of an input, with the gradients of those that have one."""
    with torch.set_grad_enabled(differentiated):
        for function in functions:
            leaf = x.detach().requires_grad_(differentiated)
            output = function(leaf)
            if output.requires_grad:
                torch.autograd.grad(output.sum(), leaf)


def _seconds(ask: Callable[[], object], device: str, best: float) -> float:
    """Returns the least time of some calls after a first one, which warms up; of a slow call, that of the first."""
    if (first := timed(ask, device)[0]) > max(LONG_CALL, MUCH_SLOWER * best if best < float("inf") else 0):
        return first
    times: list[float] = []
    for _ in range(REPEATS):
        times.append(timed(ask, device)[0])
        if times[-1] > 1.5 * best:
            break
    return min(times)
