"""``steersman evaluate``: the figures of a set of samples."""

from pathlib import Path
from typing import Annotated

import typer

from steersman.cli import options

__all__ = ["EPILOG", "evaluate"]

EPILOG = "Example: steersman evaluate outputs/baseball --reference 'sportballs?num=2048&seed=99'"


def evaluate(
    samples: Annotated[
        str,
        typer.Argument(
            help="Images: folder of a run or of images, FILE.npz, cifar10:, mnist:, or sportballs[?num=1000&seed=0]."
        ),
    ],
    reference: Annotated[
        str | None,
        typer.Option(
            help="Reference images, in the same forms, or FILE.npz of statistics, ours or EDM's.", show_default=False
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="Class that the samples should show; by default their labels.", show_default=False),
    ] = None,
    features: Annotated[
        str,
        typer.Option(
            help="Network whose features are compared: inception, a classifier (its last features), clip:ID, dinov2 or "
            "module:PACKAGE.NAME:FACTORY."
        ),
    ] = "zoo:sportballs-judge",
    guide: Annotated[
        str | None,
        typer.Option(help="Classifier that guided, or none; by default that of the run.", show_default=False),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(help="Network that measures the images, or none; by default that of the run.", show_default=False),
    ] = None,
    figures: Annotated[
        str | None,
        typer.Option(
            help="Figures to measure, with commas between them: fid,cfid,accuracy/judge,…; by default all.",
            show_default=False,
        ),
    ] = None,
    save_statistics: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the samples' features to FILE, for use as a reference.")
    ] = None,
    resamples: options.Resamples = 200,
    seed: Annotated[int, typer.Option(help="Seed of the half-samples.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Batch size.")] = 64,
    device: options.Device = "cpu",
    trust: options.Trust = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Output file; by default evaluation.json beside the samples.", show_default=False),
    ] = None,
) -> None:
    """Measure samples: accuracy, FID, cFID, KID, precision, recall, density, coverage, CLIP score, with intervals."""
    given = locals() | {"figures": options.listed(figures), "trusted": tuple(trust or ())}
    from steersman.cli.evaluating import Evaluation, carry_out

    carry_out(Evaluation(**options.among(Evaluation, given)))
