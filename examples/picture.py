"""A picture of runs side by side: the first images of each, a row a target.

python examples/picture.py OUT.png RUN [RUN ...]
"""

import sys
from pathlib import Path

import torch
from torchvision.io import decode_image

from steersman.lab.report import grid
from steersman.lab.run import read_run

SHOWN = 8


def rows(run: Path) -> dict[str, torch.Tensor]:
    """Returns the first images of each target of a run, in [-1, 1], by caption."""
    settings = read_run(run / "run.yaml")
    folders = [folder for folder in sorted(run.iterdir()) if folder.is_dir()] or [run]
    found = {}
    for folder in folders if settings.guided else folders[:1]:
        files = sorted(folder.glob("[0-9]*.png"))[:SHOWN]
        caption = "unguided" if not settings.guided else folder.name if folder != run else settings.targets[0]
        found[caption] = torch.stack([decode_image(str(file)) for file in files]).float() / 127.5 - 1
    return found


if __name__ == "__main__":
    out, *runs = map(Path, sys.argv[1:])
    grid({caption: images for run in runs for caption, images in rows(run).items()}, out)
