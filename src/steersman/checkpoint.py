"""Tensors by their names from a file of somebody else's, and nothing else from it.

A file of torch's is unpickled by a reader that builds tensors only (``weights_only``), and mapped into memory, not read
into it. Its archive keeps a checksum of each part, which is compared, so that a flipped bit is found; files in
safetensors' format have none.
"""

import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from steersman.errors import InputError, one_line
from steersman.pickles import read_pickle

__all__ = ["check_finite", "read_tensors"]

WEIGHTS = ("ema", "model", "state_dict")
ASKED = re.compile(r"(?:GLOBAL|it asks for) ([^\s;]+)")
"""What a pickle would have imported, in the words of torch and of our reader."""


COUNTS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4")


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Returns the tensors of a file, on the CPU, in the dtypes that they were saved in.

    Args:
        path: A ``.safetensors`` file, or one that `torch.save` wrote, ``.pt`` or ``.pth`` by its name: a mapping of
            names to tensors, or one that holds such a mapping as ``ema``, ``model`` or ``state_dict``, the first of
            them that is there.

    Raises:
        InputError: The file is missing, damaged, or holds anything but tensors; or one of them is not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"checkpoint: {str(path)!r} given; allowed: a file of tensors, .safetensors, .pt or .pth")
    tensors = _safetensors(path) if path.suffix == ".safetensors" else _named(_unpickled(path), path)
    size = path.stat().st_size
    for name, tensor in tensors.items():
        if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.is_quantized:
            raise _refused(path, f"{name} is not a plain tensor")
        if not tensor.nbytes <= tensor.untyped_storage().nbytes() <= size:
            raise _refused(path, f"{name} is not a plain tensor with all its values")
    try:
        check_finite(tensors)
    except InputError as error:
        raise _refused(path, str(error)) from error
    return tensors


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuses weights that compute nothing.

    Raises:
        InputError: One of them is not finite.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{name} is not finite")


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _refused(path, f"damaged, or not in the format of safetensors; {one_line(error)}") from error


def _unpickled(path: Path) -> Any:  # noqa: ANN401
    archive = zipfile.is_zipfile(path)
    if archive:
        _check(path)
    elif _overlong(path):
        raise _refused(path, "damaged, or it tells of tensors longer than itself")
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as error:  # whose text tells how to run what is in the file
        asked = ASKED.search(str(error)) or ASKED.search(_plain(path))
        more = f": it asks for {asked[1][:80]}" if asked else ""
        raise _refused(path, f"damaged, or it holds more than tensors{more}") from error
    except Exception as error:  # a damaged pickle can ask for anything
        raise _refused(path, f"damaged, or not torch's; {one_line(error)}") from error


def _check(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            # torch packs nothing, and what is packed may be a thousand times as large
            packed = [each.filename for each in archive.infolist() if each.compress_type != zipfile.ZIP_STORED]
            wrong = None if packed else archive.testzip()
    except Exception as error:  # a damaged directory can point anywhere
        raise _refused(path, f"damaged; {one_line(error)}") from error
    if packed or wrong:
        raise _refused(path, f"{packed[0]} is compressed" if packed else f"damaged; wrong checksum of {wrong}")


def _plain(path: Path) -> str:
    """Returns what there is to say of a plain pickle, of protocols that torch does not read."""
    try:
        read_pickle(path)
    except InputError as error:
        return str(error)
    return ""


def _overlong(path: Path) -> bool:
    """Whether a file of torch's older layout has a storage longer than itself, which torch would make room for."""
    size, told = path.stat().st_size, 0
    with path.open("rb") as stream, suppress(Exception):  # what else is wrong, torch says
        for _ in range(4):  # a magic number, a version, the writer's types, the tensors
            for opcode, arg, _ in pickletools.genops(stream):
                if opcode.name in COUNTS:
                    told = arg or 0
                elif opcode.name == "BINPERSID" and told > size:  # the count stands last but None in a storage's id
                    return True
    return False


def _named(content: Any, path: Path) -> dict[str, Tensor]:  # noqa: ANN401
    if isinstance(content, Mapping):
        content = next((content[key] for key in WEIGHTS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content:
        raise _refused(path, "it holds no tensors by their names")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise _refused(path, f"{str(name)[:80]!r} is not a tensor but a {type(value).__name__}")
    return {name: value.detach() for name, value in content.items()}


def _refused(path: Path, reason: str) -> InputError:
    return InputError(f"checkpoint: {str(path)!r} cannot be read ({reason})")
