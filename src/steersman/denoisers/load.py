"""A denoiser by one string: ``zoo:NAME``, or a folder as diffusers saves a pipeline."""

import json
from pathlib import Path

import torch

from steersman.denoisers.diffusers import DiffusersDenoiser
from steersman.errors import InputError

__all__ = ["load_denoiser"]


def load_denoiser(
    spec: str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> DiffusersDenoiser:
    """Returns a denoiser, its network on a device in a dtype.

    Args:
        spec: ``zoo:sportballs``, or a folder as `DiffusersDenoiser.from_folder` reads it; where it holds a
            ``card.json``, the names of the labels are read from its ``classes``.
        device: Where the network runs.
        dtype: In what.

    Raises:
        InputError: No such denoiser, or one that cannot be read.
    """
    source, _, name = spec.partition(":")
    if source == "zoo":
        from steersman.zoo import folder

        path = folder(name)
    else:
        path = Path(spec)
        if not path.is_dir():
            raise InputError(
                f"denoiser: {spec!r} given; allowed: zoo:sportballs, or a folder as diffusers saves a pipeline"
            )
    card = path / "card.json"
    classes = tuple(json.loads(card.read_text())["classes"]) if card.is_file() else ()
    return DiffusersDenoiser.from_folder(path, classes=classes).to(device, dtype)
