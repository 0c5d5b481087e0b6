"""Settings of the training scripts of guided-diffusion, improved-diffusion and DiT, and the U-Net that they describe.

A checkpoint does not hold them; a spec states them after the file, ``mine.pt?diffusion_steps=4000&num_heads=4``. With T
``diffusion_steps``, the network was trained at times t from 0 to T - 1 and gets t, or with ``rescale_timesteps``
``1000 t / T``. Linear betas go from ``0.1 / T`` to ``20 / T``, which is as much noise in all as for T = 1000.

With L levels of n residual blocks, counted from the image, the blocks of the U-Net are numbered through:

    input_blocks.1 + l (n + 1) + j    block j of level l                 down_blocks.l.resnets.j, .attentions.j
      j = n                           halves the size                    down_blocks.l.downsamplers.0
    middle_block.0, 1, 2              residual, attention, residual      mid_block
    output_blocks.l (n + 1) + j       block j of the l-th last level     up_blocks.l.resnets.j, .attentions.j
      j = n                           doubles the size after that        up_blocks.l.upsamplers.0
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, get_type_hints

from diffusers.models.unets.unet_2d import UNet2DModel
from pydantic import Field
from torch import Tensor

from steersman.errors import InputError, notice
from steersman.models.denoisers.architectures import convert, empty_unet, unet_blocks, within
from steersman.models.denoisers.network import DiffusersDenoiser
from steersman.names import split_options
from steersman.schedule import MOST, VP
from steersman.typed import typed

__all__ = ["Settings", "Stated", "read_settings", "written"]

COUNTS = ("heads", "head_channels", "heads_upsample")
TRAINING = ("diffusion_steps", "schedule", "predict_xstart", "rescale_timesteps")
NETWORK = (
    *(*COUNTS, "attention", "size", "blocks", "weights", "num_classes", "num_channels", "channel_mult"),
    *("attention_resolutions", "use_scale_shift_norm", "resblock_updown"),
)
ALLOWED = {
    "adm": (*NETWORK, *TRAINING, "learn_sigma", "class_cond"),
    "adm-classifier": (*NETWORK, *(key for key in TRAINING if key != "predict_xstart"), "pool"),
    "dit": ("vae", "heads", "num_classes", *TRAINING, "learn_sigma", "size", "weights"),
}
"""The settings that a spec of each source may state."""
SHORT = {
    "num_heads": "heads",
    "num_head_channels": "head_channels",
    "num_heads_upsample": "heads_upsample",
    "use_new_attention_order": "attention",
    "image_size": "size",
    "num_res_blocks": "blocks",
    "noise_schedule": "schedule",
    "classifier_width": "num_channels",
    "classifier_depth": "blocks",
    "classifier_attention_resolutions": "attention_resolutions",
    "classifier_use_scale_shift_norm": "use_scale_shift_norm",
    "classifier_resblock_updown": "resblock_updown",
    "classifier_pool": "pool",
    "classifier_use_fp16": "use_fp16",
}
"""The short names of settings by the scripts' own names; a spec may have either."""
IGNORED = ("dropout", "use_checkpoint", "use_fp16", "use_kl", "rescale_learned_sigmas", "sigma_small")
"""Settings of the training or of a sampler, which do not change what the network computes."""

Count = Annotated[int, Field(ge=1, le=MOST)]
Numbers = tuple[Annotated[float, Field(gt=0, le=MOST)], ...]

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "op": "conv",  # where a convolution halves the size
    "conv": "conv",  # or doubles it
}
ATTENTION = {"norm": "group_norm", "qkv": "to_qkv", "proj_out": "to_out.0"}
OUTSIDE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    **within("middle_block.1", "mid_block.attentions.0", ATTENTION),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the scripts state of a network and its training, and what is read of it; the defaults are the scripts'."""

    size: Count = 0  # side of the images
    num_channels: Count = 0  # of the time embedding's input
    channel_mult: Numbers = ()  # channels of each level, in multiples of that
    blocks: Count = 0  # n
    attended: tuple[int, ...] = ()  # levels with attentions
    heads: Count | None = None
    head_channels: Count | None = None
    heads_upsample: Count | None = None  # on the way up, where it is another number
    attention: Literal["legacy", "new"] = "legacy"  # the order of rows
    in_channels: int = 3
    learn_sigma: bool = True
    class_cond: bool = False
    num_classes: Count = 0  # of the labels, or of a classifier's
    use_scale_shift_norm: bool = True  # the time scales and shifts what is normalised; else it is added before
    resblock_updown: bool = True  # residual blocks change the size; else convolutions
    pool: str = "attention"  # of a classifier
    attention_resolutions: Numbers = ()
    weights: str | None = None  # which copy, where a file holds several
    vae: str | None = None
    diffusion_steps: Count = 1000
    schedule: Literal["linear", "cosine", "squaredcos_cap_v2"] = "linear"  # the last two are one
    predict_xstart: bool = False
    rescale_timesteps: bool = False

    @property
    def channels(self) -> tuple[int, ...]:
        """The channels of each level."""
        return tuple(round(factor * self.num_channels) for factor in self.channel_mult)

    @property
    def noise(self) -> VP:
        """The noise schedule; refused where there are so few times that linear betas reach 1 before the last."""
        if self.schedule != "linear":
            return VP.cosine(self.diffusion_steps)
        scale = 1000 / self.diffusion_steps
        return VP.linear(self.diffusion_steps, scale * 1e-4, scale * 0.02)

    @property
    def time_scale(self) -> float:
        """The factor from t to the time that the network gets."""
        return 1000 / self.diffusion_steps if self.rescale_timesteps else 1.0

    def heads_of(self, channels: int, *, up: bool = False) -> int:
        """Returns the number of heads of an attention, which must divide its channels."""
        name = "heads" if self.head_channels is None else "head_channels"
        if up and self.heads_upsample and self.head_channels is None:
            name = "heads_upsample"
        given = getattr(self, name)
        if channels % given:
            raise InputError(f"{name} must be a divisor of {channels}, an attention's channels, got {given}")
        return channels // given if name == "head_channels" else given

    def unet(self) -> UNet2DModel:
        """Returns the network on the meta device."""
        channels = self.channels
        for width in (*(channels[level] for level in self.attended), channels[-1]):  # the middle has an attention too
            for up in (False, True):
                self.heads_of(width, up=up)  # refuses what does not divide it
        other_above = self.head_channels is None and self.heads_upsample != self.heads
        return empty_unet(
            self.size,
            channels,
            [level in self.attended for level in range(len(channels))],
            residual=self.resblock_updown,
            heads=self.heads,
            head_channels=self.head_channels,
            up_heads=self.heads_upsample if other_above else None,
            time_channels=self.num_channels,
            in_channels=self.in_channels,
            out_channels=self.in_channels * (2 if self.learn_sigma else 1),
            layers_per_block=self.blocks,
            resnet_time_scale_shift="scale_shift" if self.use_scale_shift_norm else "default",
            num_class_embeds=self.num_classes if self.class_cond else None,
            time_embedding_dim=4 * self.num_channels,
        )

    def state(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns a file's tensors under the names of the network's."""
        modules = dict(OUTSIDE)
        new_blocks = unet_blocks(len(self.channel_mult), self.blocks)
        for block, new in zip(self._blocks(), new_blocks, strict=True):
            modules |= within(block, new, RESNET)
            if "resnets" in new and not new.startswith("mid"):
                modules |= within(f"{block.removesuffix('0')}1", new.replace("resnets", "attentions"), ATTENTION)

        def groups(name: str, channels: int) -> int:
            return self.heads_of(channels, up=name.startswith("up_blocks")) if self.attention == "legacy" else 1

        return convert(tensors, modules, groups)

    def _blocks(self) -> Iterator[str]:
        """Yields their names of the residual blocks, and of what changes the size, in the order of the forward pass."""
        levels, n = len(self.channel_mult), self.blocks
        yield from (f"input_blocks.{i}.0" for i in range(1, levels * (n + 1)))
        yield from ("middle_block.0", "middle_block.2")
        for i in range(levels * (n + 1)):
            yield f"output_blocks.{i}.0"
            if (i + 1) % (n + 1) == 0 and (level := levels - 1 - i // (n + 1)):
                yield f"output_blocks.{i}.{2 if level in self.attended else 1}"  # after the attention, if there is one

    def denoiser(self, network: Any, classes: tuple[str, ...], vae: Any = None) -> DiffusersDenoiser:  # noqa: ANN401
        """Returns the denoiser of a network that was trained so."""
        return DiffusersDenoiser(
            network,
            schedule=self.noise,
            parameterization="sample" if self.predict_xstart else "epsilon",
            classes=classes,
            time_scale=self.time_scale,
            vae=vae,
        )

    def other_than(self, found: Mapping[str, Any]) -> str | None:
        """Returns the first setting that differs from one found in a file's tensors, None where all agree."""
        return next((key for key, value in found.items() if getattr(self, key) != value), None)


class Stated(dict[str, Any]):
    """The settings that ``SOURCE:FILE?KEY=VALUE&KEY=VALUE`` states, by their short names."""

    def __init__(self, source: str, file: str, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.source, self.file = source, file

    def check(self, found: Mapping[str, Any]) -> None:
        """Refuses a setting that differs from the value found in the file's tensors."""
        for key, value in found.items():
            if key in self and self[key] != value:
                raise InputError(f"{key} must be {written(value)}, by the file's tensors, got {written(self[key])}")

    def settings(self, known: Settings | None, found: Mapping[str, Any]) -> Settings:
        """Returns all settings: those stated, found in the tensors, known of a released file, or by default.

        How another file was trained, it does not say; what is taken by default is told in a notice.
        """
        base = known or Settings()
        if self.keys() & {"heads", "head_channels"}:
            base = replace(base, heads=None, head_channels=None)  # one of the two is stated instead
        settings = replace(base, **{**found, **self})
        left = [key for key in TRAINING if key in ALLOWED[self.source] and key not in self]
        if known is None and left:
            taken = ", ".join(f"{key}={getattr(settings, key)}" for key in left)
            notice(
                f"{self.source}: {self.file!r} does not say how it was trained; {taken} taken, the defaults of "
                f"guided-diffusion's scripts; state others as {self.source}:{self.file}?diffusion_steps=4000"
            )
        return settings


def read_settings(source: str, text: str) -> Stated:
    """Returns the settings of ``FILE?KEY=VALUE&KEY=VALUE``, in their types."""
    known = (*ALLOWED[source], *IGNORED)
    names = [*known, *(name for name, short in SHORT.items() if short in known)]
    file, given = split_options(text, names, f"setting of {source}")
    hints = get_type_hints(Settings, include_extras=True)
    values: dict[str, Any] = {}
    for name, value in given.items():
        key = SHORT.get(name, name)
        if key in values:
            raise InputError(f"{source}: {key} is stated twice, once as {name}; state it once")
        if key in IGNORED or (key in (*COUNTS, "channel_mult") and value in ("", "-1")):  # so the scripts leave it open
            continue
        if name == "use_new_attention_order":
            values[key] = "new" if typed(name, value, bool) else "legacy"
        else:
            values[key] = typed(name, value.split(",") if hints[key] == Numbers else value, hints[key])
    return Stated(source, file, values)


def written(value: object) -> str:
    """Returns a setting as the scripts write it."""
    return ",".join(f"{number:g}" for number in value) if isinstance(value, tuple) else str(value)
