"""Text-to-image pipelines of diffusers as denoisers, each told what the pipeline itself tells its network.

Before the first step the pipeline is called once for a prompt (`steersman.pipelines.told`); what its network was told
then goes, row by row, with every ``x_t``. With W the classifier-free scale (Ho & Salimans 2022),

    x0_hat = x0_hat(negative prompt) + W (x0_hat(prompt) - x0_hat(negative prompt)),

the negative prompt being what the pipeline takes where none is given: an empty one, or zeros. So families differ in
nothing here. A distilled scale that the network is told (Flux's guidance) is the pipeline's default.
"""

import inspect
import threading
from functools import partial
from typing import Any

import torch
from diffusers.utils.import_utils import is_bs4_available, is_ftfy_available
from jaxtyping import Float, Int
from torch import Tensor, nn

from steersman import latent
from steersman.blocks import in_blocks
from steersman.denoise import (
    Parameterization,
    Prediction,
    check_condition,
    classifier_free,
    classifier_free_at_once,
    to_x0,
)
from steersman.errors import InputError, one_line
from steersman.pipelines.layout import layout_of
from steersman.pipelines.told import Told, hear
from steersman.precision import loss_scaled
from steersman.schedule import Flow, Level, Schedule, from_diffusers, times
from steersman.typed import check_finite

__all__ = ["PipelineDenoiser"]

KNOWN = ("prompt", "negative_prompt", "cfg_scale", "unconditional")
KEPT = 16  # prompts whose encodings are kept
GUIDED = 2.0  # any scale at which a pipeline tells both rows


class PipelineDenoiser:
    """A pipeline that draws latents from texts.

    Its network runs in evaluation mode, without gradients for its weights. Samples enter and leave in float32 or
    float64, whatever it runs in.

    Args:
        pipe: The pipeline, with its text encoders.
        size: Height and width of its images in pixels; by default the pipeline's own.

    Attributes:
        latent: Whether samples are latents; they are.
        prompted: Whether it is told a text; it is.
        block: How many images the network sees at a time, None for the whole batch (`steersman.blocks`).

    Raises:
        InputError: A scheduler whose noise is unknown here, or a pipeline that does not take a prompt alone.
    """

    block: int | None = None
    latent: bool = True
    prompted: bool = True
    classes: tuple[str, ...] = ()

    def __init__(self, pipe: Any, *, size: tuple[int, int] | None = None) -> None:  # noqa: ANN401
        self.pipe, self.size = pipe, size
        self.part = "unet" if getattr(pipe, "unet", None) is not None else "transformer"
        self.network: Any = getattr(pipe, self.part).eval().requires_grad_(False)
        self.vae = latent.frozen(pipe.vae)
        self.takes = inspect.signature(type(pipe).__call__).parameters
        self.scale = "true_cfg_scale" if "true_cfg_scale" in self.takes else "guidance_scale"
        told_scale = self.network.config.get("guidance_embeds", "timestep_guidance_channels" in self.network.config)
        self.distilled = bool(told_scale) and self.scale == "guidance_scale"  # which is no classifier-free scale then
        self.told: dict[tuple[str, str | None, bool], Told] = {}
        self.hearing = threading.Lock()
        plain = self._told("", None, guided=False)
        self.layout = layout_of(
            type(self.network).__name__, plain.sample, plain.values, latent.channels(self.vae.config)
        )
        _, *shape = self.layout.unpack(plain.sample).shape
        channels, height, width = shape
        self.shape = (channels, height, width)
        config = pipe.scheduler.config
        self.schedule: Schedule = from_diffusers(config, mu=plain.mu)
        self.learned_range = config.get("variance_type") == "learned_range"
        meant = "flow_prediction" if isinstance(self.schedule, Flow) else "epsilon"
        self.parameterization: Parameterization = config.get("prediction_type", meant)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "PipelineDenoiser":
        """Moves all parts, and returns self; one that is in the dtype already keeps what it has in another."""
        for part in self.pipe.components.values():
            if part is self.vae:
                latent.cast(part, device, dtype)
            elif isinstance(part, nn.Module):
                nn.Module.to(part, device=device, dtype=None if part.dtype == dtype else dtype)
        self.told.clear()
        return self

    def __call__(
        self,
        x_t: Float[Tensor, "B C H W"],
        level: Level,
        *,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        cfg_scale: float = 1.0,
        unconditional: bool = False,
        label: Int[Tensor, " B"] | None = None,
        **_others: Any,  # noqa: ANN401
    ) -> Prediction:
        """Returns the prediction.

        Args:
            x_t: Noisy latents.
            level: Their level, one for all or one each.
            prompt: What all images show; may be empty.
            negative_prompt: What they do not show; None for what the pipeline takes then.
            cfg_scale: The classifier-free scale ``W``; at 1 only the prompt is asked for.
            unconditional: Whether the prediction without the prompt is asked for too, at a scale of 1 as well, for
                weights that compare with it.
            label: None; there are no labels.

        Raises:
            InputError: No prompt, a negative one at a scale of 1, a scale for a pipeline without an unconditional row,
                a label, or another condition.
        """
        check_finite("cfg_scale", cfg_scale)
        check_condition(label, 1, _others, classes=(), unconditional=True, known=KNOWN)
        if prompt is None:
            raise InputError("prompt must be a text, which may be empty, got none")
        guided = cfg_scale != 1 or unconditional
        if negative_prompt is not None and not guided:
            raise InputError(f"negative_prompt must come with a cfg_scale other than 1, got {negative_prompt!r}")
        told = self._told(prompt, negative_prompt, guided=guided)
        conditional = torch.full((len(x_t),), told.conditional, device=x_t.device)
        if not guided:
            return self._predict(x_t, level, conditional, told)
        if told.apart is not None:
            prediction = self._predict(x_t, level, conditional, told)
            return classifier_free(prediction, self._predict(x_t, level, conditional, told.apart).x0_hat, cfg_scale)
        if told.unconditional is None:
            raise InputError(
                f"cfg_scale must be 1 and no weight difference, as {type(self.pipe).__name__} has no unconditional "
                f"model here, got {cfg_scale}"
            )
        rows = torch.cat([conditional, torch.full_like(conditional, told.unconditional)])
        return classifier_free_at_once(partial(self._predict, rows=rows, told=told), x_t, level, cfg_scale)

    def decode(self, x0: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """Returns what the VAE makes of latents."""
        return latent.decoded(self.vae, x0)

    def encode(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """Returns what the VAE makes of images."""
        return latent.encoded(self.vae, images)

    def _predict(self, x_t: Tensor, level: Level, rows: Tensor, told: Told) -> Prediction:
        time = times(level, len(x_t), x_t.device, torch.float32) * told.pace

        dtype = self.network.dtype

        def output(x: Tensor, time: Tensor, rows: Tensor) -> Tensor:
            answer = self.network(self.layout.pack(x.to(dtype)), timestep=time, **told.rows(rows))
            return self.layout.unpack(answer[0]).to(x.dtype)

        raw = in_blocks(loss_scaled(output, dtype), self.block, x_t, time, rows)
        fraction = None
        if raw.shape[1] == 2 * x_t.shape[1]:
            raw, learned = raw.chunk(2, dim=1)
            fraction = (learned + 1) / 2 if self.learned_range else None
        return Prediction(to_x0(self.parameterization, x_t, raw, level), fraction)

    def _told(self, prompt: str, negative_prompt: str | None, *, guided: bool) -> Told:
        """Returns what the network is told of a prompt, heard once."""
        key = (prompt, negative_prompt, guided)
        with self.hearing:
            if key not in self.told:
                while len(self.told) >= KEPT:
                    self.told.pop(next(iter(self.told)))
                self.told[key] = self._hear(prompt, negative_prompt, guided)
            return self.told[key]

    def _hear(self, prompt: str, negative_prompt: str | None, guided: bool) -> Told:
        call: dict[str, Any] = {"prompt": prompt}
        if not self.distilled:
            call[self.scale] = GUIDED if guided else 1.0
        if guided and negative_prompt is None and self.scale == "true_cfg_scale":
            negative_prompt = ""  # without one such a pipeline has no unconditional row
        if negative_prompt is not None:
            call["negative_prompt"] = negative_prompt
        if self.size is not None:
            call["height"], call["width"] = self.size
        if "use_resolution_binning" in self.takes:
            call["use_resolution_binning"] = False
        if "clean_caption" in self.takes and not (is_bs4_available() and is_ftfy_available()):
            call["clean_caption"] = False  # as the pipeline then does itself, and says so at length
        try:
            return hear(self.pipe, self.part, **call)
        except Exception as error:  # of the pipeline's own code, which may lack a part or refuse a size
            name = type(self.pipe).__name__
            raise InputError(f"denoiser: {name} cannot be told {prompt!r} ({one_line(error)})") from error
