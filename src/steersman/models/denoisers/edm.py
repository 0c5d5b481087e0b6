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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from steersman.denoise import Prediction
from steersman.errors import InputError, about, unknown
from steersman.models.denoisers.architectures import GROUPS
from steersman.models.denoisers.conversion import convert, empty_unet, fill, unet_blocks
from steersman.models.denoisers.network import NetworkDenoiser
from steersman.models.pickles import Record, read_pickle
from steersman.names import imagenet_names
from steersman.schedule import EDM, Level, broadcast, times

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
SEPARATE = ("map_label", "map_augment")  # labels are an embedding here; nothing is augmented when sampling


class EDMDenoiser(NetworkDenoiser):
    """A network F with EDM's preconditioning.

    Args:
        network: Called as a `UNet2DModel` with ``c_in x_t`` (B, C, H, W), ``c_noise`` (B,), and labels (B,) if it has
            some; it is put into evaluation mode, and its weights get no gradients.
        shape: The shape (C, H, W) of one image.
        classes: The names of its K labels.
        unconditional: Whether it was trained with some labels left out, so that label K means none.
        sigma_data: ``s``.
        schedule: The range of sigma.

    Raises:
        InputError: ``sigma_data`` is not above 0 and finite.
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
        c_skip, c_out, c_in = (broadcast(each, x_t) for each in coefficients)
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
    modules = _modules(root)
    outer, inner = modules[""], modules["model"]
    if outer.kind != "EDMPrecond":
        raise unknown("preconditioning", outer.kind, ["EDMPrecond"])
    if inner.kind != "DhariwalUNet":
        raise unknown("architecture", inner.kind, ["DhariwalUNet"])
    settings, own = outer.attributes, EDM()
    size, channels = settings["img_resolution"], settings["img_channels"]
    within = {name.removeprefix("model."): each for name, each in modules.items() if name.startswith("model.")}
    network = _unet(within, size, channels)
    labels = (network.config["num_class_embeds"] or 1) - 1  # the last row is for none
    if settings["label_dim"] != labels:
        raise InputError(f"label_dim must be {labels}, as its network has, got {settings['label_dim']}")
    return EDMDenoiser(
        network,
        shape=(channels, size, size),
        classes=tuple(map(str, range(labels))),
        unconditional=inner.attributes["label_dropout"] > 0,
        sigma_data=float(settings["sigma_data"]),
        schedule=EDM(
            ratio_min=max(own.ratio_min, float(settings["sigma_min"])),
            ratio_max=min(own.ratio_max, float(settings["sigma_max"])),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class _Module:
    """A module of a pickled network: its class's name, its settings, its own tensors, and its children's names."""

    kind: str
    attributes: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    children: tuple[str, ...]


def _modules(root: Record) -> dict[str, _Module]:
    """Returns a module and all within it by their names, ``""`` and ``"a.b"``, their tensors in float32."""
    modules: dict[str, _Module] = {}
    pending: list[tuple[str, Any]] = [("", root)]
    seen = {id(root)}
    while pending:
        name, record = pending.pop()
        state = record.state if isinstance(record, Record) else None
        parts = [
            state.get(key, {}) if isinstance(state, dict) else None for key in ("_parameters", "_buffers", "_modules")
        ]
        if not all(isinstance(part, dict) and all(type(key) is str for key in part) for part in parts):
            raise InputError(f"{name}: it is no module")
        parameters, buffers, inner = ({key: each for key, each in part.items() if each is not None} for part in parts)
        tensors = {**parameters, **buffers}
        if not all(isinstance(each, Tensor) for each in tensors.values()):
            raise InputError(f"{name}: it is no module")
        if not all(bool(each.isfinite().all()) for each in tensors.values()):
            raise InputError(f"{name}: it is not finite")
        tensors = {leaf: each.float() for leaf, each in tensors.items()}
        modules[name] = _Module(kind=record.name, attributes=state, tensors=tensors, children=tuple(inner))
        for child, each in inner.items():
            if id(each) in seen or name.count(".") >= DEEPEST:
                raise InputError("its modules hold each other")
            seen.add(id(each))
            pending.append((f"{name}.{child}" if name else child, each))
    return modules


def _unet(modules: Mapping[str, _Module], size: int, channels: int) -> UNet2DModel:
    """Returns a DhariwalUNet as diffusers' network; its blocks stand in the order of the forward pass."""
    conv, *encoder = modules["enc"].children
    levels = 1 + sum(name.endswith("_down") for name in encoder)
    n, rest = divmod(len(encoder) + 1 - levels, levels)
    if rest or conv != f"{size}x{size}_conv":
        raise InputError(f"enc must be {size}x{size}_conv and as many blocks at each level, got {conv} and others")
    names = [*(f"enc.{name}" for name in encoder), *(f"dec.{name}" for name in modules["dec"].children)]
    blocks = dict(zip(unet_blocks(levels, n), names, strict=True))
    converted = {**OUTSIDE, f"enc.{conv}": "conv_in"}
    for resnet, name in blocks.items():
        _check(name, resnet, modules)
        converted |= {f"{name}.{old}": f"{resnet}.{new}" for old, new in RESNET.items()}
        if modules[name].attributes["num_heads"]:
            attention = resnet.replace("resnets", "attentions")
            converted |= {f"{name}.{old}": f"{attention}.{new}" for old, new in ATTENTION.items()}
    label, time = modules.get("map_label"), modules["map_noise"]
    if time.kind != "PositionalEmbedding" or time.attributes["max_positions"] != 10000 or time.attributes["endpoint"]:
        raise InputError(f"map_noise must be a PositionalEmbedding of 10000 positions, got another {time.kind}")
    first = [modules[blocks[f"down_blocks.{level}.resnets.0"]].attributes for level in range(levels)]
    frequencies = time.attributes["num_channels"]
    unet = empty_unet(
        size,
        [each["out_channels"] for each in first],
        [each["num_heads"] > 0 for each in first],
        in_channels=channels,
        out_channels=channels,
        layers_per_block=n,
        add_attention=modules[blocks["mid_block.resnets.0"]].attributes["num_heads"] > 0,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=None if label is None else label.tensors["weight"].shape[1] + 1,
        time_embedding_dim=len(modules["map_layer0"].tensors["bias"]),
        time_channels=None if frequencies == first[0]["out_channels"] else frequencies,
        **_heads({name: modules[name].attributes for name in names}),
        **_groups([each for each in modules.values() if each.kind == "GroupNorm"]),
    )
    tensors = {
        f"{name}.{leaf}": each
        for name, module in modules.items()
        for leaf, each in module.tensors.items()
        if name not in SEPARATE and leaf != "resample_filter"
    }
    weights = convert(tensors, {old: (new,) for old, new in converted.items()}, lambda _, channels: channels)
    if label is not None:
        columns = label.tensors["weight"].T
        weights["class_embedding.weight"] = torch.cat([columns, columns.new_zeros(1, columns.shape[1])])
    fill(unet, weights)
    return unet


def _check(name: str, resnet: str, modules: Mapping[str, _Module]) -> None:
    """Refuses a block that computes something else than diffusers' does."""
    attributes, conv = modules[name].attributes, modules[f"{name}.conv0"]
    if not (attributes["skip_scale"] == 1 and attributes["adaptive_scale"] is True):
        raise InputError(f"{name}: skip_scale and adaptive_scale must be 1 and True, got others")
    if (conv.attributes["up"], conv.attributes["down"]) != ("upsamplers" in resnet, "downsamplers" in resnet):
        raise InputError(f"{name}: it must resample between levels, and not within")
    for each in (conv, modules.get(f"{name}.skip")):
        kernel = None if each is None else each.tensors.get("resample_filter")
        if kernel is not None and not (kernel.shape == (1, 1, 2, 2) and bool((kernel == 0.25).all())):
            raise InputError(f"{name}: resample_filter must be [1, 1], got another")


def _heads(blocks: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Returns the configuration of attentions that all have ``floor(C / 64)`` heads."""
    attending = {name: (each["out_channels"], each["num_heads"]) for name, each in blocks.items() if each["num_heads"]}
    for name, (channels, heads) in attending.items():
        if heads != channels // HEAD_CHANNELS or channels % heads:
            raise InputError(
                f"{name} must have {channels} // {HEAD_CHANNELS} heads, where that divides the channels, got {heads}"
            )
    if all(channels == heads * HEAD_CHANNELS for channels, heads in attending.values()):
        return {"attention_head_dim": HEAD_CHANNELS}
    return {"attention_head_dim": 1, "head_channels": HEAD_CHANNELS}


def _groups(norms: list[_Module]) -> dict[str, Any]:
    """Returns the configuration of normalisations that all have ``min(32, floor(C / 4))`` groups and one epsilon."""
    epsilon = norms[0].attributes["eps"]
    for each in norms:
        channels, groups, eps = len(each.tensors["weight"]), each.attributes["num_groups"], each.attributes["eps"]
        if groups != min(GROUPS, channels // GROUP_CHANNELS) or channels % groups or eps != epsilon:
            raise InputError(
                f"GroupNorm must have min({GROUPS}, {channels} // {GROUP_CHANNELS}) groups, where that divides the "
                f"channels, and one eps, got {groups} groups and eps {eps}"
            )
    if all(each.attributes["num_groups"] == GROUPS for each in norms):
        return {"norm_num_groups": GROUPS, "attn_norm_num_groups": GROUPS, "norm_eps": epsilon}
    return {"norm_num_groups": 1, "attn_norm_num_groups": 1, "norm_eps": epsilon, "group_channels": GROUP_CHANNELS}
