"""``steersman train``: a denoiser or a classifier, on SportBalls or on an image folder."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(help="Train a denoiser or a classifier.", no_args_is_help=True)

Data = Annotated[str, typer.Option(help="sportballs, sportballs:nrcg, or a folder with a folder a class.")]
Out = Annotated[Path, typer.Option(help="Folder for checkpoints and weights; a killed run goes on from it.")]
Images = Annotated[int, typer.Option(help="Images to show in all, repeats counted.")]
Resolution = Annotated[int, typer.Option(help="Side of the images in pixels.")]
Num = Annotated[int, typer.Option(help="Size of the data set, where it is drawn.")]
DataSeed = Annotated[int, typer.Option(help="Seed of the data set, where it is drawn.")]
Batch = Annotated[int, typer.Option(help="Images a step.")]
Rate = Annotated[float, typer.Option(help="Peak learning rate.")]
Warmup = Annotated[int, typer.Option(help="Steps of linear warm-up.")]
Precision = Annotated[str, typer.Option(help="no (float32), bf16 or fp16.")]
ChannelsLast = Annotated[bool, typer.Option(help="Memory layout; try both.")]
Workers = Annotated[int, typer.Option(help="Processes that load data.")]
Seed = Annotated[int, typer.Option(help="Seed of weights, order and noise.")]


@app.command()
def denoiser(
    out: Out,
    data: Data = "sportballs",
    images: Images = 1_000_000,
    resolution: Resolution = 64,
    num: Num = 1_000_000,
    data_seed: DataSeed = 0,
    widths: Annotated[str, typer.Option(help="Channels at each resolution.")] = "32,48,64,96,128",
    layers: Annotated[int, typer.Option(help="Residual blocks at each resolution.")] = 1,
    dropout: Annotated[float, typer.Option(help="Share of images shown without their label.")] = 0.15,
    shift: Annotated[float, typer.Option(help="Shift of the times towards noise; 1 for uniform times.")] = 1.0,
    init: Annotated[Path | None, typer.Option(help="Start from this pipeline folder's weights.")] = None,
    batch_size: Batch = 64,
    learning_rate: Rate = 5e-4,
    warmup: Warmup = 500,
    average: Annotated[float, typer.Option(help="Decay of the weights' moving average.")] = 0.9995,
    half: Annotated[bool, typer.Option(help="Write the weights in float16.")] = False,
    precision: Precision = "no",
    channels_last: ChannelsLast = False,
    workers: Workers = 0,
    seed: Seed = 0,
) -> None:
    """Train a class-conditional U-Net with a null label (v-prediction, cosine schedule of 1000 times)."""
    from steersman.train.denoiser import train_denoiser
    from steersman.train.loop import Training

    training = Training(
        images=images,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup=warmup,
        average=average,
        precision=precision,
        channels_last=channels_last,
        workers=workers,
        seed=seed,
    )
    train_denoiser(
        out,
        training,
        data=data,
        resolution=resolution,
        num=num,
        data_seed=data_seed,
        widths=tuple(int(width) for width in widths.split(",")),
        layers=layers,
        dropout=dropout,
        shift=shift,
        init=init,
        half=half,
        command=shlex.join(["steersman", *sys.argv[1:]]),
    )


@app.command()
def classifier(
    out: Out,
    data: Data = "sportballs",
    architecture: Annotated[
        str, typer.Option(help="mobilenet_v3_small, resnet10_narrow or densenet_narrow.")
    ] = "mobilenet_v3_small",
    robust: Annotated[bool, typer.Option(help="Train on noisy images, not told how noisy.")] = False,
    augment: Annotated[bool, typer.Option(help="Shift, tint, blur and noise the images a little, as for a judge.")] = (
        False
    ),
    half: Annotated[bool, typer.Option(help="Write the weights in float16.")] = False,
    images: Images = 100_000,
    resolution: Resolution = 64,
    num: Num = 1_000_000,
    data_seed: DataSeed = 0,
    held_out: Annotated[int, typer.Option(help="Images that the accuracy is measured on.")] = 4000,
    held_out_seed: Annotated[int, typer.Option(help="Their seed, where they are drawn.")] = 99,
    batch_size: Batch = 64,
    learning_rate: Rate = 1e-3,
    warmup: Warmup = 200,
    average: Annotated[float, typer.Option(help="Decay of the weights' moving average; 0 for none.")] = 0.0,
    precision: Precision = "no",
    channels_last: ChannelsLast = False,
    workers: Workers = 0,
    seed: Seed = 0,
) -> None:
    """Train a classifier, plain or robust to noise, and measure it on images that it has not seen."""
    from steersman.train.classifier import train_classifier
    from steersman.train.loop import Training

    training = Training(
        images=images,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup=warmup,
        average=average,
        precision=precision,
        channels_last=channels_last,
        workers=workers,
        seed=seed,
    )
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
        half=half,
        held_out=held_out,
        held_out_seed=held_out_seed,
        command=shlex.join(["steersman", *sys.argv[1:]]),
    )
