"""Which images a process draws, of several that draw one run.

A launcher (torchrun, ``accelerate launch``, mpirun) tells each process its rank and how many there are. The images of a
run are dealt out in turn, so many at a time, by their place alone: processes need not speak to each other, and a run
goes on with another number of them.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from steersman.errors import InputError

__all__ = ["Share"]

TOLD = {  # by torchrun and accelerate, MPICH, Open MPI
    "rank": ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK"),
    "count": ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"),
    "local": ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK"),
}


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
            InputError: It says no whole number, or a rank beyond the count.
        """
        found = {}
        for name, keys in TOLD.items():
            key = next((key for key in keys if key in os.environ), None)
            if key is not None:
                if not os.environ[key].isdecimal():
                    raise InputError(f"{key}: {os.environ[key]!r} given by the launcher; allowed: 0 and more")
                found[name] = int(os.environ[key])
        share = cls(**found)
        if share.rank >= share.count:
            raise InputError(f"rank: {share.rank} given by the launcher to one of {share.count}; allowed: below that")
        return share

    @property
    def first(self) -> bool:
        """Whether it is the process that speaks to the user."""
        return self.rank == 0

    def of(self, total: int, size: int) -> Iterator[int]:
        """Yields the places that are its own among so many, dealt out ``size`` at a time."""
        for begin in range(self.rank * size, total, self.count * size):
            yield from range(begin, min(begin + size, total))

    def device(self, asked: str) -> str:
        """Returns the process's own device: of several GPUs on a machine, each process has one.

        Raises:
            InputError: All were given the same one.
        """
        if self.count == 1 or not asked.startswith("cuda"):
            return asked
        if asked != "cuda":
            raise InputError(f"device: {asked!r} given to {self.count} processes; allowed: cuda, of which each has one")
        return f"cuda:{self.local}"
