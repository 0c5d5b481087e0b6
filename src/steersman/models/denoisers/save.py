"""A denoiser as a folder that plain diffusers loads: its parts, and a scheduler that holds its schedule."""

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
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from steersman.errors import InputError
from steersman.files import system_errors, write_json, writing_to
from steersman.models.denoisers.architectures import CHANGES, ADMUNet, DiT
from steersman.models.denoisers.network import DiffusersDenoiser, EDMDenoiser
from steersman.schedule import EDM, VP, Flow

__all__ = ["save_folder", "scheduler_of"]

Saved = DiffusersDenoiser | EDMDenoiser
PLAIN = {ADMUNet: "UNet2DModel", DiT: "DiTTransformer2DModel"}


def save_folder(denoiser: object, out: str | Path) -> tuple[str, ...]:
    """Writes a folder of ``scheduler`` and ``unet`` or ``transformer``, with ``vae`` or ``vqvae`` for latents.

    Returns the settings that diffusers' configuration cannot say, with which only steersman loads the folder rightly.
    """
    if not (isinstance(denoiser, Saved) and isinstance(denoiser.network, UNet2DModel | DiTTransformer2DModel)):
        raise InputError(
            f"denoiser must be one whose network diffusers has, a U-Net or a DiT, got one by {type(denoiser).__name__}"
        )
    out = Path(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise InputError(f"out must be a new folder, got {str(out)!r}, which is there")
    scheduler = scheduler_of(denoiser)
    beside = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        with writing_to(out, "a new folder"), system_errors(out):
            beside.mkdir(parents=True)
            _write(denoiser, scheduler, beside)
            if out.is_dir():  # an empty one, which Windows does not replace
                out.rmdir()
            os.replace(beside, out)  # the folder is there as a whole or not at all
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    unsaid = {key: denoiser.network.config.get(key) for key in (*CHANGES, "time_shift")}
    unsaid["time_scale"] = denoiser.time_scale if denoiser.time_scale != 1 else None
    return tuple(f"{key}={value}" for key, value in unsaid.items() if value is not None)


def _write(denoiser: Saved, scheduler: SchedulerMixin, out: Path) -> None:
    """Writes the parts, ``model_index.json`` and ``card.json``; the names of a DiT's labels go into the former."""
    network: Any = denoiser.network
    dit, edm, vae = isinstance(network, DiTTransformer2DModel), isinstance(denoiser, EDMDenoiser), denoiser.vae
    quantised = isinstance(vae, VQModel)
    parts: dict[str, Any] = {"transformer" if dit else "unet": network, "scheduler": scheduler}
    if vae is not None:
        parts["vqvae" if quantised else "vae"] = vae
    for name, part in parts.items():
        part.save_pretrained(out / name)
    names = {str(number): name for number, name in enumerate(denoiser.classes)}
    if dit or vae is None or quantised:  # diffusers has no pipeline of a U-Net with a VAE alone
        # EDM's networks have no pipeline of their own; this one scales the network's input, and gives it a label.
        unet = "LDMPipeline" if quantised else "ConsistencyModelPipeline" if edm else "DDPMPipeline"
        index = {"_class_name": "DiTPipeline" if dit else unet, "_diffusers_version": __version__}
        index |= {name: ["diffusers", PLAIN.get(type(part), type(part).__name__)] for name, part in parts.items()}
        write_json(out / "model_index.json", index | ({"id2label": names} if dit else {}))
    card: dict[str, Any] = {"classes": list(names.values())} if names and not dit else {}
    if card and edm and denoiser.null is None:
        card["unconditional"] = False
    if denoiser.time_scale != 1:
        card["time_scale"] = denoiser.time_scale
    if card:
        write_json(out / "card.json", card)


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
