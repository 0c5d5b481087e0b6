"""A denoiser as a folder that plain diffusers loads: its parts, and a scheduler that says its schedule."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import __version__
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from steersman.errors import InputError, one_line
from steersman.files import system_errors, write_json
from steersman.models.denoisers.adm_network import CHANGES, ADMUNet
from steersman.models.denoisers.diffusers import DiffusersDenoiser
from steersman.models.denoisers.dit_network import DiT
from steersman.models.denoisers.edm import EDMDenoiser
from steersman.schedule import EDM, VP, Flow

__all__ = ["save_folder", "scheduler_of"]

PLAIN = {ADMUNet: "UNet2DModel", DiT: "DiTTransformer2DModel"}


def save_folder(denoiser: object, out: str | Path) -> tuple[str, ...]:
    """Writes a folder of ``scheduler`` and ``unet`` or ``transformer``, with ``vae`` or ``vqvae`` for one of latents.

    The names of its labels go where each is loaded from: a DiT's into ``model_index.json``, a U-Net's into
    ``card.json``. With EDM's preconditioning the scheduler is an `EDMEulerScheduler`, which has it too.

    Args:
        denoiser: A `DiffusersDenoiser`, or an `EDMDenoiser` of a `UNet2DModel`.
        out: The folder; new, or empty.

    Returns:
        What diffusers' configuration cannot say, so that only steersman loads the folder rightly; most often nothing.

    Raises:
        InputError: The denoiser is of another kind, or the folder holds something or cannot be written to.
    """
    known = isinstance(denoiser, DiffusersDenoiser | EDMDenoiser)
    if not (known and isinstance(denoiser.network, UNet2DModel | DiTTransformer2DModel)):
        raise InputError(
            f"denoiser must be one whose network diffusers has, a U-Net or a DiT, got one by {type(denoiser).__name__}"
        )
    out = Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise InputError(f"out must be a new folder, got {str(out)!r}, which is there")
    beside = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        with system_errors(out):
            beside.mkdir(parents=True)
            _write(denoiser, beside)
            if out.is_dir():  # an empty one, which Windows does not replace
                out.rmdir()
            os.replace(beside, out)
    except OSError as error:
        raise InputError(f"out: {str(out)!r} cannot be written to ({one_line(error)})") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    changes = {key: denoiser.network.config.get(key) for key in (*CHANGES, "time_shift")}
    changes |= _time_scale(denoiser)
    return tuple(f"{key}={value}" for key, value in changes.items() if value is not None)


def _time_scale(denoiser: DiffusersDenoiser | EDMDenoiser) -> dict[str, float]:
    """Returns what the card says of how the network is told the time, where diffusers' pipelines would tell t."""
    scale = getattr(denoiser, "time_scale", 1.0)
    return {} if scale == 1 else {"time_scale": scale}


def _write(denoiser: DiffusersDenoiser | EDMDenoiser, out: Path) -> None:
    dit, vae = isinstance(denoiser.network, DiTTransformer2DModel), getattr(denoiser, "vae", None)
    parts: dict[str, Any] = {"transformer" if dit else "unet": denoiser.network, "scheduler": scheduler_of(denoiser)}
    quantised = isinstance(vae, VQModel)
    if vae is not None:
        parts["vqvae" if quantised else "vae"] = vae
    for name, part in parts.items():
        part.save_pretrained(out / name)
    kinds = {name: ["diffusers", PLAIN.get(type(part), type(part).__name__)] for name, part in parts.items()}
    # EDM's networks have no pipeline of their own; this one scales what the network is shown, and gives it a label.
    edm = denoiser if isinstance(denoiser, EDMDenoiser) else None
    unet = "LDMPipeline" if quantised else "ConsistencyModelPipeline" if edm else "DDPMPipeline"
    pipeline = "DiTPipeline" if dit else unet
    names = {str(number): name for number, name in enumerate(denoiser.classes)}
    index = {"_class_name": pipeline, "_diffusers_version": __version__, **kinds}
    if dit:
        index |= {"id2label": names}
    if dit or vae is None or quantised:
        write_json(out / "model_index.json", index)
    untrained = {"unconditional": False} if edm and not edm.unconditional else {}
    card = {"classes": list(names.values())} | untrained if names and not dit else {}
    if card := card | _time_scale(denoiser):
        write_json(out / "card.json", card)


def scheduler_of(
    denoiser: DiffusersDenoiser | EDMDenoiser,
) -> DDPMScheduler | EDMEulerScheduler | FlowMatchEulerDiscreteScheduler:
    """Returns a scheduler that its schedule can be read from again; DDPM's steps are at ADM's rounded levels."""
    schedule = denoiser.schedule
    if isinstance(denoiser, EDMDenoiser):
        if not isinstance(schedule, EDM):
            raise InputError(f"schedule must be EDM, got {type(schedule).__name__}")
        return EDMEulerScheduler(
            sigma_min=schedule.ratio_min, sigma_max=schedule.ratio_max, sigma_data=denoiser.sigma_data
        )
    meant = denoiser.parameterization
    if isinstance(schedule, Flow) and meant == "flow_prediction":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=schedule.count, shift=schedule.shift)
    if not isinstance(schedule, VP) or meant == "flow_prediction":
        given = type(schedule).__name__
        raise InputError(f"schedule must be VP, or Flow for flow_prediction, got {given} for {meant}")
    count, config = len(schedule.alpha_bar), denoiser.network.config
    learned = config["out_channels"] == 2 * config["in_channels"]
    betas: dict[str, Any] = {}
    if torch.equal(schedule.alpha_bar, VP.cosine(count).alpha_bar):
        betas["beta_schedule"] = "squaredcos_cap_v2"
    elif not torch.equal(schedule.alpha_bar, VP.linear(count).alpha_bar):
        betas["trained_betas"] = schedule.betas.tolist()
    return DDPMScheduler(
        num_train_timesteps=count,
        prediction_type=meant,
        variance_type="learned_range" if learned else "fixed_small",
        clip_sample=not denoiser.latent,
        timestep_spacing="linspace",
        **betas,
    )
