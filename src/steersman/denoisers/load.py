"""A denoiser from one line of text: ``SOURCE:NAME``, or a folder as diffusers saves a pipeline."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from steersman.denoisers.adm import load_adm
from steersman.denoisers.diffusers import DiffusersDenoiser
from steersman.denoisers.dit_file import load_dit
from steersman.denoisers.edm import EDMDenoiser
from steersman.denoisers.edm_file import load_edm
from steersman.errors import InputError

__all__ = ["SOURCES", "load_denoiser"]


def load_denoiser(
    spec: str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> DiffusersDenoiser | EDMDenoiser:
    """Returns a denoiser, its network on a device in a dtype.

    Args:
        spec: ``zoo:sportballs``; ``adm:FILE``, ``dit:FILE?vae=FOLDER`` and ``edm:FILE`` for files as their authors
            released them (`steersman.denoisers.adm`, ``.dit_file``, ``.edm_file``); or a folder as
            `DiffusersDenoiser.from_folder` reads it. Where a folder holds a ``card.json``, the names of the labels
            are read from its ``classes``.
        device: Where the network runs.
        dtype: In what.

    Raises:
        InputError: No such denoiser, or one that cannot be read.
    """
    source, separator, name = spec.partition(":")
    if separator and source in SOURCES:
        return SOURCES[source](name).to(device, dtype)
    if not Path(spec).is_dir():
        raise InputError(
            f"denoiser: {spec!r} given; allowed: zoo:sportballs, adm:FILE, dit:FILE?vae=FOLDER, edm:FILE, or a folder "
            "as diffusers saves a pipeline"
        )
    return _load_folder(Path(spec)).to(device, dtype)


def _load_folder(path: Path) -> DiffusersDenoiser:
    card = path / "card.json"
    classes = tuple(json.loads(card.read_text())["classes"]) if card.is_file() else ()
    return DiffusersDenoiser.from_folder(path, classes=classes)


def _load_zoo(name: str) -> DiffusersDenoiser:
    from steersman.zoo import folder

    return _load_folder(folder(name))


SOURCES: dict[str, Callable[[str], DiffusersDenoiser | EDMDenoiser]] = {
    "adm": load_adm,
    "dit": load_dit,
    "edm": load_edm,
    "zoo": _load_zoo,
}
"""Where denoisers come from: a source's word, and its function from a name to the denoiser."""
