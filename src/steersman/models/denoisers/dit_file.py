"""DiT's released weights (Peebles & Xie 2023) from their ``.pt``, as a denoiser of a VAE's latents.

``dit:DiT-XL-2-256x256.pt?vae=FOLDER``, with the folder of the VAE as diffusers saves it (stabilityai/sd-vae-ft-ema or
-mse). Width, depth, patches and labels are those of the tensors. What they do not tell is stated of one's own files,
``dit:mine.pt?vae=FOLDER&heads=4&diffusion_steps=4000``:

    heads                   num_heads, where the width is none of the published ones
    num_classes             how many labels there are without the null label; one less than the embedding has rows,
                            which is the default, or as many where no label was dropped in training
    diffusion_steps, schedule (noise_schedule), predict_xstart, rescale_timesteps
                            how it was trained (`models.denoisers.adm_settings`); the defaults are those of DiT's own
                            training, 1000, linear, False, False, and a notice says so
    learn_sigma, size       held against the tensors; size (image_size) is the image's, 8 times the latent's
    weights                 model, where the file holds the averaged weights (``ema``) too, which are read otherwise

The network is diffusers' `DiTTransformer2DModel`, in which each block has the time's and the label's embedding for
itself, and q, k and v are matrices of their own.

Source: https://github.com/facebookresearch/DiT, models.py.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from steersman.errors import InputError, about
from steersman.models.checkpoint import read_tensors
from steersman.models.denoisers.adm_layout import fill
from steersman.models.denoisers.adm_settings import Diffusion, Stated, read_stated
from steersman.models.denoisers.diffusers import DiffusersDenoiser
from steersman.models.denoisers.dit_network import DiT
from steersman.models.denoisers.folder import read_model

__all__ = ["load_dit"]

HEADS = {1152: 16, 1024: 16, 768: 12, 384: 6}  # DiT-XL, -L, -B, -S
TRAINED = ("diffusion_steps", "schedule", "predict_xstart", "rescale_timesteps")
SETTINGS = ("vae", "heads", "num_classes", *TRAINED, "learn_sigma", "size", "weights")
RELEASED = ("DiT-XL-2-256x256.pt", "DiT-XL-2-512x512.pt")
PAGE = "https://dl.fbaipublicfiles.com/DiT/models"
BLOCK = {
    "adaLN_modulation.1": "norm1.linear",
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}
EMBEDDING = {
    "t_embedder.mlp.0": "norm1.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "norm1.emb.timestep_embedder.linear_2",
    "y_embedder.embedding_table": "norm1.emb.class_embedder.embedding_table",
}
ENDS = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}


def load_dit(name: str) -> DiffusersDenoiser:
    """Returns a file's network with its VAE, in float32 on the CPU.

    Labels have ImageNet's names in a released file, else their numbers; the null label is the last one.

    Args:
        name: The file, and its options as the module's docstring has them.

    Raises:
        InputError: The file or the VAE is missing or cannot be read, an option is missing or unknown, or the tensors
            are those of another network.
    """
    stated = read_stated("dit", name, SETTINGS)
    file, path = stated.file, Path(stated.file)
    if not path.is_file():
        raise InputError(
            f"dit: no file {file!r}; fetch {PAGE}/{path.name if path.name in RELEASED else RELEASED[0]} to there"
        )
    if not stated.get("vae"):
        raise InputError(
            f"dit: {file!r} must be given with its VAE, dit:{file}?vae=FOLDER, where diffusers saved an "
            "AutoencoderKL, such as stabilityai/sd-vae-ft-ema"
        )
    tensors = read_tensors(path, weights=stated.get("weights"))
    with about("dit", path):
        try:
            network = _network(tensors, stated)
        except InputError:
            raise
        except (KeyError, IndexError, ValueError, RuntimeError) as error:
            raise InputError("its tensors are not named or shaped as DiT's") from error
        released = path.name in RELEASED and _is_released(network)
        labels = network.config["num_embeds_ada_norm"] + 1
        count = stated.get("num_classes", labels - 1)
        if count not in (labels, labels - 1):
            raise InputError(
                f"num_classes must be {labels - 1}, or {labels} without a null label, as its embedding has {labels} "
                f"rows, got {count}"
            )
        vae, size = _vae(stated["vae"]), network.config["sample_size"]
        stated.must_be(
            {
                "learn_sigma": network.config["out_channels"] == 2 * network.config["in_channels"],
                "size": size * 2 ** (len(vae.config["block_out_channels"]) - 1),
            }
        )
        diffusion = stated.diffusion(Diffusion() if released else None, TRAINED)
    classes = tuple(map(str, range(count)))
    if released:
        from steersman.names import imagenet_names

        classes = imagenet_names()
    return DiffusersDenoiser(
        network,
        schedule=diffusion.noise,
        parameterization=diffusion.parameterization,
        classes=classes,
        time_scale=diffusion.time_scale,
        vae=vae,
    )


def _is_released(network: DiT) -> bool:
    """Whether it is shaped as DiT-XL/2 of ImageNet."""
    config = network.config
    return (config["num_layers"], config["num_attention_heads"], config["num_embeds_ada_norm"]) == (28, 16, 1000)


def _vae(folder: str) -> AutoencoderKL:
    with about("vae", folder):
        return read_model("vae", Path(folder), AutoencoderKL)


def _network(tensors: Mapping[str, Tensor], stated: Stated) -> DiT:
    width, channels, patch, across = tensors["x_embedder.proj.weight"].shape
    _, tokens, _ = tensors["pos_embed"].shape
    grid, depth = math.isqrt(tokens), sum(name.endswith(".attn.qkv.weight") for name in tensors)
    rows, _ = tensors["y_embedder.embedding_table.weight"].shape
    outputs = len(tensors["final_layer.linear.bias"]) // patch**2
    heads = stated.get("heads") or HEADS.get(width)
    if heads is None:
        listed = ", ".join(map(str, HEADS))
        raise InputError(f"a width of {width} does not tell its heads, as {listed} do; state them: heads=4")
    if width % heads:
        raise InputError(f"heads must be a divisor of {width}, got {heads}")
    if patch != across or grid**2 != tokens or outputs not in (channels, 2 * channels) or rows < 2 or depth < 1:
        raise InputError("it does not map square patches of latents to as many, with labels")
    if tensors["pos_embed"].shape != (1, tokens, width):
        raise InputError(
            f"the shape of pos_embed must be {(1, tokens, width)}, got {tuple(tensors['pos_embed'].shape)}"
        )
    with torch.device("meta"):
        network = DiT(
            time_shift=0,
            num_attention_heads=heads,
            attention_head_dim=width // heads,
            in_channels=channels,
            out_channels=outputs,
            num_layers=depth,
            sample_size=grid * patch,
            patch_size=patch,
            num_embeds_ada_norm=rows - 1,
            norm_eps=1e-6,
        )
    weights = dict(_in_diffusers_terms(tensors, depth))
    fill(network, {name: each.float() for name, each in weights.items()})
    network.pos_embed.register_buffer("pos_embed", tensors["pos_embed"].float(), persistent=False)
    return network


def _in_diffusers_terms(tensors: Mapping[str, Tensor], depth: int) -> Iterator[tuple[str, Tensor]]:
    """Yields each tensor by diffusers' names; what the blocks share there is copied, so that it can be saved."""
    places = dict(ENDS)
    for number in range(depth):
        places |= {f"blocks.{number}.{old}": f"transformer_blocks.{number}.{new}" for old, new in BLOCK.items()}
    for name, value in tensors.items():
        module, _, leaf = name.rpartition(".")
        if name == "pos_embed":
            continue
        if module in EMBEDDING:
            for number in range(depth):
                yield f"transformer_blocks.{number}.{EMBEDDING[module]}.{leaf}", value.clone()
        elif module.endswith(".attn.qkv"):
            stem = module.replace("blocks.", "transformer_blocks.", 1).removesuffix(".attn.qkv")
            for one, each in zip("qkv", value.chunk(3), strict=True):
                yield f"{stem}.attn1.to_{one}.{leaf}", each.clone()
        else:
            yield f"{places.get(module, module)}.{leaf}", value
