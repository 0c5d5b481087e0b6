"""What came of a run whose images are all there: its figures, a picture of the first, and what to tell the user."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from steersman.files import write_json
from steersman.lab.advice import advice
from steersman.lab.generate.record import Record
from steersman.lab.generate.store import Store
from steersman.lab.realism import CLEAR, USELESS, limit
from steersman.lab.run import Run
from steersman.lab.verdicts import figures

__all__ = ["Summary", "summarize"]

GRID, SHOWN = 64, 1024  # images of a target in the grid, and of all targets together, at most


@dataclass(kw_only=True)
class Summary:
    """What came of a run.

    Attributes:
        metrics: What ``metrics.json`` holds.
        warnings: What the user should know and do.
        lost: The names of images that became non-finite and were not written.
    """

    metrics: dict[str, Any]
    warnings: list[str]
    lost: list[str]

    @property
    def nothing_survived(self) -> bool:
        """Whether guidance left no image that is like those which the denoiser draws without it."""
        found = self.metrics["noise_error"]
        left = self.metrics["images"] - len(self.lost)
        if left == 0 or found is None:
            return left == 0
        return found["unguided"] is not None and found["unguided"] < USELESS and len(found["broken"]) == left


def summarize(
    store: Store, run: Run, records: Mapping[int, Record], unguided_errors: Callable[[], Sequence[float]]
) -> Summary:
    """Writes grid and figures of all images, which depend on their records alone, whoever writes them.

    Args:
        store: The run's folder.
        run: The run.
        records: The images' records, by their index in the run.
        unguided_errors: Returns the noise errors of unguided samples; asked only where the run's are not clearly whole.
    """
    held = [records[place] for place in sorted(records)]
    whole = [record for record in held if not record.lost]
    lost = [record.name for record in held if record.lost]
    metrics = _figures(whole)
    if len(store.targets) > 1:
        metrics["targets"] = {
            name: _figures(record for record in whole if record.target == name) for name in store.targets
        }
    seconds = sum(record.seconds for record in held)
    dropped = {record.name: record.dropped for record in held if record.dropped}
    metrics |= {
        "images": len(held),
        "seconds": round(seconds, 3),
        "images_per_second": round(len(held) / seconds, 4),
        "network_evaluations": {
            name: round(sum(record.evaluations[name] for record in held) / len(held), 6) for name in held[0].evaluations
        },
        "nonfinite_gradients": sum(dropped.values()),
        "nonfinite_gradients_of": dropped,
        "lost": lost,
        "noise_error": _noise_errors(whole, run, unguided_errors),
    }
    moved = [record.moved for record in whole if record.moved is not None]
    metrics["warnings"] = advice(metrics, moved, run)
    _write_grid(store, records)
    write_json(store.out / "metrics.json", metrics)
    return Summary(metrics=metrics, warnings=metrics["warnings"], lost=lost)


def _noise_errors(
    whole: Sequence[Record], run: Run, unguided_errors: Callable[[], Sequence[float]]
) -> dict[str, Any] | None:
    """Returns how well the denoiser tells noise from the images, and the names of those that it does not know."""
    errors = {record.name: record.noise_error for record in whole if record.noise_error is not None}
    if not errors:
        return None
    unguided = unguided_errors() if run.guided and max(errors.values()) > CLEAR else []
    most = limit(unguided)
    return {
        "median": round(median(errors.values()), 4),
        "unguided": round(median(unguided), 4) if unguided else None,
        "broken": [name for name, error in errors.items() if error > most],
    }


def _figures(records: Iterable[Record]) -> dict[str, Any]:
    return figures([{"guide": record.guide, "judge": record.judge} for record in records])


def _write_grid(store: Store, records: Mapping[int, Record]) -> None:
    from steersman.lab.report import grid

    most = max(1, min(GRID, SHOWN // len(store.targets)))
    chosen: dict[str, list[int]] = {name: [] for name in store.targets}
    for place, record in sorted(records.items()):
        if not record.lost and len(chosen[record.target]) < most:
            chosen[record.target].append(place)
    rows = {name: _images(store, places) for name, places in chosen.items() if places}
    if rows:
        grid(rows, store.out / "grid.png")


def _images(store: Store, places: Sequence[int]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(store.pixels(place)) for place in places]).permute(0, 3, 1, 2) / 127.5 - 1
