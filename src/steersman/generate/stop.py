"""Signals: the first asks to stop when the batches at hand are written, a second one leaves at once."""

import os
import signal
import time
from types import FrameType

__all__ = ["Stop"]

ECHO = (
    2.0  # seconds in which a second signal is the first one's echo: a launcher passes on what a terminal sends to all
)


class Stop:
    """Whether SIGINT or SIGTERM has come, while inside.

    Attributes:
        code: The exit code that says so, None as long as none has come.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        self.came = 0.0

    def __bool__(self) -> bool:
        return self.code is not None

    def __enter__(self) -> "Stop":
        self.before = {each: signal.signal(each, self._take) for each in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self.before.items():
            signal.signal(each, handler)

    def _take(self, number: int, _: FrameType | None) -> None:
        if self.code is None:
            self.code, self.came = 128 + number, time.monotonic()
        elif time.monotonic() - self.came > ECHO:
            os._exit(128 + number)  # nothing can be half-written: files are renamed when they are whole
