"""Data sets by one string: ``sportballs``, ``cifar10:``, ``mnist:``, or an image folder with one folder a class."""

from pathlib import Path

import torch
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from steersman.data.pictures import SOURCES, read_pictures
from steersman.data.sportballs import SportBalls
from steersman.errors import InputError

__all__ = ["load_data"]


SIDE = 64  # of images that have no side of their own, in pixels


def load_data(
    spec: str, *, resolution: int | None = None, num: int = 100_000, seed: int = 0
) -> tuple[Dataset, tuple[str, ...]]:
    """Returns a map-style data set of images (C, H, W) in [-1, 1] with their labels, and the names of its classes.

    Args:
        spec: ``sportballs``, ``sportballs:PRESET``; ``cifar10:`` or ``mnist:``, with a folder and ``?split=test`` or
            without (`steersman.data.pictures`); or a folder.
        resolution: The side of the images in pixels; a folder's are resized to it and cropped in the middle. None for
            CIFAR-10's and MNIST's own, and 64 for the others.
        num: How many images, where they are drawn and not read.
        seed: The seed of those.

    Raises:
        InputError: No such folder, or none with a class a folder; or as `steersman.data.pictures.read_pictures`.
    """
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
    try:
        folder = ImageFolder(spec, transform=v2.Compose(steps))
    except FileNotFoundError as error:
        raise InputError(f"data: {spec!r} holds no folder with images; allowed: a folder a class") from error
    return folder, tuple(folder.classes)
