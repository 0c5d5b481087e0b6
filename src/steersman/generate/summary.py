"""What came of a run whose images are all there: its figures, a picture of the first, and what to tell the user."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from steersman.advice import advice
from steersman.files import write_json
from steersman.generate.record import Record
from steersman.generate.store import Store
from steersman.recipes import Recipe
from steersman.verdicts import figures

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


def summarize(store: Store, recipe: Recipe, records: Mapping[int, Record]) -> Summary:
    """Writes grid and figures of all images, which depend on their records alone, whoever writes them."""
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
        "seconds": round(seconds, 3),
        "images_per_second": round(len(held) / seconds, 4),
        "network_evaluations": {
            name: round(sum(record.evaluations[name] for record in held) / len(held), 6) for name in held[0].evaluations
        },
        "nonfinite_gradients": sum(dropped.values()),
        "nonfinite_gradients_of": dropped,
        "lost": lost,
    }
    _write_grid(store, records)
    write_json(store.out / "metrics.json", metrics)
    moved = [record.moved for record in whole if record.moved is not None]
    return Summary(metrics=metrics, warnings=advice(metrics, moved, recipe), lost=lost)


def _figures(records: Iterable[Record]) -> dict[str, Any]:
    return figures([{"guide": record.guide, "judge": record.judge} for record in records])


def _write_grid(store: Store, records: Mapping[int, Record]) -> None:
    from steersman.report import grid

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
