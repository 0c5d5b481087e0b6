"""Published networks at their real size, without weights: what `footprint.py` counts.

Everything is laid out on the meta device, then given tensors that know their shape and type alone (`bare`). ADM and its
classifiers are those that the library knows by their files' names; EDM's and DiT's settings are those that the library
reads from their files; the others' are their public configurations, in diffusers' and transformers' classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.models import resnet101
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from steersman import latent
from steersman.denoise import Parameterization, Prediction, classifier_free, to_x0
from steersman.models.classifiers import Classifier, Preprocess, TextClassifier, load_classifier
from steersman.models.classifiers.adm import ADMEncoder, AttentionPool
from steersman.models.classifiers.transformers import _ImageTower
from steersman.models.denoisers import DiffusersDenoiser, EDMDenoiser, load_denoiser
from steersman.models.denoisers.adm import CLASSIFIERS, DENOISERS
from steersman.models.denoisers.architectures import DiT
from steersman.schedule import VP, Flow, Level, Schedule

__all__ = ["PAIRS", "SHAPES", "Pair", "Prompted", "adm", "bare", "dit"]

SHAPES = FakeTensorMode(allow_non_fake_inputs=True)
"""Tensors of this mode compute shapes and types alone; the library's levels, which it must read, stay real ones."""

SD_VAE: Mapping[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
}
WIDE_VAE = SD_VAE | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
"""That of SD3 and Flux."""

SDXL: Mapping[str, Any] = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

Weights = TypeVar("Weights", bound=nn.Module)
Call = Callable[[nn.Module, Tensor, Tensor, dict[str, Tensor]], Tensor]


def bare(network: Weights, dtype: torch.dtype) -> Weights:
    """Gives a network tensors of `SHAPES` in place of its own, floating ones of a dtype; they take no memory."""
    made: dict[Tensor, Tensor] = {}
    for module in network.modules():
        own: Any = (module._parameters, module._buffers)
        for held in own:
            for name, old in held.items():
                if old is None:
                    continue
                if old not in made:
                    with SHAPES:
                        new = torch.empty(old.shape, dtype=dtype if old.is_floating_point() else old.dtype)
                    made[old] = nn.Parameter(new, requires_grad=False) if isinstance(old, nn.Parameter) else new
                held[name] = made[old]
    return network


class Prompted:
    """A network of prompts as a denoiser: the prompts' embeddings are given once, and have no values here.

    Args:
        network: The network, of `SHAPES`.
        vae: Its VAE.
        call: Calls the network with latents, time and embeddings.
        told: The embeddings' shapes, without the batch.
        shape: The shape (C, H, W) of one latent.
        schedule: The noise that it was trained on.
        parameterization: What its output means.
        cfg_scale: The classifier-free scale; at 1 only the conditional model is asked.
    """

    latent = True
    classes: tuple[str, ...] = ()

    def __init__(
        self,
        network: nn.Module,
        vae: AutoencoderKL,
        *,
        call: Call,
        told: Mapping[str, tuple[int, ...]],
        shape: tuple[int, int, int],
        schedule: Schedule,
        parameterization: Parameterization,
        cfg_scale: float = 1.0,
    ) -> None:
        self.network, self.vae = network.eval().requires_grad_(False), latent.frozen(vae)
        self.call, self.told, self.shape, self.cfg_scale = call, told, shape, cfg_scale
        self.schedule = schedule
        self.parameterization: Parameterization = parameterization

    def __call__(self, x_t: Float[Tensor, "B C H W"], level: Level, **condition: Any) -> Prediction:
        """Returns the prediction, with classifier-free guidance of a doubled batch where that is on."""
        doubled = x_t if self.cfg_scale == 1 else torch.cat([x_t, x_t])
        dtype = next(self.network.parameters()).dtype
        with SHAPES:
            told = {key: torch.empty(len(doubled), *shape, dtype=dtype) for key, shape in self.told.items()}
        time = level.time.to(torch.float32).expand(len(doubled))
        output = self.call(self.network, doubled.to(dtype), time, told).to(x_t.dtype)
        x0_hat = to_x0(self.parameterization, doubled, output, level)
        if self.cfg_scale == 1:
            return Prediction(x0_hat)
        conditional, unconditional = x0_hat.chunk(2)
        return classifier_free(Prediction(conditional), unconditional, self.cfg_scale)

    def decode(self, x0: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """Returns what the VAE makes of the latents."""
        return latent.decoded(self.vae, x0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """A denoiser and a classifier.

    Attributes:
        denoiser: What it is called.
        classifier: What that is called.
        build: Makes both, of `SHAPES`, in a dtype.
        condition: What the denoiser is told.
        noisy: Whether the classifier sees the noisy image; else the denoised one.
    """

    denoiser: str
    classifier: str
    build: Callable[[torch.dtype], tuple[Any, Classifier]]
    condition: Mapping[str, Any]
    noisy: bool = False


def adm(size: int, dtype: torch.dtype) -> DiffusersDenoiser:
    """Returns ADM for ImageNet, with labels."""
    known = DENOISERS[f"{size}x{size}_diffusion.pt"]
    return DiffusersDenoiser(bare(known.unet(), dtype), schedule=known.noise)


def edm(dtype: torch.dtype) -> EDMDenoiser:
    """Returns EDM's network of ImageNet 64: ADM's, without its variance, and with one more label for none."""
    known = replace(DENOISERS["64x64_diffusion.pt"], learn_sigma=False, num_classes=1001)
    network = bare(known.unet(), dtype)
    return EDMDenoiser(network, shape=(3, 64, 64), classes=tuple(map(str, range(1000))))


def dit(size: int, dtype: torch.dtype) -> DiffusersDenoiser:
    """Returns DiT-XL/2 for ImageNet, with its VAE."""
    with torch.device("meta"):
        network = DiT(
            time_shift=0,
            num_attention_heads=16,
            attention_head_dim=72,
            in_channels=4,
            out_channels=8,
            num_layers=28,
            sample_size=size // 8,
            patch_size=2,
            num_embeds_ada_norm=1000,
            norm_eps=1e-6,
        )
        vae = AutoencoderKL(**SD_VAE, sample_size=256)
    return DiffusersDenoiser(bare(network, dtype), schedule=VP.linear(), vae=bare(vae, dtype))


def _stable_diffusion(dtype: torch.dtype, cfg_scale: float = 1.0) -> Prompted:
    with torch.device("meta"):
        network = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = AutoencoderKL(**SD_VAE, sample_size=512)
    return Prompted(
        bare(network, dtype),
        bare(vae, dtype),
        call=_call_unet,
        told={"encoder_hidden_states": (77, 768)},
        shape=(4, 64, 64),
        schedule=VP.from_diffusers(SD_NOISE),
        parameterization="epsilon",
        cfg_scale=cfg_scale,
    )


def _sdxl(dtype: torch.dtype, cfg_scale: float = 1.0) -> Prompted:
    with torch.device("meta"):
        network = UNet2DConditionModel(**SDXL)
        vae = AutoencoderKL(**SD_VAE, sample_size=1024, scaling_factor=0.13025)
    return Prompted(
        bare(network, dtype),
        bare(vae, dtype),
        call=_call_unet,
        told={"encoder_hidden_states": (77, 2048), "text_embeds": (1280,), "time_ids": (6,)},
        shape=(4, 128, 128),
        schedule=VP.from_diffusers(SD_NOISE),
        parameterization="epsilon",
        cfg_scale=cfg_scale,
    )


def _sd3(dtype: torch.dtype, cfg_scale: float = 1.0) -> Prompted:
    with torch.device("meta"):
        network = SD3Transformer2DModel(
            sample_size=128,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=24,
            attention_head_dim=64,
            num_attention_heads=24,
            joint_attention_dim=4096,
            caption_projection_dim=1536,
            pooled_projection_dim=2048,
            pos_embed_max_size=192,
        )
        vae = AutoencoderKL(**WIDE_VAE, sample_size=1024, scaling_factor=1.5305, shift_factor=0.0609)
    return Prompted(
        bare(network, dtype),
        bare(vae, dtype),
        call=lambda network, x, time, told: network(hidden_states=x, timestep=time, **told).sample,
        told={"encoder_hidden_states": (333, 4096), "pooled_projections": (2048,)},
        shape=(16, 128, 128),
        schedule=Flow(shift=3.0),
        parameterization="flow_prediction",
        cfg_scale=cfg_scale,
    )


def _flux(dtype: torch.dtype) -> Prompted:
    with torch.device("meta"):
        network = FluxTransformer2DModel(guidance_embeds=True)
        vae = AutoencoderKL(**WIDE_VAE, sample_size=1024, scaling_factor=0.3611, shift_factor=0.1159)
    return Prompted(
        bare(network, dtype),
        bare(vae, dtype),
        call=_call_flux,
        told={"encoder_hidden_states": (512, 4096), "pooled_projections": (768,), "guidance": ()},
        shape=(16, 128, 128),
        schedule=Flow(shift=3.0),
        parameterization="flow_prediction",
    )


def _call_unet(network: nn.Module, x: Tensor, time: Tensor, told: dict[str, Tensor]) -> Tensor:
    text = told.pop("encoder_hidden_states")
    return network(x, time, encoder_hidden_states=text, added_cond_kwargs=told or None).sample


def _call_flux(network: nn.Module, x: Tensor, time: Tensor, told: dict[str, Tensor]) -> Tensor:
    """Flux sees squares of 2 x 2 latents as tokens, with their places, and the time from 0 to 1."""
    batch, channels, height, width = x.shape
    patches = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    tokens = patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width // 4, 4 * channels)
    places = torch.zeros(tokens.shape[1], 3), torch.zeros(told["encoder_hidden_states"].shape[1], 3)
    output = network(hidden_states=tokens, timestep=time / 1000, img_ids=places[0], txt_ids=places[1], **told).sample
    squares = output.reshape(batch, height // 2, width // 2, channels, 2, 2)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


def resnet(dtype: torch.dtype) -> Classifier:
    """Returns torchvision's ResNet-101, fed as its second published weights are."""
    with torch.device("meta"):
        network = resnet101()
    preprocess = Preprocess(
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        size=224,
        interpolation="bilinear",
        crop=224 / 232,
    )
    return Classifier(bare(network, dtype), preprocess=preprocess, names=map(str, range(1000)))


def noise_aware(size: int, dtype: torch.dtype) -> Classifier:
    """Returns ADM's own classifier of noisy images."""
    known = CLASSIFIERS[f"{size}x{size}_classifier.pt"]
    channels = known.channels[-1]
    with torch.device("meta"):
        places = (size >> (len(known.channels) - 1)) ** 2
        network = ADMEncoder(known.unet(), AttentionPool(channels, places, known.heads_of(channels), 1000))
    names = map(str, range(1000))
    return Classifier(bare(network, dtype), preprocess=Preprocess(size=size), names=names, noise_aware=True)


def clip(dtype: torch.dtype) -> TextClassifier:
    """Returns CLIP's ViT-L/14 at 224 pixels; the text tower, which is asked once, is left out."""
    patch = 14
    config = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        patch_size=patch,
        image_size=224,
        projection_dim=768,
    )
    with torch.device("meta"):
        model = CLIPVisionModelWithProjection(config)
    model = bare(model.eval(), dtype)
    preprocess = Preprocess(
        mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711), size=224, crop=1.0
    )
    tower = _ImageTower(model.vision_model, model.visual_projection, patch)
    return TextClassifier(
        tower, encode=lambda text: torch.ones(768), sharpness=100.0, preprocess=preprocess, names=("a ball",)
    )


def _bundled(dtype: torch.dtype) -> tuple[Any, Classifier]:
    denoiser, classifier = load_denoiser("zoo:sportballs"), load_classifier("zoo:sportballs-mobilenet")
    bare(denoiser.network, dtype)
    bare(classifier.network, dtype)
    return denoiser, classifier


LABEL: Mapping[str, Any] = {"label": torch.zeros(1, dtype=torch.int64)}


def _labelled(denoiser: str, make: Callable[[torch.dtype], Any]) -> Pair:
    """Returns a denoiser of labels with ResNet-101."""
    return Pair(
        denoiser=denoiser,
        classifier="ResNet-101",
        build=lambda dtype: (make(dtype), resnet(dtype)),
        condition=LABEL,
    )


def _prompted(denoiser: str, make: Callable[[torch.dtype], Any]) -> Pair:
    """Returns a denoiser of prompts with CLIP."""
    return Pair(
        denoiser=denoiser,
        classifier="CLIP ViT-L/14",
        build=lambda dtype: (make(dtype), clip(dtype)),
        condition={},
    )


PAIRS: tuple[Pair, ...] = (
    Pair(denoiser="zoo:sportballs", classifier="its MobileNet", build=_bundled, condition={}),
    _labelled("ADM 64", lambda dtype: adm(64, dtype)),
    _labelled("EDM 64", edm),
    _labelled("ADM 128", lambda dtype: adm(128, dtype)),
    Pair(
        denoiser="ADM 128",
        classifier="its own, noise-aware",
        build=lambda dtype: (adm(128, dtype), noise_aware(128, dtype)),
        condition=LABEL,
        noisy=True,
    ),
    _labelled("ADM 256", lambda dtype: adm(256, dtype)),
    _labelled("ADM 512", lambda dtype: adm(512, dtype)),
    _labelled("DiT-XL/2 256", lambda dtype: dit(256, dtype)),
    _labelled("DiT-XL/2 512", lambda dtype: dit(512, dtype)),
    _prompted("Stable Diffusion 1.5, 512", _stable_diffusion),
    _prompted("… with classifier-free guidance", lambda dtype: _stable_diffusion(dtype, 7.5)),
    _prompted("SDXL, 1024", _sdxl),
    _prompted("… with classifier-free guidance", lambda dtype: _sdxl(dtype, 5.0)),
    _prompted("SD3 medium, 1024", _sd3),
    _prompted("… with classifier-free guidance", lambda dtype: _sd3(dtype, 7.0)),
    _prompted("Flux dev, 1024", _flux),
)
