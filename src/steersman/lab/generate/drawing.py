"""The drawing of a run: each process draws those of its images that are not complete.

    its share   indices dealt out in turn, a batch at a time
    to draw     those of them without a complete file            (`steersman.lab.generate.store`)
    at the end  the first process waits for the others; the one that finds all images complete writes grid and metrics

So a run that was killed is continued by starting it again, with any number of processes. They need no connection to
each other: a launcher (torchrun, ``accelerate launch``, mpirun, srun) tells each process its rank and how many there
are, and a lock in the folder says who still draws. `accelerate.PartialState` is not used: it knows no srun, and joins
the processes in a group, which a dead one blocks.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from steersman.batching import counting, evaluations
from steersman.errors import InputError
from steersman.files import in_8_bits, writing_to
from steersman.lab.generate.formats import ImageRecord
from steersman.lab.generate.store import Store, locked, running
from steersman.lab.generate.summary import Summary, summarize
from steersman.lab.placement import SIDE_BY_SIDE, choose_placement
from steersman.lab.run import Run
from steersman.lab.session import Networks, Session, load_session
from steersman.lab.stop import Stop, Stopped
from steersman.precision import ieee
from steersman.sampling import Callback, Report
from steersman.sampling.watch import Watch

__all__ = ["Share", "Unfinished", "generate", "generate_until_stopped", "open_session"]

Drawn = tuple[int, UInt8[np.ndarray, "H W C"] | None, ImageRecord]
"""An image's index, its pixels unless it is lost, and its record."""

LAUNCHERS = (
    ("RANK", "WORLD_SIZE", ("LOCAL_RANK",)),  # torchrun, accelerate
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", ("OMPI_COMM_WORLD_LOCAL_RANK",)),  # Open MPI
    ("PMI_RANK", "PMI_SIZE", ("MPI_LOCALRANKID", "SLURM_LOCALID")),  # MPICH, Intel MPI; srun with --mpi=pmi2
    # A batch script has SLURM_PROCID and SLURM_NTASKS too, although it is one process: only srun counts a step's tasks.
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", ("SLURM_LOCALID",)),
)
"""The variables of rank, count and rank on the machine. The first launcher that states a count is the one that started
this process: inside a SLURM job, mpirun and torchrun are themselves started by srun."""

ATTEMPTS = 3  # at an image whose file goes away while others are drawn
POLL = 0.1  # seconds between two looks at what other processes have drawn


@dataclass(frozen=True, kw_only=True)
class Share:
    """The part of one process in a run: its rank among all, their count, and its rank on the machine."""

    rank: int = 0
    count: int = 1
    local: int = 0

    @classmethod
    def from_environment(cls) -> "Share":
        """Returns what the launcher says; without one, the share of the only process."""
        for rank_key, count_key, local_keys in LAUNCHERS:
            rank, count = _integer(rank_key), _integer(count_key)
            if count is None:
                continue
            if rank is None or rank >= count:
                value = "nothing" if rank is None else rank
                raise InputError(f"{rank_key} must be below {count_key}, which is {count}, got {value}")
            local = next((value for value in map(_integer, local_keys) if value is not None), rank)
            return cls(rank=rank, count=count, local=local)
        return cls()

    @property
    def first(self) -> bool:
        """Whether this process reports to the user and writes what concerns all images."""
        return self.rank == 0

    def of(self, total: int, size: int) -> Iterator[int]:
        """Yields the indices of this process among ``total``, which are dealt out ``size`` at a time."""
        for begin in range(self.rank * size, total, self.count * size):
            yield from range(begin, min(begin + size, total))

    def device(self, device: str) -> str:
        """Returns the device of this process: of the GPUs that it sees, the one with its rank on the machine.

        Ranks beyond the last GPU begin with the first again: a scheduler that shows each process one GPU numbers it 0.
        """
        if self.count == 1 or not device.startswith("cuda"):
            return device
        if device != "cuda":
            raise InputError(
                f"device must be cuda for {self.count} processes, of which each takes its own, got {device!r}"
            )
        visible = torch.cuda.device_count()
        return f"cuda:{self.local % visible if visible else self.local}"


ALONE = Share()


def _integer(key: str) -> int | None:
    """Returns a variable of the environment, which must be a whole number if it is there."""
    value = os.environ.get(key)
    if value is not None and not value.isdecimal():
        raise InputError(f"{key} must be a whole number, 0 or more, got {value!r}")
    return None if value is None else int(value)


class Unfinished(Stopped):
    """A run was stopped, other processes are still drawing, or images went away while it was drawn."""

    def __init__(self, done: int, total: int, gone: int = 0) -> None:
        reason = ", others went away while they were drawn; the same command goes on" if gone else ""
        super().__init__(f"{done} of {total} images are complete{reason}", 1)
        self.done, self.total, self.gone = done, total, gone


def open_session(run: Run, networks: Networks | None = None, *, rehearse: bool = True) -> Session:
    """Returns a run that is ready to draw: placed, loaded and rehearsed, before the first file is written.

    Example:
        >>> from steersman.lab.generate import open_session
        >>> from steersman.lab.run import Run
        >>> session = open_session(Run(targets=("baseball",), classifiers=("zoo:sportballs-mobilenet",)))
        >>> [target.name for target in session.targets]
        ['baseball']
    """
    session = load_session(choose_placement(run), networks)
    if rehearse:
        session.rehearse()
    return session


def generate_until_stopped(
    session: Session,
    out: Path,
    *,
    stop: Stop | None = None,
    **settings: Any,  # noqa: ANN401
) -> Summary:
    """Draws a run as `generate` does; raises `Stopped` when a signal comes, after finished images are written."""
    if stop is None:
        return generate(session, out, **settings)
    try:
        with stop:
            summary = generate(session, out, stop=lambda: bool(stop), **settings)
    except Unfinished as unfinished:
        if not stop:
            raise
        raise Stopped(
            f"stopped; {unfinished} in {str(out)!r}; the same command goes on", stop.code or 1
        ) from unfinished
    if stop:
        raise Stopped(f"stopped; the images in {str(out)!r} are complete; the same command goes on", stop.code or 1)
    return summary


def generate(
    session: Session,
    out: Path,
    *,
    share: Share = ALONE,
    stop: Callable[[], bool] = lambda: False,
    on_images: Callable[[float], object] = lambda count: None,
    callbacks: Sequence[Callback] = (),
    overwrite: bool = False,
) -> Summary:
    """Draws the images of a run that are not complete, and writes its folder."""
    if overwrite and share.count > 1:
        raise InputError(f"overwrite must be given to one process, got {share.count}; or remove {str(out)!r} before")
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
    with locked(out, share.rank):
        if overwrite and (out / "run.yaml").exists():
            with writing_to(out):
                Store.read(out).clear()
        store = Store.of(out, session.run, [target.name for target in session.targets])
        with _writing(store):
            if share.first:
                if running(out) == {0}:
                    store.tidy()
                store.claim(session.run, session.sets)
            return _Drawing(session, store, share, stop, on_images, callbacks).complete()


@contextmanager
def _writing(store: Store) -> Iterator[None]:
    """Turns an error of the system into one line that says how to go on."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"out: {str(store.out)!r} cannot be written to ({error.strerror}); {len(store.present())} of {len(store)} "
            "images are complete; make room, and the same command draws the others"
        ) from error


@dataclass
class _Drawing:
    """A process at work on its share of a run."""

    session: Session
    store: Store
    share: Share
    stop: Callable[[], bool]
    on_images: Callable[[float], object]
    callbacks: Sequence[Callback]

    def complete(self) -> Summary:
        """Draws the share of this process, and writes the summary of all images if there is nothing left to draw."""
        store, share = self.store, self.share
        own = list(share.of(len(store), self.session.run.at_once))
        known = store.records(own)
        store.pack(known)
        self.done, self.others = len(known), 0
        self._progress(len(known))
        missing = [index for index in own if index not in known]
        for _ in range(ATTEMPTS):
            self._draw(missing)
            if self.stop() or not (missing := sorted(set(own) - store.present())):
                break
        while share.first and not self.stop() and running(store.out) - {share.rank}:
            self._look_at_others()
            time.sleep(POLL)
        gone = 0 if self.stop() else len(missing)
        if (there := len(store.present())) < len(store) or (not share.first and 0 in running(store.out)):
            raise Unfinished(there, len(store), gone)
        records = store.records(range(len(store)))
        if len(records) < len(store):  # a file is there, but damaged
            raise Unfinished(len(records), len(store), sum(index not in records for index in own))
        if not (store.out / "run.yaml").exists():  # it went away meanwhile
            store.claim(self.session.run, self.session.sets)
        store.close()
        return summarize(store, self.session.run, records, self.session.unguided_errors)

    def _progress(self, count: float) -> None:
        if self.share.first and count:
            self.on_images(count)

    def _look_at_others(self) -> None:
        """Reports what other processes have drawn meanwhile, by their files."""
        others = len(self.store.present()) - self.done
        self._progress(others - self.others)
        self.others = others

    def _draw(self, indices: Sequence[int]) -> None:
        """Draws images and writes each batch as it is done."""
        size = self.session.run.at_once
        batches = (indices[first : first + size] for first in range(0, len(indices), size))
        begin = time.monotonic()
        for batch in _side_by_side(self._batch, takewhile(lambda _: not self.stop(), batches), self.session.run.device):
            end = time.monotonic()
            for index, pixels, record in batch:
                self.store.write(index, pixels, replace(record, seconds=(end - begin) / len(batch)))
            self.store.pack(index for index, *_ in batch)
            begin = end
            self.done += len(batch)
            if self.share.first and self.share.count > 1:
                self._look_at_others()

    def _batch(self, leave: Callback, indices: Sequence[int]) -> list[Drawn]:
        """Returns a batch of images; none if it was stopped meanwhile."""

        def halt(_: Report) -> None:
            if self.stop():
                raise CancelledError

        callbacks = [leave, halt, *(self.callbacks if indices[0] == 0 else ())]
        draw = partial(_draw_batch, self.session, self.store, self._progress, callbacks)
        try:
            return list(chain.from_iterable(self.session.batches.map(draw, indices)))
        except CancelledError:
            if self.stop():  # the batches that are finished are still written
                return []
            raise


@ieee()
def _draw_batch(
    session: Session,
    store: Store,
    on_images: Callable[[float], object],
    callbacks: Sequence[Callback],
    indices: Sequence[int],
) -> list[Drawn]:
    """Returns the images with some indices and their records, which state no seconds yet."""
    jobs = [(session.targets[target], seed) for target, seed in map(store.job, indices)]
    watch = Watch(lambda share: on_images(len(jobs) * share), session.run.recipe.sampling()["recurrence"])
    with counting() as counts:
        samples = session.samples(jobs, [watch, *callbacks])
        images = session.denoiser.decode(samples)
    finite = images.isfinite().flatten(1).all(1).tolist()
    images = images.clamp(-1, 1)
    noise_errors = session.noise_errors(samples, jobs)
    said = session.evaluate(images, [target for target, _ in jobs])
    pixels = in_8_bits(images).permute(0, 2, 3, 1).cpu().numpy()
    dropped, moved = watch.drops(len(jobs)), watch.moved(len(jobs))
    needed = evaluations(counts, session.counted, len(jobs))
    drawn = []
    for row, (index, (target, seed)) in enumerate(zip(indices, jobs, strict=True)):
        kept = finite[row]
        record = ImageRecord(
            run=store.digest,
            target=target.name,
            label=target.guide[0] if len(target.guide) == 1 else -1,
            seed=seed,
            guide=said["guide"][row] if kept else None,
            judge=said["judge"][row] if kept else None,
            dropped=dropped[row],
            moved=moved[row] if kept else None,
            noise_error=noise_errors[row] if kept else None,
            evaluations=needed,
            seconds=0.0,
            lost=not kept,
        )
        drawn.append((index, pixels[row] if kept else None, record))
    return drawn


def _side_by_side(
    work: Callable[[Callback, Sequence[int]], list[Drawn]], batches: Iterable[Sequence[int]], device: str
) -> Iterator[list[Drawn]]:
    """Yields what is made of each batch as it is done; left early, batches under way end with their next step.

    On a CPU several are drawn at the same time, each by a few threads: that is faster than all threads sharing every
    operation. How many depends on the machine alone, since a sum is rounded by how it is shared.
    """
    left = threading.Event()

    def leave(_: Report) -> None:
        if left.is_set():
            raise CancelledError

    threads, batches = torch.get_num_threads(), iter(batches)
    workers = min(SIDE_BY_SIDE, threads) if device == "cpu" else 1
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,)) as pool:
        try:
            pending = {pool.submit(work, leave, batch) for batch in islice(batches, workers)}
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                pending |= {pool.submit(work, leave, batch) for batch in islice(batches, len(done))}
                yield from (future.result() for future in done)
        finally:
            left.set()
            torch.set_num_threads(threads)
