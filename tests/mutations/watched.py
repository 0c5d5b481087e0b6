"""Loads in a process of their own, with an end to their time and memory."""

import io
import json
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import jaxtyping

from steersman.errors import InputError

__all__ = ["Outcome", "watched"]

SECONDS = 10.0  # of one load, of the processor; measured below 3
PATIENCE = 60.0  # seconds of the clock, for one that waits
ADDRESSES = 3 << 30  # bytes of address space over what the process has; threads take some for themselves


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a load came to.

    Attributes:
        kind: ``loaded``, ``refused``, or ``failed``.
        said: The error, or what is wrong.
        seconds: How long it took.
        grown: By how many bytes the process has grown at most since the first load.
    """

    kind: str
    said: str
    seconds: float
    grown: int


class TooLong(BaseException):
    """A load that does not end."""


def watched(loads: Iterable[Callable[[], str]]) -> list[Outcome]:
    """Returns what each load comes to, in a fork of this process; a load that ends it is the last one.

    Args:
        loads: Each returns what is wrong with what it loaded, or nothing.
    """
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        os.close(receive)
        _work(loads, send)
    os.close(send)
    with os.fdopen(receive, "rb", buffering=0) as lines:
        found = [Outcome(**json.loads(line)) for line in _lines(lines, child)]
    _, status = os.waitpid(child, 0)
    if status:
        found.append(Outcome(kind="failed", said=f"the process ended with {status}", seconds=0, grown=0))
    return found


def _lines(stream: io.FileIO, child: int) -> Iterator[bytes]:
    """Yields the lines that come, until none comes any more: what waits outside of Python hears no alarm."""
    held = b""
    while True:
        if not select.select([stream], [], [], 2 * PATIENCE)[0]:
            os.kill(child, signal.SIGKILL)
            return
        if not (more := stream.read(2**16)):
            return
        *whole, held = (held + more).split(b"\n")
        yield from whole


def _work(loads: Iterable[Callable[[], str]], send: int) -> None:
    status = 1
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        jaxtyping.config.update("jaxtyping_disable", True)
        signal.signal(signal.SIGALRM, _too_long)
        signal.signal(signal.SIGPROF, _too_long)
        status_now = Path("/proc/self/statm").read_text().split()
        space, resident = (int(pages) * resource.getpagesize() for pages in status_now[:2])
        resource.setrlimit(resource.RLIMIT_AS, (space + ADDRESSES, resource.RLIM_INFINITY))
        for load in loads:
            kind, said, seconds = _outcome(load)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - resident
            line = json.dumps(asdict(Outcome(kind=kind, said=said, seconds=seconds, grown=grown)))
            os.write(send, line.encode() + b"\n")
        status = 0
    finally:
        os._exit(status)


def _outcome(load: Callable[[], str]) -> tuple[str, str, float]:
    start = time.monotonic()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        wrong = load()
        kind, said = ("failed", wrong) if wrong else ("loaded", "")
    except InputError as error:
        kind, said = "refused", str(error)
    except BaseException as error:
        kind, said = "failed", f"{type(error).__name__}: {error} at {_place(error)}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    return kind, said[:3000], time.monotonic() - start


def _place(error: BaseException) -> str:
    """Where in the project it passed last."""
    place, trace = "?", error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if "steersman" in code.co_filename or "mutations" in code.co_filename:
            place = f"{Path(code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _too_long(*_) -> None:
    raise TooLong
