"""``steersman train``: a denoiser or a classifier, on SportBalls, CIFAR-10, MNIST or an image folder."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from steersman.cli import options

__all__ = ["app"]

app = typer.Typer(help="Train a denoiser or a classifier.", no_args_is_help=True)

Data = Annotated[
    str,
    typer.Option(
        help="sportballs, sportballs:nrcg, cifar10: or mnist: (to read local files, with their folder after the "
        "colon), or a folder with one folder for each class."
    ),
]
Out = Annotated[
    Path, typer.Option(help="Output folder for checkpoints and weights, where an interrupted run continues.")
]
Images = Annotated[int, typer.Option(help="Images to train on in all, repeats counted.")]
Resolution = Annotated[
    int | None, typer.Option(help="Height and width of the images in pixels; by default the data's own, or 64.")
]
Flip = Annotated[bool, typer.Option(help="Mirror half of the images at random.")]
Decay = Annotated[
    str, typer.Option(help="Learning rate after warm-up: cosine or linear to zero at the last image, or none.")
]
Optimizer = Annotated[str, typer.Option(help="adamw, or sgd (Nesterov's momentum 0.9).")]
WeightDecay = Annotated[float, typer.Option(help="Weight decay.")]
Num = Annotated[int, typer.Option(help="Number of images of the data set, where it is rendered.")]
DataSeed = Annotated[int, typer.Option(help="Seed of the data set, where it is rendered.")]
Batch = Annotated[int, typer.Option(help="Batch size.")]
Rate = Annotated[float, typer.Option(help="Peak learning rate.")]
Warmup = Annotated[int, typer.Option(help="Steps of linear warm-up.")]
Precision = Annotated[str, typer.Option(help="Mixed precision: no (float32), bf16 or fp16.")]
ChannelsLast = Annotated[bool, typer.Option(help="Store tensors as channels_last; try which is faster.")]
Workers = Annotated[int, typer.Option(help="Worker processes that load data.")]
Seed = Annotated[int, typer.Option(help="Seed of the weights, the order of the images and the noise.")]


def _widths(text: str) -> tuple[int, ...]:
    from steersman.errors import InputError

    try:
        return tuple(int(width) for width in text.split(","))
    except ValueError as error:
        raise InputError(f"widths must be whole numbers with commas between them, got {text!r}") from error


@app.command()
def denoiser(
    out: Out,
    data: Data = "sportballs",
    images: Images = 1_000_000,
    resolution: Resolution = None,
    num: Num = 1_000_000,
    data_seed: DataSeed = 0,
    noise: Annotated[
        str | None,
        typer.Option(
            help="Noise schedule: cosine (v-prediction; the default) or edm (EDM's preconditioning and noise)."
        ),
    ] = None,
    widths: Annotated[
        str | None,
        typer.Option(
            help="Channels at each resolution, highest first; by default 32,48,64,96,128, as many as the resolution "
            "can be halved."
        ),
    ] = None,
    layers: Annotated[int | None, typer.Option(help="Residual blocks at each resolution; by default 1.")] = None,
    attention: Annotated[
        int | None, typer.Option(help="Number of lowest resolutions with attention; by default 1.")
    ] = None,
    patch: Annotated[
        int | None, typer.Option(help="Side in pixels of the patches that become channels; by default 1.")
    ] = None,
    dropout: Annotated[float, typer.Option(help="Probability of dropping an image's label.")] = 0.15,
    shift: Annotated[float, typer.Option(help="Shift of the training times towards noise; 1 for uniform times.")] = 1.0,
    flip: Flip = False,
    init: Annotated[
        str | None, typer.Option(help="Start from this denoiser (a folder, or zoo:NAME), with its network and noise.")
    ] = None,
    batch_size: Batch = 64,
    learning_rate: Rate = 5e-4,
    warmup: Warmup = 500,
    decay: Decay = "cosine",
    weight_decay: WeightDecay = 0.01,
    average: Annotated[float, typer.Option(help="Decay of the exponential moving average of the weights.")] = 0.9995,
    half: Annotated[bool, typer.Option(help="Write the weights in float16.")] = False,
    precision: Precision = "no",
    channels_last: ChannelsLast = False,
    workers: Workers = 0,
    seed: Seed = 0,
) -> None:
    """Train a class-conditional U-Net with a null label."""
    given = locals()
    from steersman.lab.train.denoiser import Architecture, train_denoiser
    from steersman.lab.train.loop import Training

    training = Training(**options.among(Training, given))
    given = {"layers": layers, "attention": attention, "patch": patch}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if widths is not None:
        settings["widths"] = _widths(widths)
    train_denoiser(
        out,
        training,
        data=data,
        resolution=resolution,
        num=num,
        data_seed=data_seed,
        noise=noise,
        architecture=Architecture(**settings) if settings else None,
        dropout=dropout,
        shift=shift,
        flip=flip,
        init=init,
        half=half,
        command=shlex.join(["steersman", *sys.argv[1:]]),
    )


@app.command()
def classifier(
    out: Out,
    data: Data = "sportballs",
    architecture: Annotated[
        str,
        typer.Option(
            help="Network: mobilenet_v3_small, resnet10_narrow or densenet_narrow; for 32x32 images resnet9, plainnet "
            "or wide_resnet16; for digits lenet."
        ),
    ] = "mobilenet_v3_small",
    robust: Annotated[bool, typer.Option(help="Train on noisy images, without the noise level as an input.")] = False,
    augment: Annotated[bool, typer.Option(help="Shift, tint, blur and noise the images a little, as for a judge.")] = (
        False
    ),
    flip: Flip = False,
    shift: Annotated[int, typer.Option(help="Move the images by up to this many pixels along each axis.")] = 0,
    smoothing: Annotated[
        float, typer.Option(help="Label smoothing: share of each label that is spread over all classes.")
    ] = 0.0,
    half: Annotated[bool, typer.Option(help="Write the weights in float16.")] = False,
    images: Images = 100_000,
    resolution: Resolution = None,
    num: Num = 1_000_000,
    data_seed: DataSeed = 0,
    held_out: Annotated[
        int | None,
        typer.Option(help="Held-out images to measure the accuracy on; by default 4000, or all test images."),
    ] = None,
    held_out_seed: Annotated[int, typer.Option(help="Seed of the held-out images, where they are rendered.")] = 99,
    batch_size: Batch = 64,
    learning_rate: Rate = 1e-3,
    warmup: Warmup = 200,
    decay: Decay = "cosine",
    optimizer: Optimizer = "adamw",
    weight_decay: WeightDecay = 0.01,
    average: Annotated[
        float, typer.Option(help="Decay of the exponential moving average of the weights; 0 for none.")
    ] = 0.0,
    precision: Precision = "no",
    channels_last: ChannelsLast = False,
    workers: Workers = 0,
    seed: Seed = 0,
) -> None:
    """Train a classifier, plain or robust to noise, and measure it on images that it has not seen."""
    given = locals()
    from steersman.lab.train.classifier import train_classifier
    from steersman.lab.train.loop import Training

    training = Training(**options.among(Training, given))
    train_classifier(
        out,
        training,
        data=data,
        architecture=architecture,
        resolution=resolution,
        num=num,
        data_seed=data_seed,
        robust=robust,
        augment=augment,
        flip=flip,
        shift=shift,
        smoothing=smoothing,
        half=half,
        held_out=held_out,
        held_out_seed=held_out_seed,
        command=shlex.join(["steersman", *sys.argv[1:]]),
    )
