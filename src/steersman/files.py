"""Files: what is written is whole or not there, what is read need not be trusted.

A file is written beside its place and renamed. One that is read may come from anybody: it is a regular file, of one of
the formats that are expected, and gets no more memory than its own size accounts for; nothing in it is run.
"""

import csv
import hashlib
import io
import json
import math
import os
import re
import secrets
import shutil
import stat
import warnings
import zipfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import yaml
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from steersman.errors import InputError, about, one_line, shown
from steersman.trust import refuse_code

__all__ = [
    "FORMATS",
    "file_name",
    "in_8_bits",
    "in_rgb",
    "listed",
    "names_in_npz",
    "open_image",
    "parse_yaml",
    "read_array_header",
    "read_bytes",
    "read_csv",
    "read_image",
    "read_json",
    "read_member",
    "read_npz",
    "read_text",
    "read_yaml",
    "regular",
    "regular_below",
    "replacing",
    "replacing_in",
    "system_errors",
    "upright_size",
    "write_image",
    "write_json",
    "writing_to",
]

LONGEST = 60  # characters of a file name, which may take four bytes each of the 255 that file systems allow

DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)  # names that Windows takes for devices

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""The formats of images that are read, none of which runs a program."""

MODES = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", *(WITH_ALPHA := ("RGBA", "RGBa", "LA", "La", "PA")))
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a photograph upright, by the orientation in its EXIF."""
LYING = (5, 6, 7, 8)  # orientations of those whose width is the height

TO_8_BITS = np.round(np.arange(2**16) / 257).astype(np.uint8)
PIXELS, PIXELS_A_BYTE = 2**23, 64  # that an image may claim to have; a photograph has two a byte, an empty page 1000
LARGEST_YAML = 2**20  # characters
DEEPEST_YAML = 100  # levels
LARGEST_NPZ, UNPACKED_A_BYTE = 2**26, 100  # bytes that an archive may unpack to

MERGE = "tag:yaml.org,2002:merge"
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def file_name(text: str) -> str:
    """Returns a text as a name that every file system takes; one that is such a name already stays.

    Where characters had to go, some digits of the text's SHA-256 keep it apart from similar ones.
    """
    name = re.sub(r'[\\/:*?"<>|\x00-\x1f]+', "-", text)[:LONGEST].strip(" .")
    if name and name == text and not DEVICE.match(name):
        return name
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@contextmanager
def writing_to(out: Path, wanted: str = "a folder that can be written to") -> Iterator[None]:
    """Turns what the system says of an output that it does not take into one line.

    Args:
        out: The folder or file.
        wanted: What to give instead.

    Raises:
        InputError: It cannot be written to.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"out: {str(out)!r} cannot be written to ({error.strerror}); give {wanted}") from error


@contextmanager
def system_errors(path: Path) -> Iterator[None]:
    """Turns what the system refuses into an `OSError` of a path, in whatever class a library says so.

    torch raises a `RuntimeError` of its own where a disk is full, safetensors a `SafetensorError`.

    Args:
        path: What is written.

    Raises:
        OSError: The system refuses it.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if (number := _number_of(error)) is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _number_of(error: BaseException | None) -> int | None:
    """Returns the system's number for an error, None where it is none of the system's."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        if found := re.search(r"\(os error (\d{1,5})\)|\bcode: (\d{1,5}), kind:", str(error)):  # as Rust says it
            return int(found[1] or found[2])
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path beside the given one to write to; on success the file takes its place, else it is removed.

    Raises:
        OSError: It cannot be written.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with system_errors(path):
            yield beside
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def replacing_in(folder: Path) -> Iterator[Path]:
    """Yields an empty folder to write to; on success each of its files takes its place in the given one.

    Raises:
        OSError: It cannot be written.
    """
    beside = folder / f".{secrets.token_hex(4)}.part"
    try:
        with system_errors(folder):
            beside.mkdir(parents=True)
            yield beside
            for path in sorted(each for each in beside.rglob("*") if each.is_file()):
                place = folder / path.relative_to(beside)
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def in_8_bits(images: Float[Tensor, "*batch C H W"]) -> UInt8[Tensor, "*batch C H W"]:
    """Returns images in [-1, 1] as files have them, 8 bits a channel."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def write_image(path: Path, image: Float[Tensor, "C H W"]) -> None:
    """Writes an image in [-1, 1] as PNG, one of a channel as a grey one."""
    pixels = in_8_bits(image).permute(1, 2, 0).cpu().numpy()
    with replacing(path) as beside:
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(beside, format="PNG")


@contextmanager
def open_image(source: Path | bytes, kind: str = "image", *, still: bool = True) -> Iterator[Image.Image]:
    """Yields an image file, opened and not decoded, of one of `FORMATS` whatever its name says.

    Pillow alone would hand PostScript to Ghostscript, wait for a pipe, and decode what a few bytes blow up to.

    Args:
        source: The file, or what is in one.
        kind: What it is, for the messages.
        still: Whether an animation is refused; a phone's photograph with its parts (MPO) is none.

    Raises:
        InputError: It is no such image, or a larger one than its bytes can account for; or the code inside fails.
    """
    place = source if isinstance(source, Path) else "an image"
    with about(kind, place):
        content = io.BytesIO(source) if isinstance(source, bytes) else regular(source)
        with _opened(content) as image:
            size = len(source) if isinstance(source, bytes) else source.stat().st_size
            width, height = image.size
            if not 0 < width * height <= max(PIXELS, PIXELS_A_BYTE * size):
                raise InputError(f"it claims {width} by {height} pixels in {size} bytes")
            if still and image.format != "MPO" and getattr(image, "is_animated", False):
                raise InputError(f"it must be a still image, got an animated {image.format}")
            yield image


def _opened(source: Path | io.BytesIO) -> Image.Image:
    try:
        with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
            return Image.open(source, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise InputError(f"it must be an image: {', '.join(FORMATS)}") from error


def in_rgb(image: Image.Image) -> Image.Image:
    """Returns an image in 8 bits a channel, red, green and blue.

    It is as Pillow and torchvision read it but for this. Grey of 16 bits is scaled to 8, where Pillow cuts it off at
    white. A photograph is turned upright, as its EXIF says. What has transparent pixels, or no known range (32 bits a
    channel, LAB), is refused.

    Raises:
        InputError: It is refused.
    """
    turn = TURNS.get(_orientation(image))
    upright = _in_rgb(image)
    return upright if turn is None else upright.transpose(turn)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Returns width and height of an opened image, as `in_rgb` returns it, without decoding it."""
    width, height = image.size
    return (height, width) if _orientation(image) in LYING else (width, height)


def _orientation(image: Image.Image) -> int:
    """Returns how a photograph was held, by the EXIF before its pixels; Pillow turns TIFF by itself."""
    return image.getexif().get(ExifTags.Base.Orientation, 1) if "exif" in image.info and image.format != "TIFF" else 1


def _in_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        grey = np.asarray(image)
        if (grey == image.info.get("transparency")).any():
            raise InputError("it must be opaque, got transparent pixels")
        return Image.fromarray(TO_8_BITS[grey]).convert("RGB")
    if image.mode not in MODES:
        raise InputError(f"it must have 8 or 16 bits a channel, grey or in colours, got the mode {image.mode}")
    if image.mode in WITH_ALPHA or "transparency" in image.info:
        opaque = image.convert("RGBA")
        if opaque.getchannel("A").getextrema() != (255, 255):
            raise InputError("it must be opaque, got transparent pixels")
        return opaque.convert("RGB")
    return image.convert("RGB")


def read_image(path: Path, kind: str = "image") -> Image.Image:
    """Returns the image in a file, in 8 bits a channel, red, green and blue.

    Raises:
        InputError: See `open_image` and `in_rgb`.
    """
    with open_image(path, kind) as image:
        return in_rgb(image)


def regular(path: Path) -> Path:
    """Returns the path of a file that can be opened without waiting.

    Raises:
        InputError: It is a pipe, a socket or a device.
        OSError: It is not there.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"{str(path)!r} must be a regular file, got a pipe, a socket or a device")
    return path


def regular_below(folder: Path) -> Path:
    """Returns a folder of which every file can be opened without waiting, for a library that opens them by itself.

    Raises:
        InputError: One is a pipe, a socket or a device.
    """
    for where, _, names in os.walk(folder):
        for path in (Path(where, name) for name in names):
            if path.exists():  # else a link to nothing
                regular(path)
    return folder


def read_bytes(path: Path) -> bytes:
    """Returns what is in a file.

    Raises:
        InputError: It is no regular file.
        OSError: It cannot be read.
    """
    return regular(path).read_bytes()


def read_text(path: Path) -> str:
    """Returns a text in UTF-8, with or without a byte order mark, its lines ended as Python ends them.

    Raises:
        InputError: It is no regular file.
        OSError, UnicodeDecodeError: It cannot be read.
    """
    return regular(path).read_text(encoding="utf-8-sig")


def read_yaml(path: Path, kind: str, *, trusted: Collection[str] | None = ()) -> dict[str, Any]:
    """Returns the mapping in a file of YAML.

    Args:
        path: The file.
        kind: What it is of, for the messages.
        trusted: The code that it may name (`steersman.trust`); None for a file that is compared or shown, not obeyed.

    Raises:
        InputError: It is not there, or is no such mapping, see `parse_yaml`; or it names other code.
    """
    with about(kind, path):
        content = parse_yaml(read_text(path))
        if not isinstance(content, dict):
            raise InputError(f"it must hold a mapping, got {shown(content)}")
        if trusted is not None:
            refuse_code(content, path, trusted)
        return content


def parse_yaml(text: str) -> Any:  # noqa: ANN401
    """Returns what a text says in YAML.

    An alias stands for what its anchor names, as often as it is used: what is small in the file may be endless in
    memory, or in a message. So it is measured before it is built.

    Raises:
        InputError: It is no YAML, has a key twice, or is too large.
    """
    if len(text) > LARGEST_YAML:
        raise InputError(f"YAML must have at most {LARGEST_YAML} characters, got {len(text)}")
    Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loader = Loader(text)
    try:
        _refuse_nesting(yaml.parse(text, Loader))
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, {})
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise InputError(f"it is no YAML: {' '.join(str(error).split())}") from error
    except (ValueError, RecursionError) as error:  # a date or a number that is none; brackets in brackets
        raise error if isinstance(error, InputError) else InputError(f"it is no YAML: {one_line(error)}") from error
    finally:
        loader.dispose()


def _refuse_nesting(events: Iterable[yaml.Event]) -> None:
    """Refuses brackets in brackets without end, which some versions of PyYAML follow until the stack overflows."""
    depth = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST_YAML:
            raise InputError(f"YAML must be nested at most {DEEPEST_YAML} levels deep")


def _measure(node: yaml.Node, known: dict[int, int]) -> int:
    """Returns how many characters a node has with all that its aliases stand for."""
    if id(node) in known:
        if known[id(node)] < 0:
            raise InputError("YAML must not hold an alias of what it stands in")
        return known[id(node)]
    known[id(node)] = -1
    size = 1
    if isinstance(node, yaml.ScalarNode):
        size += len(node.value)
    elif isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != MERGE]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise InputError(f"YAML must have each key once, got {shown(twice)} twice")
        size += sum(_measure(part, known) for pair in node.value for part in pair)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_measure(part, known) for part in node.value)
    if size > 2 * LARGEST_YAML:
        raise InputError("YAML must not hold aliases that make it many times as large")
    known[id(node)] = size
    return size


def read_json(path: Path, kind: str = "file") -> dict[str, Any]:
    """Returns the mapping in a file of JSON.

    Args:
        path: The file.
        kind: What it is of, for the messages.

    Raises:
        InputError: It is not there, is no JSON, or no mapping.
    """
    with about(kind, path):
        content = json.loads(read_text(path))
        if not isinstance(content, dict):
            raise InputError(f"it must hold a mapping, got {shown(content)}")
        return content


def read_csv(path: Path, kind: str) -> list[list[str]]:
    """Returns the rows of a table in a file of comma-separated values.

    Args:
        path: The file.
        kind: What it is of, for the messages.

    Raises:
        InputError: It is not there, is no such table, or its rows differ in length.
    """
    with about(kind, path):
        rows = list(csv.reader(io.StringIO(read_text(path), newline="")))
        if not rows or any(len(row) != len(rows[0]) for row in rows):
            raise InputError("it must be a table as CSV")
        return rows


def read_npz(path: Path, kind: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a NumPy archive; nothing in it is unpickled.

    What an array claims to be is held against its bytes in the archive, and these against the file's, before there is
    memory for it.

    Args:
        path: The file.
        kind: What it is, for the messages.

    Raises:
        InputError: It cannot be read.
    """
    with about(kind, path), zipfile.ZipFile(regular(path)) as archive:
        members = archive.infolist()
        room = max(LARGEST_NPZ, UNPACKED_A_BYTE * path.stat().st_size)
        if sum(member.file_size for member in members) > room:
            raise InputError("it unpacks to many times its size")
        return {member.filename.removesuffix(".npy"): read_member(archive, member) for member in members}


def names_in_npz(path: Path, kind: str) -> list[str]:
    """Returns the names of the arrays in a NumPy archive.

    Args:
        path: The file.
        kind: What it is, for the messages.

    Raises:
        InputError: It cannot be read.
    """
    with about(kind, path), zipfile.ZipFile(regular(path)) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Returns an array of a NumPy archive, which claims no more than there is of it in the archive.

    Raises:
        InputError: It claims more, or would have to be unpickled.
    """
    with archive.open(member) as file:
        shape, _, dtype = read_array_header(file)
        held = member.file_size - file.tell()
        if dtype.hasobject or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != held:
            raise InputError(f"its array {member.filename!r} claims {dtype} of {shown(shape)} in {held} bytes")
    with archive.open(member) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        file.read(1)  # beyond its end, where the checksum is compared
        return array


def read_array_header(file: IO[bytes] | io.BufferedIOBase) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Returns shape, order and type of an array in NumPy's format, and leaves the file where its values begin.

    Raises:
        ValueError: It is in no such format.
    """
    version = np.lib.format.read_magic(file)  # pyright: ignore[reportArgumentType]
    if version not in HEADERS:
        raise ValueError(f"version {version} of NumPy's format")
    return HEADERS[version](file)


def listed(names: object) -> tuple[str, ...]:
    """Returns the names of classes that a file lists.

    Raises:
        InputError: It lists something else.
    """
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        raise InputError(f"classes must be a list of names, got {shown(names)}")
    return tuple(names)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a mapping as indented JSON."""
    with replacing(path) as beside:
        beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
