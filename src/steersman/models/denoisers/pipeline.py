"""Text-to-image pipelines of diffusers as denoisers, with the conditioning that the pipeline gives its network.

Before the first step the pipeline is called once for a prompt (`steersman.pipelines.network`); what it gives its
network then goes, row by row, with every ``x_t``. With W the classifier-free scale (Ho & Salimans 2022),

    x0_hat = x0_hat(negative prompt) + W (x0_hat(prompt) - x0_hat(negative prompt)),

where the negative prompt is by default the pipeline's own: an empty one, or zeros. So families differ in nothing here.
A distilled scale, which the network itself takes (Flux's guidance), is the pipeline's default.
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
from steersman.batching import in_blocks
from steersman.denoise import (
    Parameterization,
    Prediction,
    check_condition,
    classifier_free,
    classifier_free_at_once,
    to_x0,
)
from steersman.errors import InputError, one_line
from steersman.pipelines.network import Conditioning, layout_of, record
from steersman.precision import loss_scaled
from steersman.schedule import Flow, Level, Schedule, from_diffusers, times
from steersman.typed import check_finite

__all__ = ["PipelineDenoiser"]

KNOWN = ("prompt", "negative_prompt", "cfg_scale", "unconditional")
CACHED = 16  # prompts
GUIDED = 2.0  # any scale at which a pipeline gives its network both rows


class PipelineDenoiser:
    """A text-to-image pipeline of latents as a denoiser; size is (height, width) in pixels, or the pipeline's own."""

    block: int | None = None  # images that the network gets at a time, None for the whole batch (`steersman.batching`)
    latent: bool = True
    prompted: bool = True
    classes: tuple[str, ...] = ()

    def __init__(self, pipe: Any, *, size: tuple[int, int] | None = None) -> None:  # noqa: ANN401
        self.pipe, self.size = pipe, size
        self.part = "unet" if getattr(pipe, "unet", None) is not None else "transformer"
        self.network: Any = getattr(pipe, self.part).eval().requires_grad_(False)
        self.vae = latent.frozen(pipe.vae)
        self.parameters = inspect.signature(type(pipe).__call__).parameters
        self.scale = "true_cfg_scale" if "true_cfg_scale" in self.parameters else "guidance_scale"
        network = self.network.config
        distilled = network.get("guidance_embeds", "timestep_guidance_channels" in network)
        self.distilled = bool(distilled) and self.scale == "guidance_scale"  # then that is no classifier-free scale
        self.cache: dict[tuple[str, str | None, bool], Conditioning] = {}
        self.lock = threading.Lock()
        plain = self._conditioning("", None, guided=False)
        channels = latent.channels(self.vae.config)
        self.layout = layout_of(type(self.network).__name__, plain.sample, plain.values, channels)
        self.shape = tuple(self.layout.unpack(plain.sample).shape[1:])
        config = pipe.scheduler.config
        self.schedule: Schedule = from_diffusers(config, mu=plain.mu)
        self.learned_range = config.get("variance_type") == "learned_range"
        default = "flow_prediction" if isinstance(self.schedule, Flow) else "epsilon"
        self.parameterization: Parameterization = config.get("prediction_type", default)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "PipelineDenoiser":
        """Moves all parts, and returns self; one that is in the dtype already keeps what it has in another."""
        for part in self.pipe.components.values():
            if part is self.vae:
                latent.cast(part, device, dtype)
            elif isinstance(part, nn.Module):
                nn.Module.to(part, device=device, dtype=None if part.dtype == dtype else dtype)
        self.cache.clear()
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
        """Returns the prediction for noisy latents at a level, one for all or one for each."""
        check_finite("cfg_scale", cfg_scale)
        check_condition(label, 1, _others, classes=(), unconditional=True, known=KNOWN)
        if prompt is None:
            raise InputError("prompt must be a text, which may be empty, got none")
        guided = cfg_scale != 1 or unconditional
        if negative_prompt is not None and not guided:
            raise InputError(f"negative_prompt must come with a cfg_scale other than 1, got {negative_prompt!r}")
        given = self._conditioning(prompt, negative_prompt, guided=guided)
        conditional = torch.full((len(x_t),), given.conditional, device=x_t.device)
        if not guided:
            return self._predict(x_t, level, conditional, given)
        if given.separate is not None:
            prediction = self._predict(x_t, level, conditional, given)
            return classifier_free(prediction, self._predict(x_t, level, conditional, given.separate).x0_hat, cfg_scale)
        if given.unconditional is None:
            raise InputError(
                f"cfg_scale must be 1 and no weight difference, as {type(self.pipe).__name__} has no unconditional "
                f"model here, got {cfg_scale}"
            )
        rows = torch.cat([conditional, torch.full_like(conditional, given.unconditional)])
        return classifier_free_at_once(partial(self._predict, rows=rows, given=given), x_t, level, cfg_scale)

    def decode(self, x0: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """Returns the images of latents."""
        return latent.decoded(self.vae, x0)

    def encode(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """Returns the latents of images."""
        return latent.encoded(self.vae, images)

    def _predict(self, x_t: Tensor, level: Level, rows: Tensor, given: Conditioning) -> Prediction:
        time, dtype = times(level, len(x_t), x_t.device, torch.float32) * given.time_scale, self.network.dtype

        def network(x: Tensor, time: Tensor, rows: Tensor) -> Tensor:
            output = self.network(self.layout.pack(x.to(dtype)), timestep=time, **given.rows(rows))
            return self.layout.unpack(output[0]).to(x.dtype)

        output = in_blocks(loss_scaled(network, dtype), self.block, x_t, time, rows)
        fraction = None
        if output.shape[1] == 2 * x_t.shape[1]:
            output, learned = output.chunk(2, dim=1)
            fraction = (learned + 1) / 2 if self.learned_range else None
        return Prediction(to_x0(self.parameterization, x_t, output, level), fraction)

    def _conditioning(self, prompt: str, negative_prompt: str | None, *, guided: bool) -> Conditioning:
        """Returns the conditioning of a prompt, from the cache or from a call of the pipeline."""
        key = (prompt, negative_prompt, guided)
        with self.lock:
            if key not in self.cache:
                while len(self.cache) >= CACHED:
                    self.cache.pop(next(iter(self.cache)))
                self.cache[key] = self._recorded(*key)
            return self.cache[key]

    def _recorded(self, prompt: str, negative_prompt: str | None, guided: bool) -> Conditioning:
        call: dict[str, Any] = {"prompt": prompt}
        if not self.distilled:
            call[self.scale] = GUIDED if guided else 1.0
        if guided and negative_prompt is None and self.scale == "true_cfg_scale":
            negative_prompt = ""  # without one such a pipeline has no unconditional row
        if negative_prompt is not None:
            call["negative_prompt"] = negative_prompt
        if self.size is not None:
            call["height"], call["width"] = self.size
        if "use_resolution_binning" in self.parameters:
            call["use_resolution_binning"] = False
        if "clean_caption" in self.parameters and not (is_bs4_available() and is_ftfy_available()):
            call["clean_caption"] = False  # as the pipeline then does itself, with a long warning
        try:
            return record(self.pipe, self.part, **call)
        except Exception as error:  # of the pipeline's own code, which may lack a part or refuse a size
            name = type(self.pipe).__name__
            raise InputError(f"denoiser: {name} cannot be conditioned on {prompt!r} ({one_line(error)})") from error
