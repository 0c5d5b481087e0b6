"""``steersman reproduce``: the papers' own runs."""

from pathlib import Path
from typing import Annotated

import typer

from steersman.cli import options

__all__ = ["EPILOG", "reproduce"]

EPILOG = "Example: steersman reproduce elucd-imagenet128/resnet101 --models weights --data sets --device cuda"


def reproduce(
    name: Annotated[
        str | None, typer.Argument(help="Name, name/variant or file; all are listed if none.", show_default=False)
    ] = None,
    models: Annotated[Path, typer.Option(help="Folder of others' models.")] = Path("models"),
    data: Annotated[Path, typer.Option(help="Folder of reference images and statistics.")] = Path("data"),
    num: Annotated[int | None, typer.Option(help="Images in all, the paper's if none.", show_default=False)] = None,
    steps: Annotated[int | None, typer.Option(help="Steps, the recipe's if none.", show_default=False)] = None,
    no_guidance: Annotated[bool, typer.Option("--no-guidance", help="The paper's unguided images instead.")] = False,
    batch_size: Annotated[
        int | None, typer.Option(help="Images at a time; 4 on a CPU, else as listed.", show_default=False)
    ] = None,
    device: options.Device = "cpu",
    resamples: options.Resamples = 200,
    run: Annotated[
        bool | None,
        typer.Option(
            "--run/--no-run",
            help="Run, and fail if something is missing; or only tell.",
            show_default="run if all is there",
        ),
    ] = None,
    trust: options.Trust = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write, outputs/NAME if none; what was killed goes on there.")
    ] = None,
) -> None:
    """Repeat a run of the papers: what it needs and what is missing; and if all is there, our figures by theirs."""
    from steersman.cli.reproducing import Asked, carry_out, list_all

    if name is None:
        list_all()
        return
    asked = Asked(
        name=name,
        rooms={"models": models, "data": data},
        num=num,
        steps=steps,
        guided=not no_guidance,
        batch_size=batch_size,
        device=device,
        resamples=resamples,
        run=run,
        trusted=tuple(trust or ()),
        out=out,
    )
    carry_out(asked)
