"""Text-to-image pipelines from folders as diffusers saves them, from the hub, and from one file of weights.

Weights are read from safetensors alone. No code of a folder or of the hub is run: a pipeline is one of those that are
known here, and its parts are classes of diffusers and transformers. What judges or shows images is not loaded.

One file has the weights under the names of the original code, as authors and trainers release them. The rest is read
from a folder as diffusers saves that pipeline: which one it is, the sizes of its networks, the scheduler, the
tokenizers, and the weights that the file does not have.
"""

import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from pydantic import PositiveInt
from safetensors import safe_open
from torch import nn

from steersman.errors import InputError, about
from steersman.files import regular, regular_below
from steersman.latent import cast
from steersman.models.checkpoint import check_finite, no_larger_than, weights_size
from steersman.models.denoisers.folder import PIPELINES, read_index
from steersman.models.denoisers.pipeline import PipelineDenoiser
from steersman.models.hub import check_whole, hushed, load_pretrained, quiet
from steersman.typed import typed

__all__ = ["fetch", "load_pipeline"]

UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
LIBRARIES = ("diffusers", "transformers")
VAE_PREFIXES = ("first_stage_model.", "vae.", "encoder.", "decoder.")
CONFIGURATION = ("*.json", "*.txt", "*.model")  # the files of a pipeline's folder beside weights


def load_pipeline(
    path: Path, options: Mapping[str, str], *, device: torch.device | str, dtype: torch.dtype
) -> PipelineDenoiser:
    """Returns the denoiser of a folder, or of one file of weights, of one of the known pipelines.

    Options are ``height`` and ``width`` of the images, by default the pipeline's own; of a folder, the ``variant`` of
    its weights; of a file, ``config``, the pipeline's folder, by default that of the hub which diffusers takes for it.
    """
    one_file = not path.is_dir()
    if one_file and not path.is_file():
        raise InputError(f"denoiser: {str(path)!r} must be a file of a pipeline's weights, and is none")
    if one_file and "variant" in options:
        raise InputError(f"denoiser: {path} is one file, which has no variant; leave variant out")
    size, names = _size(options), _tensor_names(path) if one_file else frozenset()
    with _quiet(path) as diffusers:
        folder = _configuration(path, options.get("config")) if one_file else path
        index = read_index(folder)
        if (name := index.get("_class_name")) not in PIPELINES:
            raise InputError(
                f"denoiser: config must be the folder of one of {', '.join(PIPELINES)}, got a {name} in {folder}"
            )
        build, classes, settings = getattr(diffusers, name), _classes(folder, index), _unused(index)
        where: dict[str, Any] = {"local_files_only": True, "torch_dtype": dtype}
        with about("denoiser", path):
            regular_below(folder)
            for key, kind in classes.items():
                if not issubclass(kind, nn.Module) or (one_file and _in_file(key, kind, names)):
                    continue
                if one_file and not weights_size(folder / key):
                    raise InputError(f"{path} has no {key}, and {folder / key} has no weights; put them there")
                settings[key] = _network(key, kind, folder / key, variant=options.get("variant"), **where)
            if one_file:
                # a number is counted where its network is built, and where it is filled
                room = 2 * (path.stat().st_size + sum(weights_size(folder / key) for key in classes))
                with no_larger_than(room):
                    pipe = build.from_single_file(str(path), config=str(folder), **settings, **where)
            else:
                pipe = build.from_pretrained(path, use_safetensors=True, **settings, **where)
            for key, part in pipe.components.items():
                if isinstance(part, nn.Module):
                    tensors = part.state_dict()
                    # what a file lacks, diffusers leaves without values
                    check_whole(f"{key}: it", {"missing_keys": [name for name, x in tensors.items() if x.is_meta]})
                    check_finite(tensors)
                    part.to(device)
        cast(pipe.vae, device, dtype)
        return PipelineDenoiser(pipe, size=size)


def fetch(spec: str, name: str, options: Mapping[str, str]) -> Path:
    """Returns the folder of the hub's pipeline ``ORG/NAME`` in its cache, fetched where it is not there yet."""
    from huggingface_hub import hf_hub_download

    def fetch_index(name: str, *, local_files_only: bool) -> Path:
        return Path(hf_hub_download(name, "model_index.json", local_files_only=local_files_only)).parent

    def fetch_all(name: str, *, local_files_only: bool) -> Path:
        settings = {"use_safetensors": True, "variant": options.get("variant"), "local_files_only": local_files_only}
        with _hushed_diffusers() as diffusers:
            path = Path(diffusers.DiffusionPipeline.download(name, **settings, **_unused(index)))
        missing = [key for key in _parts(index) if not (path / key).is_dir()]
        if missing and not (path / "config.json").is_file():
            raise InputError(f"denoiser: {spec!r} lacks {', '.join(missing)}")
        return path

    path = load_pretrained(spec, name, fetch_index, kind="denoiser")
    index = read_index(path)
    _classes(path, index)
    return load_pretrained(spec, name, fetch_all, kind="denoiser")


@contextmanager
def _quiet(path: Path) -> Iterator[Any]:
    """Yields diffusers, where neither it nor transformers tells what it loads."""
    with quiet(str(path), kind="denoiser"), _hushed_diffusers() as diffusers, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the name torch_dtype, which all versions know
        yield diffusers


@contextmanager
def _hushed_diffusers() -> Iterator[Any]:
    import diffusers

    with hushed(diffusers.utils.logging):
        yield diffusers


def _size(options: Mapping[str, str]) -> tuple[int, int] | None:
    """Returns the height and width that options state, in pixels."""
    sizes = {key: typed(key, options[key], PositiveInt) for key in ("height", "width") if key in options}
    if len(sizes) == 1:
        raise InputError(f"denoiser: height and width must be given together, got {next(iter(sizes))} alone")
    return (sizes["height"], sizes["width"]) if sizes else None


def _parts(index: Mapping[str, Any]) -> dict[str, list]:
    """Returns the library and the class of each part that is loaded."""
    lists = {key: value for key, value in index.items() if isinstance(value, list) and len(value) == 2}
    return {key: value for key, value in lists.items() if any(value) and key not in UNUSED}


def _unused(index: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the pipeline's arguments that leave out what is not loaded."""
    without: dict[str, Any] = {key: None for key in UNUSED if key in index}
    return without | ({"requires_safety_checker": False} if "requires_safety_checker" in index else {})


def _classes(path: Path, index: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the classes of the parts; what is no class of the libraries is refused."""
    classes = {}
    for key, (library, name) in _parts(index).items():
        if library not in LIBRARIES:
            raise InputError(
                f"denoiser: {str(path)!r} has a {key} by code of its own, {library}.{name}, which is never run; "
                "use parts of diffusers and transformers"
            )
        kind = getattr(import_module(library), name, None) if isinstance(name, str) else None
        if not isinstance(kind, type) or (library == "transformers" and name.startswith("Auto")):  # looks for code
            raise InputError(f"denoiser: {str(path)!r} has a {key} that is no class of {library}, {name!r}")
        classes[key] = kind
    return classes


def _network(part: str, kind: Any, folder: Path, **where: Any) -> nn.Module:  # noqa: ANN401
    """Returns a part with all its weights, where the libraries would draw what is missing."""
    network, info = kind.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **where)
    check_whole(f"{part}: it", info)
    return network


def _tensor_names(path: Path) -> frozenset[str]:
    with about("denoiser", path), safe_open(regular(path), framework="pt") as file:
        return frozenset(file.keys())


def _in_file(key: str, kind: type[nn.Module], names: Collection[str]) -> bool:
    """Whether a file has a part's weights; the network that denoises is always the file's."""
    from diffusers.loaders.single_file_utils import is_clip_model_in_single_file, is_t5_in_single_file

    if key.startswith(("unet", "transformer")):
        return True
    if key == "vae":
        return any(name.startswith(VAE_PREFIXES) for name in names)
    return bool(is_clip_model_in_single_file(kind, names) or is_t5_in_single_file(names))


def _configuration(path: Path, given: str | None) -> Path:
    """Returns the folder of a file's pipeline: the given one, or that of the hub which diffusers takes for it."""
    if given is not None:
        if not (Path(given) / "model_index.json").is_file():
            raise InputError(
                f"denoiser: config must be a folder with the model_index.json that diffusers saves a pipeline with, "
                f"got {given!r}"
            )
        return Path(given)
    from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint
    from huggingface_hub import snapshot_download

    with about("denoiser", path):
        name = fetch_diffusers_config(load_single_file_checkpoint(str(path)))["pretrained_model_name_or_path"]

    def fetch_configuration(name: str, *, local_files_only: bool) -> Path:
        patterns = [*CONFIGURATION, *(f"**/{pattern}" for pattern in CONFIGURATION)]
        folder = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=local_files_only))
        read_index(folder)
        return folder

    try:
        return load_pretrained(name, name, fetch_configuration, kind="denoiser")
    except InputError as error:
        raise InputError(
            f"denoiser: {path} does not say how its networks are built, and {name}, which diffusers takes it for, is "
            f"not in the hub's cache and cannot be fetched; give {path}?config=FOLDER, the folder of its pipeline as "
            f"diffusers saves it, without weights: hf download {name} --exclude '*.safetensors' '*.bin' '*.ckpt' "
            "--local-dir FOLDER"
        ) from error
