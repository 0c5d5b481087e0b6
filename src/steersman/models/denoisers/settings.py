"""Settings of the training scripts of guided-diffusion, improved-diffusion and DiT, which a checkpoint does not hold.

A spec states them after the file, ``mine.pt?diffusion_steps=4000&noise_schedule=cosine``. With T ``diffusion_steps``,
the network was trained at times t from 0 to T - 1 and gets t, or with ``rescale_timesteps`` ``1000 t / T``. Linear
betas go from ``0.1 / T`` to ``20 / T``, which is as much noise in all as for T = 1000.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d import UNet2DModel
from pydantic import Field

from steersman.errors import InputError, notice
from steersman.models.denoisers.architectures import DiT
from steersman.models.denoisers.network import DiffusersDenoiser
from steersman.names import split_options
from steersman.schedule import MOST, VP
from steersman.typed import typed

__all__ = ["Diffusion", "Settings", "read_settings"]

SHORT = {
    "num_heads": "heads",
    "num_head_channels": "head_channels",
    "num_heads_upsample": "heads_upsample",
    "use_new_attention_order": "attention",
    "image_size": "size",
    "num_res_blocks": "blocks",
    "noise_schedule": "schedule",
    "classifier_width": "num_channels",
    "classifier_depth": "blocks",
    "classifier_attention_resolutions": "attention_resolutions",
    "classifier_use_scale_shift_norm": "use_scale_shift_norm",
    "classifier_resblock_updown": "resblock_updown",
    "classifier_pool": "pool",
    "classifier_use_fp16": "use_fp16",
}
"""The short names of settings by the scripts' own names; a spec may have either."""
IGNORED = ("dropout", "use_checkpoint", "use_fp16", "use_kl", "rescale_learned_sigmas", "sigma_small")
"""Settings of the training or of a sampler, which do not change what the network computes."""
OPTIONAL = ("heads", "head_channels", "heads_upsample", "channel_mult")
"""Settings that the scripts write as -1 or as nothing where they are left open."""

Count = Annotated[int, Field(ge=1, le=MOST)]
Numbers = tuple[Annotated[float, Field(gt=0, le=MOST)], ...]
TYPES: Mapping[str, Any] = {
    **dict.fromkeys(("heads", "head_channels", "heads_upsample", "size", "blocks", "num_channels"), Count),
    **dict.fromkeys(("diffusion_steps", "num_classes"), Count),
    **dict.fromkeys(("learn_sigma", "class_cond", "use_scale_shift_norm", "resblock_updown"), bool),
    **dict.fromkeys(("predict_xstart", "rescale_timesteps"), bool),
    **dict.fromkeys(("channel_mult", "attention_resolutions"), Numbers),
    "attention": Literal["legacy", "new"],
    "schedule": Literal["linear", "cosine", "squaredcos_cap_v2"],
    **dict.fromkeys(("vae", "pool", "weights"), str),
}


@dataclass(frozen=True, kw_only=True)
class Diffusion:
    """The diffusion that a network was trained with; the defaults are those of guided-diffusion's scripts."""

    diffusion_steps: int = 1000
    schedule: str = "linear"  # cosine is also called squaredcos_cap_v2
    predict_xstart: bool = False
    rescale_timesteps: bool = False

    @property
    def noise(self) -> VP:
        """The schedule; refused where there are so few times that linear betas reach 1 before the last."""
        if self.schedule != "linear":
            return VP.cosine(self.diffusion_steps)
        scale = 1000 / self.diffusion_steps
        return VP.linear(self.diffusion_steps, scale * 1e-4, scale * 0.02)

    @property
    def time_scale(self) -> float:
        """The factor from t to the time that the network gets."""
        return 1000 / self.diffusion_steps if self.rescale_timesteps else 1.0

    def denoiser(
        self, network: UNet2DModel | DiT, classes: tuple[str, ...], vae: AutoencoderKL | None = None
    ) -> DiffusersDenoiser:
        """Returns the denoiser of a network that was trained so."""
        return DiffusersDenoiser(
            network,
            schedule=self.noise,
            parameterization="sample" if self.predict_xstart else "epsilon",
            classes=classes,
            time_scale=self.time_scale,
            vae=vae,
        )


class Settings(dict[str, Any]):
    """The settings that a spec states, by their short names; those that it leaves open are missing."""

    def __init__(self, source: str, file: str, allowed: Collection[str], values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.source, self.file, self.allowed = source, file, allowed

    def check(self, found: Mapping[str, Any]) -> None:
        """Refuses a setting that differs from the value found in the file's tensors."""
        for key, value in found.items():
            if key in self and self[key] != value:
                raise InputError(f"{key} must be {_text(value)}, by the file's tensors, got {_text(self[key])}")

    def diffusion(self, base: Diffusion | None) -> Diffusion:
        """Returns how the network was trained: as stated, as known of a released file, or by default, with a notice."""
        keys = [field.name for field in fields(Diffusion) if field.name in self.allowed]
        found = replace(base or Diffusion(), **{key: self[key] for key in keys if key in self})
        if base is None and (left := [key for key in keys if key not in self]):
            taken = ", ".join(f"{key}={getattr(found, key)}" for key in left)
            notice(
                f"{self.source}: {self.file!r} does not say how it was trained; {taken} taken, the defaults of "
                f"guided-diffusion's scripts; state others as {self.source}:{self.file}?diffusion_steps=4000"
            )
        return found


def read_settings(source: str, text: str, allowed: Collection[str]) -> Settings:
    """Returns the settings of ``FILE?KEY=VALUE&KEY=VALUE`` under their short names, of which only some are allowed."""
    known = (*allowed, *IGNORED)
    file, given = split_options(
        text, [*known, *(name for name, short in SHORT.items() if short in known)], f"setting of {source}"
    )
    values: dict[str, Any] = {}
    for name, value in given.items():
        key = SHORT.get(name, name)
        if key in values:
            raise InputError(f"{source}: {key} is stated twice, once as {name}; state it once")
        if key not in IGNORED and not (key in OPTIONAL and value in ("", "-1")):
            values[key] = _value(name, key, value)
    return Settings(source, file, allowed, values)


def _value(name: str, key: str, text: str) -> Any:  # noqa: ANN401
    if name == "use_new_attention_order":
        return "new" if typed(name, text, bool) else "legacy"
    hint = TYPES[key]
    return typed(name, text.split(",") if hint is Numbers else text, hint)


def _text(value: object) -> str:
    return ",".join(f"{number:g}" for number in value) if isinstance(value, tuple) else str(value)
