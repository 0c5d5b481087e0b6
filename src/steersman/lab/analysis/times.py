"""Which noise levels an analysis visits, and how they stand on an axis.

A variance-preserving schedule has T times; of a continuous one, 1000 levels stand for all. The neighbour t - 1 of a
level is the next cleaner one of all of them, whichever are visited.
"""

from collections.abc import Sequence

from steersman.errors import InputError
from steersman.schedule import EDM, VP, Level, Schedule

__all__ = ["all_levels", "axis", "choose"]

FINE = 1000  # levels of a schedule without discrete times


def all_levels(schedule: Schedule) -> tuple[Level, ...]:
    """Returns all levels of a schedule, noisiest first, without the clean image."""
    return schedule.levels(len(schedule.alpha_bar) if isinstance(schedule, VP) else FINE)[:-1]


def choose(
    levels: Sequence[Level],
    *,
    times: Sequence[float] | None = None,
    every: int | None = None,
    count: int | None = None,
) -> list[int]:
    """Returns the places of the chosen levels among these, noisiest first; all where nothing is chosen by.

    Args:
        levels: The levels, noisiest first.
        times: The levels nearest to these times.
        every: Every K-th, counted from the cleanest.
        count: So many, evenly from the first to the last; one is the first.

    Raises:
        InputError: More than one way to choose, numbers out of range, or times beyond all levels.
    """
    if sum(each is not None for each in (times, every, count)) > 1:
        raise InputError("times, every and count must not be given together; give one of --times, --every, --count")
    known = [float(level.time) for level in levels]
    if times is not None:
        low, high = min(known), max(known)
        for time in times:
            if not low - 0.5 <= time <= high + 0.5:
                raise InputError(f"times must be {low:g} to {high:g}, got {time:g}")
        if not times:
            raise InputError("times must have at least 1 time, got none")
        return sorted({min(range(len(known)), key=lambda place: abs(known[place] - time)) for time in times})
    if every is not None:
        if every < 1:
            raise InputError(f"every must be at least 1, got {every}")
        return [place for place in range(len(levels)) if (len(levels) - 1 - place) % every == 0]
    if count is not None:
        if not 1 <= count <= len(levels):
            raise InputError(f"count must be 1 to {len(levels)}, got {count}")
        return [round(i * (len(levels) - 1) / max(count - 1, 1)) for i in range(count)]
    return list(range(len(levels)))


def axis(schedule: Schedule, levels: Sequence[Level]) -> tuple[list[float], str, bool]:
    """Returns where levels stand on an axis, what the axis shows, and whether it is logarithmic.

    By time where that is what noise is counted in; by sigma for EDM, whose time is a logarithm.
    """
    if isinstance(schedule, EDM):
        return [float(level.sigma) for level in levels], "noise level σ", True
    last = float(all_levels(schedule)[0].time)
    return [float(level.time) for level in levels], f"time t (0 clean, {last:g} noise)", False
