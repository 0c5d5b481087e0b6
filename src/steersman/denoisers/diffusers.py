"""diffusers' models as denoisers, of pixels or of a VAE's latents.

With labels, ``x0_hat(x_t, y)`` is the conditional model, ``x0_hat(x_t, null)`` the unconditional one, and
classifier-free guidance of scale ``w`` (Ho & Salimans 2022) predicts
``x0_hat(null) + w (x0_hat(y) - x0_hat(null))`` from one doubled batch.
"""

from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from jaxtyping import Float, Int
from torch import Tensor, nn

from steersman.blocks import in_blocks
from steersman.denoise import Parameterization, Prediction, check_condition, classifier_free_at_once, to_x0
from steersman.denoisers import latent
from steersman.denoisers.adm_network import ADMUNet
from steersman.denoisers.dit_network import DiT
from steersman.denoisers.folder import Folder
from steersman.errors import InputError, unknown
from steersman.schedule import Flow, Level, Schedule, from_diffusers, times

__all__ = ["DiffusersDenoiser"]

Network = UNet2DModel | DiTTransformer2DModel


class DiffusersDenoiser:
    """A network with the schedule of its scheduler's configuration, and a VAE where it works on latents.

    A `UNet2DModel` with ``num_class_embeds`` labels has them as ``classes``; where it has one more than there are
    names, the last is the null label. A `DiTTransformer2DModel` has a null label after the ``num_embeds_ada_norm``
    others. Samples enter and leave in float32 or float64, whatever the network runs in.

    Args:
        network: The network; put into evaluation mode, its weights without gradients.
        schedule: The noise that it was trained on.
        parameterization: What its output means.
        classes: The names of its labels, without the null label; by default their numbers.
        vae: What decodes its samples, where they are latents.

    Attributes:
        latent: Whether they are.
        block: How many images the network sees at a time, None for the whole batch (`steersman.blocks`).

    Raises:
        InputError: More or fewer names than labels, a VAE of other latents, or an unknown parameterization.
    """

    block: int | None = None

    def __init__(
        self,
        network: Network,
        *,
        schedule: Schedule,
        parameterization: Parameterization = "epsilon",
        classes: tuple[str, ...] = (),
        vae: AutoencoderKL | VQModel | None = None,
    ) -> None:
        if parameterization not in get_args(Parameterization):
            raise unknown("parameterization", parameterization, get_args(Parameterization))
        config = network.config
        labels = config.get("num_class_embeds") or 0
        numbered = labels
        if isinstance(network, DiTTransformer2DModel):
            numbered = config["num_embeds_ada_norm"]
            labels = numbered + 1
        if classes and len(classes) not in (labels, labels - 1):
            raise InputError(f"classes: {len(classes)} names given; the network has {labels} labels")
        channels = int(config["in_channels"])
        if vae is not None and latent.channels(vae.config) != channels:
            raise InputError(
                f"vae must be one of {channels} channels, as the network is, got {latent.channels(vae.config)}"
            )
        size = config["sample_size"]
        height, width = size if isinstance(size, list | tuple) else (size, size)
        self.network = network.eval().requires_grad_(False)
        self.vae = None if vae is None else latent.frozen(vae)
        self.latent = vae is not None
        self.schedule = schedule
        self.parameterization: Parameterization = parameterization
        self.shape = (channels, int(height), int(width))
        self.classes = classes or tuple(str(label) for label in range(numbered))
        self.null = labels - 1 if len(self.classes) < labels else None

    @classmethod
    def from_folder(cls, folder: str | Path, *, classes: tuple[str, ...] = ()) -> "DiffusersDenoiser":
        """Loads a pipeline's folder as diffusers saves it.

        Args:
            folder: It holds ``scheduler`` and ``unet``, with ``vae`` or ``vqvae`` beside them for one of latents, as an
                `LDMPipeline` does; or ``scheduler``, ``transformer`` and ``vae``, as a `DiTPipeline` does.
            classes: The names of the labels; by default those in the folder's ``model_index.json``, where it has some.

        Raises:
            InputError: The folder is not there, or holds no such pipeline.
        """
        parts = Folder(folder)
        scheduler = parts.settings("scheduler/scheduler_config.json")
        network = (
            parts.model("unet", UNet2DModel, ADMUNet)
            if "unet" in parts.found
            else parts.model("transformer", DiTTransformer2DModel, DiT)
        )
        schedule = from_diffusers(scheduler)
        return cls(
            network,
            schedule=schedule,
            parameterization=scheduler.get(
                "prediction_type", "flow_prediction" if isinstance(schedule, Flow) else "epsilon"
            ),
            classes=classes or parts.names,
            vae=parts.decoder,
        )

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "DiffusersDenoiser":
        """Moves network and VAE, and returns self."""
        nn.Module.to(self.network, device=device, dtype=dtype)
        if self.vae is not None:
            latent.cast(self.vae, device, dtype)
        return self

    def __call__(
        self,
        x_t: Float[Tensor, "B C H W"],
        level: Level,
        *,
        label: Int[Tensor, " B"] | None = None,
        cfg_scale: float = 1.0,
        cfg_channels: int | None = None,
        **_others: Any,  # noqa: ANN401
    ) -> Prediction:
        """Returns the prediction; without a label, the unconditional one.

        Args:
            x_t: Noisy samples.
            level: Their level, one for all or one each.
            label: A label each.
            cfg_scale: The classifier-free scale ``w``; at 1 only the conditional model is asked.
            cfg_channels: To how many channels, the first ones, it is applied; all if None. DiT's released code has 3
                of 4.

        Raises:
            InputError: A label for a model without labels, none for a model without null label, a ``cfg_scale``
                without a label or for a model that is not both conditional and unconditional, channels that there are
                not, or another condition.
        """
        known, unconditional = ("label", "cfg_scale", "cfg_channels"), self.null is not None
        check_condition(label, cfg_scale, _others, classes=self.classes, unconditional=unconditional, known=known)
        null = None if self.null is None else torch.full((len(x_t),), self.null, device=x_t.device)
        if label is None or null is None or cfg_scale == 1:
            return self._predict(x_t, level, null if label is None else label)
        predict = partial(self._predict, label=torch.cat([label, null]))
        return classifier_free_at_once(predict, x_t, level, cfg_scale, cfg_channels)

    def _predict(self, x_t: Tensor, level: Level, label: Tensor | None) -> Prediction:
        time = times(level, len(x_t), x_t.device, torch.float32)
        dtype = self.network.dtype
        inputs = (x_t.to(dtype), time) if label is None else (x_t.to(dtype), time, label)
        output = in_blocks(self._output, self.block, *inputs).to(x_t.dtype)
        fraction = None
        if output.shape[1] == 2 * x_t.shape[1]:
            output, learned = output.chunk(2, dim=1)
            fraction = (learned + 1) / 2
        return Prediction(to_x0(self.parameterization, x_t, output, level), fraction)

    def _output(self, x_t: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        return self.network(x_t, time, class_labels=label).sample

    def decode(self, x0: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """Returns the sample itself where it is an image, else what the VAE makes of the latent."""
        return x0 if self.vae is None else latent.decoded(self.vae, x0)

    def encode(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """Returns the images themselves where they are the samples, else the latents that the VAE makes of them."""
        return images if self.vae is None else latent.encoded(self.vae, images)
