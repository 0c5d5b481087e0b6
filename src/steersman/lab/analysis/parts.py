"""What was measured of each image, written as it comes, so that a killed analysis goes on.

    OUT/settings.json          what makes the figures; an analysis with others is refused
    OUT/parts/FIRST-LAST.npz   of those images, arrays that lead with them

Figures are made of all parts together, image by image: the batch size matters to none.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from steersman.errors import InputError, about, shown
from steersman.files import read_json, read_npz, replacing, write_json, writing_to

__all__ = ["Key", "Parts"]

Key = tuple[str, ...]
"""What an array is of, such as classifier and view."""

IMAGES = "images"


class Parts:
    """The parts of an analysis in its folder."""

    def __init__(self, out: Path, settings: Mapping[str, Any], count: int) -> None:
        self.out, self.folder, self.count = out, out / "parts", count
        self.settings = json.loads(json.dumps(settings))
        before = out / "settings.json"
        if before.exists():
            _same(out, read_json(before, "out"), self.settings)

    def todo(self, size: int) -> list[list[int]]:
        """Returns the images that are still to be measured, at most so many together."""
        if size < 1:
            raise InputError(f"batch-size must be at least 1, got {size}")
        done = {image for part in self._read() for image in part[IMAGES].tolist()}
        left = [image for image in range(self.count) if image not in done]
        return [left[first : first + size] for first in range(0, len(left), size)]

    def write(self, images: Sequence[int], values: Mapping[Key, Tensor]) -> None:
        """Writes what was measured of some images."""
        with writing_to(self.out):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.out / "settings.json", self.settings)
        arrays = {json.dumps(key): value.detach().cpu().numpy() for key, value in values.items()}
        with replacing(self.folder / f"{images[0]:06d}-{images[-1]:06d}.npz") as beside, beside.open("wb") as file:
            np.savez(file, **{IMAGES: np.asarray(images)}, **arrays)  # pyright: ignore[reportArgumentType]

    def read(self) -> dict[Key, np.ndarray]:
        """Returns the arrays of all images, in their order."""
        parts = list(self._read())
        order = np.argsort(np.concatenate([part[IMAGES] for part in parts]))
        return {
            tuple(json.loads(name)): np.concatenate([part[name] for part in parts])[order]
            for name in parts[0]
            if name != IMAGES
        }

    def _read(self) -> list[dict[str, np.ndarray]]:
        found = []
        for path in sorted(self.folder.glob("*-*.npz")):
            if not path.name.startswith("."):
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


def _same(out: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for key in [*now, *before]:
        if before.get(key) != now.get(key):
            settings = f"{key} {shown(before.get(key))}, not {shown(now.get(key))}"
            raise InputError(
                f"out: {str(out)!r} holds an analysis with {settings}; use another folder, or the same settings"
            )
