"""A reproduction: its images are drawn, then measured as in the paper.

    OUT/samples/SEED/       a run for each target, whose first seed is SEED
    OUT/evaluation.json     our figures and the published ones

Of n images of K targets, image i has the seed i and the target ``floor(i K / n)``. A reproduction that was stopped
continues with the missing images; a run whose ``metrics.json`` is there is finished.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from steersman.errors import about
from steersman.files import read_json, write_json
from steersman.lab.data.images import ImageSet, read_images
from steersman.lab.generate import generate_until_stopped, open_session
from steersman.lab.metrics.evaluate import DISTANCES, FIGURES, evaluate
from steersman.lab.metrics.features import Extractor, Statistics, load_extractor, read_reference
from steersman.lab.metrics.intervals import RESAMPLES, Figure
from steersman.lab.reproduce.schema import Reproduction, filled
from steersman.lab.run import Run, check_folder
from steersman.lab.session import Networks
from steersman.lab.stop import Stop
from steersman.typed import typed

__all__ = ["Work"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """A reproduction whose files are all there.

    Attributes:
        wanted: The reproduction.
        paths: Paths of its files, by their names.
        out: The output folder.
        num: Images in all.
        steps: Sampling steps; None for the recipe's.
        guided: Whether the images are guided.
        batch_size: Images in a batch; None for the default on a CPU.
        device: Device of the networks.
        resamples: Random halves for each interval.
    """

    wanted: Reproduction
    paths: dict[str, Path]
    out: Path
    num: int
    steps: int | None = None
    guided: bool = True
    batch_size: int | None = None
    device: str = "cpu"
    resamples: int = RESAMPLES

    @cached_property
    def run(self) -> Run:
        """The run of the first target; those of the others differ in target and seeds."""
        wanted = self.wanted
        return Run(
            targets=self._targets[:1],
            denoiser=filled(wanted.denoiser, self.paths),
            classifiers=tuple(filled(spec, self.paths) for spec in wanted.classifiers),
            judge=None,
            recipe=wanted.load_recipe(self.steps),
            guided=self.guided,
            label=wanted.label,
            cfg_scale=wanted.cfg_scale,
            batch_size=self.batch_size,
            device=self.device,
        )

    @cached_property
    def runs(self) -> dict[Path, Run]:
        """The run of each target that has an image, by its folder."""
        count, found = len(self._targets), {}
        for k, target in enumerate(self._targets):
            begin, end = (-(-i * self.num // count) for i in (k, k + 1))
            if begin < end:
                run = replace(self.run, targets=(target,), seed=begin, num=end - begin)
                found[self.out / "samples" / f"{begin:06d}"] = run
        return found

    @property
    def figures(self) -> list[str]:
        """The figures that were published and can be measured on this number of images."""
        names = self.wanted.published["guided" if self.guided else "unguided"]
        return [name for name in FIGURES if name in names and self.num >= DISTANCES.get(name, (1, 1))[0]]

    @property
    def _targets(self) -> tuple[str, ...]:
        targets = self.wanted.targets
        return tuple(map(str, range(targets))) if isinstance(targets, int) else targets

    @cached_property
    def extractor(self) -> Extractor:
        """The network whose features are compared."""
        return load_extractor(filled(self.wanted.features, self.paths), device=self.device)

    @cached_property
    def reference(self) -> ImageSet | Statistics | None:
        """The reference images."""
        spec = self.wanted.reference
        return None if spec is None else read_reference(filled(spec, self.paths))

    def draw(self, *, on_images: Callable[[float], object] = lambda count: None, stop: Stop | None = None) -> list[str]:
        """Draws the missing images, and returns the names of all images that became non-finite."""
        _ = self.extractor, self.reference  # refused now rather than after days
        for folder, run in self.runs.items():
            check_folder(folder, run)
        missing = {folder: run for folder, run in self.runs.items() if not (folder / "metrics.json").is_file()}
        networks = Networks()
        for i, (folder, run) in enumerate(missing.items()):
            session = open_session(run, networks, rehearse=i == 0)
            generate_until_stopped(session, folder, on_images=on_images, stop=stop)
        return [name for folder in self.runs for name in _lost(folder / "metrics.json")]

    def measure(self, *, on_images: Callable[[int], object] = lambda count: None) -> dict[str, Figure]:
        """Returns the figures of the images, and writes them beside the published ones."""
        run = self.run
        found = evaluate(
            _joined([read_images(folder) for folder in self.runs if any(folder.glob("[0-9]*.png"))]),
            self.reference,
            features=self.extractor,
            guide=Networks().classifier(run.classifiers[0], device=run.device, **run.recipe.classifier_settings()),
            figures=self.figures,
            resamples=self.resamples,
            on_images=on_images,
        )
        content = {
            "reproduction": self.wanted.name,
            "images": self.num,
            "guided": self.guided,
            "figures": {name: asdict(figure) for name, figure in found.items()},
            "published": self.wanted.published,
        }
        write_json(self.out / "evaluation.json", content)
        return found


def _lost(path: Path) -> list[str]:
    """Returns the names of a run's images that became non-finite."""
    with about("reproduce", path):
        return typed("lost", read_json(path)["lost"], list[str])


def _joined(sets: Sequence[ImageSet]) -> ImageSet:
    """Returns several sets as one."""
    owners = [(images, index) for images in sets for index in images.indices]

    def read(chosen: Sequence[int]) -> UInt8[Tensor, "B 3 H W"]:
        return torch.cat([images.read([index]) for images, index in (owners[i] for i in chosen)])

    labels = tuple(label for images in sets for label in images.labels or ())
    return ImageSet(spec="samples", indices=range(len(owners)), read=read, labels=labels)
