"""Text-to-image pipelines from folders as diffusers saves them, and diffusers' folders of the hub.

Weights are read from safetensors alone. No code of a folder or of the hub is run: a pipeline is one of those that are
known here, and its parts are classes of diffusers and transformers. What judges or shows images is not loaded.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steersman.errors import InputError, about
from steersman.files import regular_below
from steersman.latent import cast
from steersman.models.checkpoint import check_finite
from steersman.models.denoisers.folder import read_index
from steersman.models.denoisers.pipeline import PipelineDenoiser
from steersman.models.hub import check_whole, hushed, load_pretrained, quiet

__all__ = [
    "OPTIONS",
    "diffusers_quiet",
    "fetched",
    "image_size",
    "load_pipeline",
    "network_of",
    "part_kinds",
    "without",
]

OPTIONS = ("height", "width", "variant")
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
LIBRARIES = ("diffusers", "transformers")


def load_pipeline(
    path: Path, options: Mapping[str, str], *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> PipelineDenoiser:
    """Returns a folder's pipeline as a denoiser, its parts on a device in a dtype.

    Args:
        path: The folder, of one of the pipelines that are known here (`steersman.models.denoisers.folder`).
        options: ``height`` and ``width`` of its images in pixels, by default the pipeline's own; the ``variant`` of the
            files of weights, such as fp16.
        device: Where it runs.
        dtype: In what.

    Raises:
        InputError: transformers is not installed, an option or a part is not allowed, or it cannot be read.
    """
    size = image_size(options)
    index = read_index(path)
    kinds = part_kinds(path, index)
    with quiet(str(path), kind="denoiser"), diffusers_quiet() as diffusers, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the name torch_dtype, which all versions know
        where: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "torch_dtype": dtype}
        settings: dict[str, Any] = without(index)
        if "requires_safety_checker" in index:
            settings["requires_safety_checker"] = False
        with about("denoiser", path):
            regular_below(path)
            networks = {
                key: network_of(key, kind, path / key, variant=options.get("variant"), **where)
                for key, kind in kinds.items()
                if issubclass(kind, nn.Module)
            }
            pipe = getattr(diffusers, index["_class_name"]).from_pretrained(path, **networks, **settings, **where)
        for network in networks.values():
            network.to(device)
        cast(pipe.vae, device, dtype)
        return PipelineDenoiser(pipe, size=size)


def fetched(spec: str, name: str, options: Mapping[str, str]) -> Path:
    """Returns where a pipeline of the hub lies in its cache, fetched where it is not there yet.

    Args:
        spec: What the user gave, for the messages.
        name: Its id, ``ORG/NAME``.
        options: As `load_pipeline` takes them.

    Raises:
        InputError: It is not there and cannot be fetched, or asks for code of its own.
    """
    from huggingface_hub import hf_hub_download

    def indexed(name: str, *, local_files_only: bool) -> Path:
        return Path(hf_hub_download(name, "model_index.json", local_files_only=local_files_only)).parent

    def whole(name: str, *, local_files_only: bool) -> Path:
        settings = {"use_safetensors": True, "variant": options.get("variant"), "local_files_only": local_files_only}
        with diffusers_quiet() as diffusers:
            load = diffusers.DiffusionPipeline.download
            path = Path(load(name, **settings, **without(index)))
        parts = [key for key in _parts(index) if key not in UNUSED and not (path / key).is_dir()]
        if parts and not (path / "config.json").is_file():
            raise InputError(f"denoiser: {spec!r} lacks {', '.join(parts)}")
        return path

    path = load_pretrained(spec, name, indexed, kind="denoiser")
    index = read_index(path)
    part_kinds(path, index)
    return load_pretrained(spec, name, whole, kind="denoiser")


@contextmanager
def diffusers_quiet() -> Iterator[Any]:
    """Yields diffusers, kept from telling what it loads."""
    import diffusers

    with hushed(diffusers.utils.logging):
        yield diffusers


def image_size(options: Mapping[str, str]) -> tuple[int, int] | None:
    """Returns the height and width that options of a spec state, in pixels."""
    for key in ("height", "width"):
        if key in options and not (options[key].isdecimal() and int(options[key]) > 0):
            raise InputError(f"denoiser: {key} must be a whole number of at least 1, got {options[key]}")
    given = [key for key in ("height", "width") if key in options]
    if len(given) == 1:
        raise InputError(f"denoiser: height and width must be given together, got {given[0]} alone")
    return (int(options["height"]), int(options["width"])) if given else None


def _parts(index: Mapping[str, Any]) -> dict[str, list]:
    return {key: value for key, value in index.items() if isinstance(value, list) and len(value) == 2 and any(value)}


def without(index: Mapping[str, Any]) -> dict[str, None]:
    """Returns the parts that are not loaded."""
    return {key: None for key in UNUSED if key in index}


def network_of(part: str, kind: Any, place: Path, **where: Any) -> nn.Module:  # noqa: ANN401
    """Returns a part with all its weights, where the libraries would draw what is missing."""
    network, info = kind.from_pretrained(place, output_loading_info=True, **where)
    check_whole(f"{part}: it", info)
    check_finite(network.state_dict())
    return network


def part_kinds(path: Path, index: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parts' classes, and refuses what is no class of the libraries."""
    kinds = {}
    for key, (library, name) in _parts(index).items():
        if key in UNUSED:
            continue
        if library not in LIBRARIES:
            raise InputError(
                f"denoiser: {str(path)!r} has a {key} by code of its own, {library}.{name}, which is never run; "
                "use parts of diffusers and transformers"
            )
        kind = getattr(import_module(library), name, None) if isinstance(name, str) else None
        if not isinstance(kind, type) or (library == "transformers" and name.startswith("Auto")):  # looks for code
            raise InputError(f"denoiser: {str(path)!r} has a {key} that is no class of {library}, {name!r}")
        kinds[key] = kind
    return kinds
