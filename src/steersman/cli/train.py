"""``steersman train``: a denoiser or a classifier, on SportBalls, CIFAR-10, MNIST or an image folder."""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from steersman.cli import options
from steersman.cli.options import option
from steersman.cli.root import Commands, Terminal

__all__ = ["app"]

app = Commands(help="Train a denoiser or a classifier.", no_args_is_help=True)


@dataclass(frozen=True, kw_only=True)
class _Data:
    """The images, and where and how the weights are written."""

    out: Annotated[Path, option("Output folder for checkpoints and weights, where an interrupted run continues.")]
    data: Annotated[
        str,
        option(
            "sportballs, sportballs:nrcg, cifar10:[FOLDER], mnist:[FOLDER] (downloaded without a folder), a "
            "folder with one folder for each class, or for a denoiser a folder of images."
        ),
    ] = "sportballs"
    resolution: Annotated[int | None, option("Height and width in pixels; by default those of the data.")] = None
    num: Annotated[int, option("Number of images of a rendered data set.")] = 1_000_000
    data_seed: Annotated[int, option("Seed of a rendered data set.")] = 0
    flip: Annotated[bool, option("Mirror half of the images at random.")] = False
    half: Annotated[bool, option("Write the weights in float16.")] = False


@dataclass(frozen=True, kw_only=True)
class _Training:
    """How to train: fields of `steersman.lab.train.loop.Training`, with a denoiser's defaults."""

    images: Annotated[int, option("Number of images to train on, each repeat counted.")] = 1_000_000
    batch_size: Annotated[int, option("Batch size.")] = 64
    learning_rate: Annotated[float, option("Peak learning rate.")] = 5e-4
    warmup: Annotated[int, option("Steps of linear warm-up.")] = 500
    decay: Annotated[str, option("Learning rate decay: cosine or linear to zero at the end, or none.")] = "cosine"
    optimizer: Annotated[str, option("adamw, or sgd (Nesterov momentum 0.9).")] = "adamw"
    weight_decay: Annotated[float, option("Weight decay.")] = 0.01
    average: Annotated[float, option("Decay of the exponential moving average of the weights; 0 for none.")] = 0.9995
    precision: Annotated[str, option("Mixed precision: no (float32), bf16 or fp16.")] = "no"
    channels_last: Annotated[bool, option("Store tensors as channels_last; try which is faster.")] = False
    compile: Annotated[bool, option("Compile the network with torch.compile, which takes minutes at first.")] = False
    minutes: Annotated[
        float | None, option("End after so many minutes, with --decay none; the same command goes on for as many.")
    ] = None
    workers: Annotated[int, option("Worker processes that load data.")] = 0
    seed: Annotated[int, option("Seed of the weights, the order of the images and the noise.")] = 0


_CLASSIFIER_TRAINING = _Training(images=100_000, learning_rate=1e-3, warmup=200, average=0.0)


@dataclass(frozen=True, kw_only=True)
class _Network:
    """A new U-Net: fields of `steersman.lab.train.denoiser.Architecture`."""

    widths: Annotated[
        str | None,
        option(
            "Channels at each resolution, highest first; by default 32,48,64,96,128, as many as the resolution "
            "can be halved."
        ),
    ] = None
    layers: Annotated[int | None, option("Residual blocks at each resolution; by default 1.")] = None
    attention: Annotated[int | None, option("Number of lowest resolutions with attention; by default 1.")] = None
    patch: Annotated[int | None, option("Side in pixels of the patches that become channels; by default 1.")] = None

    def settings(self) -> dict[str, Any]:
        """Returns the options that were given, as the fields' values."""
        given: dict[str, Any] = {name: value for name, value in vars(self).items() if value is not None}
        if self.widths is not None:
            given["widths"] = tuple(options.numbers("widths", self.widths, int))
        return given


def _begin(what: str, data: _Data) -> None:
    """Says what begins, before the imports, which take seconds."""
    Terminal(quiet=os.environ.get("RANK", "0") != "0").print(f"training a {what} on {data.data}, written to {data.out}")


@app.command()
@options.grouped
def denoiser(
    *,
    data: _Data,
    noise: Annotated[
        str | None,
        option("Noise schedule: cosine (with v-prediction, the default) or edm (EDM's preconditioning and noise)."),
    ] = None,
    network: _Network,
    label_dropout: Annotated[
        float, option("Probability of dropping an image's label, for classifier-free guidance.")
    ] = 0.15,
    shift: Annotated[float, option("Shift of the training times towards noise; 1 for uniform times.")] = 1.0,
    init: Annotated[str | None, option("Denoiser to start from, with its noise schedule: folder or zoo:NAME.")] = None,
    training: _Training,
) -> None:
    """Train a U-Net, class-conditional where the data has classes, which also draws without a label.

    Example: steersman train denoiser --data photos --resolution 64 --out mine
    """
    _begin("denoiser", data)
    from steersman.lab.train.denoiser import Architecture, train_denoiser
    from steersman.lab.train.loop import Training

    settings = network.settings()
    train_denoiser(
        training=Training(**vars(training)),
        **vars(data),
        noise=noise,
        architecture=Architecture(**settings) if settings else None,
        label_dropout=label_dropout,
        shift=shift,
        init=init,
        command=shlex.join(["steersman", *sys.argv[1:]]),
    )


@app.command()
@options.grouped
def classifier(
    *,
    data: _Data,
    architecture: Annotated[
        str,
        option(
            "Network: mobilenet_v3_small, resnet10_narrow or densenet_narrow; for 32x32 images resnet9, "
            "plainnet or wide_resnet16; for digits lenet."
        ),
    ] = "mobilenet_v3_small",
    robust: Annotated[bool, option("Train on noisy images, without the noise level as an input.")] = False,
    augment: Annotated[bool, option("Shift, tint, blur and add noise to the images a little, as for a judge.")] = False,
    shift: Annotated[int, option("Move the images by up to this many pixels along each axis.")] = 0,
    smoothing: Annotated[float, option("Label smoothing: share of each label that is spread over all classes.")] = 0.0,
    held_out: Annotated[int | None, option("Number of held-out images; by default 4000, or all test images.")] = None,
    held_out_seed: Annotated[int, option("Seed of the held-out images of a rendered data set.")] = 99,
    training: _Training = _CLASSIFIER_TRAINING,
) -> None:
    """Train a classifier, plain or robust to noise, and measure its accuracy on held-out images.

    Example: steersman train classifier --data photos --resolution 64 --out classifier
    """
    _begin("classifier", data)
    from steersman.lab.train.classifier import train_classifier
    from steersman.lab.train.loop import Training

    train_classifier(
        training=Training(**vars(training)),
        **vars(data),
        architecture=architecture,
        robust=robust,
        augment=augment,
        shift=shift,
        smoothing=smoothing,
        held_out=held_out,
        held_out_seed=held_out_seed,
        command=shlex.join(["steersman", *sys.argv[1:]]),
    )
