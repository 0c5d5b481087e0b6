"""How far a run is, by the files in its folder; nothing of it is loaded, and it may be drawing."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from steersman.lab.generate.lock import running
from steersman.lab.generate.store import Store

__all__ = ["Status", "status"]


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far a run is.

    Attributes:
        num: Images of each target.
        whole: How many of each are there.
        lost: How many of each became non-finite.
        processes: How many are drawing now.
    """

    num: int
    whole: dict[str, int]
    lost: dict[str, int]
    processes: int

    def missing(self, target: str) -> int:
        """Returns how many of a target's are still to be drawn."""
        return self.num - self.whole[target] - self.lost[target]


def status(out: Path) -> Status:
    """Returns how far the run in a folder is; every file is read.

    Raises:
        InputError: The folder holds none.
    """
    store = Store.read(out)
    found = Counter((record.target, record.lost) for record in store.records(range(len(store))).values())
    return Status(
        num=store.num,
        whole={name: found[name, False] for name in store.targets},
        lost={name: found[name, True] for name in store.targets},
        processes=len(running(out)),
    )
