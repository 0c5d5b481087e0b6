"""Tensors by their names from a file of somebody else's, and nothing else from it.

A file of torch's is unpickled by a reader that builds tensors only (``weights_only``), and mapped into memory, not read
into it. Its archive keeps a checksum of each part, which is compared, so that a flipped bit is found; files in
safetensors' format have none.
"""

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from steersman.errors import InputError, one_line

__all__ = ["read_tensors"]

WEIGHTS = ("ema", "model", "state_dict")


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
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.untyped_storage().nbytes() < tensor.nbytes:
            raise _refused(path, f"{name} is not a plain tensor with all its values")
        if not torch.isfinite(tensor).all():
            raise _refused(path, f"{name} is not finite")
    return tensors


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _refused(path, f"damaged, or not in the format of safetensors; {one_line(error)}") from error


def _unpickled(path: Path) -> Any:  # noqa: ANN401
    archive = zipfile.is_zipfile(path)
    if archive:
        _check(path)
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as error:  # whose text tells how to run what is in the file
        raise _refused(path, "damaged, or it holds more than tensors") from error
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
