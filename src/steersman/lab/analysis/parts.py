"""What was measured of each image: written as it comes, so that a killed analysis goes on, and drawn as curves.

    OUT/settings.json          what makes the figures; an analysis with others is refused
    OUT/parts/FIRST-LAST.npz   of those images, arrays that lead with them

Figures are made of all parts together, image by image: the batch size matters to none.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from steersman.errors import InputError, about, shown
from steersman.files import read_json, read_npz, replacing, write_json, writing_to
from steersman.lab.report.plots import Curve

__all__ = ["Key", "Parts", "apart", "mean_curves", "names", "share_curves", "stacked"]

Key = tuple[str, ...]
"""What an array is of, such as classifier and view."""

IMAGES = "images"
CROWDED = 6  # curves that a panel has at most, where it can be


class Parts:
    """The parts of an analysis in its folder."""

    def __init__(self, out: Path, settings: Mapping[str, Any], count: int) -> None:
        self.out, self.folder, self.count = out, out / "parts", count
        self.settings = json.loads(json.dumps(settings))  # as the file has them: lists for tuples, text for keys
        if (before := out / "settings.json").exists():
            self._check(read_json(before, "out"))

    def _check(self, before: Mapping[str, Any]) -> None:
        """Refuses a folder whose parts are of other settings."""
        for key in [*self.settings, *before]:
            if before.get(key) != self.settings.get(key):
                settings = f"{key} {shown(before.get(key))}, not {shown(self.settings.get(key))}"
                raise InputError(
                    f"out: {str(self.out)!r} holds an analysis with {settings}; give another --out, or the same "
                    "settings"
                )

    def missing(self, size: int) -> list[list[int]]:
        """Returns the images that no part has, in batches of at most ``size``."""
        if size < 1:
            raise InputError(f"batch-size must be at least 1, got {size}")
        done = {image for part in self._read() for image in part[IMAGES].tolist()}
        left = [image for image in range(self.count) if image not in done]
        return [left[first : first + size] for first in range(0, len(left), size)]

    def write_settings(self) -> None:
        """Writes the settings, by which another analysis is refused from then on."""
        with writing_to(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            write_json(self.out / "settings.json", self.settings)

    def write(self, images: Sequence[int], values: Mapping[Key, Tensor]) -> None:
        """Writes what was measured of some images."""
        self.write_settings()
        with writing_to(self.out):
            self.folder.mkdir(exist_ok=True)
        # A key is no file name that every system takes, so the archive has its JSON.
        arrays = {json.dumps(key): value.detach().cpu().numpy() for key, value in values.items()}
        with replacing(self.folder / f"{images[0]:06d}-{images[-1]:06d}.npz") as beside, beside.open("wb") as file:
            np.savez(file, **{IMAGES: np.asarray(images)}, **arrays)  # pyright: ignore[reportArgumentType]

    def read(self) -> dict[Key, np.ndarray]:
        """Returns the arrays of all images, in their order."""
        parts = self._read()
        order = np.argsort(np.concatenate([part[IMAGES] for part in parts]))
        return {
            tuple(json.loads(name)): np.concatenate([part[name] for part in parts])[order]
            for name in parts[0]
            if name != IMAGES
        }

    def _read(self) -> list[dict[str, np.ndarray]]:
        found = []
        for path in sorted(self.folder.glob("*-*.npz")):
            if not path.name.startswith("."):  # one that was being written when the analysis was killed
                with about("out", path):
                    found.append(_part(read_npz(path, "out")))
        return found


def _part(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays of a part, of which each leads with the same images."""
    images = arrays.get(IMAGES)
    if images is None or images.ndim != 1 or images.dtype.kind != "i":
        raise InputError(f"it must hold the numbers of images as {IMAGES}")
    for name, array in arrays.items():
        if array.shape[:1] != images.shape or (name != IMAGES and not isinstance(json.loads(name), list)):
            raise InputError(f"it must hold an array of {len(images)} images as {shown(name)}")
    return arrays


def stacked(columns: Mapping[Key, Sequence[Shaped[Tensor, "B *shape"]]]) -> dict[Key, Shaped[Tensor, "B T *shape"]]:
    """Returns as one array what was measured of a batch at one noise level after the other."""
    return {key: torch.stack(list(values), 1) for key, values in columns.items()}


def names(keys: Iterable[Key]) -> dict[Key, str]:
    """Returns a name for each key: its parts that are not the same in all of them, or its first one."""
    keys = list(keys)
    differing = _differing(keys)
    return {key: _joined(key, differing) for key in keys}


def apart(keys: Iterable[Key], most: int = CROWDED) -> dict[Key, tuple[str | None, str]]:
    """Returns each key's name in two: what its panel is called, None if one panel does, and what is left.

    The panel's name has as many of the first parts as it takes for few keys in each.
    """
    keys = list(keys)
    differing = _differing(keys)
    splits = [(differing[:place], differing[place:]) for place in range(len(differing))]

    def largest(outer: Sequence[int]) -> int:
        return max(Counter(_joined(key, outer) for key in keys).values())

    outer, inner = next((split for split in splits if largest(split[0]) <= most), splits[-1])
    return {key: (_joined(key, outer) if outer else None, _joined(key, inner)) for key in keys}


def _differing(keys: Sequence[Key]) -> list[int]:
    return [place for place, parts in enumerate(zip(*keys, strict=True)) if len(set(parts)) > 1] or [0]


def _joined(key: Key, places: Sequence[int]) -> str:
    return ", ".join(key[place] for place in places)


def mean_curves(values: Mapping[Key, np.ndarray], x: Sequence[float]) -> list[Curve]:
    """Returns each mean over the images with their standard deviation as the band; what is not finite is left out."""
    curves = []
    for key, (panel, name) in apart(values).items():
        columns = [column[np.isfinite(column)] for column in values[key].astype(np.float64).T]
        y = [float(column.mean()) if len(column) else float("nan") for column in columns]
        spread = [float(column.std(ddof=1)) if len(column) > 1 else 0.0 for column in columns]
        curves.append(Curve(name=name, panel=panel, x=x, y=y, spread=spread))
    return curves


def share_curves(values: Mapping[Key, np.ndarray], x: Sequence[float]) -> list[Curve]:
    """Returns the share of images of which something is true, with its standard error ``sqrt(p (1 - p) / n)``."""
    curves = []
    for key, (panel, name) in apart(values).items():
        p = values[key].mean(0)
        spread = np.sqrt(p * (1 - p) / len(values[key]))
        curves.append(Curve(name=name, panel=panel, x=x, y=p.tolist(), spread=spread.tolist()))
    return curves
