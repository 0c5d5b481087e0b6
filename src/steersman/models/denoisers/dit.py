"""DiT's weights (Peebles & Xie 2023) from their ``.pt``, as a denoiser of a VAE's latents.

``dit:DiT-XL-2-256x256.pt?vae=FOLDER``, with the folder of the VAE as diffusers saves it (stabilityai/sd-vae-ft-ema or
-mse). The shapes tell width, depth, patches and labels. Of a file of one's own the spec states the heads, where the
width is none of the published ones, and the training (`models.denoisers.settings`):
``dit:mine.pt?vae=FOLDER&heads=4&diffusion_steps=4000``. ``num_classes`` is the number of labels without the null label:
one less than the embedding has rows, or as many where no label was dropped in training. ``size`` is the image's side.

In diffusers' `DiTTransformer2DModel` each block has the embeddings of time and label for itself.
Source: https://github.com/facebookresearch/DiT, models.py.
"""

import math
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from steersman.errors import InputError, about
from steersman.models.checkpoint import read_tensors
from steersman.models.denoisers.architectures import DiT, convert, fill, within
from steersman.models.denoisers.folder import read_model
from steersman.models.denoisers.network import DiffusersDenoiser
from steersman.models.denoisers.settings import Settings, Stated, read_settings
from steersman.names import imagenet_names

__all__ = ["load_dit"]

HEADS = {1152: 16, 1024: 16, 768: 12, 384: 6}  # DiT-XL, -L, -B, -S
RELEASED = ("DiT-XL-2-256x256.pt", "DiT-XL-2-512x512.pt")
URL = "https://dl.fbaipublicfiles.com/DiT/models"
BLOCK = {
    "adaLN_modulation.1": "norm1.linear",
    "attn.qkv": "attn1.to_qkv",
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}
EMBEDDERS = {
    "t_embedder.mlp.0": "norm1.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "norm1.emb.timestep_embedder.linear_2",
    "y_embedder.embedding_table": "norm1.emb.class_embedder.embedding_table",
}
OUTSIDE = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}


def load_dit(name: str) -> DiffusersDenoiser:
    """Returns the denoiser of ``FILE?vae=FOLDER&KEY=VALUE``, in float32 on the CPU; the null label is the last one."""
    stated = read_settings("dit", name)
    file, path = stated.file, Path(stated.file)
    if not path.is_file():
        released = path.name if path.name in RELEASED else RELEASED[0]
        raise InputError(f"dit: no file {file!r}; fetch {URL}/{released} to there")
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
        except (LookupError, ValueError, RuntimeError) as error:
            raise InputError("its tensors are not named or shaped as DiT's") from error
        config = network.config
        shape = (config["num_layers"], config["num_attention_heads"], config["num_embeds_ada_norm"])
        released = path.name in RELEASED and shape == (28, 16, 1000)  # DiT-XL/2 of ImageNet
        labels = config["num_embeds_ada_norm"] + 1
        count = stated.get("num_classes", labels - 1)
        if count not in (labels, labels - 1):
            raise InputError(
                f"num_classes must be {labels - 1}, or {labels} without a null label, as its embedding has {labels} "
                f"rows, got {count}"
            )
        with about("vae", stated["vae"]):
            vae = read_model("vae", Path(stated["vae"]), AutoencoderKL)
        size = config["sample_size"] * 2 ** (len(vae.config["block_out_channels"]) - 1)
        stated.check({"learn_sigma": config["out_channels"] == 2 * config["in_channels"], "size": size})
        settings = stated.settings(Settings() if released else None, {})
    return settings.denoiser(network, imagenet_names() if released else tuple(map(str, range(count))), vae)


def _network(tensors: dict[str, Tensor], stated: Stated) -> DiT:
    """Returns the network of a file's tensors."""
    width, channels, patch, across = tensors["x_embedder.proj.weight"].shape
    positions = tensors.pop("pos_embed").float()
    _, tokens, _ = positions.shape
    grid, depth = math.isqrt(tokens), sum(name.endswith(".attn.qkv.weight") for name in tensors)
    rows, _ = tensors["y_embedder.embedding_table.weight"].shape
    outputs = len(tensors["final_layer.linear.bias"]) // patch**2
    heads = stated.get("heads") or HEADS.get(width)
    if heads is None:
        published = ", ".join(map(str, HEADS))
        raise InputError(f"a width of {width} does not tell its heads, as {published} do; state them: heads=4")
    if width % heads:
        raise InputError(f"heads must be a divisor of {width}, got {heads}")
    if patch != across or grid**2 != tokens or outputs not in (channels, 2 * channels) or rows < 2 or depth < 1:
        raise InputError("it does not map square patches of latents to as many, with labels")
    if positions.shape != (1, tokens, width):
        raise InputError(f"the shape of pos_embed must be {(1, tokens, width)}, got {tuple(positions.shape)}")
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
    modules = dict(OUTSIDE)
    for number in range(depth):
        modules |= within(f"blocks.{number}", f"transformer_blocks.{number}", BLOCK)
    shared = {name: tensors.pop(name) for name in list(tensors) if name.rpartition(".")[0] in EMBEDDERS}
    weights = convert(tensors, modules, lambda _, channels: 1)
    for name, tensor in convert(shared, EMBEDDERS, lambda _, channels: 1).items():
        # safetensors refuses to save one tensor under several names
        weights |= {f"transformer_blocks.{number}.{name}": tensor.clone() for number in range(depth)}
    fill(network, weights)
    network.pos_embed.register_buffer("pos_embed", positions, persistent=False)
    return network
