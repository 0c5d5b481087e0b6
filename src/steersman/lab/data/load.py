"""Data sets by one string: ``sportballs``, ``cifar10:``, ``mnist:``, or an image folder with one folder a class."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from steersman.errors import InputError
from steersman.files import read_image
from steersman.lab.data.pictures import SOURCES, read_pictures
from steersman.lab.data.sportballs import SportBalls

__all__ = ["load_data"]


SIDE = 64  # of images that have no side of their own, in pixels


def load_data(
    spec: str, *, resolution: int | None = None, num: int = 100_000, seed: int = 0
) -> tuple[Dataset, tuple[str, ...]]:
    """Returns a map-style data set of images (C, H, W) in [-1, 1] with their labels, and the names of its classes."""
    name, _, preset = spec.partition(":")
    if name in SOURCES:
        pictures = read_pictures(name, preset, resolution)
        return pictures, pictures.classes
    resolution = resolution or SIDE
    if name == "sportballs":
        balls = SportBalls.preset(preset or "large", num=num, seed=seed, resolution=resolution)
        return balls, balls.classes
    if not Path(spec).is_dir():
        raise InputError(
            f"data must be sportballs, sportballs:nrcg, {', '.join(f'{source}:' for source in SOURCES)} or a folder "
            f"with a folder a class, got {spec!r}"
        )
    steps = [
        v2.ToImage(),
        v2.Resize(resolution, antialias=True),
        v2.CenterCrop(resolution),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5], [0.5]),
    ]
    found = {path.name: _below(path) for path in sorted(Path(spec).iterdir()) if path.is_dir()}
    classes = tuple(found)
    if not classes:
        raise InputError(f"data: {spec!r} must hold a folder of images a class, it holds no folder")
    for name, files in found.items():
        if not files:
            raise InputError(f"data: {spec!r} must hold a folder of images a class, {name!r} holds none")
    labelled = [(path, label) for label, files in enumerate(found.values()) for path in files]
    return _Folder(labelled, v2.Compose(steps)), classes


def _below(folder: Path) -> list[Path]:
    """Returns the images in a folder and below it; a link to a folder, which may lead round, is not followed."""
    return sorted(
        Path(where, name)
        for where, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(IMG_EXTENSIONS)
    )


class _Folder(Dataset):
    """Images in files, read when they are asked for."""

    def __init__(self, files: Sequence[tuple[Path, int]], transform: Callable[[Image.Image], Tensor]) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "3 H W"], int]:
        path, label = self.files[index]
        return self.transform(read_image(path, "data")), label
