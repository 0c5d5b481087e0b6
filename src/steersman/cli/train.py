"""``steersman train``: a denoiser or a classifier, on SportBalls, CIFAR-10, MNIST or an image folder."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from steersman.cli import options
from steersman.errors import InputError

__all__ = ["app"]

app = typer.Typer(help="Train a denoiser or a classifier.", no_args_is_help=True)

Out = Annotated[
    Path, typer.Option(help="Output folder for checkpoints and weights, where an interrupted run continues.")
]
Half = Annotated[bool, typer.Option(help="Write the weights in float16.")]
Images = Annotated[int, typer.Option(help="Number of images to train on, each repeat counted.")]
Rate = Annotated[float, typer.Option(help="Peak learning rate.")]
Warmup = Annotated[int, typer.Option(help="Steps of linear warm-up.")]
Average = Annotated[float, typer.Option(help="Decay of the exponential moving average of the weights; 0 for none.")]


@dataclass(frozen=True, kw_only=True)
class _Data:
    """The images."""

    data: Annotated[
        str,
        typer.Option(
            help="sportballs, sportballs:nrcg, cifar10:[FOLDER], mnist:[FOLDER] (downloaded without a folder), or a "
            "folder with one folder for each class."
        ),
    ] = "sportballs"
    resolution: Annotated[
        int | None, typer.Option(help="Height and width of the images in pixels; by default the data's own, or 64.")
    ] = None
    num: Annotated[int, typer.Option(help="Number of images of a rendered data set.")] = 1_000_000
    data_seed: Annotated[int, typer.Option(help="Seed of a rendered data set.")] = 0
    flip: Annotated[bool, typer.Option(help="Mirror half of the images at random.")] = False


@dataclass(frozen=True, kw_only=True)
class _Training:
    """How to train: fields of `steersman.lab.train.loop.Training`, with a denoiser's defaults."""

    images: Images = 1_000_000
    batch_size: Annotated[int, typer.Option(help="Batch size.")] = 64
    learning_rate: Rate = 5e-4
    warmup: Warmup = 500
    decay: Annotated[
        str, typer.Option(help="Learning rate after warm-up: cosine or linear to zero at the last image, or none.")
    ] = "cosine"
    optimizer: Annotated[str, typer.Option(help="adamw, or sgd (Nesterov momentum 0.9).")] = "adamw"
    weight_decay: Annotated[float, typer.Option(help="Weight decay.")] = 0.01
    average: Average = 0.9995
    precision: Annotated[str, typer.Option(help="Mixed precision: no (float32), bf16 or fp16.")] = "no"
    channels_last: Annotated[bool, typer.Option(help="Store tensors as channels_last; try which is faster.")] = False
    workers: Annotated[int, typer.Option(help="Worker processes that load data.")] = 0
    seed: Annotated[int, typer.Option(help="Seed of the weights, the order of the images and the noise.")] = 0


@dataclass(frozen=True, kw_only=True)
class _ClassifierTraining(_Training):
    images: Images = 100_000
    learning_rate: Rate = 1e-3
    warmup: Warmup = 200
    average: Average = 0.0


@dataclass(frozen=True, kw_only=True)
class _Network:
    """A new U-Net: fields of `steersman.lab.train.denoiser.Architecture`."""

    widths: Annotated[
        str | None,
        typer.Option(
            help="Channels at each resolution, highest first; by default 32,48,64,96,128, as many as the resolution "
            "can be halved."
        ),
    ] = None
    layers: Annotated[int | None, typer.Option(help="Residual blocks at each resolution; by default 1.")] = None
    attention: Annotated[
        int | None, typer.Option(help="Number of lowest resolutions with attention; by default 1.")
    ] = None
    patch: Annotated[
        int | None, typer.Option(help="Side in pixels of the patches that become channels; by default 1.")
    ] = None

    def settings(self) -> dict[str, Any]:
        """Returns the options that were given, as the fields' values."""
        given: dict[str, Any] = {name: value for name, value in vars(self).items() if value is not None}
        if self.widths is not None:
            try:
                given["widths"] = tuple(int(width) for width in self.widths.split(","))
            except ValueError as error:
                raise InputError(
                    f"widths must be whole numbers with commas between them, got {self.widths!r}"
                ) from error
        return given


@app.command()
@options.grouped
def denoiser(
    *,
    out: Out,
    data: _Data,
    noise: Annotated[
        str | None,
        typer.Option(
            help="Noise schedule: cosine (with v-prediction, the default) or edm (EDM's preconditioning and noise)."
        ),
    ] = None,
    network: _Network,
    dropout: Annotated[
        float, typer.Option(help="Probability of dropping an image's label, for classifier-free guidance.")
    ] = 0.15,
    shift: Annotated[float, typer.Option(help="Shift of the training times towards noise; 1 for uniform times.")] = 1.0,
    init: Annotated[
        str | None,
        typer.Option(help="Denoiser to start from, with its network and noise schedule: a folder, or zoo:NAME."),
    ] = None,
    training: _Training,
    half: Half = False,
) -> None:
    """Train a class-conditional U-Net, which also draws without a label."""
    from steersman.lab.train.denoiser import Architecture, train_denoiser
    from steersman.lab.train.loop import Training

    settings = network.settings()
    train_denoiser(
        out,
        Training(**vars(training)),
        **vars(data),
        noise=noise,
        architecture=Architecture(**settings) if settings else None,
        dropout=dropout,
        shift=shift,
        init=init,
        half=half,
        command=shlex.join(["steersman", *sys.argv[1:]]),
    )


@app.command()
@options.grouped
def classifier(
    *,
    out: Out,
    data: _Data,
    architecture: Annotated[
        str,
        typer.Option(
            help="Network: mobilenet_v3_small, resnet10_narrow or densenet_narrow; for 32x32 images resnet9, plainnet "
            "or wide_resnet16; for digits lenet."
        ),
    ] = "mobilenet_v3_small",
    robust: Annotated[bool, typer.Option(help="Train on noisy images, without the noise level as an input.")] = False,
    augment: Annotated[
        bool, typer.Option(help="Shift, tint, blur and add noise to the images a little, as for a judge.")
    ] = False,
    shift: Annotated[int, typer.Option(help="Move the images by up to this many pixels along each axis.")] = 0,
    smoothing: Annotated[
        float, typer.Option(help="Label smoothing: share of each label that is spread over all classes.")
    ] = 0.0,
    held_out: Annotated[
        int | None,
        typer.Option(help="Number of held-out images for the accuracy; by default 4000, or all test images."),
    ] = None,
    held_out_seed: Annotated[int, typer.Option(help="Seed of the held-out images of a rendered data set.")] = 99,
    training: _ClassifierTraining,
    half: Half = False,
) -> None:
    """Train a classifier, plain or robust to noise, and measure its accuracy on held-out images."""
    from steersman.lab.train.classifier import train_classifier
    from steersman.lab.train.loop import Training

    train_classifier(
        out,
        Training(**vars(training)),
        **vars(data),
        architecture=architecture,
        robust=robust,
        augment=augment,
        shift=shift,
        smoothing=smoothing,
        half=half,
        held_out=held_out,
        held_out_seed=held_out_seed,
        command=shlex.join(["steersman", *sys.argv[1:]]),
    )
