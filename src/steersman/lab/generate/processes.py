"""The processes that draw one run: which images are whose, and who draws into a folder.

A launcher (torchrun, ``accelerate launch``, mpirun, srun) tells each process its rank and how many there are. Images
are dealt out by their index alone, so that processes need no connection to each other, and a run can be continued with
another number of them. While a process draws, it holds a lock in the folder, which the system releases when it dies.

`accelerate.PartialState` is not used: it knows no srun, and joins the processes in a group, which a dead one blocks.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from steersman.errors import InputError
from steersman.files import writing_to

__all__ = ["Share", "locked", "running"]

LAUNCHERS = (
    ("RANK", "WORLD_SIZE", ("LOCAL_RANK",)),  # torchrun, accelerate
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", ("OMPI_COMM_WORLD_LOCAL_RANK",)),  # Open MPI
    ("PMI_RANK", "PMI_SIZE", ("MPI_LOCALRANKID", "SLURM_LOCALID")),  # MPICH, Intel MPI; srun with --mpi=pmi2
    # A batch script has SLURM_PROCID and SLURM_NTASKS too, although it is one process: only srun counts a step's tasks.
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", ("SLURM_LOCALID",)),
)
"""The variables of rank, count and rank on the machine. The first launcher that states a count is the one that started
this process: inside a SLURM job, mpirun and torchrun are themselves started by srun."""

PATIENCE = 1.0  # seconds that another process may take to look whether a lock is held
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # from a file system without locks: then nothing is refused
LOCK = re.compile(r"\.running-(\d{1,9})")


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


def _integer(key: str) -> int | None:
    """Returns a variable of the environment, which must be a whole number if it is there."""
    value = os.environ.get(key)
    if value is not None and not value.isdecimal():
        raise InputError(f"{key} must be a whole number, 0 or more, got {value!r}")
    return None if value is None else int(value)


@contextmanager
def locked(out: Path, rank: int) -> Iterator[None]:
    """Holds the lock of a rank in a folder, which no other process may hold."""
    lock = FileLock(out / f".running-{rank}")
    with writing_to(out):
        try:
            lock.acquire(timeout=PATIENCE, poll_interval=PATIENCE / 20)
        except Timeout:
            raise InputError(
                f"out: {str(out)!r} is being drawn into by another run; wait until that has ended, or give another "
                "--out"
            ) from None
        except NotImplementedError:  # filelock 3 on a file system without locks
            pass
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
    try:
        yield
    finally:
        _release(lock)


def running(out: Path) -> set[int]:
    """Returns the ranks of the processes that draw into a folder now."""
    matches = [(path, LOCK.fullmatch(path.name)) for path in out.glob(".running-*")]
    return {int(match[1]) for path, match in matches if match and _is_held(path)}


def _is_held(path: Path) -> bool:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except NotImplementedError:
        return False
    except OSError as error:  # the lock of another user cannot be tried, and counts as held
        return error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and path.exists()
    _release(lock)
    return False


def _release(lock: FileLock) -> None:
    """Releases a lock and removes its file, if possible while it is held: then no other process has it open."""
    path = Path(lock.lock_file)
    try:
        path.unlink(missing_ok=True)
        lock.release()
    except OSError:  # Windows removes no open file
        lock.release()
        with suppress(OSError):
            path.unlink(missing_ok=True)
