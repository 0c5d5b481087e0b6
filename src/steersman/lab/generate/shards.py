"""Files of many images, each with its record.

    npz     ``arr_0`` the images, (N, H, W, 3) in 8 bits, and ``arr_1`` their targets' numbers, as ADM's evaluator takes
            them; ``records`` of all, JSON, those of lost images after the others
    tar     a WebDataset: KEY.png and KEY.json, KEY the image's index in the run; of lost images the record alone

They are read with suspicion: checksums are compared, what a file claims is held against its size, and what is damaged
is refused.
"""

import io
import tarfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from steersman.files import in_rgb, open_image, read_array_header, read_member, regular, replacing
from steersman.lab.generate.record import Record, read_image

__all__ = ["SHARDS", "Shard", "joined", "open_shard", "write_shard"]

Pixels = UInt8[np.ndarray, "H W 3"]
LOCAL_HEADER = 30  # bytes before a name in a ZIP archive; the lengths of name and extra field are its last four
LARGEST_RECORDS = 2**31  # bytes
MEMBERS = ["arr_0.npy", "arr_1.npy", "records.npy"]


class Npz:
    """Images in a NumPy archive, of which each is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with zipfile.ZipFile(regular(path)) as archive:
            members = archive.infolist()
            if sorted(member.filename for member in members) != MEMBERS:
                raise ValueError(f"it holds other arrays than {', '.join(MEMBERS)}")
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError("what is in it is compressed")
            if any(member.compress_size != member.file_size for member in members):
                raise ValueError("it claims other sizes than it has")
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} is damaged")
            member = archive.getinfo("arr_0.npy")
            with archive.open(member) as file:
                (count, *self.shape), fortran, dtype = read_array_header(file)
                begin = file.tell()
            self.size = int(np.prod(self.shape, dtype=object))
            fits = dtype == np.uint8 and not fortran and count * self.size == member.file_size - begin
            if not fits or len(self.shape) != 3 or archive.getinfo("records.npy").file_size > LARGEST_RECORDS:
                raise ValueError("it holds no images")
            texts = read_member(archive, archive.getinfo("records.npy"))
        self.records = [Record.of(text.decode() if isinstance(text, bytes) else str(text)) for text in texts.tolist()]
        if count != sum(not record.lost for record in self.records):
            raise ValueError("images are missing")
        with path.open("rb") as file:
            file.seek(member.header_offset + LOCAL_HEADER - 4)
            lengths = int.from_bytes(file.read(2), "little") + int.from_bytes(file.read(2), "little")
        self.begin = member.header_offset + LOCAL_HEADER + lengths + begin

    def pixels(self, index: int) -> Pixels:
        """Returns the image of a record."""
        with self.path.open("rb") as file:
            file.seek(self.begin + index * self.size)
            return np.frombuffer(bytearray(file.read(self.size)), np.uint8).reshape(self.shape)

    @staticmethod
    def write(path: Path, images: Mapping[int, tuple[Record, bytes]], lost: Mapping[int, Record]) -> None:
        """Writes one; see `write_shard`."""
        records = [record for record, _ in images.values()]
        _write_npz(path, records, (_decoded(content) for _, content in images.values()), list(lost.values()))


class Tar:
    """A shard as a WebDataset."""

    def __init__(self, path: Path) -> None:
        with tarfile.open(regular(path), "r:") as held:
            files = {member.name: held.extractfile(member) for member in held if _plain(member)}
            contents = {name: file.read() for name, file in files.items() if file is not None}
        self.images = [content for name, content in contents.items() if name.endswith(".png")]
        drawn = [read_image(content) for content in self.images]
        told = [Record.of(content.decode()) for name, content in contents.items() if name.endswith(".json")]
        if None in drawn:
            raise ValueError("an image is damaged")
        self.records = [record for record in drawn if record] + [record for record in told if record.lost]

    def pixels(self, index: int) -> Pixels:
        """Returns the image of a record."""
        return _decoded(self.images[index])

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
        images: Of each image its record and PNG, by its index in the run.
        lost: The records of those that were lost.
    """
    with replacing(path) as beside:
        SHARDS[path.suffix].write(beside, images, lost)


def joined(path: Path, shards: Sequence[Path]) -> None:
    """Writes the images of several NumPy archives as one, of which no more than one image is in memory.

    Args:
        path: Where to.
        shards: The files, in the order of their images.
    """
    opened = [Npz(shard) for shard in shards]
    records = [record for each in opened for record in each.records]
    pixels = (each.pixels(index) for each in opened for index in range(sum(not record.lost for record in each.records)))
    with replacing(path) as beside:
        _write_npz(
            beside,
            [record for record in records if not record.lost],
            pixels,
            [record for record in records if record.lost],
        )


def _write_npz(path: Path, records: Sequence[Record], images: Iterable[Pixels], lost: Sequence[Record]) -> None:
    """Writes images as they come, each with its record."""
    images = iter(images)
    first = next(images, np.empty((0, 0, 3), np.uint8))
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(records), *first.shape)}
    texts = [record.text().encode() for record in (*records, *lost)]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            file.write(first.tobytes())
            for image in images:
                file.write(image.tobytes())
        for name, array in (
            ("arr_1", np.array([record.label for record in records], np.int64)),
            ("records", np.array(texts, "S")),
        ):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _plain(member: tarfile.TarInfo) -> bool:
    """Returns whether a member's bytes are in the archive as they are: no link, no device, no run of zeros left out.

    Raises:
        ValueError: It cannot be read past.
    """
    if member.size < 0:
        raise ValueError("a member has a negative size")
    return member.isreg() and not member.issparse()


def _decoded(content: bytes) -> Pixels:
    with open_image(content) as image:
        return np.array(in_rgb(image))
