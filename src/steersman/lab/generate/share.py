"""Which images a process draws, of several that draw one run.

A launcher (torchrun, ``accelerate launch``, mpirun, srun) tells each process its rank and how many there are. The
images of a run are dealt out in turn, so many at a time, by their place alone: processes need not speak to each other,
and a run goes on with another number of them.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from steersman.errors import InputError

__all__ = ["Share"]


class _Launcher(NamedTuple):
    """The variables in which a launcher states a process's rank, how many there are, and its rank on its machine."""

    rank: str
    count: str
    local: tuple[str, ...]


LAUNCHERS = (
    _Launcher("RANK", "WORLD_SIZE", ("LOCAL_RANK",)),  # torchrun, accelerate
    _Launcher("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", ("OMPI_COMM_WORLD_LOCAL_RANK",)),  # Open MPI
    _Launcher("PMI_RANK", "PMI_SIZE", ("MPI_LOCALRANKID", "SLURM_LOCALID")),  # MPICH, Intel MPI; srun with --mpi=pmi2
    # A batch script has SLURM_PROCID and SLURM_NTASKS too, although it is one process: only srun states a step's tasks.
    _Launcher("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", ("SLURM_LOCALID",)),
)
"""The first that states a rank and a count is obeyed: inside a SLURM job, mpirun and torchrun are started by srun."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """The part of a process.

    Attributes:
        rank: Which it is.
        count: Of how many.
        local: Which it is on its machine.
    """

    rank: int = 0
    count: int = 1
    local: int = 0

    @classmethod
    def told(cls) -> "Share":
        """Returns what the launcher says, the whole where there is none.

        Raises:
            InputError: It says no whole number, a rank beyond the count, or a count without a rank.
        """
        for launcher in LAUNCHERS:
            rank, count = _number(launcher.rank), _number(launcher.count)
            if count is None:
                continue
            if rank is None or rank >= count:
                given = "nothing" if rank is None else rank
                raise InputError(f"{launcher.rank} must be below {launcher.count}, which is {count}, got {given}")
            local = next((number for key in launcher.local if (number := _number(key)) is not None), rank)
            return cls(rank=rank, count=count, local=local)
        return cls()

    @property
    def first(self) -> bool:
        """Whether it is the process that speaks to the user."""
        return self.rank == 0

    def of(self, total: int, size: int) -> Iterator[int]:
        """Yields the places that are its own among so many, dealt out ``size`` at a time."""
        for begin in range(self.rank * size, total, self.count * size):
            yield from range(begin, min(begin + size, total))

    def device(self, asked: str) -> str:
        """Returns the process's own device: of several GPUs that it sees, the one of its place on the machine.

        Where it sees fewer GPUs than its place, they are counted through again: a scheduler that shows each process one
        GPU numbers it 0 in all of them.

        Raises:
            InputError: All were given the same one.
        """
        if self.count == 1 or not asked.startswith("cuda"):
            return asked
        if asked != "cuda":
            raise InputError(
                f"device must be cuda for {self.count} processes, of which each takes its own, got {asked!r}"
            )
        seen = torch.cuda.device_count()
        return f"cuda:{self.local % seen if seen else self.local}"


def _number(key: str) -> int | None:
    """Returns a variable of the environment.

    Raises:
        InputError: It is no whole number.
    """
    value = os.environ.get(key)
    if value is not None and not value.isdecimal():
        raise InputError(f"{key} must be a whole number, 0 or more, got {value!r}")
    return None if value is None else int(value)
