"""Shards: files of many images, each with its record.

    npz     ``arr_0`` the images, (N, H, W, 3) in 8 bits, and ``arr_1`` their targets' numbers, as ADM's; ``records``
            of all, JSON, those of lost images after the others
    tar     a WebDataset: KEY.png and KEY.json, KEY the image's place in the run; of lost images the record alone

Both are made of files of one image, and read whole: checksums are compared, and what is damaged is refused.
"""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from steersman.files import replacing
from steersman.generate.record import Record, read_image

__all__ = ["SHARDS", "Shard", "open_shard", "write_shard"]


class Npz:
    """A shard as a NumPy archive."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files}  # all, so that all checksums are compared
        self.images, self.records = arrays["arr_0"], [Record.of(str(text)) for text in arrays["records"]]
        if len(self.images) != sum(not record.lost for record in self.records):
            raise ValueError("images are missing")

    def pixels(self, place: int) -> UInt8[np.ndarray, "H W 3"]:
        """Returns the image of a record."""
        return self.images[place]

    @staticmethod
    def write(path: Path, images: Mapping[int, tuple[Record, bytes]], lost: Mapping[int, Record]) -> None:
        """Writes one; see `write_shard`."""
        records = [record for record, _ in images.values()]
        pixels = [_decoded(content) for _, content in images.values()]
        with path.open("wb") as file:
            np.savez(
                file,
                arr_0=np.stack(pixels) if pixels else np.empty((0, 0, 0, 3), np.uint8),
                arr_1=np.array([record.label for record in records], np.int64),
                records=np.array([record.text() for record in (*records, *lost.values())]),
            )


class Tar:
    """A shard as a WebDataset."""

    def __init__(self, path: Path) -> None:
        with tarfile.open(path, "r:") as held:
            files = {member.name: held.extractfile(member) for member in held}
            contents = {name: file.read() for name, file in files.items() if file is not None}
        self.images = [content for name, content in contents.items() if name.endswith(".png")]
        drawn = [read_image(content) for content in self.images]
        told = [Record.of(content.decode()) for name, content in contents.items() if name.endswith(".json")]
        if None in drawn:
            raise ValueError("an image is damaged")
        self.records = [record for record in drawn if record] + [record for record in told if record.lost]

    def pixels(self, place: int) -> UInt8[np.ndarray, "H W 3"]:
        """Returns the image of a record."""
        return _decoded(self.images[place])

    @staticmethod
    def write(path: Path, images: Mapping[int, tuple[Record, bytes]], lost: Mapping[int, Record]) -> None:
        """Writes one; see `write_shard`."""
        with tarfile.open(path, "w:", format=tarfile.USTAR_FORMAT) as file:

            def add(name: str, content: bytes) -> None:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))

            for index, (record, content) in images.items():
                add(f"{index:08d}.png", content)
                add(f"{index:08d}.json", record.text().encode())
            for index, record in lost.items():
                add(f"{index:08d}.json", record.text().encode())


Shard = Npz | Tar
"""Images in one file with their ``records``, of those that were lost last; ``pixels`` is the image of one of them."""

SHARDS = {".npz": Npz, ".tar": Tar}


def open_shard(path: Path) -> Shard:
    """Returns a shard by its file's suffix.

    Raises:
        Exception: It is damaged, or no shard.
    """
    return SHARDS[path.suffix](path)


def write_shard(path: Path, images: Mapping[int, tuple[Record, bytes]], lost: Mapping[int, Record]) -> None:
    """Writes a shard by its file's suffix.

    Args:
        path: Where to.
        images: Of each image its record and PNG, by its place in the run.
        lost: The records of those that were lost.
    """
    with replacing(path) as beside:
        SHARDS[path.suffix].write(beside, images, lost)


def _decoded(content: bytes) -> UInt8[np.ndarray, "H W 3"]:
    with Image.open(io.BytesIO(content)) as image:
        return np.array(image.convert("RGB"))
