"""An image folder, a class a folder, from a data set that renders."""

from collections.abc import Iterator
from pathlib import Path

import torch

from steersman.files import write_image, writing_to
from steersman.lab.data.sportballs import SportBalls

__all__ = ["write_folder"]

BATCH = 64


def write_folder(balls: SportBalls, out: Path, *, device: torch.device | str = "cpu") -> Iterator[Path]:
    """Writes each image as ``OUT/CLASS/000000.png``, numbered by its index, and yields its path."""
    with writing_to(out):
        for name in balls.classes:
            (out / name).mkdir(parents=True, exist_ok=True)
    for first in range(0, len(balls), BATCH):
        indices = range(first, min(first + BATCH, len(balls)))
        images, labels = balls.batch(indices, device)
        for index, image, label in zip(indices, images, labels.tolist(), strict=True):
            path = out / balls.classes[label] / f"{index:06d}.png"
            write_image(path, image)
            yield path
