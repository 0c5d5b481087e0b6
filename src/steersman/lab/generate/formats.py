"""Files of images: one image each (PNG), or many (npz, WebDataset), each image with its record.

    PNG     the record as JSON in the text ``steersman``
    npz     ``arr_0`` the images, (N, H, W, 3) in 8 bits, and ``arr_1`` the indices of their targets, as ADM's evaluator
            takes them; ``records`` as JSON, those of lost images last
    tar     a WebDataset: KEY.png and KEY.json, KEY the image's index in the run; of lost images the record alone

A record lies in the file of its image, so that a run that is continued asks no network again. Files are read with
suspicion: checksums are compared, and what a file claims is held against its size.
"""

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import ConfigDict, TypeAdapter

from steersman.files import in_rgb, open_image, read_array_header, read_member, regular, replacing
from steersman.lab.evaluation import Evaluation

__all__ = ["ImageRecord", "Shard", "open_shard", "read_image_record", "read_pixels", "write_image", "write_shard"]

KEY = "steersman"  # of the text in a PNG
END = b"\0\0\0\0IEND\xaeB`\x82"  # of a PNG, which Pillow does not check
LOCAL_HEADER = 30  # bytes before a name in a ZIP archive; the lengths of name and extra field are its last four
LARGEST_RECORDS = 2**31  # bytes
MEMBERS = ["arr_0.npy", "arr_1.npy", "records.npy"]

Pixels = UInt8[np.ndarray, "H W 3"]


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """What is kept of an image beside its pixels."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    run: str  # the digest of its settings
    target: str
    label: int  # the index of the target in the guide's classes; -1 for a set of classes
    seed: int
    guide: Evaluation | None  # None if it is lost
    judge: Evaluation | None  # likewise, or if the judge lacks the class
    dropped: int  # guidance updates that were not finite
    moved: float | None  # root mean square of the change by guidance, in the units of a sample; None without any
    noise_error: float | None  # `steersman.lab.evaluation`
    evaluations: Mapping[str, float]  # of each network, that the image needed
    seconds: float  # its share of the time of its batch
    lost: bool  # it became non-finite, and has no pixels

    @property
    def name(self) -> str:
        """The name of the image in messages."""
        return f"{self.target} {self.seed}"

    def text(self) -> str:
        """Returns the record as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str | bytes) -> "ImageRecord":
        """Returns the record in a text; raises a `ValueError` if there is none."""
        return _RECORD.validate_json(text)


_RECORD = TypeAdapter(ImageRecord)


def write_image(path: Path, pixels: UInt8[np.ndarray, "H W C"], record: ImageRecord) -> None:
    """Writes an image with its record as PNG, one of a single channel in grey."""
    text = PngInfo()
    text.add_text(KEY, record.text())
    with replacing(path) as beside:
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(beside, format="PNG", pnginfo=text)


def read_image_record(content: bytes) -> ImageRecord | None:
    """Returns the record in the content of a PNG; None if it has none, or is damaged by its checksums."""
    if not content.endswith(END):
        return None
    try:
        with open_image(content) as image:
            record = ImageRecord.from_text(image.info[KEY])
            image.verify()
    except Exception:  # a damaged file can fail a library anywhere
        return None
    return record


def read_pixels(file: Path | bytes) -> Pixels:
    """Returns the pixels of a PNG, given its path or content."""
    with open_image(file) as image:
        return np.array(in_rgb(image))


class _Npz:
    """Images in a NumPy archive, each read from the file when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with zipfile.ZipFile(regular(path)) as archive:
            members = {member.filename: member for member in archive.infolist()}
            stored = all(member.compress_type == zipfile.ZIP_STORED for member in members.values())
            sized = all(member.compress_size == member.file_size for member in members.values())
            if sorted(archive.namelist()) != MEMBERS or not stored or not sized or archive.testzip():
                raise ValueError(f"it must hold {', '.join(MEMBERS)}, uncompressed and undamaged")
            images, records = members["arr_0.npy"], members["records.npy"]
            with archive.open(images) as file:
                (count, *self.shape), fortran, dtype = read_array_header(file)
                begin = file.tell()
            self.size = int(np.prod(self.shape, dtype=object))
            fits = dtype == np.uint8 and not fortran and count * self.size == images.file_size - begin
            if not fits or len(self.shape) != 3 or records.file_size > LARGEST_RECORDS:
                raise ValueError("it holds no images")
            texts = read_member(archive, records).tolist()
        self.records = [ImageRecord.from_text(text if isinstance(text, bytes) else str(text)) for text in texts]
        if count != sum(not record.lost for record in self.records):
            raise ValueError("images are missing")
        with path.open("rb") as file:  # the local header, whose extra field is not that of the archive's directory
            file.seek(images.header_offset + LOCAL_HEADER - 4)
            lengths = int.from_bytes(file.read(2), "little") + int.from_bytes(file.read(2), "little")
        self.begin = images.header_offset + LOCAL_HEADER + lengths + begin

    def pixels(self, index: int) -> Pixels:
        with self.path.open("rb") as file:
            file.seek(self.begin + index * self.size)
            return np.frombuffer(bytearray(file.read(self.size)), np.uint8).reshape(self.shape)


class _Tar:
    """Images in a WebDataset, whose PNGs are kept in memory."""

    def __init__(self, path: Path) -> None:
        with tarfile.open(regular(path), "r:") as archive:
            files = {member.name: archive.extractfile(member) for member in archive if _is_plain(member)}
            contents = {name: file.read() for name, file in files.items() if file is not None}
        self.images = [content for name, content in contents.items() if name.endswith(".png")]
        drawn = [read_image_record(content) for content in self.images]
        if None in drawn:
            raise ValueError("an image is damaged")
        texts = [content for name, content in contents.items() if name.endswith(".json")]
        lost = [record for record in map(ImageRecord.from_text, texts) if record.lost]
        self.records = [record for record in drawn if record] + lost

    def pixels(self, index: int) -> Pixels:
        return read_pixels(self.images[index])


def _is_plain(member: tarfile.TarInfo) -> bool:
    """Returns whether the bytes of a member are in the archive as they are: no link, no device, no sparse file."""
    if member.size < 0:  # tarfile would seek backwards, and never end
        raise ValueError("a member has a negative size")
    return member.isreg() and not member.issparse()


Shard = _Npz | _Tar
"""A file of many images: their ``records``, those of lost images last, and ``pixels(index)`` for one of the others."""


def open_shard(path: Path) -> Shard:
    """Returns a shard by the suffix of its file; raises whatever a damaged file leads to."""
    return _Npz(path) if path.suffix == ".npz" else _Tar(path)


def write_shard(path: Path, records: Mapping[int, ImageRecord], read: Callable[[int], bytes]) -> None:
    """Writes a shard by the suffix of its file: images by their index, each read as PNG when it is written."""
    ordered = dict(sorted(records.items(), key=lambda item: item[1].lost))  # those of lost images last
    with replacing(path) as beside:
        (_write_npz if path.suffix == ".npz" else _write_tar)(beside, ordered, read)


def _write_tar(path: Path, records: Mapping[int, ImageRecord], read: Callable[[int], bytes]) -> None:
    with tarfile.open(path, "w:", format=tarfile.USTAR_FORMAT) as archive:
        for index, record in records.items():
            contents = {} if record.lost else {"png": read(index)}
            for suffix, content in (contents | {"json": record.text().encode()}).items():
                member = tarfile.TarInfo(f"{index:08d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def _write_npz(path: Path, records: Mapping[int, ImageRecord], read: Callable[[int], bytes]) -> None:
    drawn = {index: record for index, record in records.items() if not record.lost}
    images = (read_pixels(read(index)) for index in drawn)
    first = next(images, np.empty((0, 0, 3), np.uint8))
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(drawn), *first.shape)}
    labels = np.array([record.label for record in drawn.values()], np.int64)
    texts = np.array([record.text().encode() for record in records.values()], "S")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for image in chain([first], images):  # one at a time: all together may not fit into memory
                file.write(image.tobytes())
        for name, array in (("arr_1", labels), ("records", texts)):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
