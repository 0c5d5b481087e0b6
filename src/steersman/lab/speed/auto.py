"""``dtype: auto`` or ``auto-float32``: a short measurement of a run's own networks here and now, and what is fastest.

The denoiser is asked about a block of noise, with a gradient where a guide goes back through it, the classifiers about
a block of images, always with one. Of the types, layouts and blocks, what takes the least time an image is chosen for
each of the two; in their place stays what is chosen without a measurement, unless another is faster by `GAIN`.

A type that is faster is chosen only where what the networks give in it agrees with what they give in float32
(`steersman.lab.speed.cosines`). A block that the memory does not hold is halved until it does.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from torch import nn

from steersman.batching import is_out_of_memory
from steersman.errors import InputError, about, notice
from steersman.files import read_yaml
from steersman.lab.run import Run, read_run
from steersman.lab.session import SIDE_BY_SIDE, Session
from steersman.lab.speed.clock import timed
from steersman.lab.speed.cosines import Given
from steersman.lab.speed.placement import AGREES, AUTO, LAYOUTS, Placement, laid_out
from steersman.precision import ieee
from steersman.schedule import CLEAN
from steersman.typed import typed

__all__ = ["as_begun", "chosen", "for_all"]

BLOCKS = (4, 8, 16)
"""Images at a time on a CPU; an accelerator sees a batch as a whole."""
GAIN = 1.05
FAR = 4  # times as slow an image as the fastest: a larger block changes nothing then
REPEATS, WAIT = 3, 0.2
LONG, LONGEST = 5.0, 60.0  # seconds of a call that is not repeated, and after which only what is lacking is measured

Times = dict[Placement, float]
"""Seconds an image."""
Ask = Callable[[int], Callable[[], object]]
"""From how many images at a time to a call that asks a network about them."""


def as_begun(run: Run, out: Path, *, wait: bool = False) -> Run:
    """Returns a run with what was chosen when it was begun in a folder; as it is, where nothing was.

    Args:
        run: The run.
        out: The folder.
        wait: Whether another process is about to begin it.
    """
    record = out / "run.yaml"
    while run.measured and not run.placed and (record.exists() or wait):
        if record.exists():
            return replace(run, placed=read_run(record, trusted=None).placed)
        time.sleep(WAIT)
    return run


def for_all(run: Run, record: Path) -> Mapping[str, Placement]:
    """Returns what is chosen once for many runs, that they can be compared: as their record says, where there is one.

    Args:
        run: The first of them.
        record: The file with what they share, as a sweep or a tune writes it.

    Raises:
        InputError: The record cannot be read, or a network cannot be loaded.
    """
    if not run.measured:
        return run.placed
    if not record.exists():
        return chosen(run).placed
    with about("out", record):
        shared = read_yaml(record, "out", trusted=None)["shared"]
        return typed("placed", shared.get("placed", {}), dict[str, Placement])


@ieee()
def chosen(run: Run) -> Run:
    """Returns a run whose ``dtype`` is to be measured with what is fastest for its networks, now and here.

    Args:
        run: The run.

    Raises:
        InputError: A network that cannot be loaded, a target or label that it does not know, or one image that the
            memory does not hold in any type.
    """
    times: dict[str, Times] = {"denoiser": {}, "classifier": {}}
    cosines: dict[str, dict[str, float]] = {part: {} for part in times}
    exact, *others = AUTO[run.dtype] if run.device != "mps" else AUTO["auto-float32"]
    given, until = None, time.monotonic() + LONGEST
    threads = torch.get_num_threads()
    if run.device == "cpu":
        torch.set_num_threads(threads // min(SIDE_BY_SIDE, threads))
    try:
        for dtype in (exact, *others):
            try:
                session = Session(replace(run, dtype=dtype, judge=None, compile=False), rehearse=False)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                continue
            _measure(session, times, until)
            if dtype == exact and others:
                given = Given(session)
            elif given is not None:
                faster = [part for part, found in times.items() if found and _fastest(found).dtype == dtype]
                for part, least in given.cosines(session, faster).items():
                    cosines[part][dtype] = least
            del session  # before the next one is loaded beside it
    finally:
        torch.set_num_threads(threads)
    if not times["denoiser"] or (run.guided and not times["classifier"]):
        raise InputError(
            f"the memory of {run.device} must hold one image in one of the types {', '.join((exact, *others))}, but "
            "holds it in none; use a device with more memory, or a recipe whose gradient is with respect to x0_hat "
            "(wrt x0_hat)"
        )
    placed = {}
    for part, found in times.items():
        if found and not any(each.dtype == exact for each in found):
            placed[part] = _fastest(found)
            notice(
                f"the memory of {run.device} does not hold the {part} in {exact}, so that it runs in "
                f"{placed[part].dtype} without a comparison of the two"
            )
        elif found:
            agree = {exact, *(dtype for dtype, least in cosines[part].items() if least > AGREES)}
            fastest = _fastest({each: seconds for each, seconds in found.items() if each.dtype in agree})
            placed[part] = replace(fastest, cosines=cosines[part])
    return replace(run, placed=placed)


def _measure(session: Session, times: dict[str, Times], until: float) -> None:
    """Adds what each part of a session takes an image in each layout and block.

    Args:
        session: The run with its networks in one type.
        times: What was measured in other types.
        until: The moment, of `time.monotonic`, after which a part that has been measured is measured no more.
    """
    run = session.run
    for layout, (part, networks, ask) in product(LAYOUTS, list(_parts(session))):
        for network in networks:
            laid_out(network, layout)
        blocks, fits = list(_blocks(run, len(session.targets))), False
        while blocks and not (times[part] and time.monotonic() > until):
            block, best = blocks.pop(0), min(times[part].values(), default=float("inf"))
            try:
                seconds = _seconds(ask(block), run.device, best * block) / block
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                seconds = None
            if seconds is None:  # larger blocks do not fit either, and smaller ones may
                blocks = [block // 2] if block > 1 and not fits else []
                continue
            fits, times[part][Placement(dtype=run.dtype, layout=layout, block=block)] = True, seconds
            if seconds > FAR * best:
                break


def _blocks(run: Run, targets: int) -> tuple[int, ...]:
    if run.device != "cpu":
        return (run.at_once,)
    largest = run.batch_size or max(run.num * targets, BLOCKS[0])
    return tuple(block for block in BLOCKS if block <= largest) or BLOCKS[:1]


def _fastest(times: Times) -> Placement:
    first, best = next(iter(times)), min(times, key=times.__getitem__)
    return best if times[first] > GAIN * times[best] else first


def _parts(session: Session) -> Iterator[tuple[str, list[nn.Module], Ask]]:
    """Yields what is measured of a session: which part it is, its networks, and how they are asked."""
    denoiser, target = session.denoiser, session.targets[0]
    level, *_ = denoiser.schedule.levels(2)[1:]
    through = any(guide.differentiates_denoiser for guide in session.guides)

    def draws(block: int) -> torch.Tensor:
        for each in (denoiser, *session.classifiers):
            each.block = block
        generator = torch.Generator().manual_seed(0)
        return torch.randn(block, *denoiser.shape, generator=generator).to(session.run.device)

    def of_denoiser(block: int) -> Callable[[], object]:
        drawn, condition = draws(block), session.told([target] * block)

        def denoise() -> None:
            with torch.set_grad_enabled(through):
                x_t = drawn.detach().requires_grad_(through)
                x0_hat = denoiser(x_t, level, **condition).x0_hat
                if through:
                    torch.autograd.grad(x0_hat.sum(), x_t)

        return denoise

    def of_classifier(block: int) -> Callable[[], object]:
        with torch.no_grad():
            images = denoiser.decode(draws(block)).clamp(-1, 1)
        targets = torch.full((block,), target.guide, device=images.device)

        @torch.enable_grad()
        def guide() -> None:
            for each in session.guides:
                shown = images.detach().requires_grad_()
                log_likelihood = each.objective(shown, targets, CLEAN)
                if log_likelihood.requires_grad:
                    torch.autograd.grad(log_likelihood.sum(), shown)

        return guide

    yield "denoiser", [denoiser.network], of_denoiser
    if session.guides:
        yield "classifier", [each.network for each in session.classifiers], of_classifier


def _seconds(ask: Callable[[], object], device: str, best: float) -> float:
    """Returns the least time of some calls, after one that does not count; of a slow call, that of one alone."""
    if (first := timed(ask, device)[0]) > max(LONG, FAR * best if best < float("inf") else 0):
        return first
    times: list[float] = []
    for _ in range(REPEATS):
        times.append(timed(ask, device)[0])
        if times[-1] > 1.5 * best:
            break
    return min(times)
