"""Text-to-image pipelines whose weights are one file, as their authors and trainers release them.

The file has the weights under the names of the original code; diffusers knows how its own networks take them. What the
file does not say (which pipeline it is, the sizes of its networks, the scheduler, the tokenizers' vocabularies) is read
from a folder as diffusers saves that pipeline, whose weights may be missing. Weights that the file does not have are
read from that folder too.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from steersman.errors import InputError, about
from steersman.files import regular, regular_below
from steersman.latent import cast
from steersman.models.checkpoint import check_finite
from steersman.models.denoisers.folder import PIPELINES, read_index
from steersman.models.denoisers.pipeline import PipelineDenoiser
from steersman.models.denoisers.pipeline_folder import diffusers_quiet, image_size, network_of, part_kinds, without
from steersman.models.hub import load_pretrained, quiet
from steersman.models.meta import no_larger_than, weights_size

__all__ = ["SUFFIX", "load_file"]

SUFFIX = ".safetensors"
NETWORKS = ("unet", "transformer")
VAE_PREFIXES = ("first_stage_model.", "vae.", "encoder.", "decoder.")
CONFIGURATION = ("*.json", "*.txt", "*.model")
"""What a pipeline's folder holds beside weights."""


def load_file(
    path: Path, options: Mapping[str, str], *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> PipelineDenoiser:
    """Returns a file's pipeline as a denoiser, its parts on a device in a dtype.

    Args:
        path: The file, in safetensors' format.
        options: ``config``, the pipeline's folder, by default that of the hub which diffusers takes for such a file;
            ``height`` and ``width`` of its images in pixels, by default the pipeline's own.
        device: Where it runs.
        dtype: In what.

    Raises:
        InputError: The file cannot be read, lacks weights that the folder lacks too, or its configuration is not
            there.
    """
    if "variant" in options:
        raise InputError(f"denoiser: {path} is one file, which has no variant; leave variant out")
    size = image_size(options)
    with about("denoiser", path), safe_open(regular(path), framework="pt") as file:
        names = frozenset(file.keys())
    with quiet(str(path), kind="denoiser"), diffusers_quiet() as diffusers:
        config = _config(path, options.get("config"), diffusers)
        with about("denoiser", config):
            regular_below(config)
        index = read_index(config)
        if (name := index.get("_class_name")) not in PIPELINES:
            raise InputError(
                f"denoiser: config must be the folder of one of {', '.join(PIPELINES)}, got a {name} in {config}"
            )
        kinds = part_kinds(config, index)
        where: dict[str, Any] = {"local_files_only": True, "torch_dtype": dtype}
        with about("denoiser", path):
            given: dict[str, Any] = dict(without(index))
            for key, kind in kinds.items():
                if issubclass(kind, nn.Module) and not _in_file(key, kind, names):
                    given[key] = _from_folder(key, kind, path, config, where)
            if "requires_safety_checker" in index:
                given["requires_safety_checker"] = False
            # a number is counted where its network is built, and where it is filled
            room = 2 * (path.stat().st_size + sum(weights_size(config / key) for key in kinds))
            with no_larger_than(room):
                pipe = getattr(diffusers, name).from_single_file(str(path), config=str(config), **given, **where)
            for key, part in pipe.components.items():
                if isinstance(part, nn.Module):
                    _check(key, part)
                    part.to(device)
        cast(pipe.vae, device, dtype)
        return PipelineDenoiser(pipe, size=size)


def _in_file(key: str, kind: type[nn.Module], names: Collection[str]) -> bool:
    """Whether a file has a part's weights; the network that denoises is always the file's."""
    from diffusers.loaders.single_file_utils import is_clip_model_in_single_file, is_t5_in_single_file

    if key.startswith(NETWORKS):
        return True
    if key == "vae":
        return any(each.startswith(VAE_PREFIXES) for each in names)
    return bool(is_clip_model_in_single_file(kind, names) or is_t5_in_single_file(names))


def _from_folder(key: str, kind: Any, path: Path, config: Path, where: Mapping[str, Any]) -> nn.Module:  # noqa: ANN401
    if not weights_size(config / key):
        raise InputError(
            f"{path} has no {key}, and {config / key} has no weights; put them there, as diffusers saves them"
        )
    return network_of(key, kind, config / key, use_safetensors=True, **where)


def _check(key: str, part: nn.Module) -> None:
    """Refuses a part of which weights are missing, which diffusers leaves without values, or not finite."""
    tensors = part.state_dict()
    if missing := sorted(name for name, each in tensors.items() if each.is_meta):
        raise InputError(f"{key}: it lacks the weights {', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}")
    check_finite(tensors)


def _config(path: Path, given: str | None, diffusers: Any) -> Path:  # noqa: ANN401
    """Returns the folder of a file's pipeline.

    Raises:
        InputError: It is not there, and cannot be fetched.
    """
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

    def read(name: str, *, local_files_only: bool) -> Path:
        patterns = [*CONFIGURATION, *(f"**/{each}" for each in CONFIGURATION)]
        folder = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=local_files_only))
        read_index(folder)
        return folder

    try:
        return load_pretrained(name, name, read, kind="denoiser")
    except InputError as error:
        raise InputError(
            f"denoiser: {path} does not say how its networks are built, and {name}, which diffusers takes it for, is "
            f"not in the hub's cache and cannot be fetched; give {path}?config=FOLDER, the folder of its pipeline as "
            f"diffusers saves it, without weights: hf download {name} --exclude '*.safetensors' '*.bin' '*.ckpt' "
            "--local-dir FOLDER"
        ) from error
