"""Signals: the first one ends the work so that the same command continues it; a second one leaves at once.

While images are drawn or a network is trained, the first signal asks to stop after the step at hand, and finished work
is written (`Stop`). Everywhere else work ends where it is (`Interruptible`): files are renamed into place when they are
complete, so that none is half-written.
"""

import os
import signal
import sys
import threading
import time
from types import FrameType

__all__ = ["Interrupted", "Interruptible", "Stop", "Stopped"]

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]
ECHO, PASSED_ON = 0.5, 2.0
"""Seconds in which a second signal is an echo of the first: of one keystroke, and where a launcher passes it on."""


class Stopped(Exception):
    """Work ended early, most often at a signal; the command line prints the message and exits with ``code``."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Interrupted(BaseException):
    """A signal ended work where it was. No `Exception`, so that no handler of errors catches it."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


class Stop:
    """A context that waits for SIGINT and SIGTERM; true, with an exit ``code``, once one came."""

    def __init__(self, *, launched: bool = False, quiet: bool = False) -> None:
        self.echo, self.quiet = PASSED_ON if launched else ECHO, quiet
        self.code: int | None = None
        self.came = 0.0

    def __bool__(self) -> bool:
        return self.code is not None

    def __enter__(self) -> "Stop":
        main = threading.current_thread() is threading.main_thread()  # Python delivers signals to no other
        self.before = {number: signal.signal(number, self._take) for number in SIGNALS} if main else {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _take(self, number: int, _: FrameType | None) -> None:
        if self.code is None:
            self.code, self.came = 128 + number, time.monotonic()
            self._answer()
        elif time.monotonic() - self.came > self.echo:
            os._exit(128 + number)

    def _answer(self) -> None:
        if not self.quiet:
            _say("steersman: stopping after this step; again to stop now\n")


class Interruptible(Stop):
    """A context in which a signal raises `Interrupted`, unless a `Stop` further in waits for it."""

    def _answer(self) -> None:
        raise Interrupted(self.code or 1)


def _say(text: str) -> None:
    """Writes to standard error without Python's stream, whose lock the interrupted code may hold."""
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""  # of a progress bar
    try:
        os.write(sys.stderr.fileno(), f"{clear}{text}".encode())
    except (OSError, ValueError):  # closed, or no file, as in a notebook
        pass
