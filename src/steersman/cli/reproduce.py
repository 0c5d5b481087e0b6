"""``steersman reproduce``: the papers' own runs."""

from pathlib import Path
from typing import Annotated

import typer

from steersman.cli import options

__all__ = ["EPILOG", "reproduce"]

EPILOG = "Example: steersman reproduce elucd-imagenet128/resnet101 --models weights --data sets --device cuda"


def reproduce(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Reproduction: name, name/variant or file; without it, all are listed.", show_default=False
        ),
    ] = None,
    models: Annotated[Path, typer.Option(help="Folder with the published models.")] = Path("models"),
    data: Annotated[Path, typer.Option(help="Folder with reference images and statistics.")] = Path("data"),
    num: Annotated[
        int | None, typer.Option(help="Total number of images; by default the paper's.", show_default=False)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Sampling steps; by default the recipe's.", show_default=False)
    ] = None,
    no_guidance: Annotated[bool, typer.Option("--no-guidance", help="Reproduce the paper's unguided images.")] = False,
    batch_size: Annotated[
        int | None, typer.Option(help="Batch size; by default 4 on a CPU, else as listed.", show_default=False)
    ] = None,
    device: options.Device = "cpu",
    resamples: options.Resamples = 200,
    run: Annotated[
        bool | None,
        typer.Option(
            "--run/--no-run",
            help="Run, and fail if a file is missing; or only print what is needed.",
            show_default="run if no file is missing",
        ),
    ] = None,
    trust: options.Trust = None,
    out: Annotated[
        Path | None, typer.Option(help="Output folder, where an interrupted run continues; by default outputs/NAME.")
    ] = None,
) -> None:
    """Reproduce a paper's run: list the files it needs, and with all of them, compare our figures with its own."""
    given = locals() | {"guided": not no_guidance, "trusted": tuple(trust or ())}
    from steersman.cli.reproducing import Asked, carry_out, list_all

    if name is None:
        list_all()
        return
    carry_out(Asked(**options.among(Asked, given), rooms={"models": models, "data": data}))
