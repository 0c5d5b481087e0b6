"""The drawing of a run: each process draws those of its images that are not there whole, whatever became of others.

    its own     places dealt out in turn, so many at a time (`steersman.lab.generate.share`)
    to draw     those of them whose files are not whole (`steersman.lab.generate.store`)
    at the end  the process that finds all images whole writes grid and metrics; the first one waits for the others

So a run that was killed goes on when it is started again, with as many processes as there are then.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import takewhile
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from steersman.errors import InputError
from steersman.files import in_8_bits, writing_to
from steersman.lab.generate.lock import locked, running
from steersman.lab.generate.record import Record
from steersman.lab.generate.share import Share
from steersman.lab.generate.store import Store
from steersman.lab.generate.summary import Summary, summarize
from steersman.lab.session import Session
from steersman.lab.stop import Stopped
from steersman.precision import ieee
from steersman.sampling import Callback, Report
from steersman.sampling.watch import Watch, counting, evaluations

__all__ = ["Unfinished", "generate"]

Drawn = tuple[int, UInt8[np.ndarray, "H W C"] | None, Record]
"""An image's place, its pixels where it was not lost, and its record."""

ALONE = Share()
ATTEMPTS = 3  # at an image whose file goes away while others are drawn
POLL = 0.1  # seconds between two looks at what the other processes have drawn


class Unfinished(Stopped):
    """A run that was stopped, whose other processes are not done, or whose images went away while it was drawn.

    Attributes:
        whole: How many images are there.
        total: Of how many.
        gone: How many of those that are not there this process has drawn.
    """

    def __init__(self, whole: int, total: int, gone: int = 0) -> None:
        why = ", others went away while they were drawn; the same command goes on" if gone else ""
        super().__init__(f"{whole} of {total} images are whole{why}", 1)
        self.whole, self.total, self.gone = whole, total, gone


def generate(
    session: Session,
    out: Path,
    *,
    share: Share = ALONE,
    stop: Callable[[], bool] = lambda: False,
    on_images: Callable[[float], object] = lambda count: None,
    callbacks: Sequence[Callback] = (),
    tell: Callable[[str], object] = warnings.warn,
    overwrite: bool = False,
) -> Summary:
    """Draws the images of a run that are not whole yet, and writes its folder.

    A folder whose run has the same settings and fewer images is gone on with.

    Args:
        session: The run, its networks loaded.
        out: The folder; made if it is not there.
        share: Which process of how many this is.
        stop: Whether to end; asked after every step, and what is not finished then is lost.
        on_images: Called with how many more images there are, in fractions while they are drawn.
        callbacks: More callbacks for the loop of the first batch.
        tell: Called with what the user should know at once.
        overwrite: Whether to remove the run that the folder holds, and draw all anew.

    Raises:
        InputError: The folder cannot be written to, holds a run with other settings, or is being drawn into.
        Unfinished: It was stopped, other processes are still drawing, or images went away meanwhile.
    """
    if overwrite and share.count > 1:
        raise InputError(f"overwrite must be given to one process, got {share.count}; or remove {str(out)!r} before")
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
    with locked(out, share.rank):
        if overwrite and (out / "run.yaml").exists():
            with writing_to(out):
                Store.read(out).clear()
        store = Store.of(out, session.run, [target.name for target in session.targets])
        with _taken(store):
            if share.first:
                if running(out) == {0}:
                    store.sweep()
                store.claim(session.run)
            own = list(share.of(len(store), session.run.at_once))
            known = store.records(own)
            store.pack(known)
            progress = _Progress(store, len(known), on_images if share.first else lambda count: None)
            missing = [place for place in own if place not in known]
            for _ in range(ATTEMPTS):
                _draw(session, store, missing, share, stop, progress, callbacks, tell)
                if stop() or not (missing := store.gone(own)):
                    break
            while share.first and not stop() and running(out) - {share.rank}:
                progress.look()
                time.sleep(POLL)
            gone = 0 if stop() else len(missing)
            if (there := store.count()) < len(store) or (not share.first and 0 in running(out)):
                raise Unfinished(there, len(store), gone)
            records = store.records(range(len(store)))
            if len(records) < len(store):
                raise Unfinished(len(records), len(store), sum(place not in records for place in own))
            if not (out / "run.yaml").exists():  # it went away meanwhile
                store.claim(session.run)
            store.close()
            return summarize(store, session.run, records, session.unguided_errors)


@contextmanager
def _taken(store: Store) -> Iterator[None]:
    """Turns what the system says of a folder that does not take a file into one line that says how to go on."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"out: {str(store.out)!r} cannot be written to ({error.strerror}); {store.count()} of {len(store)} images "
            "are whole; make room, and the same command draws the others"
        ) from error


class _Progress:
    """How many images there are, told in fractions while they are drawn, those of other processes by their files."""

    def __init__(self, store: Store, known: int, tell: Callable[[float], object]) -> None:
        self.store, self.own, self.others, self.tell = store, known, 0, tell
        if known:
            tell(known)

    def look(self) -> None:
        """Looks what the other processes have drawn."""
        others = self.store.count() - self.own
        self.tell(others - self.others)
        self.others = others


def _draw(
    session: Session,
    store: Store,
    places: Sequence[int],
    share: Share,
    stop: Callable[[], bool],
    progress: _Progress,
    callbacks: Sequence[Callback],
    tell: Callable[[str], object],
) -> None:
    """Draws images and writes each batch as it comes."""
    size, steps = session.run.at_once, session.run.recipe.sampling()["steps"]
    batches = (places[first : first + size] for first in range(0, len(places), size))

    def halt(_: Report) -> None:
        if stop():
            raise CancelledError

    def drawn(batch: Sequence[int], leave: Callback) -> list[Drawn]:
        followed = [leave, halt, *(callbacks if batch[0] == 0 else ())]
        on_step = partial(progress.tell, len(batch) / steps)
        try:
            return session.within_memory(partial(_drawn, session, store, on_step, followed), batch, tell)
        except CancelledError:
            if stop():  # then the batches that are finished are written, and this one is nothing
                return []
            raise

    began = time.monotonic()
    for batch in session.side_by_side(drawn, takewhile(lambda _: not stop(), batches)):
        now = time.monotonic()
        for place, pixels, record in batch:
            store.write(place, pixels, replace(record, seconds=(now - began) / len(batch)))
        store.pack(place for place, *_ in batch)
        began = now
        progress.own += len(batch)
        if share.first and share.count > 1:
            progress.look()


@ieee()
def _drawn(
    session: Session, store: Store, on_step: Callable[[], object], callbacks: Sequence[Callback], places: Sequence[int]
) -> list[Drawn]:
    """Returns the images of some places, and what is to be kept of each."""
    jobs = [(session.targets[target], seed) for target, seed in map(store.job, places)]
    watch = Watch(on_step)
    with counting() as counts:
        samples = session.samples(jobs, [watch, *callbacks])
        images = session.denoiser.decode(samples)
    whole = images.isfinite().flatten(1).all(1).tolist()
    images = images.clamp(-1, 1)
    errors = session.noise_errors(samples, jobs)
    verdicts = session.verdicts(images, [target for target, _ in jobs])
    pixels = in_8_bits(images).permute(0, 2, 3, 1).cpu().numpy()
    dropped, moved = watch.drops(len(jobs)), watch.moved(len(jobs))
    found = []
    for row, (place, (target, seed)) in enumerate(zip(places, jobs, strict=True)):
        said = {name: each[row] if whole[row] else None for name, each in verdicts.items()}
        record = Record(
            run=store.digest,
            target=target.name,
            label=target.guide,
            seed=seed,
            **said,
            dropped=dropped[row],
            moved=moved[row] if whole[row] else None,
            noise_error=errors[row] if whole[row] else None,
            evaluations=evaluations(counts, session.counted, len(jobs)),
            seconds=0.0,
            lost=not whole[row],
        )
        found.append((place, pixels[row] if whole[row] else None, record))
    return found
