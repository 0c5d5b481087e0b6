"""diffusers' models as denoisers, of pixels or of a VAE's latents."""

from pathlib import Path

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor

from steersman.denoise import Parameterization
from steersman.errors import InputError
from steersman.models.denoisers.adm_network import ADMUNet
from steersman.models.denoisers.dit_network import DiT
from steersman.models.denoisers.folder import Folder
from steersman.models.denoisers.network import NetworkDenoiser
from steersman.schedule import Flow, Schedule, from_diffusers

__all__ = ["DiffusersDenoiser"]

Network = UNet2DModel | DiTTransformer2DModel


class DiffusersDenoiser(NetworkDenoiser):
    """A network with the schedule of its scheduler's configuration, and a VAE where it works on latents.

    A `UNet2DModel` with ``num_class_embeds`` labels has them as ``classes``; where it has one more than there are
    names, the last is the null label. A `DiTTransformer2DModel` has a null label after the ``num_embeds_ada_norm``
    others.

    Args:
        network: The network.
        schedule: The noise that it was trained on.
        parameterization: What its output means.
        classes: The names of its labels, without the null label; by default their numbers.
        time_scale: What the schedule's time is multiplied with before the network is told it.
        vae: What decodes its samples, where they are latents.

    Raises:
        InputError: More or fewer names than labels, a network that is told more than a label, a VAE of other latents,
            or an unknown parameterization.
    """

    network: Network

    def __init__(
        self,
        network: Network,
        *,
        schedule: Schedule,
        parameterization: Parameterization = "epsilon",
        classes: tuple[str, ...] = (),
        time_scale: float = 1.0,
        vae: AutoencoderKL | VQModel | None = None,
    ) -> None:
        config = network.config
        labels = config.get("num_class_embeds") or 0
        numbered = labels
        if isinstance(network, DiTTransformer2DModel):
            numbered = config["num_embeds_ada_norm"]
            labels = numbered + 1
        if classes and len(classes) not in (labels, labels - 1):
            raise InputError(f"classes must name the {labels} labels of the network, got {len(classes)} names")
        classes = classes or tuple(str(label) for label in range(numbered))
        size = config["sample_size"]
        sides = size if isinstance(size, list | tuple) else (size, size)
        super().__init__(
            network,
            schedule=schedule,
            shape=(config["in_channels"], *sides),
            parameterization=parameterization,
            classes=classes,
            null=labels - 1 if len(classes) < labels else None,
            time_scale=time_scale,
            vae=vae,
        )

    @classmethod
    def from_folder(
        cls, folder: str | Path, *, classes: tuple[str, ...] = (), time_scale: float = 1.0
    ) -> "DiffusersDenoiser":
        """Loads a pipeline's folder as diffusers saves it.

        Args:
            folder: It holds ``scheduler`` and ``unet``, with ``vae`` or ``vqvae`` beside them for one of latents, as an
                `LDMPipeline` does; or ``scheduler``, ``transformer`` and ``vae``, as a `DiTPipeline` does.
            classes: The names of the labels; by default those in the folder's ``model_index.json``, where it has some.
            time_scale: What the schedule's time is multiplied with before the network is told it.

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
        if scheduler.get("variance_type") == "learned":
            raise InputError(
                "variance_type must be learned_range, as ADM and DiT learn it, or a fixed one, got learned: the "
                "variance itself, which no sampler here reads"
            )
        return cls(
            network,
            schedule=schedule,
            parameterization=scheduler.get(
                "prediction_type", "flow_prediction" if isinstance(schedule, Flow) else "epsilon"
            ),
            classes=classes or parts.names,
            time_scale=time_scale,
            vae=parts.decoder,
        )

    def _output(self, x_t: Tensor, time: Tensor, *label: Tensor) -> Tensor:
        return self.network(x_t, time, class_labels=label[0] if label else None).sample
