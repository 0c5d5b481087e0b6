"""Whose a folder is while it is drawn into: a lock of each process, which the system releases as the process dies.

The locks are `filelock`'s: ``flock`` on Linux and macOS, ``LockFile`` on Windows.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from steersman.errors import InputError
from steersman.files import writing_to

__all__ = ["locked", "running"]

PATIENCE = 1.0  # seconds that another process's look at the lock may take
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # of a file system that has none: then nothing is refused
NAME = re.compile(r"\.running-(\d{1,9})")


@contextmanager
def locked(out: Path, rank: int) -> Iterator[None]:
    """Holds the folder's lock of a rank.

    Raises:
        InputError: Another process holds it, or the folder cannot be written to.
    """
    lock = FileLock(out / f".running-{rank}")
    with writing_to(out):
        _acquire(lock, PATIENCE, out)
    try:
        yield
    finally:
        _release(lock)


def running(out: Path) -> set[int]:
    """Returns the ranks of the processes that draw into a folder now."""
    named = [(path, NAME.fullmatch(path.name)) for path in out.glob(".running-*")]
    return {int(found[1]) for path, found in named if found and _held(path)}


def _acquire(lock: FileLock, patience: float, out: Path) -> None:
    try:
        lock.acquire(timeout=patience, poll_interval=PATIENCE / 20)
    except Timeout:
        raise InputError(
            f"out: {str(out)!r} is being drawn into by another run; wait until that has ended, or give another --out"
        ) from None
    except NotImplementedError:  # where older versions say that there are no locks
        pass
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def _release(lock: FileLock) -> None:
    """Removes the lock's file, while it is held where the system lets go of an open file: then nobody else has it."""
    path = Path(lock.lock_file)
    try:
        path.unlink(missing_ok=True)
        lock.release()
    except OSError:  # Windows
        lock.release()
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _held(path: Path) -> bool:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except NotImplementedError:
        return False
    except OSError as error:  # another user's cannot be tried: then that it is there is believed
        return error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and path.exists()
    _release(lock)
    return False
