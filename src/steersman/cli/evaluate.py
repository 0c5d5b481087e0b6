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
            help="Folder of a run or of images, FILE.npz of a batch, cifar10:, mnist:, or sportballs[?num=1000&seed=0]."
        ),
    ],
    reference: Annotated[
        str | None, typer.Option(help="Such a set, or FILE.npz of statistics, ours or EDM's.", show_default=False)
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="What the samples are to show, their labels if none.", show_default=False)
    ] = None,
    features: Annotated[
        str,
        typer.Option(
            help="inception, a classifier by its last features, clip:ID, dinov2, module:PACKAGE.NAME:FACTORY."
        ),
    ] = "zoo:sportballs-judge",
    guide: Annotated[
        str | None, typer.Option(help="Network that guided, or none; the run's own if not given.", show_default=False)
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="Network that measures, or none; the run's own if not given.", show_default=False)
    ] = None,
    figures: Annotated[
        str | None, typer.Option(help="Only these, by commas: fid,cfid,accuracy/judge,…", show_default=False)
    ] = None,
    save_statistics: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the samples' features, to be a reference.")
    ] = None,
    resamples: options.Resamples = 200,
    seed: Annotated[int, typer.Option(help="Seed of those.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 64,
    device: options.Device = "cpu",
    trust: options.Trust = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write, evaluation.json by the samples if none.", show_default=False)
    ] = None,
) -> None:
    """Measure samples: accuracy, FID, cFID, KID, precision, recall, density, coverage, CLIP score, with intervals."""
    from steersman.cli.evaluating import Evaluation, carry_out

    carry_out(
        Evaluation(
            samples=samples,
            reference=reference,
            target=target,
            features=features,
            guide=guide,
            judge=judge,
            figures=tuple(each.strip() for each in figures.split(",")) if figures is not None else None,
            save_statistics=save_statistics,
            resamples=resamples,
            seed=seed,
            batch_size=batch_size,
            device=device,
            trusted=tuple(trust or ()),
            out=out,
        )
    )
