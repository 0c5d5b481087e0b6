"""Training a classifier, plain or robust to noise.

    plain      -log p(y | x_0)
    robust     -log p(y | x_t),    x_t = alpha_t x_0 + sigma_t eps,    t uniform, and not told        (nrCG)

A robust classifier is the upper bound that guidance by a plain one is compared with. A judge is plain, but is to judge
what a generator makes, imperfectly: its training images are shifted, tinted, blurred and noised a little, so that it
looks for what makes the class and not for how the renderer draws a pixel.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from rich.console import Console
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.transforms import v2

from steersman.errors import InputError, notice
from steersman.files import replacing, write_json
from steersman.lab.data.images import load_data
from steersman.lab.data.pictures import SOURCES
from steersman.lab.data.sportballs import SportBalls
from steersman.lab.metrics.classification import accuracy
from steersman.lab.train.loop import (
    Batch,
    Training,
    first_console,
    fit,
    flipped,
    plan,
    recalibrate,
    seconds_spent,
    shifted,
    usage,
)
from steersman.models.zoo import build_network, read_network
from steersman.names import split_options
from steersman.schedule import VP, noised
from steersman.typed import finite

__all__ = ["ClassificationLoss", "augmentation", "noisy", "train_classifier"]

HELD_OUT = 4000
DENOISERS = {"sportballs": "zoo:sportballs", "mnist": "zoo:mnist"}  # bundled, by the data that they draw
TIMES = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Where along the forward process the finished classifier is measured."""


@dataclass(frozen=True, kw_only=True)
@finite
class ClassificationLoss:
    """The cross entropy of a batch.

    Attributes:
        schedule: The noise that a robust classifier is trained on; None for clean images.
        transform: What is done to each image (C, H, W) before the noise, at random.
        flip: Whether half of the images are mirrored.
        shift: How many pixels they are moved by at most, along each axis.
        smoothing: Which share of a label is spread over all classes alike, in [0, 1).
    """

    schedule: VP | None = None
    transform: Callable[[Tensor], Tensor] | None = None
    flip: bool = False
    shift: int = 0
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise InputError(f"shift must be at least 0 pixels, got {self.shift}")
        if not 0 <= self.smoothing < 1:
            raise InputError(f"smoothing must be in [0, 1), got {self.smoothing}")

    def shown(self, batch: Batch) -> Float[Tensor, "B C H W"]:
        """Returns what the network sees of a batch."""
        images = flipped(batch.images, batch.generator) if self.flip else batch.images
        if self.shift:
            images = shifted(images, self.shift, batch.generator)
        if self.transform is not None:
            images = torch.stack([self.transform(image) for image in images])
        if self.schedule is not None:
            times = torch.randint(len(self.schedule.alpha_bar), (len(images),), generator=batch.generator)
            images = noisy(images, times, self.schedule, batch.generator)
        return images

    def __call__(self, network: nn.Module, batch: Batch) -> Tensor:
        """Returns the mean cross entropy, ()."""
        logits = network(self.shown(batch)).float()
        return cross_entropy(logits, batch.labels, label_smoothing=self.smoothing)


def noisy(
    x0: Float[Tensor, "B C H W"], times: Tensor, schedule: VP, generator: torch.Generator
) -> Float[Tensor, "B C H W"]:
    """Returns images under random noise at some times."""
    eps = torch.randn(x0.shape, generator=generator).to(x0)
    return noised(x0, eps, schedule.at_time(times))


def augmentation(resolution: int) -> Callable[[Tensor], Tensor]:
    """Returns the random changes of a judge's training images (C, H, W) in [-1, 1]: shift, tint, blur and noise."""
    noises = [v2.GaussianNoise(sigma=sigma) for sigma in (0.02, 0.05, 0.1)]
    return v2.Compose(
        [
            v2.Normalize([-1], [2]),
            v2.RandomCrop(resolution, padding=resolution // 16, padding_mode="edge"),
            v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.3),
            v2.RandomApply([v2.GaussianBlur(5, sigma=(0.2, 1.5))], p=0.5),
            v2.RandomApply([v2.RandomChoice(noises)], p=0.5),
            v2.Normalize([0.5], [0.5]),
        ]
    )


def train_classifier(
    out: Path,
    training: Training,
    *,
    data: str = "sportballs",
    architecture: str = "mobilenet_v3_small",
    resolution: int | None = None,
    num: int = 1_000_000,
    data_seed: int = 0,
    robust: bool = False,
    schedule: VP | None = None,
    augment: bool = False,
    flip: bool = False,
    shift: int = 0,
    smoothing: float = 0.0,
    half: bool = False,
    held_out: int | None = None,
    held_out_seed: int = 99,
    command: str | None = None,
    console: Console | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Trains a classifier, writes it, and measures what it wrote on images that it was not trained on."""
    console = console or first_console()
    torch.manual_seed(training.seed)
    schedule = schedule or VP.cosine()
    images, unseen, classes = _split(data, resolution, num, data_seed, held_out, held_out_seed)
    channels, height, _ = images[0][0].shape
    network = build_network(architecture, len(classes), channels)
    console.print(plan(images, classes, network, training))
    loss = ClassificationLoss(
        schedule=schedule if robust else None,
        transform=augmentation(height) if augment else None,
        flip=flip,
        shift=shift,
        smoothing=smoothing,
    )
    seen = fit(network, images, loss, training, out, console=console)
    recalibrate(network, images, loss.shown, training)

    weights, card = out / "model.safetensors", out / "card.json"
    facts = {
        "architecture": architecture,
        "classes": list(classes),
        "channels": channels,
        "resolution": height,
        "robust": robust,
        "augmented": augment,
        "data": data,
        "data_seed": data_seed,
        "command": command,
        "images_seen": seen,
        "hours": round(seconds_spent(out) / 3600, 3),
    }
    _write_weights(network, weights, half=half)
    write_json(card, facts)
    written, _ = read_network(weights, card)
    facts["accuracy"] = _measure(written, unseen, schedule, training.batch_size, held_out_seed, classes)
    write_json(card, facts)
    figures, denoiser = facts["accuracy"], DENOISERS.get(data.partition(":")[0], "DENOISER")
    noisy = ", ".join(f"{share:.1%} at time {time}" for time, share in figures["noisy"].items())
    console.print(f"accuracy on {figures['held_out']:,} held-out images: {figures['clean']:.1%}; with noise: {noisy}")
    console.print(usage("--denoiser", denoiser, "--classifier", out, "--judge", "none", "--target", classes[0]))
    return written, facts


def _split(
    spec: str, resolution: int | None, num: int, seed: int, held_out: int | None, held_out_seed: int
) -> tuple[Dataset, Dataset, tuple[str, ...]]:
    """Returns the images to train on, those to measure on, and the names of their classes."""
    if held_out is not None and held_out < 1:
        raise InputError(f"held_out must be at least 1, got {held_out}")
    images, classes = load_data(spec, resolution=resolution, num=num, seed=seed)
    if spec.partition(":")[0] in SOURCES:
        published, options = split_options(spec, ("split",))
        if options.get("split", "train") != "train":
            raise InputError(f"a classifier is trained on the training images, got {spec!r}; leave out the split")
        unseen, _ = load_data(f"{published}?split=test", resolution=resolution)
        return images, Subset(unseen, range(min(held_out or len(unseen), len(unseen)))), classes  # pyright: ignore[reportArgumentType]
    if len(classes) < 2:
        raise InputError(f"data must have images of at least 2 classes, a folder each, {spec!r} has {len(classes)}")
    held_out = held_out or HELD_OUT
    if isinstance(images, SportBalls):
        if held_out_seed == seed:
            raise InputError(f"held_out_seed must be another one than the seed of the data, got {seed} for both")
        unseen, _ = load_data(spec, resolution=resolution, num=held_out, seed=held_out_seed)
        return images, unseen, classes
    count = len(images)  # pyright: ignore[reportArgumentType]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(held_out_seed)).tolist()
    kept = min(held_out, -(-count // 10))
    return Subset(images, order[kept:]), Subset(images, order[:kept]), classes


@torch.no_grad()
def _measure(
    network: nn.Module, data: Dataset, schedule: VP, batch_size: int, seed: int, classes: Sequence[str]
) -> dict[str, Any]:
    """Returns the accuracy on clean images, and on noisy ones at some times, fresh noise at each.

    It warns where one class takes all predictions on clean images of several.
    """
    generator = torch.Generator().manual_seed(seed)
    times = [round(share * len(schedule.alpha_bar)) for share in TIMES]
    batches = []
    for images, labels in DataLoader(data, batch_size=batch_size):
        shown = [images, *(noisy(images, torch.tensor(time), schedule, generator) for time in times)]
        batches.append((labels, *map(network, shown)))
    target, clean, *rest = map(torch.cat, zip(*batches, strict=True))
    predicted = clean.argmax(1).unique()
    if len(predicted) == 1 and len(target.unique()) > 1:
        notice(
            f"the classifier predicts {classes[int(predicted)]!r} for each of the {len(target)} held-out images: it is "
            "of no use yet; train on more --images or with another --learning-rate"
        )
    return {
        "held_out": len(target),
        "held_out_seed": seed,
        "clean": round(accuracy(clean, target), 5),
        "noisy": {str(time): round(accuracy(logits, target), 5) for time, logits in zip(times, rest, strict=True)},
    }


def _write_weights(network: nn.Module, file: Path, *, half: bool) -> None:
    learned = {name for name, _ in network.named_parameters()}
    state = {
        name: value.detach().cpu().to(torch.float16 if half and name in learned else value.dtype).contiguous()
        for name, value in network.state_dict().items()
    }
    with replacing(file) as path:
        path.write_bytes(save(state))
