"""A denoiser from one line of text: ``SOURCE:NAME``, or a pipeline as diffusers saves it, in a folder or on the hub."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from steersman.errors import InputError, about
from steersman.files import listed, read_json
from steersman.models.denoisers.adm import load_adm
from steersman.models.denoisers.diffusers import DiffusersDenoiser
from steersman.models.denoisers.dit_file import load_dit
from steersman.models.denoisers.edm import EDMDenoiser
from steersman.models.denoisers.edm_file import load_edm
from steersman.models.denoisers.folder import PIPELINES, Folder, read_index
from steersman.models.denoisers.module import load_module_denoiser, moved
from steersman.models.denoisers.network import NetworkDenoiser
from steersman.models.denoisers.pipeline import PipelineDenoiser
from steersman.models.denoisers.pipeline_file import SUFFIX, load_file
from steersman.models.denoisers.pipeline_folder import OPTIONS, fetched, load_pipeline
from steersman.options import split_options
from steersman.schedulers import FAMILIES

__all__ = ["SOURCES", "is_pipeline", "load_denoiser"]

HUB = r"\w[\w.-]*/\w[\w.-]*"
"""What an id of the hub looks like."""


def load_denoiser(
    spec: str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> NetworkDenoiser | EDMDenoiser | PipelineDenoiser:
    """Loads a diffusion model.

    Args:
        spec: ``zoo:sportballs`` or ``zoo:mnist``; ``adm:FILE``, ``dit:FILE?vae=FOLDER`` and ``edm:FILE`` for files as
            their authors released them (`steersman.models.denoisers.adm`, ``.dit_file``, ``.edm_file``); for one's own
            ``module:PACKAGE.NAME:FUNCTION`` (`steersman.models.denoisers.module`); or a folder as
            `DiffusersDenoiser.from_folder` reads it, or with an EDM scheduler `EDMDenoiser.from_folder`. Where a folder
            holds a ``card.json``, the names of the labels are read from its ``classes``. A folder of a text pipeline
            may be followed by options, ``FOLDER?height=512&width=768`` (`models.denoisers.pipeline_folder`); in
            place of a folder, ``ORG/NAME`` is one of the hub, and ``FILE.safetensors?config=FOLDER`` a pipeline's
            weights in one file (`steersman.models.denoisers.pipeline_file`).
        device: The device of the network.
        dtype: The type of its weights.

    Raises:
        InputError: There is no such denoiser, or it cannot be read.

    Example:
        >>> import steersman as sm
        >>> denoiser = sm.load_denoiser("zoo:mnist", device="cpu")
        >>> denoiser.shape, denoiser.classes[:2]
        ((1, 28, 28), ('0 - zero', '1 - one'))
    """
    source, separator, name = spec.partition(":")
    if separator and source == "module":
        return moved(load_module_denoiser(name), name, device, dtype)
    if separator and source in SOURCES:
        return SOURCES[source](name).to(device, dtype)
    if (file := _file(spec)) is not None:
        return load_file(file[0], file[1], device=device, dtype=dtype)
    name, options = (spec, {}) if Path(spec).is_dir() else split_options(spec, OPTIONS, "option of a pipeline")
    if not (Path(name).is_dir() or (re.fullmatch(HUB, name) and not Path(name).exists())):
        raise InputError(
            "denoiser must be zoo:sportballs, adm:FILE, dit:FILE?vae=FOLDER, edm:FILE, module:PACKAGE.NAME:FUNCTION, "
            "a folder as diffusers saves a pipeline, ORG/NAME of the hub, or FILE.safetensors?config=FOLDER, got "
            f"{spec!r}"
        )
    path = Path(name) if Path(name).is_dir() else fetched(spec, name, options)
    kind = read_index(path).get("_class_name")
    if kind in PIPELINES:
        return load_pipeline(path, options, device=device, dtype=dtype)
    if options:
        raise InputError(f"denoiser must be {name}, a {kind or 'model'} without such options, got {spec!r}")
    return _load_folder(path).to(device, dtype)


def is_pipeline(spec: str) -> bool:
    """Whether a spec names a text pipeline's folder, or one of the hub, without loading it."""
    name, _, _ = spec.partition("?")
    if _file(spec) is not None:
        return True
    if not Path(name).exists():
        return re.fullmatch(HUB, name) is not None
    return read_index(Path(name)).get("_class_name") in PIPELINES


def _file(spec: str) -> tuple[Path, dict[str, str]] | None:
    """Returns the file and the options of a spec that names a pipeline in one file, None for another spec."""
    if spec.endswith(SUFFIX) and Path(spec).is_file():
        return Path(spec), {}
    if not spec.partition("?")[0].endswith(SUFFIX):
        return None
    name, options = split_options(spec, (*OPTIONS, "config"), "option of a pipeline's file")
    if not Path(name).is_file():
        raise InputError(f"denoiser: {name!r} must be a file of a pipeline's weights, and is none")
    return Path(name), options


def _load_folder(path: Path) -> NetworkDenoiser | EDMDenoiser:
    with about("denoiser", path):
        card: Mapping[str, Any] = read_json(path / "card.json") if (path / "card.json").is_file() else {}
        classes = listed(card.get("classes", []))
        scheduler = Folder(path).settings("scheduler/scheduler_config.json").get("_class_name", "")
        if FAMILIES.get(str(scheduler)) == "edm":
            return EDMDenoiser.from_folder(path, classes=classes, unconditional=card.get("unconditional") is not False)
        return DiffusersDenoiser.from_folder(path, classes=classes, time_scale=float(card.get("time_scale", 1.0)))


def _load_zoo(name: str) -> NetworkDenoiser | EDMDenoiser:
    from steersman.models.zoo import folder

    return _load_folder(folder(name))


SOURCES: dict[str, Callable[[str], NetworkDenoiser | EDMDenoiser]] = {
    "adm": load_adm,
    "dit": load_dit,
    "edm": load_edm,
    "zoo": _load_zoo,
}
"""Where denoisers come from: a source's word, and its function from a name to the denoiser."""
