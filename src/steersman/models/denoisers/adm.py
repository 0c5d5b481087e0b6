"""Checkpoints of Dhariwal & Nichol (2021), "Diffusion Models Beat GANs on Image Synthesis", as denoisers.

The same of Nichol & Dhariwal (2021), "Improved Denoising Diffusion Probabilistic Models". Of a released file everything
is known by its name: ``adm:models/256x256_diffusion.pt``. Of another one the tensors' shapes tell most, and the rest is
stated, by the names that the authors' training scripts have for it or by shorter ones:

    heads, head_channels    num_heads, num_head_channels: how many heads an attention has, or how many channels a head
    heads_upsample          num_heads_upsample: how many heads on the way up, where it is another number
    attention               legacy (heads are split before queries, keys and values) or new (after), which the scripts
                            call use_new_attention_order=True
    size                    image_size: the image's height and width, at which the attentions were trained; a classifier
                            whose attention pool numbers its places needs none
    blocks                  num_res_blocks: residual blocks of a level, where a classifier's tensors leave it open
    diffusion_steps, schedule (noise_schedule), predict_xstart, rescale_timesteps
                            how it was trained (`models.denoisers.adm_settings`); left out, they are the defaults of
                            guided-diffusion's scripts, 1000, linear, False, False, and a notice says so.
                            improved-diffusion's scripts have rescale_timesteps=True where it is not given

    weights                 what holds the weights in the file, where it holds an averaged copy (``ema``) too

So ``adm:mine.pt?heads=4&attention=legacy&size=64&diffusion_steps=4000&schedule=cosine``. What the tensors tell may be
stated too, and is held against them: num_channels, channel_mult, attention_resolutions, learn_sigma, class_cond,
num_classes, use_scale_shift_norm, resblock_updown, classifier_pool. Settings of training alone, such as dropout or
rescale_learned_sigmas, are taken and change nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from steersman.errors import InputError, about
from steersman.models.checkpoint import read_tensors
from steersman.models.denoisers.adm_layout import Attention, Layout, fill, in_diffusers_terms, read_layout
from steersman.models.denoisers.adm_settings import Diffusion, Stated, read_stated
from steersman.models.denoisers.diffusers import DiffusersDenoiser

__all__ = ["CLASSIFIERS", "DENOISERS", "Checkpoint", "load_adm", "read_checkpoint"]

SOURCE = "https://openaipublic.blob.core.windows.net/diffusion"
MULTIPLIERS: Mapping[int, tuple[float, ...]] = {
    32: (1, 2, 2, 2),
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}
ATTENTION = ("heads", "head_channels", "heads_upsample")
TOLD = ("num_channels", "channel_mult", "attention_resolutions", "use_scale_shift_norm", "resblock_updown")
NETWORK = (*ATTENTION, "attention", "size", "blocks", *TOLD)
TRAINED = {
    "adm": ("diffusion_steps", "schedule", "predict_xstart", "rescale_timesteps"),
    "adm-classifier": ("diffusion_steps", "schedule", "rescale_timesteps"),
}
SETTINGS = {
    "adm": (*NETWORK, *TRAINED["adm"], "learn_sigma", "class_cond", "num_classes", "weights"),
    "adm-classifier": (*NETWORK, *TRAINED["adm-classifier"], "num_classes", "pool", "weights"),
}


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a file.

    Attributes:
        attention: Its heads, and their order.
        layout: Its network; None where it is read from the shapes.
        size: Height and width of its images; None where the shapes may tell.
        diffusion: How it was trained.
        page: Where a released one lies.
    """

    attention: Attention
    layout: Layout | None = None
    size: int | None = None
    diffusion: Diffusion = Diffusion()
    page: str = f"{SOURCE}/jul-2021"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A file's tensors by their released names, and the network that they are of.

    Attributes:
        stated: What the spec states of it.
        released: Whether it is one of the released files.
    """

    path: Path
    tensors: dict[str, Tensor]
    layout: Layout
    known: Known
    stated: Stated
    released: bool

    def size(self, found: int = 0) -> int:
        """Returns the height and width of its images, which are known, stated or found.

        Args:
            found: What the shapes tell; 0 where they do not.

        Raises:
            InputError: None is stated or found, another one than can be, or one of other attentions than are stated.
        """
        halved, size = 2 ** (len(self.layout.channels) - 1), self.known.size or found
        if found and size != found:
            raise InputError(f"size must be {found}, by the number of its attention pool's positions, got {size}")
        if not size or size % halved:
            raise InputError(f"size=N must be that of its images, a multiple of {halved}, got {size or 'none'}")
        sides = {size >> level: attends for level, attends in enumerate(self.layout.attended)}
        stated = self.stated.get("attention_resolutions", ())
        if stated and any(attends != (side in stated) for side, attends in sides.items()):
            told = ",".join(str(side) for side, attends in sides.items() if attends) or "none"
            raise InputError(
                f"attention_resolutions must be {told}, which the file's tensors tell of images of {size} pixels, got "
                f"{','.join(map(str, stated))}"
            )
        return size


def _released(
    size: int,
    width: int,
    blocks: int,
    labels: int,
    attention: Attention,
    diffusion: Diffusion = Diffusion(),  # noqa: B008 - frozen
    attended: tuple[int, ...] = (32, 16, 8),
    page: str = "jul-2021",
    **layout: Any,  # noqa: ANN401
) -> Known:
    multipliers = MULTIPLIERS[size]
    found = Layout(
        width=width,
        channels=tuple(int(each * width) for each in multipliers),
        blocks=blocks,
        attended=tuple(size >> level in attended for level in range(len(multipliers))),
        labels=labels,
        **layout,
    )
    return Known(attention=attention, layout=found, size=size, diffusion=diffusion, page=f"{SOURCE}/{page}")


_LEGACY, _COSINE = Attention(head_channels=64, order="legacy"), Diffusion(schedule="cosine")
_UNCONDITIONAL = _released(256, 256, 2, 0, _LEGACY)
_FOUR = Attention(heads=4, order="legacy")
_IMPROVED: Mapping[str, Any] = {"residual": False, "attended": (16, 8), "page": "march-2021"}
_LONG = Diffusion(diffusion_steps=4000, schedule="cosine")
_RESCALED = replace(_LONG, rescale_timesteps=True)
_BEDROOM = _released(256, 128, 2, 0, replace(_FOUR, heads=1), **{**_IMPROVED, "attended": (16,), "scale_shift": False})
DENOISERS: Mapping[str, Known] = {
    "64x64_diffusion.pt": _released(64, 192, 3, 1000, replace(_LEGACY, order="new"), _COSINE),
    "128x128_diffusion.pt": _released(128, 256, 2, 1000, _FOUR),
    "256x256_diffusion.pt": _released(256, 256, 2, 1000, _LEGACY),
    "256x256_diffusion_uncond.pt": _UNCONDITIONAL,
    "512x512_diffusion.pt": _released(512, 256, 2, 1000, _LEGACY),
    **{f"lsun_{name}.pt": _UNCONDITIONAL for name in ("bedroom", "cat", "horse", "horse_nodropout")},
    **{
        f"cifar10_uncond_{name}_500K.pt": _released(32, 128, 3, 0, _FOUR, _RESCALED, **_IMPROVED)
        for name in ("50M", "vlb_50M")
    },
    **{
        f"imagenet64_uncond_{name}_1500K.pt": _released(64, 128, 3, 0, _FOUR, _RESCALED, **_IMPROVED)
        for name in ("100M", "vlb_100M")
    },
    "imagenet64_cond_270M_250K.pt": _released(64, 192, 3, 1000, _FOUR, _LONG, **_IMPROVED),
    **{f"lsun_uncond_100M_{name}.pt": _BEDROOM for name in ("1200K_bs128", "2400K_bs64")},
}
CLASSIFIERS: Mapping[str, Known] = {
    "64x64_classifier.pt": _released(64, 128, 4, 0, _LEGACY, _COSINE),  # as the denoiser's that it guides
    **{f"{size}x{size}_classifier.pt": _released(size, 128, 2, 0, _LEGACY) for size in (128, 256, 512)},
}


def load_adm(name: str) -> DiffusersDenoiser:
    """Returns a checkpoint's denoiser, in float32 on the CPU.

    Args:
        name: The file, with what the module's docstring lists where it is none of the released ones.

    Raises:
        InputError: The file is missing, cannot be read, or holds another network than is stated.
    """
    found = read_checkpoint("adm", name, DENOISERS)
    layout, known = found.layout, found.known
    with about("adm", found.path):
        if not any(key.startswith("output_blocks.") for key in found.tensors):
            raise InputError("it must be a denoiser, got a classifier")
        if layout.inputs == 6 or layout.outputs not in (layout.inputs, 2 * layout.inputs):
            raise InputError(
                f"it must be a denoiser, got one of {layout.inputs} channels to {layout.outputs}, as upsamplers are"
            )
        found.stated.must_be(
            {
                "learn_sigma": layout.outputs == 2 * layout.inputs,
                "class_cond": layout.labels > 0,
                "num_classes": layout.labels,
            }
        )
        network = layout.network(known.attention, found.size())
        fill(network, in_diffusers_terms(found.tensors, layout, known.attention))
    classes: tuple[str, ...] = ()
    if found.released and layout.labels:
        from steersman.names import imagenet_names

        classes = imagenet_names()
    return DiffusersDenoiser(
        network,
        schedule=known.diffusion.noise,
        parameterization=known.diffusion.parameterization,
        classes=classes,
        time_scale=known.diffusion.time_scale,
    )


def read_checkpoint(source: str, name: str, released: Mapping[str, Known]) -> Checkpoint:
    """Returns a file's tensors, and what is known of their network.

    Args:
        source: ``adm`` or ``adm-classifier``.
        name: The file, with what the module's docstring lists where it is none of the released ones.
        released: The released ones.

    Raises:
        InputError: The file is missing or cannot be read, something has to be stated, or is not what the tensors tell,
            or what is released by that name is another network.
    """
    stated = read_stated(source, name, SETTINGS[source])
    path = Path(stated.file)
    known = released.get(path.name)
    if not path.is_file():
        fetch = f"fetch {known.page}/{path.name} and put it there" if known else f"known at {SOURCE}/: "
        raise InputError(f"{source}: there is no file {stated.file!r}; {fetch}{'' if known else ', '.join(released)}")
    if known is None:
        _attention(stated, None)
    tensors = read_tensors(path, weights=stated.get("weights"))
    with about(source, path):
        layout = read_layout(tensors, stated.get("blocks"))
        for key, wanted in vars(known.layout).items() if known and known.layout else ():
            if (given := getattr(layout, key)) == wanted:
                continue
            if not stated:
                raise InputError(
                    f"it is not what is released by that name: {key} must be {wanted}, got {given}; give a network of "
                    f"your own its settings, {source}:{stated.file}?heads=4&attention=legacy&size=64"
                )
            known = None
            break
        attention = _attention(stated, known)
        size = stated.get("size", known.size if known else None)
        stated.must_be(_told(layout))
        diffusion = stated.diffusion(known.diffusion if known else None, TRAINED[source])
    found = Known(attention=attention, layout=layout, size=size, diffusion=diffusion)
    return Checkpoint(path=path, tensors=tensors, layout=layout, known=found, stated=stated, released=known is not None)


def _told(layout: Layout) -> dict[str, Any]:
    """Returns what the tensors tell of the settings."""
    multipliers = (each / layout.width for each in layout.channels)
    told: dict[str, Any] = {
        "num_channels": layout.width,
        "channel_mult": tuple(int(each) if each.is_integer() else each for each in multipliers),
        "use_scale_shift_norm": layout.scale_shift,
    }
    return told if len(layout.channels) == 1 else told | {"resblock_updown": layout.residual}


def _attention(stated: Stated, known: Known | None) -> Attention:
    """Returns what no shape tells of the attentions, as stated or known."""
    given = {key: stated[key] for key in ATTENTION if key in stated}
    if {"heads", "head_channels"} <= given.keys() or (
        known is None and not (given.keys() & {"heads", "head_channels"} and "attention" in stated)
    ):
        raise InputError(
            f"{stated.source}: {stated.file!r} is not a released file, whose heads are known; state them: "
            f"{stated.source}:{stated.file}?heads=4&attention=legacy&size=64, or head_channels=64, and attention="
            "legacy or new"
        )
    base = known.attention if known else Attention(order=stated["attention"])
    if given.keys() & {"heads", "head_channels"}:
        base = Attention(order=base.order)
    return replace(base, order=stated.get("attention", base.order), **given)
