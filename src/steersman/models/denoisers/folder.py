"""A pipeline's folder as diffusers saves it: a folder a part, and ``model_index.json`` that says which there are.

Of a network alone, what would be in the parts' folders may lie in the folder itself, as in some of the hub.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import logging

from steersman import latent
from steersman.errors import InputError, about, unknown
from steersman.files import listed, read_json, regular_below
from steersman.models.checkpoint import check_finite
from steersman.models.hub import check_whole, hushed
from steersman.models.meta import no_larger_than, weights_size

__all__ = ["PIPELINES", "Folder", "read_index", "read_model"]

DECODERS: Mapping[str, tuple[type[ModelMixin], ...]] = {"vae": (AutoencoderKL,), "vqvae": (VQModel, AutoencoderKL)}
"""What may decode latents, by the name of its part: the VAE of most pipelines, and that of LDMPipeline."""
PARTS = ("scheduler", "unet", "transformer", *DECODERS)
WHOLE = (
    {"scheduler", "unet"},
    {"scheduler", "unet", "vae"},
    {"scheduler", "unet", "vqvae"},
    {"scheduler", "transformer", "vae"},
)
LAYOUT = (
    "a folder with unet/ and scheduler/, with vae/ or vqvae/ too where it draws latents, or transformer/, vae/ and "
    "scheduler/, as diffusers saves them"
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
"""The text pipelines that are tested; others may tell their networks otherwise what these tell theirs."""
TEXT = f"or a text pipeline, {', '.join(PIPELINES)}"
ALONE = {"UNet2DModel": "unet", "DiTTransformer2DModel": "transformer"}

LARGEST = 4096  # pixels across

Model = TypeVar("Model", bound=ModelMixin)


class Folder:
    """The parts of a denoiser in a folder.

    Args:
        path: The folder.

    Attributes:
        found: Which parts there are.
        names: The names of the labels in its ``model_index.json``, by their numbers; none where it has none.

    Raises:
        InputError: It is not there, or what it holds is not a denoiser, of pixels or of a VAE's latents.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        index = read_index(self.path)
        self.found = {part for part in PARTS if (self.path / part).is_dir()} | self._alone()
        if self.found not in WHOLE:
            raise InputError(f"denoiser must be {LAYOUT}, got {str(path)!r}")
        more = [key for key, value in index.items() if isinstance(value, list) and any(value) and key not in PARTS]
        if more:
            kind = index.get("_class_name", "pipeline")
            raise InputError(
                f"denoiser: {str(path)!r} is a {kind} with {', '.join(more)} as well; use {LAYOUT}, {TEXT}"
            )
        with about("denoiser", self.path):
            names = index.get("id2label") or {}
            self.names = listed([names[key] for key in sorted(names, key=int)])

    def settings(self, name: str) -> Mapping[str, Any]:
        """Returns what a JSON file of the folder says.

        Raises:
            InputError: It is not there, or is no JSON.
        """
        return read_json(self._at(name), "denoiser")

    def _alone(self) -> set[str]:
        """Returns the parts that lie in the folder itself."""
        kind = self.settings("config.json").get("_class_name") if (self.path / "config.json").is_file() else None
        found = {ALONE[kind]} if isinstance(kind, str) and kind in ALONE else set()
        return found | ({"scheduler"} if (self.path / "scheduler_config.json").is_file() else set())

    def _at(self, name: str) -> Path:
        """Returns where something is: in its part's folder, or in the folder itself where there is none of the part."""
        part, _, rest = name.partition("/")
        return self.path / name if not rest or (self.path / part).is_dir() else self.path / rest

    @property
    def decoder(self) -> Any:  # noqa: ANN401
        """What decodes its latents, with its weights; None where its samples are images.

        Raises:
            InputError: It cannot be read.
        """
        return next((self.model(part, *kinds) for part, kinds in DECODERS.items() if part in self.found), None)

    def model(self, part: str, *kinds: type[Model]) -> Model:
        """Returns a part with its weights, of one of these kinds; of the first where it does not say which.

        Raises:
            InputError: It is of another kind, or cannot be read.
        """
        with about("denoiser", self.path):
            return read_model(part, self._at(f"{part}/config.json").parent, *kinds)


def read_model(part: str, place: Path, *kinds: type[Model]) -> Model:
    """Returns a model of diffusers with its weights, of one of these kinds; of the first where it does not say which.

    Its configuration is held against its weights before it gets memory, and all of it is loaded or nothing.

    Args:
        part: What it is to be, for the messages.
        place: The folder with ``config.json`` and the weights, in safetensors' format.
        kinds: What it may be.

    Raises:
        InputError: It is of another kind, or damaged; whatever else diffusers raises is not told apart.
    """
    config, known = read_json(regular_below(place) / "config.json", part), {kind.__name__: kind for kind in kinds}
    given = str(config.get("_class_name", kinds[0].__name__))
    if given not in known:
        raise unknown(part, given, known)
    kind: Any = known[given]
    if not (size := weights_size(place)):
        raise InputError(f"{part}: no weights are there in the format of safetensors")
    with no_larger_than(size), torch.device("meta"), torch.no_grad():
        _try(kind.from_config(config))
    with hushed(logging):
        model, info = kind.from_pretrained(place, local_files_only=True, use_safetensors=True, output_loading_info=True)
    check_whole(f"{part}: it", info)
    check_finite(model.state_dict())
    return model


def _try(network: Any) -> None:  # noqa: ANN401
    """Shows a network without memory what it will be shown."""
    config = network.config
    if isinstance(network, AutoencoderKL | VQModel):
        channels = latent.channels(config) or 0
        latent.decoded(network, torch.zeros(1, channels, 8, 8))
        if not latent.unscaled(config, torch.ones(1, channels, 1, 1, device="cpu")).isfinite().all():
            raise InputError(f"scaling_factor must leave latents finite, got {config['scaling_factor']}")
        return
    channels, size = config["in_channels"], config["sample_size"]
    height, width = size if isinstance(size, Sequence) else (size, size)
    if not all(isinstance(side, int) and 1 <= side <= LARGEST for side in (height, width)):
        raise InputError(f"sample_size must be between 1 and {LARGEST}, got {size}")
    if (kind := config.get("class_embed_type")) is not None:
        raise InputError(
            f"class_embed_type must be None, where labels are numbers of an embedding's rows, got {kind!r}: what such "
            "a network is told beside the time is not known"
        )
    labelled = config.get("num_class_embeds") or config.get("num_embeds_ada_norm")
    label = torch.zeros(1, dtype=torch.long) if labelled else None
    shape = network(torch.zeros(1, channels, height, width), torch.zeros(1), class_labels=label).sample.shape
    if shape not in ((1, channels, height, width), (1, 2 * channels, height, width)):
        raise InputError(
            "it must return as many channels as it is shown, or twice as many with a learned variance, of the same "
            f"size, got {tuple(shape[1:])} for {(channels, height, width)}; a network that is shown another image "
            "beside its own, as for super-resolution or inpainting, is not supported"
        )


def read_index(path: Path) -> Mapping[str, Any]:
    """Returns what a folder's ``model_index.json`` says, nothing where there is none.

    Raises:
        InputError: It is no JSON, or names a pipeline by code of its own.
    """
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
