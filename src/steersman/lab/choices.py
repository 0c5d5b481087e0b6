"""The settings of a run that are checked without torch, whose import takes seconds: a slip is refused at once."""

import ctypes
import math
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from steersman.errors import InputError, unknown

__all__ = ["AUTO", "DEVICES", "FORMATS", "TYPES", "check_choices", "check_device", "weights"]

DEVICES = ("cpu", "cuda", "mps")
FORMATS = {"png": None, "npz": ".npz", "webdataset": ".tar"}
"""What images are written as, and the suffix of files that hold many of them."""

TYPES = ("float32", "bfloat16", "float16")
AUTO = {"auto": ("float32", "bfloat16"), "auto-float32": ("float32",)}
"""Values of ``dtype`` for which a measurement chooses the type, layout and block, and the types it chooses from."""


def check_choices(
    *,
    targets: Collection[str] = (),
    blend: Mapping[str, float] | None = None,
    dtype: str = "float32",
    format: str = "png",
) -> None:
    """Refuses settings of a run that are missing, contradict each other, or are unknown."""
    if targets and blend:
        raise InputError("target and blend must not be given together; give one of the two")
    if not targets and not blend:
        raise InputError("target must be given: names or indices of classes, all, or a blend of classes")
    for name, value, known in (("dtype", dtype, (*TYPES, *AUTO)), ("format", format, FORMATS)):
        if value not in known:
            raise unknown(name, value, known)


def check_device(device: str) -> None:
    """Refuses a device that this machine does not have."""
    if not re.fullmatch(rf"({'|'.join(DEVICES)})(:[0-9]+)?", device):
        raise InputError(f"device must be cpu, cuda, cuda:0, … or mps, got {device!r}")
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return
    counts = _counts()
    if int(index or 0) >= counts[kind]:
        here = ", ".join(name for name, count in counts.items() if count)
        raise InputError(f"device must be one that this machine has ({here}), got {device!r}")


def _counts() -> dict[str, int]:
    """Returns the number of devices of each kind; torch is not imported where there is no driver of a GPU."""
    if "torch" not in sys.modules and sys.platform == "linux" and not _driver():
        return {"cpu": 1, "cuda": 0, "mps": 0}
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {"cpu": 1, "cuda": gpus, "mps": int(torch.backends.mps.is_available())}


def _driver() -> bool:
    """Returns whether Linux has NVIDIA's driver, or AMD's."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()
    return True


def weights(options: Iterable[str]) -> dict[str, float]:
    """Returns the weights of a blend, from texts ``CLASS=WEIGHT``."""
    blend: dict[str, float] = {}
    for option in options:
        name, _, text = option.rpartition("=")
        try:
            weight = float(text)
        except ValueError:
            weight = math.nan
        if not name or not math.isfinite(weight) or name in blend:
            raise InputError(f"blend must be CLASS=WEIGHT, as in baseball=1, with each class once, got {option!r}")
        blend[name] = weight
    return blend
