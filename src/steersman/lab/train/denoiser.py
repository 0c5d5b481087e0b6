"""Training a denoiser.

With ``x_t = alpha_t x_0 + sigma_t eps``, the loss is ``mean (network(x_t, t, y) - target)^2``; the
target is what `steersman.denoise.output_for` says of the parameterization. The label y is replaced by the null label
in a share of the images, so that one set of weights is the conditional and the unconditional model (Ho & Salimans
2022).

With u uniform in [0, 1), the time is ``t = floor(T k u / (1 + (k - 1) u))`` (Esser et al. 2024, eq. 23): uniform for a
shift k of 1. A larger one spends more of the training at high noise, where an image's class and place are decided.

With EDM's noise (Karras et al. 2022, eq. 8 and table 1), ``x_t = x_0 + sigma eps``, and with s the root mean square of
the data, ``ln(sigma / 2 s) ~ N(-1.2, 1.2^2)``, which is EDM's own law for its ``s = 0.5``. The loss of ``x0_hat`` is
weighted with ``1 / c_out^2``. In terms of the network F of `steersman.models.denoisers.network` it is

    mean (F(c_in x_t, c_noise, y) - (x_0 - c_skip x_t) / c_out)^2
    (x_0 - c_skip x_t) / c_out = (sigma x_0 / s - s eps) / sqrt(sigma^2 + s^2)

whose target has unit mean square at every sigma, so that the loss of a network that puts out zeros, as a new one does,
is 1.
"""

import copy
import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d import UNet2DModel
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset

from steersman.batching import broadcast
from steersman.denoise import Parameterization, output_for
from steersman.errors import InputError, unknown
from steersman.files import replacing_in, write_json
from steersman.lab.data import load_data
from steersman.lab.report import grid
from steersman.lab.train.loop import Batch, Training, first_console, fit, flipped, plan, usage
from steersman.models.denoisers import DiffusersDenoiser, EDMDenoiser, load_denoiser
from steersman.models.denoisers.architectures import ADMUNet
from steersman.models.denoisers.folder import scheduler_of
from steersman.sampling import DDIM, Heun, sample
from steersman.schedule import EDM, VP, Level, noised
from steersman.typed import finite

PREVIEW = 16  # images in a picture of samples, without labels and with
MEASURED = 512  # images that the deviation of the data is measured on

WIDTHS = (32, 48, 64, 96, 128)
LOWEST = 32  # pixels across at the lowest resolution, where attention compares each with each

__all__ = ["Architecture", "DenoisingLoss", "EDMLoss", "train_denoiser", "unet"]

Trained = DiffusersDenoiser | EDMDenoiser
Images = Float[Tensor, "B C H W"]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a new U-Net is made of.

    Attributes:
        widths: Channels at each resolution, the highest first; multiples of 8. None for the first of `WIDTHS`, as many
            as the side of the images can be halved.
        layers: Residual blocks at each.
        attention: At how many resolutions, the lowest ones, there is self-attention.
        patch: The side of the squares of pixels that become channels first; 1 for pixels as they are. A U-Net of
            squares of 2 has a quarter of the positions to compute.
    """

    widths: tuple[int, ...] | None = None
    layers: int = 1
    attention: int = 1
    patch: int = 1

    def __post_init__(self) -> None:
        widths = WIDTHS if self.widths is None else self.widths
        if not widths or any(width < 8 or width % 8 for width in widths):
            raise InputError(f"widths must be multiples of 8, got {', '.join(map(str, widths))}")
        if not 0 <= self.attention <= len(widths):
            raise InputError(f"attention must be 0 to {len(widths)}, the number of widths, got {self.attention}")
        for name in ("layers", "patch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")

    def of(self, resolution: int) -> "Architecture":
        """Returns the architecture with its widths for a side of images."""
        if resolution < 1 or resolution % self.patch:
            raise InputError(f"resolution must be a multiple of {self.patch}, the side of a patch, got {resolution}")
        if self.widths is None:
            return replace(self, widths=WIDTHS[: self._halves(resolution)])
        step = self.patch * 2 ** (len(self.widths) - 1)
        if resolution % step:
            raise InputError(
                f"resolution must be a multiple of {step}, for patches of {self.patch} and {len(self.widths)} widths, "
                f"got {resolution}; give fewer widths or another resolution"
            )
        return self

    def _halves(self, resolution: int) -> int:
        """Returns how many widths a side has: one more than it can be halved."""
        side = resolution // self.patch
        widths = min((side & -side).bit_length(), len(WIDTHS))  # the largest power of two that divides the side
        if widths < len(WIDTHS) and side >> (widths - 1) > LOWEST:
            step = self.patch * 2 ** min(math.ceil(math.log2(side / LOWEST)), len(WIDTHS) - 1)
            below = resolution // step * step
            raise InputError(
                f"resolution must be one that can be halved to {LOWEST * self.patch} pixels or fewer, such as "
                f"{below}, {below + step}, got {resolution}"
            )
        return widths


def unet(
    resolution: int,
    classes: int,
    widths: tuple[int, ...] | None = None,
    layers: int = 1,
    *,
    channels: int = 3,
    attention: int = 1,
    patch: int = 1,
) -> UNet2DModel:
    """Returns a new U-Net: one width a resolution, attention at the lowest ones, and a null label at the end."""
    widths = Architecture(widths=widths, layers=layers, attention=attention, patch=patch).of(resolution).widths
    assert widths is not None, "of a resolution they are known"
    plain = len(widths) - attention
    config: dict[str, Any] = {
        "sample_size": resolution,
        "in_channels": channels,
        "out_channels": channels,
        "layers_per_block": layers,
        "block_out_channels": widths,
        "down_block_types": ("DownBlock2D",) * plain + ("AttnDownBlock2D",) * attention,
        "up_block_types": ("AttnUpBlock2D",) * attention + ("UpBlock2D",) * plain,
        "attention_head_dim": math.gcd(*widths[plain:], widths[-1], 32),
        "norm_num_groups": 8,
        "resnet_time_scale_shift": "scale_shift",
        "num_class_embeds": classes + 1 if classes else None,
    }
    return UNet2DModel(**config) if patch == 1 else ADMUNet(**config, patch=patch)


@dataclass(frozen=True, kw_only=True)
class _Loss(ABC):
    """The mean squared error of a network that is shown noisy images, and a label or none.

    Attributes:
        null: The null label, or None for a model without labels.
        label_dropout: How often the label becomes the null label, in [0, 1].
        flip: Whether half of the images are mirrored.
    """

    null: int | None = None
    label_dropout: float = 0.15
    flip: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.label_dropout <= 1:
            raise InputError(f"label_dropout must be in [0, 1], got {self.label_dropout}")

    def __call__(self, network: nn.Module, batch: Batch) -> Tensor:
        """Returns the mean squared error, ()."""
        generator = batch.generator
        x0 = flipped(batch.images, generator) if self.flip else batch.images
        level = self.level(len(x0), generator)
        dropped = (torch.rand(len(x0), generator=generator) < self.label_dropout).to(x0.device)
        labels = None if self.null is None else torch.where(dropped, self.null, batch.labels)
        eps = torch.randn(x0.shape, generator=generator).to(x0)
        input, target = self.pair(x0, eps, level)
        output = network(input, level.time.to(input), class_labels=labels).sample
        return (output.float() - target).square().mean()

    @abstractmethod
    def level(self, count: int, generator: torch.Generator) -> Level:
        """Returns the random noise level of each image."""

    @abstractmethod
    def pair(self, x0: Images, eps: Images, level: Level) -> tuple[Images, Images]:
        """Returns what the network is shown, and what it is to put out."""


@dataclass(frozen=True, kw_only=True)
@finite
class DenoisingLoss(_Loss):
    """The denoising loss of a batch.

    Attributes:
        schedule: The noise.
        parameterization: What the network is to put out.
        shift: ``k``, above 0.
    """

    schedule: VP
    parameterization: Parameterization = "v_prediction"
    shift: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.shift < math.inf:
            raise InputError(f"shift must be above 0, got {self.shift}")

    def level(self, count: int, generator: torch.Generator) -> Level:
        """Returns a shifted time for each image."""
        u = torch.rand(count, generator=generator, dtype=torch.float64)
        times = len(self.schedule.alpha_bar) * self.shift * u / (1 + (self.shift - 1) * u)
        return self.schedule.at_time(times.long())

    def pair(self, x0: Images, eps: Images, level: Level) -> tuple[Images, Images]:
        """Returns ``x_t`` and what the parameterization makes of image and noise."""
        return noised(x0, eps, level), output_for(self.parameterization, x0, eps, level)


@dataclass(frozen=True, kw_only=True)
@finite
class EDMLoss(_Loss):
    """EDM's loss of a batch, weighted so that it is 1 for a network that puts out zeros.

    Attributes:
        sigma_data: ``s``, the root mean square of the data.
        mean: The mean of ``ln(sigma / 2 s)``.
        deviation: Its standard deviation.
    """

    sigma_data: float = 0.5
    mean: float = -1.2
    deviation: float = 1.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.sigma_data < math.inf:
            raise InputError(f"sigma_data must be above 0, got {self.sigma_data}")

    def level(self, count: int, generator: torch.Generator) -> Level:
        """Returns a log-normal noise level for each image."""
        normal = torch.randn(count, generator=generator, dtype=torch.float64)
        return EDM().at_ratio(2 * self.sigma_data * (self.mean + self.deviation * normal).exp())

    def pair(self, x0: Images, eps: Images, level: Level) -> tuple[Images, Images]:
        """Returns ``c_in x_t`` and ``(x_0 - c_skip x_t) / c_out``."""
        sigma, s = broadcast(level.sigma, x0), self.sigma_data
        total = (sigma**2 + s**2).sqrt()
        return (x0 + sigma * eps) / total, (sigma * x0 / s - s * eps) / total


def train_denoiser(
    out: Path,
    training: Training,
    *,
    data: str = "sportballs",
    resolution: int | None = None,
    num: int = 1_000_000,
    data_seed: int = 0,
    noise: str | None = None,
    architecture: Architecture | None = None,
    label_dropout: float = 0.15,
    shift: float = 1.0,
    flip: bool = False,
    init: str | None = None,
    half: bool = False,
    command: str = "",
) -> Trained:
    """Trains a U-Net, with a null label beside those of the classes, and writes it as a diffusers pipeline's folder."""
    if noise not in (None, "cosine", "edm"):
        raise unknown("noise", noise, ("cosine", "edm"))
    if init is not None and architecture is not None:
        raise InputError("the architecture is that of init; give init or widths, layers, attention and patch, not both")
    first = None if init is None else load_denoiser(init)
    if first is not None and resolution is None:
        resolution = first.shape[-1]
    images, classes = load_data(data, resolution=resolution, num=num, seed=data_seed)
    shape = tuple(images[0][0].shape)
    torch.manual_seed(training.seed)
    if first is None:
        denoiser = _new(architecture or Architecture(), shape, classes, noise, label_dropout, images)
    else:
        denoiser = _checked(first, str(init), shape, classes, noise)
    settings: dict[str, Any] = {"null": len(classes) or None, "label_dropout": label_dropout, "flip": flip}
    if isinstance(denoiser, EDMDenoiser):
        if shift != 1:
            raise InputError(f"shift is of the cosine schedule's times; with EDM's noise it must be 1, got {shift}")
        loss = EDMLoss(sigma_data=denoiser.sigma_data, **settings)
        draw = partial(sample, sampler=Heun(), steps=18, spacing="karras")
    else:
        assert isinstance(denoiser.schedule, VP)
        loss = DenoisingLoss(
            schedule=denoiser.schedule, parameterization=denoiser.parameterization, shift=shift, **settings
        )
        draw = partial(sample, sampler=DDIM(), steps=25)
    network: Any = denoiser.network.requires_grad_(True)
    scheduler = scheduler_of(denoiser)

    def write(averaged: UNet2DModel, seen: int) -> None:
        card = {"classes": classes, "resolution": shape[-1], "data": data, "data_seed": data_seed, "command": command}
        card |= {"images_seen": seen, "dtype": "float16" if half else "float32"}
        card |= {} if label_dropout else {"unconditional": False}
        with replacing_in(out) as beside:
            (copy.deepcopy(averaged).half() if half else averaged).save_pretrained(beside / "unet")
            scheduler.save_pretrained(beside / "scheduler")
            write_json(beside / "card.json", card)

    def preview(averaged: UNet2DModel, seen: int) -> None:
        write(averaged, seen)
        frozen: Any = copy.copy(denoiser)
        frozen.network = copy.deepcopy(averaged).requires_grad_(False)
        conditions: dict[str, dict[str, Tensor]] = {"no label": {}} if label_dropout or not classes else {}
        if classes:
            conditions["label"] = {"label": (torch.arange(PREVIEW) % len(classes)).to(averaged.device)}
        drawn = {
            caption: draw(frozen, seeds=range(PREVIEW), condition=condition, device=averaged.device)
            for caption, condition in conditions.items()
        }
        grid(drawn, out / f"samples-{seen:08d}.png")

    console = first_console()
    console.print(plan(images, classes, network, training))
    seen = fit(network, images, loss, training, out, preview=preview, console=console)
    write(network, seen)
    console.print(f"weights and samples in {out}")
    label = ("--label", classes[0]) if classes else ()
    console.print(usage("--denoiser", out, *label, "--no-guidance", "--target", "0", "--judge", "none"))
    network.requires_grad_(False)
    return denoiser


def _new(
    architecture: Architecture,
    shape: tuple[int, int, int],
    classes: tuple[str, ...],
    noise: str | None,
    label_dropout: float,
    images: Dataset,
) -> Trained:
    """Returns a new denoiser, whose network puts out zeros at first."""
    channels, height, _ = shape
    network = unet(height, len(classes), channels=channels, **asdict(architecture))
    # Each residual block begins as the identity.
    last = [block.conv2 for block in network.modules() if isinstance(block, ResnetBlock2D)]
    for weight in (weight for conv in (*last, network.conv_out) for weight in conv.parameters()):
        nn.init.zeros_(weight)
    if noise == "edm":
        sigma_data = _root_mean_square(images)
        return EDMDenoiser(
            network, shape=shape, classes=classes, unconditional=label_dropout > 0, sigma_data=sigma_data
        )
    return DiffusersDenoiser(network, schedule=VP.cosine(), parameterization="v_prediction", classes=classes)


def _checked(first: Any, init: str, shape: tuple[int, ...], classes: tuple[str, ...], noise: str | None) -> Trained:  # noqa: ANN401
    """Returns the denoiser that a training goes on from, which must be of the same images, labels and noise."""
    if not isinstance(first, DiffusersDenoiser | EDMDenoiser) or not isinstance(first.network, UNet2DModel):
        raise InputError(f"init must be a U-Net of images with labels, got {init!r}")
    own = "edm" if isinstance(first, EDMDenoiser) else "cosine"
    if noise not in (None, own) or not isinstance(first.schedule, VP | EDM):
        raise InputError(f"noise must be that of init, {own}, got {noise}")
    if first.latent or first.shape != shape or first.classes != classes:
        raise InputError(
            f"init must be of the data's images and labels, {shape} and {', '.join(classes)}; {init!r} is of "
            f"{first.shape} and {', '.join(first.classes) or 'no labels'}"
        )
    return first


def _root_mean_square(images: Dataset) -> float:
    """Returns ``s``: the root mean square of the values of some images, to three digits."""
    count = len(images)  # pyright: ignore[reportArgumentType]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:MEASURED]
    squares = torch.stack([images[index][0].square().mean() for index in order.tolist()])
    return float(f"{float(squares.mean().sqrt()):.3g}")
