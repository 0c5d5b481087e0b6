"""Signals: the first ends the work so that the same command goes on with it; a second one leaves at once.

Where images are drawn or a network is trained, the first one asks to stop after the step at hand, and what is finished
then is written (`Stop`). Everywhere else the work ends where it is (`Interrupted`): files are renamed when they are
whole, so that nothing is half-written.
"""

import os
import signal
import sys
import threading
import time
from types import FrameType

__all__ = ["Interrupted", "Interruptible", "Stop", "Stopped"]

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)
)  # the last is Windows' alone
ECHO, PASSED_ON = 0.5, 2.0
"""Seconds in which a second signal is the first one's echo: of one keystroke; and of a launcher, which passes it on."""


class Stopped(Exception):
    """Work that ended early, most often since a signal came; the command line says so and exits with its code.

    Attributes:
        code: The exit code.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Interrupted(BaseException):
    """Work that a signal ended where it was; no handler of errors takes it for one.

    Attributes:
        code: The exit code.
    """

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


class Stop:
    """Whether SIGINT or SIGTERM has come, while inside; in the main thread alone, as Python has it.

    Args:
        launched: Whether a launcher has started the process, and passes on what a terminal sends to all.
        quiet: Whether the first signal is answered with nothing.

    Attributes:
        code: The exit code that says so, None as long as none has come.
    """

    def __init__(self, *, launched: bool = False, quiet: bool = False) -> None:
        self.echo, self.quiet = PASSED_ON if launched else ECHO, quiet
        self.code: int | None = None
        self.came = 0.0

    def __bool__(self) -> bool:
        return self.code is not None

    def __enter__(self) -> "Stop":
        main = threading.current_thread() is threading.main_thread()
        self.before = {each: signal.signal(each, self._take) for each in SIGNALS} if main else {}
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self.before.items():
            signal.signal(each, handler)

    def _take(self, number: int, _: FrameType | None) -> None:
        if self.code is None:
            self.code, self.came = 128 + number, time.monotonic()
            self._answer()
        elif time.monotonic() - self.came > self.echo:
            os._exit(128 + number)  # nothing can be half-written: files are renamed when they are whole

    def _answer(self) -> None:
        if not self.quiet:
            _say("steersman: stopping after this step; again to stop now\n")


class Interruptible(Stop):
    """Inside, SIGINT or SIGTERM ends the work where it is, unless a `Stop` further in waits for them.

    Raises:
        Interrupted: One has come.
    """

    def _answer(self) -> None:
        raise Interrupted(self.code or 1)


def _say(text: str) -> None:
    """Writes to standard error by the system alone: what was interrupted may hold the lock of Python's stream."""
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""  # of a progress bar
    try:
        os.write(sys.stderr.fileno(), f"{clear}{text}".encode())
    except (OSError, ValueError):  # closed, or no file, as in a notebook
        pass
