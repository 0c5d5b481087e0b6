"""Files: written atomically, and read without trust.

A file is written beside its path and renamed. A file that is read may come from anybody: it is a regular file of an
expected format, gets no more memory than its own size accounts for, and nothing in it is run.
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
from collections.abc import Collection, Iterator
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
    "class_names",
    "file_name",
    "in_8_bits",
    "in_rgb",
    "names_in_npz",
    "new_folder",
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
    "upright_size",
    "write_image",
    "write_json",
    "write_yaml",
    "writing_to",
]

LONGEST = 60  # characters of a file name, which may take four bytes each of the 255 that file systems allow
DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)  # names of Windows' devices

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""The formats of images that are read, none of which runs a program."""

WITH_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")
MODES = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", *WITH_ALPHA)
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a photograph upright, by its EXIF orientation; from 5 on, width and height are swapped."""

TO_8_BITS = np.round(np.arange(2**16) / 257).astype(np.uint8)
PIXELS, PIXELS_PER_BYTE = 2**23, 64  # limits of an image; a photograph has two pixels per byte, an empty page 1000
LARGEST_YAML, DEEPEST_YAML = 2**20, 100  # characters and levels
LARGEST_NPZ, UNPACKED_PER_BYTE = 2**26, 100  # bytes that an archive may unpack to

MERGE = "tag:yaml.org,2002:merge"
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def file_name(text: str) -> str:
    """Returns a text as a name that every file system takes; a changed one has digits of the text's SHA-256."""
    name = re.sub(r'[\\/:*?"<>|\x00-\x1f]+', "-", text)[:LONGEST].strip(" .")
    if name and name == text and not DEVICE.match(name):
        return name
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@contextmanager
def writing_to(out: Path, wanted: str = "a folder that can be written to") -> Iterator[None]:
    """Turns the system's refusal of an output into an `InputError` that says what to give instead."""
    try:
        yield
    except OSError as error:
        raise InputError(f"out: {str(out)!r} cannot be written to ({error.strerror}); give {wanted}") from error


@contextmanager
def _system_errors(path: Path) -> Iterator[None]:
    """Turns the system's refusal, which torch and safetensors raise in classes of their own, into an `OSError`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if (number := _system_number(error)) is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _system_number(error: BaseException | None) -> int | None:
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        if match := re.search(r"\(os error (\d{1,5})\)|\bcode: (\d{1,5}), kind:", str(error)):  # Rust's messages
            return int(match[1] or match[2])
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path beside the given one to write to; on success the file replaces it, else it is removed."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with _system_errors(path):
            yield beside
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def replacing_in(folder: Path) -> Iterator[Path]:
    """Yields an empty folder to write to; on success each of its files moves to the same place in the given one."""
    with _beside(folder / f".{secrets.token_hex(4)}.part") as beside:
        yield beside
        for path in sorted(path for path in beside.rglob("*") if path.is_file()):
            target = folder / path.relative_to(beside)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder to write to; on success it becomes the given one, which is there whole or not at all."""
    with _beside(folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")) as beside:
        yield beside
        if folder.is_dir():  # an empty one, which Windows does not replace
            folder.rmdir()
        os.replace(beside, folder)


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    try:
        with _system_errors(folder.parent):
            folder.mkdir(parents=True)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a mapping as indented JSON."""
    with replacing(path) as beside:
        beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_yaml(path: Path, content: dict[str, Any], **style: Any) -> None:  # noqa: ANN401
    """Writes a mapping as YAML, with its keys in their order."""
    with replacing(path) as beside:
        beside.write_text(yaml.safe_dump(content, sort_keys=False, **style), encoding="utf-8")


def in_8_bits(images: Float[Tensor, "*batch C H W"]) -> UInt8[Tensor, "*batch C H W"]:
    """Returns images in [-1, 1] in 8 bits a channel."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def write_image(path: Path, image: Float[Tensor, "C H W"]) -> None:
    """Writes an image in [-1, 1] as PNG, in grey where it has one channel."""
    pixels = in_8_bits(image).permute(1, 2, 0).cpu().numpy()
    with replacing(path) as beside:
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(beside, format="PNG")


@contextmanager
def open_image(source: Path | bytes, kind: str = "image", *, still: bool = True) -> Iterator[Image.Image]:
    """Yields an image of one of `FORMATS` from a file or its content, opened and not decoded.

    Pillow alone would hand PostScript to Ghostscript, wait for a pipe, and decode any number of pixels. An animation is
    refused unless ``still`` is False.
    """
    with about(kind, source if isinstance(source, Path) else "an image"):
        size = source.stat().st_size if isinstance(source, Path) else len(source)
        try:
            with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
                file = regular(source) if isinstance(source, Path) else io.BytesIO(source)
                image = Image.open(file, formats=FORMATS)
        except UnidentifiedImageError as error:
            raise InputError(f"it must be an image: {', '.join(FORMATS)}") from error
        with image:
            width, height = image.size
            if not 0 < width * height <= max(PIXELS, PIXELS_PER_BYTE * size):
                raise InputError(f"it claims {width} by {height} pixels in {size} bytes")
            # a phone's photograph with its parts (MPO) counts as animated, and is none
            if still and image.format != "MPO" and getattr(image, "is_animated", False):
                raise InputError(f"it must be a still image, got an animated {image.format}")
            yield image


def read_image(path: Path, kind: str = "image") -> Image.Image:
    """Returns the image in a file, as `open_image` and `in_rgb` read it."""
    with open_image(path, kind) as image:
        return in_rgb(image)


def in_rgb(image: Image.Image) -> Image.Image:
    """Returns an image in 8 bits a channel, red, green and blue, turned upright.

    Grey of 16 bits is scaled to 8, where Pillow clips it. Transparent pixels and modes without a known range (32 bits a
    channel, LAB) are refused.
    """
    turn = TURNS.get(_orientation(image))
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        grey = np.asarray(image)
        opaque = not (grey == image.info.get("transparency")).any()
        rgb = Image.fromarray(TO_8_BITS[grey]).convert("RGB")
    elif image.mode not in MODES:
        raise InputError(f"it must have 8 or 16 bits a channel, grey or in colours, got the mode {image.mode}")
    elif image.mode in WITH_ALPHA or "transparency" in image.info:
        rgba = image.convert("RGBA")
        opaque = rgba.getchannel("A").getextrema() == (255, 255)
        rgb = rgba.convert("RGB")
    else:
        opaque, rgb = True, image.convert("RGB")
    if not opaque:
        raise InputError("it must be opaque, got transparent pixels")
    return rgb if turn is None else rgb.transpose(turn)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Returns width and height as `in_rgb` would, without decoding the image."""
    width, height = image.size
    return (height, width) if _orientation(image) >= 5 else (width, height)


def _orientation(image: Image.Image) -> int:
    """Returns the orientation in the EXIF before a photograph's pixels; Pillow itself turns TIFF."""
    return image.getexif().get(ExifTags.Base.Orientation, 1) if "exif" in image.info and image.format != "TIFF" else 1


def regular(path: Path) -> Path:
    """Returns the path of a file that opens without waiting; refuses a pipe, a socket or a device."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"{str(path)!r} must be a regular file, got a pipe, a socket or a device")
    return path


def regular_below(folder: Path) -> Path:
    """Returns a folder of which every file is regular, for a library that opens them by itself."""
    for path in folder.rglob("*"):
        if path.exists():  # a link may lead to nothing
            regular(path)
    return folder


def read_bytes(path: Path) -> bytes:
    """Returns the content of a regular file."""
    return regular(path).read_bytes()


def read_text(path: Path) -> str:
    """Returns a text in UTF-8, with or without a byte order mark."""
    return regular(path).read_text(encoding="utf-8-sig")


def read_json(path: Path, kind: str = "file") -> dict[str, Any]:
    """Returns the mapping in a JSON file."""
    with about(kind, path):
        return _mapping(json.loads(read_text(path)))


def read_yaml(path: Path, kind: str, *, trusted: Collection[str] | None = ()) -> dict[str, Any]:
    """Returns the mapping in a YAML file, which may name no code but the trusted; any where that is None.

    None is for a file that is compared or shown, and makes nothing.
    """
    with about(kind, path):
        content = _mapping(parse_yaml(read_text(path)))
        if trusted is not None:
            refuse_code(content, path, trusted)
        return content


def _mapping(content: object) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise InputError(f"it must hold a mapping, got {shown(content)}")
    return content


def parse_yaml(text: str) -> Any:  # noqa: ANN401
    """Returns the content of a YAML text; refuses a key twice, and what is too large or too deep.

    A few nested aliases can stand for content without end, so that it is measured before it is built.
    """
    if len(text) > LARGEST_YAML:
        raise InputError(f"YAML must have at most {LARGEST_YAML} characters, got {len(text)}")
    Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loader = Loader(text)
    try:
        depth = 0  # some versions of PyYAML build nested brackets until the stack overflows
        for event in yaml.parse(text, Loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST_YAML:
                raise InputError(f"YAML must be nested at most {DEEPEST_YAML} levels deep")
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, {})
        return loader.construct_document(node)
    except InputError:
        raise
    except yaml.YAMLError as error:
        raise InputError(f"it is no YAML: {' '.join(str(error).split())}") from error
    except (ValueError, RecursionError) as error:  # an impossible date or number
        raise InputError(f"it is no YAML: {one_line(error)}") from error
    finally:
        loader.dispose()


def _measure(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Returns the number of characters of a node with its aliases expanded; sizes are those of known nodes by id."""
    if id(node) in sizes:
        if sizes[id(node)] < 0:
            raise InputError("YAML must not hold an alias of what it stands in")
        return sizes[id(node)]
    sizes[id(node)] = -1
    size = 1
    if isinstance(node, yaml.ScalarNode):
        size += len(node.value)
    elif isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != MERGE]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise InputError(f"YAML must have each key once, got {shown(twice)} twice")
        size += sum(_measure(part, sizes) for pair in node.value for part in pair)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_measure(part, sizes) for part in node.value)
    if size > 2 * LARGEST_YAML:
        raise InputError("YAML must not hold aliases that make it many times as large")
    sizes[id(node)] = size
    return size


def read_csv(path: Path, kind: str) -> list[list[str]]:
    """Returns the rows of a CSV file, all of one length."""
    with about(kind, path):
        rows = list(csv.reader(io.StringIO(read_text(path), newline="")))
        if not rows or any(len(row) != len(rows[0]) for row in rows):
            raise InputError("it must be a table as CSV")
        return rows


def read_npz(path: Path, kind: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a NumPy archive, which unpack to no more than its size accounts for."""
    with about(kind, path), zipfile.ZipFile(regular(path)) as archive:
        members = archive.infolist()
        room = max(LARGEST_NPZ, UNPACKED_PER_BYTE * path.stat().st_size)
        if sum(member.file_size for member in members) > room:
            raise InputError("it unpacks to many times its size")
        return {member.filename.removesuffix(".npy"): read_member(archive, member) for member in members}


def names_in_npz(path: Path, kind: str) -> list[str]:
    """Returns the names of the arrays in a NumPy archive."""
    with about(kind, path), zipfile.ZipFile(regular(path)) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Returns an array of a NumPy archive, which must claim the bytes that it has there, and no objects."""
    with archive.open(member) as file:
        shape, _, dtype = read_array_header(file)
        size = member.file_size - file.tell()
        if dtype.hasobject or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size:
            raise InputError(f"its array {member.filename!r} claims {dtype} of {shown(shape)} in {size} bytes")
    with archive.open(member) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        file.read(1)  # beyond its end, where the checksum is compared
        return array


def read_array_header(file: IO[bytes] | io.BufferedIOBase) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Returns shape, order and type of an array in NumPy's format, and leaves the file at its values."""
    version = np.lib.format.read_magic(file)  # pyright: ignore[reportArgumentType]
    if version not in HEADERS:
        raise ValueError(f"version {version} of NumPy's format")
    return HEADERS[version](file)


def class_names(names: object) -> tuple[str, ...]:
    """Returns the names of classes that a file lists, which must be a list of texts."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"classes must be a list of names, got {shown(names)}")
    return tuple(names)
