"""``dtype: auto`` or ``auto-float32``: a short measurement of a run's own networks here and now, and what is fastest.

The denoiser is asked about a block of noise, with a gradient where a guide goes back through it, the classifiers about
a block of images, always with one. Of the types, layouts and blocks, what takes the least time an image is chosen for
each of the two; in their place stays what is chosen without a measurement, unless another is faster by `GAIN`.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from steersman.errors import InputError, about
from steersman.files import read_yaml
from steersman.memory import is_out_of_memory
from steersman.precision import ieee
from steersman.run import Run, read_run
from steersman.schedule import CLEAN, Level
from steersman.session import SIDE_BY_SIDE, Session
from steersman.speed.clock import timed
from steersman.speed.placement import AUTO, LAYOUTS, Placement, laid_out
from steersman.typed import typed

__all__ = ["as_begun", "chosen", "for_all"]

BLOCKS = (4, 8, 16)
"""Images at a time on a CPU; an accelerator sees a batch as a whole."""
GAIN = 1.05
REPEATS, WAIT = 3, 0.2


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
        InputError: A network that cannot be loaded, or a target or label that it does not know.
    """
    found: dict[str, dict[Placement, float]] = {"denoiser": {}, "classifier": {}}
    threads = torch.get_num_threads()
    if run.device == "cpu":
        torch.set_num_threads(threads // min(SIDE_BY_SIDE, threads))
    try:
        for dtype in AUTO[run.dtype] if run.device != "mps" else AUTO["auto-float32"]:
            try:
                session = Session(replace(run, dtype=dtype, judge=None, compile=False), rehearse=False)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                continue
            for layout in LAYOUTS:
                for block in _blocks(run, len(session.targets)):
                    placement = Placement(dtype=dtype, layout=layout, block=block)
                    for part, networks, ask in _parts(session, block):
                        for network in networks:
                            laid_out(network, layout)
                        best = min(found[part].values(), default=float("inf"))
                        try:
                            found[part][placement] = _seconds(ask, run.device, best * block) / block
                        except (RuntimeError, MemoryError) as error:  # this type does not fit, another one may
                            if not is_out_of_memory(error):
                                raise
    finally:
        torch.set_num_threads(threads)
    if not found["denoiser"] or (run.guided and not found["classifier"]):
        raise InputError(
            f"the memory of {run.device} must hold a batch in one of the types {', '.join(AUTO[run.dtype])}, but holds "
            "it in none; try a smaller --batch-size"
        )
    return replace(run, placed={part: _fastest(times) for part, times in found.items() if times})


def _blocks(run: Run, targets: int) -> tuple[int, ...]:
    if run.device != "cpu":
        return (run.at_once,)
    largest = run.batch_size or max(run.num * targets, BLOCKS[0])
    return tuple(block for block in BLOCKS if block <= largest) or BLOCKS[:1]


def _fastest(times: dict[Placement, float]) -> Placement:
    first, best = next(iter(times)), min(times, key=times.__getitem__)
    return best if times[first] > GAIN * times[best] else first


def _parts(session: Session, block: int) -> Iterator[tuple[str, list[nn.Module], Callable[[], object]]]:
    """Yields what is measured of a session: whose it is, its networks, and how they are asked of a block of images."""
    denoiser, target = session.denoiser, session.targets[0]
    draws = torch.randn(block, *denoiser.shape, generator=torch.Generator().manual_seed(0)).to(session.run.device)
    level, *_ = denoiser.schedule.levels(2)[1:]
    condition = session.told([target] * block)
    through = any(guide.differentiates_denoiser for guide in session.guides)
    for each in (denoiser, *session.classifiers):
        each.block = block

    def denoise() -> None:
        with torch.set_grad_enabled(through):
            x_t = draws.detach().requires_grad_(through)
            x0_hat = denoiser(x_t, level, **condition).x0_hat
            if through:
                torch.autograd.grad(x0_hat.sum(), x_t)

    yield "denoiser", [denoiser.network], denoise
    if session.guides:
        images = denoiser.decode(draws).detach().clamp(-1, 1)
        targets = torch.full((block,), target.guide, device=images.device)
        yield (
            "classifier",
            [each.network for each in session.classifiers],
            lambda: _guide(session, images, targets, CLEAN),
        )


def _guide(session: Session, images: Tensor, targets: Tensor, level: Level) -> None:
    for guide in session.guides:
        with torch.enable_grad():
            shown = images.detach().requires_grad_()
            torch.autograd.grad(guide.objective(shown, targets, level).sum(), shown)


def _seconds(ask: Callable[[], object], device: str, best: float) -> float:
    """Returns the least time of some, after one that is not timed; of what is far from the best so far, one alone."""
    ask()
    times: list[float] = []
    for _ in range(REPEATS):
        times.append(timed(ask, device)[0])
        if times[-1] > 1.5 * best:
            break
    return min(times)
