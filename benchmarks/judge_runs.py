"""Judges finished runs: accuracy by both judges, diversity, and distance to real images of the class.

    python benchmarks/judge_runs.py RUN [RUN ...]

For each target of each run: the share of images that each judge gives the target, with Wilson's 95% interval; the mean
pairwise distance of the images in the first judge's features, against as many real SportBalls of that class; and the
Fréchet distance to them in the same features, beside that of two sets of real ones. Real images: seed 99, preset large.
"""

import sys
from pathlib import Path

import torch
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchvision.io import decode_image

from steersman.lab.data import SportBalls
from steersman.lab.metrics import classifier_features, correct, frechet_distance, spread, wilson
from steersman.lab.run import read_run
from steersman.models.classifiers import Classifier, load_classifier

JUDGES = ("zoo:sportballs-judge", "zoo:sportballs-judge2")


def read(folder: Path) -> Float[Tensor, "B 3 H W"]:
    """Returns a folder's numbered images in [-1, 1]."""
    files = sorted(folder.glob("[0-9]*.png"))
    return torch.stack([decode_image(str(file)) for file in files]).float() / 127.5 - 1


def real(label: int, count: int, seed: int) -> Float[Tensor, "B 3 H W"]:
    """Returns real images of a class."""
    images, labels = SportBalls.preset("large", num=8 * count + 64, seed=seed).batch(range(8 * count + 64))
    return images[labels == label][:count]


def share(judge: Classifier, images: Float[Tensor, "B 3 H W"], label: int) -> str:
    """Returns a judge's accuracy with its interval."""
    with torch.no_grad():
        right = int(correct(judge(images), torch.full((len(images),), label)).sum())
    ratio_min, ratio_max = wilson(right, len(images))
    return f"{right / len(images):.1%} ({ratio_min:.0%}-{ratio_max:.0%})"


def main() -> None:
    """Prints the table."""
    judges = [load_classifier(name) for name in JUDGES]
    columns = ("run", "target", "images", "judge", "second judge", "diversity", "distance to class", "real to real")
    table = Table(*columns, box=None, pad_edge=False)
    for run in map(Path, sys.argv[1:]):
        targets = [folder.name for folder in sorted(run.iterdir()) if folder.is_dir()]
        for name in targets or read_run(run / "run.yaml").targets:
            images, label = read(run / name if targets else run), judges[0].resolve(name)
            seen, first, second = (
                classifier_features(judges[0], each)
                for each in (images, real(label, len(images), 99), real(label, len(images), 98))
            )
            table.add_row(
                run.name,
                name,
                str(len(images)),
                *(share(judge, images, label) for judge in judges),
                f"{spread(seen) / spread(first):.0%}",
                f"{frechet_distance(seen, first):.2f}",
                f"{frechet_distance(second, first):.2f}",
            )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
