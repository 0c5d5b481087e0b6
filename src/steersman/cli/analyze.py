"""``steersman analyze``: what makes a classifier fit for guiding."""

from pathlib import Path
from typing import Annotated

import typer

from steersman.cli import options

__all__ = ["app"]

app = typer.Typer(help="Measure how suitable a classifier is for guidance.", no_args_is_help=True)


@app.callback()
def analyze() -> None:
    """Measure how suitable a classifier is for guidance."""
    from steersman.cli.root import require_lab

    require_lab("analyze")


Classifiers = Annotated[
    list[str] | None,
    typer.Option(
        "--classifier",
        metavar="[NAME=]SPEC",
        help="Classifier; repeat for more. By default imagenet:efficientnet-lite0.",
    ),
]
Data = Annotated[
    str,
    typer.Option(
        help="Images with labels: FOLDER[?resolution=64], FILE.npz, cifar10:[FOLDER][?split=test], mnist:…, "
        "sportballs[:PRESET][?num=8&seed=1]."
    ),
]
Num = Annotated[int | None, typer.Option(help="Number of images, chosen at random from the data; by default all.")]
Views = Annotated[
    list[str] | None, typer.Option("--input", help="Classifier input; repeat for more. By default noisy and denoised.")
]
Times = Annotated[str | None, typer.Option(metavar="T,T,…", help="Use only the noise levels nearest to these times.")]
Every = Annotated[
    int | None, typer.Option(metavar="K", help="Use only every K-th noise level, counted from the cleanest.")
]
Count = Annotated[int | None, typer.Option(metavar="N", help="Use only N evenly spaced noise levels.")]
Preprocess = Annotated[str, typer.Option(help="Preprocessing of classifier inputs: own (as it was trained) or raw.")]
Size = Annotated[
    int | None, typer.Option(help="Height and width of classifier inputs in pixels; by default the classifier's own.")
]
Seed = Annotated[int, typer.Option(help="Seed of the noise.")]
Label = Annotated[bool, typer.Option("--label", help="Condition the denoiser on each image's class.")]
BatchSize = Annotated[int, typer.Option(help="Batch size; it does not change the figures.")]
Out = Annotated[Path, typer.Option(help="Output folder, where an interrupted analysis continues.")]

BALLS = "sportballs?num=256&seed=1000"


@app.command()
def accuracy(
    out: Out = Path("outputs/accuracy"),
    denoiser: options.Denoiser = "zoo:sportballs",
    classifier: Classifiers = None,
    data: Data = BALLS,
    num: Num = None,
    input: Views = None,
    times: Times = None,
    every: Every = None,
    count: Count = None,
    label: Label = False,
    preprocess: Preprocess = "own",
    size: Size = None,
    seed: Seed = 0,
    batch_size: BatchSize = 16,
    device: options.Device = "cpu",
) -> None:
    """Measure accuracy against the noise level, on x_t and on x0_hat."""
    given = locals()
    from steersman.cli.analyzing.common import Scope
    from steersman.cli.analyzing.measures import accuracy

    accuracy(
        Scope.of(given),
        out,
        data=data,
        num=num,
        label=label,
        seed=seed,
    )


@app.command()
def sensitivity(
    out: Out = Path("outputs/sensitivity"),
    denoiser: options.Denoiser = "zoo:sportballs",
    classifier: Classifiers = None,
    data: Data = BALLS,
    num: Num = None,
    input: Views = None,
    stabilizer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND [VALUE]",
            help="Stabilizer; repeat for more. By default none, ema 0.9, ema 0.99 and adam.",
        ),
    ] = None,
    objective: Annotated[
        str,
        typer.Option(
            help="Objective of the gradients: class (whose gradient fades where the classifier is sure), logit or "
            "binary."
        ),
    ] = "class",
    target: Annotated[
        str | None, typer.Option(help="Class to use for all images; by default each image's own.")
    ] = None,
    asked: Annotated[
        str,
        typer.Option(help="Time that the denoiser is given for x_{t-1}: own (t-1) or shared (t, as in nrCG's code)."),
    ] = "own",
    times: Times = None,
    every: Every = None,
    count: Count = None,
    label: Label = False,
    preprocess: Preprocess = "own",
    size: Size = None,
    seed: Seed = 0,
    batch_size: BatchSize = 16,
    device: options.Device = "cpu",
) -> None:
    """Measure how much logits and gradients change from one time to the next."""
    given = locals()
    from steersman.cli.analyzing.common import Scope
    from steersman.cli.analyzing.measures import sensitivity

    sensitivity(
        Scope.of(given),
        out,
        data=data,
        num=num,
        stabilizers=stabilizer,
        objective=objective,
        target=target,
        asked=asked,
        label=label,
        seed=seed,
    )


@app.command()
def calibration(
    out: Out = Path("outputs/calibration"),
    denoiser: options.Denoiser = "zoo:sportballs",
    classifier: Classifiers = None,
    num: Annotated[int, typer.Option(help="Total number of images, spread over the classes.")] = 256,
    class_: Annotated[
        list[str] | None,
        typer.Option("--class", help="Class to draw; repeat for more. By default all classes of the denoiser."),
    ] = None,
    input: Views = None,
    softplus: Annotated[
        str,
        typer.Option(
            metavar="B,B,…", help="Softplus sharpness values that replace ReLU; none for the network as trained."
        ),
    ] = "none",
    temperature: Annotated[str, typer.Option(metavar="T,T,…", help="Factors to multiply the logits by.")] = "1",
    bins: Annotated[int, typer.Option(help="Number of confidence bins.")] = 15,
    sampler: Annotated[str, typer.Option(help="Sampler, in the forms that a recipe takes.")] = "ddpm",
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 50,
    switch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]ABOVE,BELOW,AT",
            help="Also measure two classifiers as one: ABOVE where sigma / alpha > AT, else BELOW (ensemble.at of a "
            "recipe); repeat for more.",
        ),
    ] = None,
    cfg_scale: Annotated[float, typer.Option(help="Classifier-free guidance scale.")] = 1.0,
    times: Times = None,
    every: Every = None,
    count: Count = None,
    preprocess: Preprocess = "own",
    size: Size = None,
    seed: options.Seed = 0,
    batch_size: BatchSize = 16,
    device: options.Device = "cpu",
) -> None:
    """Measure the calibration error at each sampling step."""
    given = locals()
    from steersman.cli.analyzing.calibration import calibration
    from steersman.cli.analyzing.common import Scope

    calibration(
        Scope.of(given),
        out,
        num=num,
        classes=class_,
        softplus=softplus,
        temperature=temperature,
        bins=bins,
        sampler=sampler,
        steps=steps,
        cfg_scale=cfg_scale,
        seed=seed,
        switch=switch or (),
    )


@app.command()
def agree(
    calibration: Annotated[Path, typer.Argument(help="Folder that analyze calibration wrote.")],
    sweep: Annotated[
        Path, typer.Argument(help="Folder that sweep wrote, whose cells have the names of the calibration's settings.")
    ],
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("outputs/agree"),
    figure: Annotated[
        list[str] | None,
        typer.Option(
            help="Figure to compare: fid, cfid, accuracy/judge or accuracy/guide; repeat for more. By default all."
        ),
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Use only the cells with this value; repeat for more.")
    ] = None,
    best: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY", help="Compare the settings at their best value of KEY, such as scale; repeat for more."
        ),
    ] = None,
) -> None:
    """Measure the rank correlation between calibration error and sample quality."""
    from steersman.cli.analyzing.calibration import agree

    agree(calibration, sweep, out, figures=figure, where=where or (), best=best or ())


@app.command()
def directions(
    out: Out = Path("outputs/directions"),
    target: Annotated[int, typer.Option(help="Class of the mixture, 0 to 2.")] = 2,
    times: Annotated[str, typer.Option(metavar="T,T,…", help="Times to plot, from 0 to 999.")] = "0,300,600",
    side: Annotated[int, typer.Option(help="Number of arrows along each side of the plot.")] = 17,
) -> None:
    """Plot joint, marginal and conditional directions on a Gaussian mixture."""
    from steersman.cli.analyzing.measures import directions

    directions(out, target=target, times=times, side=side)


@app.command()
def gradients(
    out: Out = Path("outputs/gradients"),
    denoiser: options.Denoiser = "zoo:sportballs",
    classifier: Annotated[str, typer.Option(help="Classifier that guides.")] = "imagenet:efficientnet-lite0",
    target: Annotated[str, typer.Option(help="Class to steer to.")] = "baseball",
    marginal: Annotated[str, typer.Option(metavar="T,T,…", help="Marginal temperatures to compare.")] = "1,0.5",
    num: Annotated[int, typer.Option(help="Number of images.")] = 8,
    shown: Annotated[int, typer.Option(help="Number of images to plot.")] = 2,
    recipe: Annotated[str, typer.Option(help="Recipe: name, name/variant or file.")] = "elucd-ddpm",
    steps: options.Steps = None,
    scale: options.Scale = None,
    set_: options.Set = None,
    label: Annotated[bool, typer.Option("--label", help="Condition the denoiser on the target.")] = False,
    times: Times = None,
    every: Every = None,
    count: Annotated[
        int | None, typer.Option(metavar="N", help="Plot N evenly spaced noise levels; by default 8.")
    ] = None,
    seed: options.Seed = 0,
    batch_size: BatchSize = 16,
    device: options.Device = "cpu",
) -> None:
    """Plot intermediate images with the classifier's gradient beside them, and its norm over time."""
    given = locals()
    from steersman.cli.analyzing.common import Scope
    from steersman.cli.analyzing.measures import gradients

    if times is None and every is None and count is None:
        count = 8
    gradients(
        Scope.of(given | {"classifier": [classifier], "count": count}),
        out,
        target=target,
        marginal=marginal,
        num=num,
        shown=shown,
        recipe=recipe,
        changes=options.Changes(set_=set_, steps=steps, scale=scale).listed(),
        label=label,
        seed=seed,
    )
