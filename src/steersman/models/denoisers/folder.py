"""Denoisers read from and written to folders as diffusers saves a pipeline: one for each part, ``model_index.json``.

The parts are scheduler and unet, with vae or vqvae for latents, or scheduler, transformer and vae. Of a network alone,
the files of the parts may lie in the folder itself, as in some of the hub. ``card.json`` may give ``classes``, the
``time_scale`` of the network, and ``unconditional: false`` for a label after the classes that was not trained.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import __version__
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.utils import logging

from steersman import latent
from steersman.errors import InputError, about, unknown
from steersman.files import class_names, new_folder, read_json, regular_below, write_json, writing_to
from steersman.models.checkpoint import check_finite, no_larger_than, weights_size
from steersman.models.denoisers.architectures import CHANGES, ADMUNet, DiT
from steersman.models.denoisers.network import DiffusersDenoiser, EDMDenoiser, labels_of, shape_of
from steersman.models.hub import check_whole, hushed
from steersman.sampling.scheduler import FAMILIES
from steersman.schedule import EDM, VP, Flow, from_diffusers

__all__ = ["PIPELINES", "load_folder", "read_index", "read_model", "save_folder", "scheduler_of"]

MODELS: Mapping[str, tuple[type[ModelMixin], ...]] = {
    "unet": (UNet2DModel, ADMUNet),
    "transformer": (DiTTransformer2DModel, DiT),
    "vae": (AutoencoderKL,),
    "vqvae": (VQModel, AutoencoderKL),
}
"""The classes that a part may have, networks before decoders; the first is that of a configuration without one."""
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

Saved = DiffusersDenoiser | EDMDenoiser


def load_folder(path: Path) -> Saved:
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
        network, *decoders = (read_model(part, parts[part], *kinds) for part, kinds in MODELS.items() if part in parts)
        if schedule is None:
            return _edm(network, scheduler, classes, trained=card.get("unconditional") is not False)
        if scheduler.get("variance_type") == "learned":
            raise InputError(
                "variance_type must be learned_range, as ADM and DiT learn it, or a fixed one, got learned: the "
                "variance itself, which no sampler here reads"
            )
        default = "flow_prediction" if isinstance(schedule, Flow) else "epsilon"
        return DiffusersDenoiser(
            network,
            schedule=schedule,
            parameterization=scheduler.get("prediction_type", default),
            classes=classes,
            time_scale=float(card.get("time_scale", 1.0)),
            vae=decoders[0] if decoders else None,
        )


def _parts(path: Path) -> dict[str, Path]:
    """Returns the folder of each part that there is."""
    parts = {part: path / part for part in ("scheduler", *MODELS) if (path / part).is_dir()}
    alone = read_json(path / "config.json").get("_class_name") if (path / "config.json").is_file() else None
    for part in ("unet", "transformer"):
        if alone == MODELS[part][0].__name__:
            parts.setdefault(part, path)
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


def read_model(part: str, folder: Path, *kinds: type[ModelMixin]) -> Any:  # noqa: ANN401
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


def save_folder(denoiser: object, out: str | Path) -> tuple[str, ...]:
    """Writes a denoiser's parts, ``model_index.json`` and ``card.json``, as plain diffusers loads them.

    Returns the settings that diffusers' configuration cannot say, with which only steersman loads the folder rightly.
    """
    if not (isinstance(denoiser, Saved) and isinstance(denoiser.network, UNet2DModel | DiTTransformer2DModel)):
        raise InputError(
            f"denoiser must be one whose network diffusers has, a U-Net or a DiT, got one by {type(denoiser).__name__}"
        )
    out = Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise InputError(f"out must be a new folder, got {str(out)!r}, which is there")
    network: Any = denoiser.network
    transformer, vae = isinstance(network, DiTTransformer2DModel), denoiser.vae
    parts: dict[str, Any] = {"transformer" if transformer else "unet": network, "scheduler": scheduler_of(denoiser)}
    if vae is not None:
        parts["vqvae" if isinstance(vae, VQModel) else "vae"] = vae
    names = {str(number): name for number, name in enumerate(denoiser.classes)}
    card: dict[str, Any] = {}
    if names and not transformer:  # the names of a DiT's labels have a place in its index
        card["classes"] = list(names.values())
        if isinstance(denoiser, EDMDenoiser) and not denoiser.unconditional:
            card["unconditional"] = False
    if denoiser.time_scale != 1:
        card["time_scale"] = denoiser.time_scale
    with writing_to(out, "a new folder"), new_folder(out) as beside:
        for name, part in parts.items():
            part.save_pretrained(beside / name)
        if pipeline := _pipeline(denoiser):
            index = {"_class_name": pipeline, "_diffusers_version": __version__}
            # ADMUNet and DiT stand there as what diffusers has of them.
            plain = {
                name: next(kind for kind in type(part).__mro__ if kind.__module__.startswith("diffusers."))
                for name, part in parts.items()
            }
            index |= {name: ["diffusers", kind.__name__] for name, kind in plain.items()}
            write_json(beside / "model_index.json", index | ({"id2label": names} if transformer else {}))
        if card:
            write_json(beside / "card.json", card)
    unsaid = {key: network.config.get(key) for key in (*CHANGES, "time_shift")}
    unsaid["time_scale"] = card.get("time_scale")
    return tuple(f"{key}={value}" for key, value in unsaid.items() if value is not None)


def _pipeline(denoiser: Saved) -> str | None:
    """Returns diffusers' pipeline of a denoiser's parts; it has none of a U-Net with a VAE alone."""
    if isinstance(denoiser.network, DiTTransformer2DModel):
        return "DiTPipeline"
    if isinstance(denoiser, EDMDenoiser):
        return "ConsistencyModelPipeline"  # it scales the network's input, and gives it a label, as EDM's have to be
    if denoiser.vae is None:
        return "DDPMPipeline"
    return "LDMPipeline" if isinstance(denoiser.vae, VQModel) else None


def scheduler_of(denoiser: Saved) -> DDPMScheduler | EDMEulerScheduler | FlowMatchEulerDiscreteScheduler:
    """Returns a scheduler from which the schedule can be read again; DDPM's steps are at ADM's rounded levels."""
    schedule, prediction = denoiser.schedule, denoiser.parameterization
    if isinstance(denoiser, EDMDenoiser):
        if not isinstance(schedule, EDM):
            raise InputError(f"schedule must be EDM, got {type(schedule).__name__}")
        return EDMEulerScheduler(
            sigma_min=schedule.ratio_min, sigma_max=schedule.ratio_max, sigma_data=denoiser.sigma_data
        )
    if isinstance(schedule, Flow) and prediction == "flow_prediction":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=schedule.count, shift=schedule.shift)
    if not isinstance(schedule, VP) or prediction == "flow_prediction":
        given = type(schedule).__name__
        raise InputError(f"schedule must be VP, or Flow for flow_prediction, got {given} for {prediction}")
    network: Any = denoiser.network
    count, learned = len(schedule.alpha_bar), network.config["out_channels"] == 2 * network.config["in_channels"]
    betas: dict[str, Any] = {}
    if torch.equal(schedule.alpha_bar, VP.cosine(count).alpha_bar):
        betas["beta_schedule"] = "squaredcos_cap_v2"
    elif not torch.equal(schedule.alpha_bar, VP.linear(count).alpha_bar):
        betas["trained_betas"] = schedule.betas.tolist()
    return DDPMScheduler(
        num_train_timesteps=count,
        prediction_type=prediction,
        variance_type="learned_range" if learned else "fixed_small",
        clip_sample=not denoiser.latent,
        timestep_spacing="linspace",
        **betas,
    )
