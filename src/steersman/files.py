"""Files that are whole or not there: each is written beside its place and renamed."""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from steersman.errors import InputError, about

__all__ = ["file_name", "in_8_bits", "listed", "read_json", "replacing", "write_image", "write_json", "writing_to"]


LONGEST = 60  # characters of a file name, which may take four bytes each of the 255 that file systems allow


def file_name(text: str) -> str:
    """Returns a text as a name that every file system takes; one that is such a name already stays.

    Where characters had to go, some digits of the text's SHA-256 keep it apart from similar ones.
    """
    name = re.sub(r'[\\/:*?"<>|\x00-\x1f]+', "-", text)[:LONGEST].strip(" .")
    return name if name and name == text else f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@contextmanager
def writing_to(out: Path, allowed: str = "a writable folder") -> Iterator[None]:
    """Turns what the system says of an output that it does not take into one line.

    Args:
        out: The folder or file.
        allowed: What it may be.

    Raises:
        InputError: It cannot be written to.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"out: {str(out)!r} cannot be written to ({error.strerror}); allowed: {allowed}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path beside the given one to write to; on success the file takes its place, else it is removed."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def in_8_bits(images: Float[Tensor, "*batch C H W"]) -> UInt8[Tensor, "*batch C H W"]:
    """Returns images in [-1, 1] as files have them, 8 bits a channel."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def write_image(path: Path, image: Float[Tensor, "C H W"]) -> None:
    """Writes an image in [-1, 1] as PNG, one of a channel as a grey one."""
    pixels = in_8_bits(image).permute(1, 2, 0).cpu().numpy()
    with replacing(path) as beside:
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(beside, format="PNG")


def read_json(path: Path, kind: str = "file") -> dict[str, Any]:
    """Returns the mapping in a file of JSON.

    Args:
        path: The file.
        kind: What it is of, for the messages.

    Raises:
        InputError: It is not there, is no JSON, or no mapping.
    """
    with about(kind, path):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise InputError(f"a {type(content).__name__} given; allowed: a mapping")
        return content


def listed(names: object) -> tuple[str, ...]:
    """Returns the names of classes that a file lists.

    Raises:
        InputError: It lists something else.
    """
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        raise InputError(f"classes: {str(names)[:80]} given; allowed: a list of names")
    return tuple(names)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a mapping as indented JSON."""
    with replacing(path) as beside:
        beside.write_text(json.dumps(content, indent=2) + "\n")
