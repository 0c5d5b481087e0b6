"""Networks of EDM (Karras et al. 2022) from pickles as its training writes them, with ADM's U-Net under ``ema``.

``edm:FILE`` runs no code of the file. Its U-Net, ``DhariwalUNet``, names blocks by the size of their images; they are
held in the order of the forward pass. Labels are one-hot and none is the zero vector; here they are rows of an
embedding, the last one zeros. Source: https://github.com/NVlabs/edm, training/networks.py.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor

from steersman.errors import InputError, about, unknown
from steersman.models.denoisers.architectures import GROUPS, convert, empty_unet, fill, unet_blocks, within
from steersman.models.denoisers.network import EDMDenoiser
from steersman.models.pickles import Record, read_pickle
from steersman.names import imagenet_names
from steersman.schedule import EDM

__all__ = ["load_edm"]

RELEASED = "edm-imagenet-64x64-cond-adm.pkl"
FETCH = (
    f"edm:FILE of a network that EDM saved; fetch https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/{RELEASED} to there"
)
DEEPEST = 8  # modules within modules; the networks read here are four deep
HEAD_CHANNELS, GROUP_CHANNELS = 64, 4  # EDM's attentions have floor(C / 64) heads, its normalisations C / 4 groups
RESNET = {
    "norm0": "norm1",
    "conv0": "conv1",
    "affine": "time_emb_proj",
    "norm1": "norm2",
    "conv1": "conv2",
    "skip": "conv_shortcut",
}
ATTENTION = {"norm2": "group_norm", "qkv": "to_qkv", "proj": "to_out.0"}
OUTSIDE = {
    "map_layer0": "time_embedding.linear_1",
    "map_layer1": "time_embedding.linear_2",
    "out_norm": "conv_norm_out",
    "out_conv": "conv_out",
}
SEPARATE = ("map_label.", "map_augment.")  # labels are an embedding here; nothing is augmented when sampling


def load_edm(name: str) -> EDMDenoiser:
    """Returns the denoiser of a file, in float32 on the CPU.

    Its schedule is the range of sigma that it supports, within EDM's own. It knows images without a label where labels
    were left out in training (``label_dropout``), which EDM's released ones did not.
    """
    path = Path(name)
    if not path.is_file():
        raise InputError(f"denoiser: no file {name!r}; give {FETCH}")
    with about("denoiser", path):
        content = read_pickle(path)
        try:
            denoiser = _denoiser(content.get("ema") if isinstance(content, dict) else None)
        except InputError:
            raise
        except Exception as error:  # a file may hold anything
            raise InputError(f"it is another network, or damaged; give {FETCH}") from error
    if path.name == RELEASED and len(denoiser.classes) == 1000:
        denoiser.classes = imagenet_names()
    return denoiser


def _denoiser(root: object) -> EDMDenoiser:
    if not isinstance(root, Record):
        raise InputError("it holds no network named ema")
    settings, inner, own = root.state, root.state["_modules"]["model"], EDM()
    if root.name != "EDMPrecond":
        raise unknown("preconditioning", root.name, ["EDMPrecond"])
    if inner.name != "DhariwalUNet":
        raise unknown("architecture", inner.name, ["DhariwalUNet"])
    size, channels = settings["img_resolution"], settings["img_channels"]
    modules = dict(_modules(inner))
    network = _unet(modules, dict(_tensors(modules)), size=size, channels=channels)
    labels = (network.config["num_class_embeds"] or 1) - 1  # the last row is for none
    if settings["label_dim"] != labels:
        raise InputError(f"label_dim must be {labels}, as its network has, got {settings['label_dim']}")
    return EDMDenoiser(
        network,
        shape=(channels, size, size),
        classes=tuple(map(str, range(labels))),
        unconditional=inner.state["label_dropout"] > 0,
        sigma_data=float(settings["sigma_data"]),
        schedule=EDM(
            ratio_min=max(own.ratio_min, float(settings["sigma_min"])),
            ratio_max=min(own.ratio_max, float(settings["sigma_max"])),
        ),
    )


def _modules(root: Record) -> Iterator[tuple[str, Record]]:
    """Yields a module, and those within it, by their names, ``a.b``; the root's name is empty."""
    pending, seen = [("", root)], {id(root)}
    while pending:
        name, record = pending.pop()
        yield name, record
        for leaf, child in record.state["_modules"].items():
            if id(child) in seen or name.count(".") >= DEEPEST:
                raise InputError("its modules hold each other")
            if child is not None:
                seen.add(id(child))
                pending.append((f"{name}.{leaf}" if name else leaf, child))


def _tensors(modules: Mapping[str, Record]) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of modules by their names, in float32."""
    for name, record in modules.items():
        for leaf, tensor in [*record.state["_parameters"].items(), *record.state["_buffers"].items()]:
            if tensor is not None:
                if not tensor.isfinite().all():
                    raise InputError(f"{name}.{leaf} is not finite")
                yield f"{name}.{leaf}", tensor.float()


def _unet(modules: Mapping[str, Record], tensors: Mapping[str, Tensor], *, size: int, channels: int) -> UNet2DModel:
    """Returns a DhariwalUNet as diffusers' network."""
    conv, *encoder = modules["enc"].state["_modules"]
    levels = 1 + sum(name.endswith("_down") for name in encoder)
    n, rest = divmod(len(encoder) + 1 - levels, levels)
    if rest or conv != f"{size}x{size}_conv":
        raise InputError(f"enc must be {size}x{size}_conv and as many blocks at each level, got {conv} and others")
    names = [*(f"enc.{name}" for name in encoder), *(f"dec.{name}" for name in modules["dec"].state["_modules"])]
    blocks = dict(zip(unet_blocks(levels, n), names, strict=True))
    renamed = {**OUTSIDE, f"enc.{conv}": "conv_in"}
    for ours, name in blocks.items():
        _check_block(name, ours, modules, tensors)
        renamed |= within(name, ours, RESNET)
        if modules[name].state["num_heads"]:
            renamed |= within(name, ours.replace("resnets", "attentions"), ATTENTION)
    _check_norms(modules, tensors)
    time, label = modules["map_noise"], tensors.get("map_label.weight")
    if time.name != "PositionalEmbedding" or time.state["max_positions"] != 10000 or time.state["endpoint"]:
        raise InputError(f"map_noise must be a PositionalEmbedding of 10000 positions, got another {time.name}")
    first = [modules[blocks[f"down_blocks.{level}.resnets.0"]].state for level in range(levels)]
    unet = empty_unet(
        size,
        [block["out_channels"] for block in first],
        [block["num_heads"] > 0 for block in first],
        head_channels=HEAD_CHANNELS,
        group_channels=GROUP_CHANNELS,
        time_channels=time.state["num_channels"],
        in_channels=channels,
        out_channels=channels,
        layers_per_block=n,
        add_attention=modules[blocks["mid_block.resnets.0"]].state["num_heads"] > 0,
        norm_eps=modules["out_norm"].state["eps"],
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=None if label is None else label.shape[1] + 1,
        time_embedding_dim=len(tensors["map_layer0.bias"]),
    )
    network = {
        name: tensor
        for name, tensor in tensors.items()
        if not (name.startswith(SEPARATE) or name.endswith(".resample_filter"))
    }
    weights = convert(network, renamed, lambda _, channels: channels)
    if label is not None:
        weights["class_embedding.weight"] = torch.cat([label.T, label.new_zeros(1, len(label))])
    fill(unet, weights)
    return unet


def _check_block(name: str, ours: str, modules: Mapping[str, Record], tensors: Mapping[str, Tensor]) -> None:
    """Refuses a block that computes something else than diffusers' does."""
    block, conv = modules[name].state, modules[f"{name}.conv0"].state
    channels, heads = block["out_channels"], block["num_heads"]
    if not (block["skip_scale"] == 1 and block["adaptive_scale"] is True):
        raise InputError(f"{name}: skip_scale and adaptive_scale must be 1 and True, got others")
    if (conv["up"], conv["down"]) != ("upsamplers" in ours, "downsamplers" in ours):
        raise InputError(f"{name}: it must resample between levels, and not within")
    if heads and (heads != channels // HEAD_CHANNELS or channels % heads):
        raise InputError(
            f"{name} must have {channels} // {HEAD_CHANNELS} heads, where that divides the channels, got {heads}"
        )
    for part in ("conv0", "skip"):
        kernel = tensors.get(f"{name}.{part}.resample_filter")
        if kernel is not None and not (kernel.shape == (1, 1, 2, 2) and bool((kernel == 0.25).all())):
            raise InputError(f"{name}: resample_filter must be [1, 1], got another")


def _check_norms(modules: Mapping[str, Record], tensors: Mapping[str, Tensor]) -> None:
    """Refuses normalisations of other groups than ``min(32, floor(C / 4))``, or of several epsilons."""
    epsilon = modules["out_norm"].state["eps"]
    for name, module in modules.items():
        if module.name == "GroupNorm":
            channels, groups, eps = len(tensors[f"{name}.weight"]), module.state["num_groups"], module.state["eps"]
            if groups != min(GROUPS, channels // GROUP_CHANNELS) or channels % groups or eps != epsilon:
                raise InputError(
                    f"GroupNorm must have min({GROUPS}, {channels} // {GROUP_CHANNELS}) groups, where that divides the "
                    f"channels, and one eps, got {groups} groups and eps {eps}"
                )
