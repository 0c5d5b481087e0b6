"""Whose a folder is while it is drawn into: a lock of each process, advisory, which the system releases as it dies."""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from steersman.errors import InputError

__all__ = ["locked", "running"]

PATIENCE = 1.0  # seconds that another process's look at the lock may take
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # of a file system that has none: then nothing is refused


@contextmanager
def locked(out: Path, rank: int) -> Iterator[None]:
    """Holds the folder's lock of a rank.

    Raises:
        InputError: Another process holds it.
    """
    path, until = out / f".running-{rank}", time.monotonic() + PATIENCE
    while (file := _take(path)) is None:
        if time.monotonic() > until:
            raise InputError(f"out: {str(out)!r} is being drawn into by another run; allowed: when that has ended")
        time.sleep(PATIENCE / 20)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def _take(path: Path) -> int | None:
    """Returns the lock's open file, None where it is taken or was just released."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file), os.stat(path)):  # else the one who held it has removed it meanwhile
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError as error:
        if error.errno in NO_LOCKS:
            return file
        raise
    os.close(file)
    return None


def running(out: Path) -> set[int]:
    """Returns the ranks of the processes that draw into a folder now."""
    return {int(path.name.rpartition("-")[2]) for path in out.glob(".running-*") if _held(path)}


def _held(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    finally:
        os.close(file)
    return False
