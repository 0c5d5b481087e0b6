"""Training a denoiser.

With ``x_t = alpha_t x_0 + sigma_t eps``, the loss is ``mean (network(x_t, t, y) - target)^2``; the
target is what `steersman.denoise.output_for` says of the parameterization. The label y is replaced by the null label
in a share of the images, so that one set of weights is the conditional and the unconditional model (Ho & Salimans
2022).

With u uniform in [0, 1), the time is ``t = floor(T k u / (1 + (k - 1) u))`` (Esser et al. 2024, eq. 23): uniform for a
shift k of 1. A larger one spends more of the training at high noise, where an image's class and place are decided.
"""

import copy
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from steersman.data.load import load_data
from steersman.denoise import Parameterization, output_for
from steersman.denoisers.diffusers import DiffusersDenoiser
from steersman.errors import InputError
from steersman.files import write_json
from steersman.report import grid
from steersman.sample import DDIM, sample
from steersman.schedule import VP, broadcast
from steersman.train.loop import Batch, Training, fit

PREVIEW = 16  # images in a picture of samples

__all__ = ["DenoisingLoss", "train_denoiser", "unet"]


def unet(
    resolution: int, classes: int, widths: tuple[int, ...] = (32, 48, 64, 96, 128), layers: int = 1
) -> UNet2DModel:
    """Returns a new U-Net for RGB images: one width a resolution, attention at the lowest, and a null label at the end.

    Args:
        resolution: The side of the images, in pixels.
        classes: How many labels; 0 for a model without.
        widths: Channels at each resolution, the full one first.
        layers: Residual blocks at each.
    """
    deeper = len(widths) - 1
    return UNet2DModel(
        sample_size=resolution,
        in_channels=3,
        out_channels=3,
        layers_per_block=layers,
        block_out_channels=widths,
        down_block_types=("DownBlock2D",) * deeper + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * deeper,
        norm_num_groups=8,
        num_class_embeds=classes + 1 if classes else None,
    )


@dataclass(frozen=True, kw_only=True)
class DenoisingLoss:
    """The denoising loss of a batch.

    Attributes:
        schedule: The noise.
        parameterization: What the network is to put out.
        null: The null label, or None for a model without labels.
        dropout: How often the label becomes the null label, in [0, 1].
        shift: ``k``, above 0.

    Raises:
        InputError: A dropout or a shift out of its range.
    """

    schedule: VP
    parameterization: Parameterization = "v_prediction"
    null: int | None = None
    dropout: float = 0.15
    shift: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.dropout <= 1:
            raise InputError(f"dropout: {self.dropout} given; allowed: 0 to 1")
        if not 0 < self.shift < math.inf:
            raise InputError(f"shift: {self.shift} given; allowed: above 0")

    def __call__(self, network: nn.Module, batch: Batch) -> Tensor:
        """Returns the mean squared error, ()."""
        x0, count = batch.images, len(batch.images)
        u = torch.rand(count, generator=batch.generator, dtype=torch.float64)
        times = (len(self.schedule.alpha_bar) * self.shift * u / (1 + (self.shift - 1) * u)).long()
        dropped = torch.rand(count, generator=batch.generator) < self.dropout
        eps = torch.randn(x0.shape, generator=batch.generator).to(x0)
        level = self.schedule.at_time(times)
        x_t = broadcast(level.alpha, x0) * x0 + broadcast(level.sigma, x0) * eps
        labels = None
        if self.null is not None:
            labels = torch.where(dropped.to(x0.device), self.null, batch.labels)
        output = network(x_t, times.to(x0.device), class_labels=labels).sample
        return (output.float() - output_for(self.parameterization, x0, eps, level)).square().mean()


def train_denoiser(
    out: Path,
    training: Training,
    *,
    data: str = "sportballs",
    resolution: int = 64,
    num: int = 1_000_000,
    data_seed: int = 0,
    widths: tuple[int, ...] = (32, 48, 64, 96, 128),
    layers: int = 1,
    dropout: float = 0.15,
    shift: float = 1.0,
    init: Path | None = None,
    half: bool = False,
    command: str = "",
) -> DiffusersDenoiser:
    """Trains a class-conditional U-Net with a null label, and writes it as a diffusers pipeline's folder.

    Args:
        out: Where ``unet/``, ``scheduler/``, ``card.json``, ``checkpoint.pt`` and the pictures of samples go.
        training: The settings of the loop.
        data: The data set, as `steersman.data.load_data` reads it.
        resolution: The side of the images, in pixels.
        num: The size of the data set, where it is drawn.
        data_seed: Its seed.
        widths: The U-Net's channels at each resolution.
        layers: Its residual blocks at each.
        dropout: The share of images shown without their label.
        shift: How far the times are shifted towards noise, 1 for not.
        init: A pipeline's folder to take the first weights from, instead of random ones.
        half: Whether the weights are written in float16.
        command: The command line, for the card.

    Returns:
        The denoiser, with the averaged weights.
    """
    images, classes = load_data(data, resolution=resolution, num=num, seed=data_seed)
    torch.manual_seed(training.seed)
    network = unet(resolution, len(classes), widths, layers)
    if init is not None:
        network.load_state_dict(DiffusersDenoiser.from_folder(init).network.state_dict())
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    schedule = VP.from_diffusers(scheduler.config)
    loss = DenoisingLoss(schedule=schedule, null=len(classes), dropout=dropout, shift=shift)

    def denoiser(network: UNet2DModel) -> DiffusersDenoiser:
        return DiffusersDenoiser(network, schedule=schedule, parameterization="v_prediction", classes=classes)

    def write(averaged: UNet2DModel, seen: int) -> None:
        averaged = copy.deepcopy(averaged)
        (averaged.half() if half else averaged).save_pretrained(out / "unet")
        scheduler.save_pretrained(out / "scheduler")
        card = {"classes": classes, "resolution": resolution, "data": data, "data_seed": data_seed, "command": command}
        card |= {"images_seen": seen, "dtype": "float16" if half else "float32"}
        write_json(out / "card.json", card)

    def preview(averaged: UNet2DModel, seen: int) -> None:
        write(averaged, seen)
        frozen = denoiser(copy.deepcopy(averaged))
        samples = sample(frozen, DDIM(), seeds=range(PREVIEW), steps=25, device=averaged.device)
        grid({"": samples}, out / f"samples-{seen:08d}.png")

    fit(network, images, loss, training, out, preview=preview)
    write(network, training.steps * training.batch_size)
    return denoiser(network)
