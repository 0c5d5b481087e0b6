"""Sets of images, named in one line: to measure, and to train on.

    FOLDER                  a run in any format, or a folder of images; with a folder for each class, those are labels
    FILE.npz                a batch in ADM's format: ``arr_0`` (N, H, W, 3) in uint8, ``arr_1`` numbers as labels; in
                            its reference batches ``mu`` and ``sigma`` of the larger set that they were drawn from
    sportballs[:PRESET]     rendered, or ``sportballs:CLASS`` for one kind of ball
    cifar10:[FOLDER]        published, as is ``mnist:[FOLDER]`` (`.pictures`); grey images get three channels

    ?resolution=64          a folder's images: shorter side resized, centre cropped; others: the side
    ?num=1000&seed=0        rendered: number of images, seed of the set; published: how many are drawn with which seed
    ?split=test             published: the test images instead of the training images

Images to measure have 8 bits a channel wherever they come from: a rendered set equals the folder it is written to. A
training takes rendered images as they are, and published ones with their own channels (`load_data`).
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from steersman.errors import InputError, about, unknown
from steersman.files import (
    file_name,
    in_8_bits,
    open_image,
    read_image,
    read_npz,
    upright_size,
    write_image,
    writing_to,
)
from steersman.lab.data.pictures import SOURCES, read_pictures
from steersman.lab.data.sportballs import CLASSES, PRESETS, SportBalls
from steersman.names import same_class, split_options
from steersman.typed import typed

__all__ = ["ImageSet", "indices_of", "load_data", "moments_in", "read_images", "write_folder"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
RENDERED = "sportballs"
NUM, SIDE = 1000, 64  # of a rendered set: images, and their side in pixels
SIZED, SHOWN = 256, 3  # images whose size tells that of all, at most; sizes in a message
OPEN = 4  # files of packed images that stay open
BATCH = 64  # images that are rendered at a time


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images of one size, read when they are asked for.

    Attributes:
        spec: The text that names the set.
        indices: The images' numbers in their source.
        read: Maps numbers to images, (B, 3, H, W) in 8 bits.
        labels: Each image's class; None without classes.
        moments: Mean and covariance of Inception's features of the larger set that these images were drawn from.
    """

    spec: str
    indices: Sequence[int]
    read: Callable[[Sequence[int]], UInt8[Tensor, "B 3 H W"]]
    labels: tuple[str, ...] | None = None
    moments: tuple[Float[Tensor, " D"], Float[Tensor, "D D"]] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def pixels(self, batch_size: int = 64) -> Iterator[UInt8[Tensor, "B 3 H W"]]:
        """Yields batches of images in 8 bits."""
        for first in range(0, len(self), batch_size):
            yield self.read(self.indices[first : first + batch_size])

    def batches(self, batch_size: int = 64) -> Iterator[Float[Tensor, "B 3 H W"]]:
        """Yields batches of images in [-1, 1]."""
        for pixels in self.pixels(batch_size):
            yield pixels / 127.5 - 1

    @property
    def side(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.read(self.indices[:1]).shape[2:]
        return height, width

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of the images; empty without labels."""
        return tuple(dict.fromkeys(self.labels or ()))

    def of(self, *names: str) -> "ImageSet":
        """Returns the images of a class, or of several."""
        return self.some(indices_of(names, self.labels, self.spec))

    def some(self, chosen: Sequence[int]) -> "ImageSet":
        """Returns some images by their indices in this set."""
        labels = self.labels and tuple(self.labels[i] for i in chosen)
        return replace(self, indices=[self.indices[i] for i in chosen], labels=labels, moments=None)


def indices_of(names: Sequence[str], labels: Sequence[str] | None, spec: str) -> list[int]:
    """Returns the indices of the images of a class, or of several."""
    if labels is None:
        raise InputError(f"class {names[0]!r} can only be chosen from a set with labels, but {spec!r} has none")
    classes = dict.fromkeys(labels)
    meant = {label for name in names for label in same_class([name], classes)}
    if not meant:
        raise unknown(f"class of {spec!r}", names[0], classes)
    return [i for i, label in enumerate(labels) if label in meant]


def read_images(spec: str | Path) -> ImageSet:
    """Returns the set of images that a text names, see above."""
    spec = str(spec)
    if Path(spec).is_dir():
        return _folder(spec, Path(spec))
    if Path(spec).is_file():
        return _batch(spec)
    name, options = split_options(spec, ("num", "seed", "resolution", "split"), f"option of {spec!r}")
    settings = {key: value if key == "split" else _number(spec, key, value) for key, value in options.items()}
    source, _, kind = name.partition(":")
    if source in SOURCES:
        return _published(spec, source, kind, **settings)
    if source == RENDERED and "split" not in settings:
        return _rendered(spec, kind, **settings)
    if Path(name).is_dir() and settings.keys() <= {"resolution"}:
        return _folder(spec, Path(name), **settings)
    raise InputError(
        "images must be a folder (FOLDER?resolution=64), a batch FILE.npz, cifar10:[FOLDER][?split=test], "
        f"mnist:[FOLDER][?split=test] or sportballs[:PRESET or CLASS][?num=1000&seed=0&resolution=64], got {spec!r}"
    )


def _number(spec: str, key: str, value: str) -> int:
    least = 0 if key == "seed" else 1
    if not value.isdecimal() or int(value) < least:
        raise InputError(f"images: {key} must be a whole number of at least {least}, got {value!r} in {spec!r}")
    return int(value)


def _published(
    spec: str,
    source: str,
    folder: str,
    *,
    num: int | None = None,
    seed: int = 0,
    resolution: int | None = None,
    split: str = "train",
    channels: int | None = 3,
) -> ImageSet:
    """Returns images of CIFAR-10 or MNIST; with their own channels where these are None."""
    pixels, labels = read_pictures(source, folder, split)
    if num is not None and num > len(pixels):
        raise InputError(f"images: num must be at most {len(pixels)}, the number of images of {source}, got {num}")
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))
    indices = range(len(pixels)) if num is None else order[:num].tolist()
    classes = SOURCES[source].classes
    return ImageSet(
        spec=spec,
        indices=indices,
        read=partial(_read_pixels, pixels.expand(-1, channels or pixels.shape[1], -1, -1), resolution),
        labels=tuple(classes[label] for label in labels[list(indices)].tolist()),
    )


def _read_pixels(
    pixels: UInt8[Tensor, "N C H W"], resolution: int | None, chosen: Sequence[int]
) -> UInt8[Tensor, "B C h w"]:
    images = pixels[list(chosen)]
    if resolution is None:
        return images
    return v2.functional.resize(images, [resolution, resolution], v2.InterpolationMode.BICUBIC)


def _rendered(spec: str, kind: str, num: int = NUM, seed: int = 0, resolution: int = SIDE) -> ImageSet:
    if kind and kind not in (*PRESETS, *CLASSES):
        raise unknown("preset or class of sportballs", kind, (*PRESETS, *CLASSES))
    only = kind if kind in CLASSES else None
    # The set has no end, so that there are num images of one class too.
    balls = SportBalls.preset("large" if only else kind or "large", num=2**62, seed=seed, resolution=resolution)
    drawn = ((index, CLASSES[balls.label(index)]) for index in count())
    indices, labels = zip(*islice((each for each in drawn if only in (None, each[1])), num), strict=True)
    return ImageSet(spec=spec, indices=indices, read=lambda chosen: in_8_bits(balls.batch(chosen)[0]), labels=labels)


def _folder(spec: str, folder: Path, resolution: int | None = None, *, kind: str = "images") -> ImageSet:
    """Returns the images of a folder; of one size without a resolution, and with 0 of their own, which is square."""
    from steersman.lab.generate.store import shard_files

    if shards := shard_files(folder):
        return _packed(spec, shards, resolution or None)
    own = _files(folder)
    below = {path: files for path in sorted(folder.iterdir()) if path.is_dir() and (files := _files(path))}
    if own and below:
        raise InputError(
            f"{kind}: {spec!r} must hold either images or a folder of images for each class, but it holds both"
        )
    for path in below:
        nested = next((entry.name for entry in os.scandir(path) if entry.is_dir() and entry.name[0] != "."), None)
        if nested is not None:
            raise InputError(f"{kind}: {str(path)!r} must hold no folder beside its images, but it holds {nested!r}")
    if not own and not below:
        raise InputError(f"{kind}: {spec!r} must hold at least 1 image ({', '.join(SUFFIXES)}), but it holds none")
    titles = _targets(folder)
    labels = tuple(titles.get(path.name, path.name) for path, files in below.items() for _ in files)
    if own and len(titles) == 1:
        labels = tuple(titles.values()) * len(own)
    files = own or [file for files in below.values() for file in files]
    if resolution is None:
        _check_sizes(files)
    elif not resolution:
        resolution = _resolution_of(files[:: -(-len(files) // SIZED)], kind)
    return ImageSet(
        spec=spec,
        indices=range(len(files)),
        # No lambda: where processes are spawned, those that load data get the set as a pickle.
        read=partial(_read_files, files, resolution, kind),
        labels=labels or None,
    )


def _read_files(
    files: Sequence[Path], resolution: int | None, kind: str, chosen: Sequence[int]
) -> UInt8[Tensor, "B 3 H W"]:
    return torch.stack([_pixels(read_image(files[i], kind), resolution) for i in chosen])


def _files(folder: Path) -> list[Path]:
    """Returns the images in a folder; of a run, those named by a number, not the grid."""
    files = list(filter(_is_image, folder.iterdir()))
    if (folder / "run.yaml").exists():
        files = [path for path in files if path.stem.isdecimal()]
    return sorted(files)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _targets(folder: Path) -> dict[str, str]:
    """Returns the targets of a run by the names of their folders; empty for any other folder."""
    from steersman.lab.run import DRAWN, LAX, read_record

    if not (folder / "run.yaml").exists():
        return {}
    with about("run", folder / "run.yaml"):
        record = read_record(folder / "run.yaml")
        names = record[DRAWN]["targets"] if DRAWN in record else record["targets"]
        names = typed("targets", names, list[str], LAX)
    return {file_name(name): name for name in names if name != "all"}


def _check_sizes(files: Sequence[Path]) -> None:
    first = None
    for file in files:
        with open_image(file, "images") as image:
            width, height = upright_size(image)
        first = first or (width, height)
        if (width, height) != first:
            raise InputError(
                f"images must all have the same size, but {str(file)!r} has {width} by {height} pixels and "
                f"{files[0].name} has {first[0]} by {first[1]}; resize them with FOLDER?resolution=64"
            )


def _resolution_of(files: Sequence[Path], kind: str) -> int:
    """Returns the side of square images that are all of one size."""
    sizes = set()
    for file in files:
        with open_image(file, kind) as image:
            sizes.add(upright_size(image))
    if len(sizes) > 1 or len({*next(iter(sizes))}) > 1:
        listed = ", ".join(f"{width} by {height}" for width, height in sorted(sizes)[:SHOWN])
        raise InputError(
            f"resolution must be given, as the images are not all squares of one size: {listed}"
            f"{', …' if len(sizes) > SHOWN else ''} pixels; with --resolution 64 the shorter side is "
            "resized and the centre cropped"
        )
    return sizes.pop()[0]


def _packed(spec: str, shards: Sequence[Path], resolution: int | None) -> ImageSet:
    """Returns the images of a run that several share a file."""
    from steersman.lab.generate.formats import open_shard

    opened = lru_cache(maxsize=OPEN)(open_shard)
    owners, labels = [], []
    for path in shards:
        with about("images", path):
            records = [record for record in opened(path).records if not record.lost]
        owners += [(path, index) for index in range(len(records))]
        labels += [record.target for record in records]
    if not owners:
        raise InputError(f"images: {spec!r} must hold at least 1 image, but it holds none")

    def read(chosen: Sequence[int]) -> UInt8[Tensor, "B 3 H W"]:
        images = []
        for path, index in (owners[i] for i in chosen):
            with about("images", path):
                images.append(_pixels(Image.fromarray(opened(path).pixels(index)), resolution))
        return torch.stack(images)

    return ImageSet(spec=spec, indices=range(len(owners)), read=read, labels=tuple(labels))


def _pixels(image: Image.Image, resolution: int | None) -> UInt8[Tensor, "3 H W"]:
    """Returns an image; with a resolution, its shorter side resized and its centre cropped."""
    if resolution is not None:
        image = v2.Resize(resolution, v2.InterpolationMode.BICUBIC)(image)
        image = v2.CenterCrop(resolution)(image)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _batch(spec: str) -> ImageSet:
    arrays = read_npz(Path(spec), "images")
    images, numbers = arrays.get("arr_0"), arrays.get("arr_1")
    if images is None or images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        has = ", ".join(f"{key} {array.shape} {array.dtype}" for key, array in arrays.items())
        raise InputError(f"images: {spec!r} must hold arr_0 of shape (N, H, W, 3) in uint8, got {has or 'no arrays'}")
    if not len(images):
        raise InputError(f"images: {spec!r} must hold at least 1 image, but it holds none")
    if numbers is not None and numbers.shape != (len(images),):
        raise InputError(
            f"images: labels (arr_1) in {spec!r} must have the shape ({len(images)},), got {numbers.shape}"
        )
    return ImageSet(
        spec=spec,
        indices=range(len(images)),
        read=lambda chosen: torch.from_numpy(images[list(chosen)]).permute(0, 3, 1, 2),
        labels=None if numbers is None else tuple(map(str, numbers.tolist())),
        moments=moments_in(arrays, spec),
    )


def moments_in(arrays: Mapping[str, np.ndarray], spec: str) -> tuple[Float[Tensor, " D"], Float[Tensor, "D D"]] | None:
    """Returns mean and covariance, ``mu`` and ``sigma`` of an archive; None if it lacks one of them."""
    mean, covariance = arrays.get("mu"), arrays.get("sigma")
    if mean is None or covariance is None:
        return None
    if mean.ndim != 1 or covariance.shape != (*mean.shape, *mean.shape):
        raise InputError(
            f"statistics: mu and sigma in {spec!r} must have the shapes (D,) and (D, D), got {mean.shape} and "
            f"{covariance.shape}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise InputError(f"statistics: mu and sigma in {spec!r} must be finite, but some values are not")
    return torch.from_numpy(mean), torch.from_numpy(covariance)


def load_data(
    spec: str, *, resolution: int | None = None, num: int = 100_000, seed: int = 0
) -> tuple[Dataset, tuple[str, ...]]:
    """Returns a map-style data set of images (C, H, W) in [-1, 1] with their labels, and the names of its classes.

    A folder without folders of classes has no classes, and its labels are all 0. The resolution of a folder is by
    default that of its images.
    """
    source, _, kind = spec.partition(":")
    if source in SOURCES:
        folder, options = split_options(kind, ("split",), f"option of {source}")
        images = _published(spec, source, folder, resolution=resolution, channels=None, **options)
        data = _Labelled(images, SOURCES[source].classes)
    elif source == RENDERED:
        data = SportBalls.preset(kind or "large", num=num, seed=seed, resolution=resolution or SIDE)
    elif Path(spec).is_dir():
        images = _folder(spec, Path(spec), resolution or 0, kind="data")
        data = _Labelled(images, images.classes)
        # To a training each folder is a class; of a run that is measured, a target may have lost all its images.
        for path in sorted(Path(spec).iterdir()):
            if path.is_dir() and path.name[0] != "." and not any(map(_is_image, path.iterdir())):
                raise InputError(f"data: {spec!r} must hold a folder of images a class, {path.name!r} holds none")
    else:
        raise InputError(
            f"data must be sportballs, sportballs:nrcg, {', '.join(f'{source}:' for source in SOURCES)} or a folder of "
            f"images or of a folder of images for each class, got {spec!r}"
        )
    return data, data.classes


class _Labelled(Dataset):
    """A set of images with labels, read when they are asked for."""

    def __init__(self, images: ImageSet, classes: tuple[str, ...]) -> None:
        self.images, self.classes = images, classes
        numbers = {label: number for number, label in enumerate(classes)}
        self.labels = [0] * len(images) if images.labels is None else [numbers[label] for label in images.labels]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "C H W"], int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Float[Tensor, "C H W"], int]]:
        """Returns several images at once: what a `DataLoader` asks for."""
        pixels = self.images.read([self.images.indices[i] for i in indices])
        return [(image / 127.5 - 1, self.labels[i]) for image, i in zip(pixels, indices, strict=True)]


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
