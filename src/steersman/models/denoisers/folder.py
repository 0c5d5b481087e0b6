"""Denoisers from folders as diffusers saves a pipeline: a folder for each part, and ``model_index.json``.

The parts are scheduler and unet, with vae or vqvae for latents, or scheduler, transformer and vae. Of a network alone,
the files of the parts may lie in the folder itself, as in some of the hub. ``card.json`` may give ``classes``, the
``time_scale`` of the network, and ``unconditional: false`` for a label after the classes that was not trained.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.utils import logging

from steersman import latent
from steersman.errors import InputError, about, unknown
from steersman.files import class_names, read_json, regular_below
from steersman.models.checkpoint import check_finite, no_larger_than, weights_size
from steersman.models.denoisers.architectures import ADMUNet, DiT
from steersman.models.denoisers.network import DiffusersDenoiser, EDMDenoiser, labels_of, shape_of
from steersman.models.hub import check_whole, hushed
from steersman.sampling.scheduler import FAMILIES
from steersman.schedule import EDM, Flow, from_diffusers

__all__ = ["PIPELINES", "load_folder", "read_index", "read_model"]

NETWORKS: Mapping[str, tuple[type[ModelMixin], ...]] = {
    "unet": (UNet2DModel, ADMUNet),
    "transformer": (DiTTransformer2DModel, DiT),
}
DECODERS: Mapping[str, tuple[type[ModelMixin], ...]] = {"vae": (AutoencoderKL,), "vqvae": (VQModel, AutoencoderKL)}
ALONE = {"UNet2DModel": "unet", "DiTTransformer2DModel": "transformer"}
WHOLE = (
    {"scheduler", "unet"},
    {"scheduler", "unet", "vae"},
    {"scheduler", "unet", "vqvae"},
    {"scheduler", "transformer", "vae"},
)
PIPELINES = (
    "ChromaPipeline",
    "Flux2Pipeline",
    "FluxPipeline",
    "PixArtAlphaPipeline",
    "PixArtSigmaPipeline",
    "QwenImagePipeline",
    "SanaPipeline",
    "StableDiffusion3Pipeline",
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
)
"""The text pipelines that are tested; others may condition their networks in other ways."""
WANTED = (
    "a folder with unet/ and scheduler/, with vae/ or vqvae/ too where it draws latents, or transformer/, vae/ and "
    "scheduler/, as diffusers saves them"
)
LARGEST = 4096  # pixels across

Model = TypeVar("Model", bound=ModelMixin)


def load_folder(path: Path) -> DiffusersDenoiser | EDMDenoiser:
    """Returns the denoiser of a folder, with EDM's preconditioning where its scheduler is an EDM one."""
    with about("denoiser", path):
        card: Mapping[str, Any] = read_json(path / "card.json") if (path / "card.json").is_file() else {}
        index, parts = read_index(path), _parts(path)
        if parts.keys() not in WHOLE:
            raise InputError(f"denoiser must be {WANTED}, got {str(path)!r}")
        if more := [key for key, value in index.items() if isinstance(value, list) and any(value) and key not in parts]:
            kind = index.get("_class_name", "pipeline")
            raise InputError(
                f"denoiser: {str(path)!r} is a {kind} with {', '.join(more)} as well; use {WANTED}, or a text "
                f"pipeline, {', '.join(PIPELINES)}"
            )
        names = index.get("id2label") or {}
        classes = class_names(card.get("classes", [])) or class_names([names[key] for key in sorted(names, key=int)])
        scheduler = read_json(parts["scheduler"] / "scheduler_config.json", "denoiser")
        edm = FAMILIES.get(str(scheduler.get("_class_name"))) == "edm"
        if edm and parts.keys() != {"scheduler", "unet"}:
            raise InputError(f"an EDM scheduler must come with a unet alone, got {', '.join(sorted(parts))}")
        schedule = None if edm else from_diffusers(scheduler)
        part = "unet" if "unet" in parts else "transformer"
        network: Any = read_model(part, parts[part], *NETWORKS[part])
        if schedule is None:
            return _edm(network, scheduler, classes, trained=card.get("unconditional") is not False)
        if scheduler.get("variance_type") == "learned":
            raise InputError(
                "variance_type must be learned_range, as ADM and DiT learn it, or a fixed one, got learned: the "
                "variance itself, which no sampler here reads"
            )
        vae: Any = next((read_model(key, parts[key], *DECODERS[key]) for key in DECODERS if key in parts), None)
        default = "flow_prediction" if isinstance(schedule, Flow) else "epsilon"
        return DiffusersDenoiser(
            network,
            schedule=schedule,
            parameterization=scheduler.get("prediction_type", default),
            classes=classes,
            time_scale=float(card.get("time_scale", 1.0)),
            vae=vae,
        )


def _parts(path: Path) -> dict[str, Path]:
    """Returns the folder of each part that there is."""
    parts = {part: path / part for part in ("scheduler", *NETWORKS, *DECODERS) if (path / part).is_dir()}
    alone = read_json(path / "config.json").get("_class_name") if (path / "config.json").is_file() else None
    if isinstance(alone, str) and alone in ALONE:
        parts.setdefault(ALONE[alone], path)
    if (path / "scheduler_config.json").is_file():
        parts.setdefault("scheduler", path)
    return parts


def _edm(network: UNet2DModel, scheduler: Mapping[str, Any], classes: tuple[str, ...], *, trained: bool) -> EDMDenoiser:
    """Returns a network with a scheduler's preconditioning; trained: its label after the classes too."""
    if (given := scheduler.get("prediction_type", "epsilon")) != "epsilon":
        raise InputError(f"prediction_type must be epsilon with EDM's preconditioning, got {given}")
    if (outputs := network.config["out_channels"]) != (inputs := network.config["in_channels"]):
        raise InputError(f"out_channels must be {inputs}, as in_channels, with EDM's preconditioning, got {outputs}")
    classes, null = labels_of(network, classes)
    own = EDM()
    return EDMDenoiser(
        network,
        shape=shape_of(network),
        classes=classes,
        unconditional=trained and null is not None,
        sigma_data=float(scheduler.get("sigma_data", 0.5)),
        schedule=EDM(
            ratio_min=float(scheduler.get("sigma_min", own.ratio_min)),
            ratio_max=float(scheduler.get("sigma_max", own.ratio_max)),
        ),
    )


def read_index(path: Path) -> Mapping[str, Any]:
    """Returns a folder's ``model_index.json``, empty where there is none; a pipeline by code of its own is refused."""
    file = path / "model_index.json"
    if not file.is_file():
        return {}
    index = read_json(file, "denoiser")
    kind = index.get("_class_name", "")
    if not isinstance(kind, str):
        named = ", ".join(map(str, kind)) if isinstance(kind, list) else kind
        raise InputError(
            f"denoiser: {str(path)!r} is a pipeline by code of its own, {named}, which is never run; use a "
            "pipeline of diffusers"
        )
    return index


def read_model(part: str, folder: Path, *kinds: type[Model]) -> Model:
    """Returns a diffusers model of one of these classes with its weights; the first where its configuration says none.

    Its configuration is checked against its weights before it gets memory, and all of it is loaded or nothing.
    """
    config, known = read_json(regular_below(folder) / "config.json", part), {kind.__name__: kind for kind in kinds}
    given = str(config.get("_class_name", kinds[0].__name__))
    if given not in known:
        raise unknown(part, given, known)
    kind: Any = known[given]
    if not (size := weights_size(folder)):
        raise InputError(f"{part}: no weights are there in the format of safetensors")
    with no_larger_than(size), torch.device("meta"), torch.no_grad():
        _try(kind.from_config(config))
    with hushed(logging):
        model, info = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    check_whole(f"{part}: it", info)
    check_finite(model.state_dict())
    return model


def _try(network: Any) -> None:  # noqa: ANN401
    """Runs a network on the meta device with an input of the shape that it will get."""
    config = network.config
    if isinstance(network, AutoencoderKL | VQModel):
        channels = latent.channels(config) or 0
        latent.decoded(network, torch.zeros(1, channels, 8, 8))
        if not latent.unscaled(config, torch.ones(1, channels, 1, 1, device="cpu")).isfinite().all():
            raise InputError(f"scaling_factor must leave latents finite, got {config['scaling_factor']}")
        return
    channels, *sides = shape_of(network)
    if not all(isinstance(side, int) and 1 <= side <= LARGEST for side in sides):
        raise InputError(f"sample_size must be between 1 and {LARGEST}, got {config['sample_size']}")
    if (kind := config.get("class_embed_type")) is not None:
        raise InputError(
            f"class_embed_type must be None, where labels are rows of an embedding, got {kind!r}: the conditioning of "
            "such a network is not known"
        )
    labelled = config.get("num_class_embeds") or config.get("num_embeds_ada_norm")
    label = torch.zeros(1, dtype=torch.long) if labelled else None
    x = torch.zeros(1, channels, *sides)
    _, outputs, *others = network(x, torch.zeros(1), class_labels=label).sample.shape
    if outputs not in (channels, 2 * channels) or others != sides:
        raise InputError(
            "it must return as many channels as its input has, or twice as many with a learned variance, of the same "
            f"size, got {(outputs, *others)} for {(channels, *sides)}; a network that gets another image beside its "
            "own, as for super-resolution or inpainting, is not supported"
        )
