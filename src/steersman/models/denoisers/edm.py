"""Networks with EDM's preconditioning (Karras et al. 2022, eq. 7 and table 1), of ``x_t = x_0 + sigma eps``:

    x0_hat = c_skip x_t + c_out F(c_in x_t, c_noise, y)

    c_skip = s^2 / (sigma^2 + s^2)            c_in    = 1 / sqrt(sigma^2 + s^2)
    c_out  = sigma s / sqrt(sigma^2 + s^2)    c_noise = ln(sigma) / 4

with s the standard deviation of the data: F's input and output then have unit variance at every level.

``edm:FILE`` reads a pickle as EDM's training writes it, with ADM's U-Net (``DhariwalUNet``) under ``ema``; no code in
it is run. Its labels are one-hot and none is the zero vector; here they are rows of an embedding, the last one zeros.
Source: https://github.com/NVlabs/edm, training/networks.py.
"""  # noqa: D205, D415

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from steersman.batching import broadcast
from steersman.denoise import Prediction
from steersman.errors import InputError, about, unknown
from steersman.models.denoisers.architectures import GROUPS
from steersman.models.denoisers.conversion import convert, empty_unet, fill, unet_blocks
from steersman.models.denoisers.network import NetworkDenoiser
from steersman.models.pickles import Record, read_pickle
from steersman.names import imagenet_names
from steersman.schedule import EDM, Level, times

__all__ = ["EDMDenoiser", "load_edm"]

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


class EDMDenoiser(NetworkDenoiser):
    """A network F with EDM's preconditioning, called with ``c_in x_t``, ``c_noise`` and, if it has some, labels.

    Of K labels, label K means none where it was trained with some left out (``unconditional``).
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        shape: tuple[int, int, int],
        classes: tuple[str, ...] = (),
        unconditional: bool = False,
        sigma_data: float = 0.5,
        schedule: EDM = EDM(),  # noqa: B008 - frozen
    ) -> None:
        if not 0 < sigma_data < math.inf:
            raise InputError(f"sigma_data must be above 0 and finite, got {sigma_data}")
        null = len(classes) if classes and unconditional else None
        super().__init__(network, schedule=schedule, shape=shape, classes=classes, null=null)
        self.sigma_data = sigma_data

    @property
    def unconditional(self) -> bool:
        """Whether it was trained with some labels left out."""
        return self.null is not None

    def _predict(self, x_t: Tensor, level: Level, label: Tensor | None) -> Prediction:
        total = (level.sigma**2 + self.sigma_data**2).sqrt()
        coefficients = (self.sigma_data**2 / total**2, level.sigma * self.sigma_data / total, 1 / total)
        c_skip, c_out, c_in = (broadcast(coefficient, x_t) for coefficient in coefficients)
        dtype = torch.promote_types(next(self.network.parameters(), x_t).dtype, torch.float32)
        c_noise = times(level, len(x_t), x_t.device, dtype)  # the schedule's time is ln(sigma) / 4
        return Prediction(c_skip * x_t + c_out * self._evaluate(c_in * x_t, c_noise, label))


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
    network = _unet(*_flattened(inner), size=size, channels=channels)
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


def _flattened(root: Record) -> tuple[dict[str, Record], dict[str, Tensor]]:
    """Returns the modules within one by their names, ``a.b``, and its tensors by theirs, in float32."""
    modules: dict[str, Record] = {}
    tensors: dict[str, Tensor] = {}
    pending, seen = [("", root)], {id(root)}
    while pending:
        prefix, record = pending.pop()
        for leaf, tensor in [*record.state["_parameters"].items(), *record.state["_buffers"].items()]:
            if tensor is not None:
                tensors[f"{prefix}{leaf}"] = tensor.float()
                if not tensor.isfinite().all():
                    raise InputError(f"{prefix}{leaf} is not finite")
        for name, child in record.state["_modules"].items():
            if id(child) in seen or prefix.count(".") >= DEEPEST:
                raise InputError("its modules hold each other")
            if child is not None:
                seen.add(id(child))
                modules[f"{prefix}{name}"] = child
                pending.append((f"{prefix}{name}.", child))
    return modules, tensors


def _unet(modules: Mapping[str, Record], tensors: Mapping[str, Tensor], *, size: int, channels: int) -> UNet2DModel:
    """Returns a DhariwalUNet as diffusers' network; its blocks stand in the order of the forward pass."""
    conv, *encoder = modules["enc"].state["_modules"]
    levels = 1 + sum(name.endswith("_down") for name in encoder)
    n, rest = divmod(len(encoder) + 1 - levels, levels)
    if rest or conv != f"{size}x{size}_conv":
        raise InputError(f"enc must be {size}x{size}_conv and as many blocks at each level, got {conv} and others")
    names = [*(f"enc.{name}" for name in encoder), *(f"dec.{name}" for name in modules["dec"].state["_modules"])]
    blocks = dict(zip(unet_blocks(levels, n), names, strict=True))
    settings = {resnet: modules[name].state for resnet, name in blocks.items()}
    renamed = {**OUTSIDE, f"enc.{conv}": "conv_in"}
    for resnet, name in blocks.items():
        _check(name, resnet, modules, tensors)
        renamed |= {f"{name}.{old}": f"{resnet}.{new}" for old, new in RESNET.items()}
        if settings[resnet]["num_heads"]:
            attention = resnet.replace("resnets", "attentions")
            renamed |= {f"{name}.{old}": f"{attention}.{new}" for old, new in ATTENTION.items()}
    time, label = modules["map_noise"], tensors.get("map_label.weight")
    if time.name != "PositionalEmbedding" or time.state["max_positions"] != 10000 or time.state["endpoint"]:
        raise InputError(f"map_noise must be a PositionalEmbedding of 10000 positions, got another {time.name}")
    first = [settings[f"down_blocks.{level}.resnets.0"] for level in range(levels)]
    frequencies = time.state["num_channels"]
    unet = empty_unet(
        size,
        [block["out_channels"] for block in first],
        [block["num_heads"] > 0 for block in first],
        in_channels=channels,
        out_channels=channels,
        layers_per_block=n,
        add_attention=settings["mid_block.resnets.0"]["num_heads"] > 0,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=None if label is None else label.shape[1] + 1,
        time_embedding_dim=len(tensors["map_layer0.bias"]),
        time_channels=None if frequencies == first[0]["out_channels"] else frequencies,
        **_heads({name: modules[name].state for name in names}),
        **_groups(modules, tensors),
    )
    network = {
        name: tensor
        for name, tensor in tensors.items()
        if not (name.startswith(SEPARATE) or name.endswith(".resample_filter"))
    }
    weights = convert(network, {old: (new,) for old, new in renamed.items()}, lambda _, channels: channels)
    if label is not None:
        weights["class_embedding.weight"] = torch.cat([label.T, label.new_zeros(1, len(label))])
    fill(unet, weights)
    return unet


def _check(name: str, resnet: str, modules: Mapping[str, Record], tensors: Mapping[str, Tensor]) -> None:
    """Refuses a block that computes something else than diffusers' does."""
    settings, conv = modules[name].state, modules[f"{name}.conv0"].state
    if not (settings["skip_scale"] == 1 and settings["adaptive_scale"] is True):
        raise InputError(f"{name}: skip_scale and adaptive_scale must be 1 and True, got others")
    if (conv["up"], conv["down"]) != ("upsamplers" in resnet, "downsamplers" in resnet):
        raise InputError(f"{name}: it must resample between levels, and not within")
    for part in ("conv0", "skip"):
        kernel = tensors.get(f"{name}.{part}.resample_filter")
        if kernel is not None and not (kernel.shape == (1, 1, 2, 2) and bool((kernel == 0.25).all())):
            raise InputError(f"{name}: resample_filter must be [1, 1], got another")


def _heads(blocks: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Returns the configuration of attentions that all have ``floor(C / 64)`` heads."""
    counts = {name: (block["out_channels"], block["num_heads"]) for name, block in blocks.items() if block["num_heads"]}
    for name, (channels, heads) in counts.items():
        if heads != channels // HEAD_CHANNELS or channels % heads:
            raise InputError(
                f"{name} must have {channels} // {HEAD_CHANNELS} heads, where that divides the channels, got {heads}"
            )
    if all(channels == heads * HEAD_CHANNELS for channels, heads in counts.values()):
        return {"attention_head_dim": HEAD_CHANNELS}
    return {"attention_head_dim": 1, "head_channels": HEAD_CHANNELS}


def _groups(modules: Mapping[str, Record], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the configuration of normalisations that all have ``min(32, floor(C / 4))`` groups and one epsilon."""
    norms = {name: module.state for name, module in modules.items() if module.name == "GroupNorm"}
    epsilon = norms["out_norm"]["eps"]
    for name, norm in norms.items():
        channels, groups = len(tensors[f"{name}.weight"]), norm["num_groups"]
        if groups != min(GROUPS, channels // GROUP_CHANNELS) or channels % groups or norm["eps"] != epsilon:
            raise InputError(
                f"GroupNorm must have min({GROUPS}, {channels} // {GROUP_CHANNELS}) groups, where that divides the "
                f"channels, and one eps, got {groups} groups and eps {norm['eps']}"
            )
    if all(norm["num_groups"] == GROUPS for norm in norms.values()):
        return {"norm_num_groups": GROUPS, "attn_norm_num_groups": GROUPS, "norm_eps": epsilon}
    return {"norm_num_groups": 1, "attn_norm_num_groups": 1, "norm_eps": epsilon, "group_channels": GROUP_CHANNELS}
