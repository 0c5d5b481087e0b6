"""``steersman data``: render a data set as an image folder."""

from pathlib import Path
from typing import Annotated

from steersman.cli import options
from steersman.cli.options import option
from steersman.cli.root import Commands, Terminal

__all__ = ["app"]

app = Commands(help="Render a data set as an image folder.", no_args_is_help=True)


@app.callback()
def data() -> None:
    """Render a data set as an image folder."""


@app.command()
def sportballs(
    out: Annotated[Path, option("Output folder, with one folder for each class.")],
    num: Annotated[int, option("Total number of images.")] = 1000,
    preset: Annotated[str, option("Diameters: large (0.45 to 0.95 of the canvas) or nrcg (9 to 25 of 64).")] = "large",
    resolution: Annotated[int, option("Height and width in pixels.")] = 64,
    seed: Annotated[int, option("Seed of the data set; image i depends only on the seed and i.")] = 0,
    device: options.Device = "cpu",
) -> None:
    """Render balls on a white canvas: baseball, basketball, volleyball, soccer ball."""
    from steersman.lab.data import SportBalls
    from steersman.lab.data.images import write_folder

    balls = SportBalls.preset(preset, num=num, seed=seed, resolution=resolution)
    with Terminal().progress() as progress:
        for _ in progress.track(write_folder(balls, out, device=device), total=num, description="images"):
            pass
