"""What guidance did to each image of a batch, and what to say of it where that was next to nothing or too much."""

from collections.abc import Callable, Iterable, Sequence
from statistics import mean

import torch

from steersman.batching import rms
from steersman.guidance.guide import Update
from steersman.sampling.loop import Recurrence, Report

__all__ = ["UNMOVED", "Changes", "Watch", "larger", "warning_of"]

# Root mean squares of a change by guidance, where images span 2:
UNMOVED = 0.01  # hardly shows
VISIBLE = 0.1  # shows
BEYOND = 2.0  # leaves nothing of the image
MOST = 30.0  # the largest factor on the scale that is advised


class Changes:
    """For each image of a batch, the number of dropped updates and how far guidance moved it.

    Both stay on their device until they are asked for, so that no step waits for an accelerator.
    """

    def __init__(self) -> None:
        self._dropped, self._change = torch.zeros((), dtype=torch.int64), torch.zeros(())

    def add(self, updates: Iterable[Update | None]) -> None:
        """Adds the updates of a step."""
        for update in updates:
            if update is not None:
                self._dropped = (~update.finite).to(torch.int64) + self._dropped
                self._change = self._change + update.moved

    def drops(self, count: int) -> list[int]:
        """Returns the number of dropped updates of each of ``count`` images."""
        return self._dropped.expand(count).tolist()

    def moved(self, count: int) -> list[float] | list[None]:
        """Returns the root mean square of each image's summed `Update.moved`; None where no guide was active."""
        return rms(self._change).flatten().tolist() if self._change.ndim else [None] * count


class Watch(Changes):
    """A callback that adds up the changes, and calls ``on_step`` after each step and each of its repetitions.

    Its argument is the share that the step has in all of them.
    """

    def __init__(self, on_step: Callable[[float], object], recurrence: Recurrence | None = None) -> None:
        super().__init__()
        self.on_step, self.recurrence = on_step, recurrence or Recurrence()

    def __call__(self, report: Report) -> None:
        """Adds what a step did, and reports it."""
        self.add(report.updates)
        self.on_step(1 / sum(map(self.recurrence.at, report.step.levels[:-1])))


def larger(change: float) -> float:
    """Returns the factor on the scale with which a change by guidance may be expected to show."""
    return min(MOST, VISIBLE / max(change, VISIBLE / MOST))


def warning_of(moved: Sequence[float | None]) -> str | None:
    """Returns what to say of the changes by guidance to some samples, None where they are such as they should be."""
    known = [change for change in moved if change is not None]
    if not known:
        return None
    change = mean(known)
    if change == 0:
        return "guidance did not change the samples: its gradient or its scale was zero"
    if change < UNMOVED:
        return (
            f"guidance hardly changed the samples, by {change:.2g} in root mean square; try a scale "
            f"{larger(change):.2g} times as large"
        )
    if not change <= BEYOND:
        return (
            f"guidance changed the samples by {change:.2g} in root mean square, where images span 2, so that they are "
            "likely to be burnt, or noise; try a scale a tenth as large"
        )
    return None
