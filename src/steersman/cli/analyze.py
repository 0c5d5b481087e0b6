"""``steersman analyze``: what makes a classifier fit for guiding."""

from pathlib import Path
from typing import Annotated

import typer

from steersman.cli import options

__all__ = ["app"]

app = typer.Typer(help="Measure what makes a classifier fit for guiding.", no_args_is_help=True)

Classifiers = Annotated[
    list[str] | None,
    typer.Option(
        "--classifier", metavar="[NAME=]SPEC", help="Classifier, imagenet:efficientnet-lite0 if none; repeat."
    ),
]
Data = Annotated[
    str,
    typer.Option(
        help="Images with labels: FOLDER[?resolution=64], FILE.npz, cifar10:[FOLDER][?split=test], mnist:…, "
        "sportballs[:PRESET][?num=8&seed=1]."
    ),
]
Num = Annotated[int | None, typer.Option(help="Images, drawn of the data without order; all if none.")]
Views = Annotated[list[str] | None, typer.Option("--view", help="What is shown, noisy and denoised if none; repeat.")]
Times = Annotated[str | None, typer.Option(metavar="T,T,…", help="Only the levels nearest to these times.")]
Every = Annotated[int | None, typer.Option(metavar="K", help="Only every K-th level, from the cleanest.")]
Count = Annotated[int | None, typer.Option(metavar="N", help="Only so many levels, evenly.")]
Preprocess = Annotated[str, typer.Option(help="own, as the classifier was trained, or raw.")]
Size = Annotated[int | None, typer.Option(help="Side in pixels that classifiers see, their own if none.")]
Seed = Annotated[int, typer.Option(help="Of the noise.")]
Label = Annotated[bool, typer.Option("--label", help="Tell the denoiser each image's class.")]
BatchSize = Annotated[int, typer.Option(help="Images at a time; figures stay the same.")]
Out = Annotated[Path, typer.Option(help="Folder to write; a killed analysis goes on from it.")]

BALLS = "sportballs?num=256&seed=1000"


@app.command()
def accuracy(
    out: Out = Path("outputs/accuracy"),
    denoiser: options.Denoiser = "zoo:sportballs",
    classifier: Classifiers = None,
    data: Data = BALLS,
    num: Num = None,
    view: Views = None,
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
    """Accuracy against noise, on x_t and on x0_hat."""
    from steersman.cli.analyzing.accuracy import accuracy
    from steersman.cli.analyzing.scope import Scope

    accuracy(
        Scope(
            denoiser=denoiser,
            classifiers=classifier,
            views=view,
            preprocess=preprocess,
            size=size,
            times=times,
            every=every,
            count=count,
            batch_size=batch_size,
            device=device,
        ),
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
    view: Views = None,
    stabilizer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND [VALUE]",
            help="none, ema 0.9, ema 0.99, adam if not given; repeat.",
        ),
    ] = None,
    objective: Annotated[
        str,
        typer.Option(
            help="What gradients are of: class, whose gradient fades where the classifier is sure; logit; or binary."
        ),
    ] = "class",
    target: Annotated[str | None, typer.Option(help="One class for all images; each one's own if none.")] = None,
    asked: Annotated[
        str, typer.Option(help="own: the denoiser hears x_{t-1} is at t-1; shared: at t, as in nrCG's code.")
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
    """Sensitivity of logits and of gradients from one time to the next."""
    from steersman.cli.analyzing.scope import Scope
    from steersman.cli.analyzing.sensitivity import sensitivity

    sensitivity(
        Scope(
            denoiser=denoiser,
            classifiers=classifier,
            views=view,
            preprocess=preprocess,
            size=size,
            times=times,
            every=every,
            count=count,
            batch_size=batch_size,
            device=device,
        ),
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
    num: Annotated[int, typer.Option(help="Images, the classes in turn.")] = 256,
    class_: Annotated[
        list[str] | None, typer.Option("--class", help="Classes to draw, all that the denoiser has if none; repeat.")
    ] = None,
    view: Views = None,
    softplus: Annotated[
        str, typer.Option(metavar="B,B,…", help="Sharpness of the softened ReLUs, none for as trained.")
    ] = "none",
    temperature: Annotated[str, typer.Option(metavar="T,T,…", help="What the logits are multiplied by.")] = "1",
    bins: Annotated[int, typer.Option(help="Bins of the confidence.")] = 15,
    sampler: Annotated[str, typer.Option(help="As a recipe has it.")] = "ddpm",
    steps: Annotated[int, typer.Option(help="Steps of the reverse process.")] = 50,
    switch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]ABOVE,BELOW,AT",
            help="Also as one: classifier ABOVE where sigma / alpha > AT, else BELOW (several.at of a recipe); repeat.",
        ),
    ] = None,
    cfg_scale: Annotated[float, typer.Option(help="Classifier-free scale.")] = 1.0,
    times: Times = None,
    every: Every = None,
    count: Count = None,
    preprocess: Preprocess = "own",
    size: Size = None,
    seed: options.Seed = 0,
    batch_size: BatchSize = 16,
    device: options.Device = "cpu",
) -> None:
    """Calibration error at each step of the reverse process."""
    from steersman.cli.analyzing.calibration import calibration
    from steersman.cli.analyzing.scope import Scope

    calibration(
        Scope(
            denoiser=denoiser,
            classifiers=classifier,
            views=view,
            preprocess=preprocess,
            size=size,
            times=times,
            every=every,
            count=count,
            batch_size=batch_size,
            device=device,
        ),
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
    calibration: Annotated[Path, typer.Argument(help="Folder of analyze calibration.")],
    sweep: Annotated[
        Path, typer.Argument(help="Folder of sweep, whose cells are named as the calibration's settings.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("outputs/agree"),
    figure: Annotated[
        list[str] | None, typer.Option(help="fid, cfid, accuracy/judge, accuracy/guide, all if none; repeat.")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Only the cells that have it; repeat.")
    ] = None,
    best: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Each setting at its best value of it, as scale; repeat.")
    ] = None,
) -> None:
    """Whether the better calibrated guides better: rank correlation of calibration error and the samples' figures."""
    from steersman.cli.analyzing.agreement import agree

    agree(calibration, sweep, out, figures=figure, where=where or (), best=best or ())


@app.command()
def directions(
    out: Out = Path("outputs/directions"),
    target: Annotated[int, typer.Option(help="Class of the mixture, 0 to 2.")] = 2,
    times: Annotated[str, typer.Option(metavar="T,T,…", help="Times from 0 to 999.")] = "0,300,600",
    side: Annotated[int, typer.Option(help="Arrows along an edge.")] = 17,
) -> None:
    """Joint, marginal and conditional directions on a Gaussian mixture."""
    from steersman.cli.analyzing.directions import directions

    directions(out, target=target, times=times, side=side)


@app.command()
def gradients(
    out: Out = Path("outputs/gradients"),
    denoiser: options.Denoiser = "zoo:sportballs",
    classifier: Annotated[str, typer.Option(help="Guide.")] = "imagenet:efficientnet-lite0",
    target: Annotated[str, typer.Option(help="Class to steer to.")] = "baseball",
    marginal: Annotated[str, typer.Option(metavar="T,T,…", help="Marginal temperatures to compare.")] = "1,0.5",
    num: Annotated[int, typer.Option(help="Images.")] = 8,
    shown: Annotated[int, typer.Option(help="How many of them to show.")] = 2,
    recipe: Annotated[str, typer.Option(help="Name, name/variant or file.")] = "elucd-ddpm",
    steps: options.Steps = None,
    scale: options.Scale = None,
    set_: options.Set = None,
    label: Annotated[bool, typer.Option("--label", help="Tell the denoiser the target.")] = False,
    times: Times = None,
    every: Every = None,
    count: Annotated[int | None, typer.Option(metavar="N", help="So many pictures; 8 if nothing is chosen.")] = None,
    seed: options.Seed = 0,
    batch_size: BatchSize = 16,
    device: options.Device = "cpu",
) -> None:
    """Intermediate images with the classifier's gradient beside them, and its norm over time."""
    from steersman.cli.analyzing.gradients import gradients
    from steersman.cli.analyzing.scope import Scope

    if times is None and every is None and count is None:
        count = 8
    gradients(
        Scope(
            denoiser=denoiser,
            classifiers=[classifier],
            times=times,
            every=every,
            count=count,
            batch_size=batch_size,
            device=device,
        ),
        out,
        target=target,
        marginal=marginal,
        num=num,
        shown=shown,
        recipe=recipe,
        changes=options.changes(set_, steps=steps, scale=scale),
        label=label,
        seed=seed,
    )
