"""A reproduction at work: its images are drawn, then all are measured as in the paper.

    OUT/samples/SEED/       a run of each target, whose seeds begin with SEED
    OUT/evaluation.json     our figures and the published ones

Of n images of K targets, image i has the seed i and the target ``floor(i K / n)``. What was killed goes on with the
images that are missing, and asks nothing of runs that are whole, whose ``metrics.json`` is there.
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
from steersman.lab.generate import generate_until_stopped, open_session
from steersman.lab.metrics.evaluate import DISTANCES, FIGURES, evaluate
from steersman.lab.metrics.features import Extractor, load_extractor
from steersman.lab.metrics.images import ImageSet, read_images
from steersman.lab.metrics.intervals import RESAMPLES, Figure
from steersman.lab.metrics.statistics import Statistics, read_reference
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
        paths: Where its files are, by their names.
        out: The folder to write.
        num: Images in all.
        steps: Instead of the recipe's.
        guided: Whether the guide steers.
        batch_size: Images at a time; None for the default of a CPU.
        device: Where the networks run.
        resamples: Random halves that each interval is from.
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
        """What the runs of all targets share."""
        wanted = self.wanted
        return Run(
            targets=self._targets[:1],
            denoiser=filled(wanted.denoiser, self.paths),
            classifiers=tuple(filled(each, self.paths) for each in wanted.classifiers),
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
        """The run of every target that has an image, by its folder."""
        count, found = len(self._targets), {}
        for place, target in enumerate(self._targets):
            begin, end = (-(-each * self.num // count) for each in (place, place + 1))
            if begin < end:
                run = replace(self.run, targets=(target,), seed=begin, num=end - begin)
                found[self.out / "samples" / f"{begin:06d}"] = run
        return found

    @property
    def missing(self) -> dict[Path, Run]:
        """Those that are not finished."""
        return {folder: run for folder, run in self.runs.items() if not (folder / "metrics.json").is_file()}

    @property
    def figures(self) -> list[str]:
        """Those that were published of such images and are defined for so few."""
        names = self.wanted.published["guided" if self.guided else "unguided"]
        return [name for name in FIGURES if name in names and self.num >= DISTANCES.get(name, (1, 1))[0]]

    @property
    def _targets(self) -> tuple[str, ...]:
        given = self.wanted.targets
        return tuple(map(str, range(given))) if isinstance(given, int) else given

    @cached_property
    def extractor(self) -> Extractor:
        """What maps the images to features."""
        return load_extractor(filled(self.wanted.features, self.paths), device=self.device)

    @cached_property
    def reference(self) -> ImageSet | Statistics | None:
        """What the images are compared with."""
        spec = self.wanted.reference
        return None if spec is None else read_reference(filled(spec, self.paths))

    def draw(self, *, on_images: Callable[[float], object] = lambda count: None, stop: Stop | None = None) -> list[str]:
        """Draws what is missing, and returns the names of all images that became non-finite.

        Args:
            on_images: Called with how many more images there are, in fractions while they are drawn.
            stop: What waits for signals while images are drawn.

        Raises:
            InputError: A network or the reference cannot be used, or the folder holds other images.
            Stopped: A signal has come; what is finished is written.
        """
        _ = self.extractor, self.reference  # refused now rather than after days
        for folder, run in self.runs.items():
            check_folder(folder, run)
        networks = Networks()
        for place, (folder, run) in enumerate(self.missing.items()):
            session = open_session(run, networks, rehearse=place == 0)
            generate_until_stopped(session, folder, on_images=on_images, stop=stop)
        return [name for folder in self.runs for name in _lost(folder / "metrics.json")]

    def measure(self, *, on_images: Callable[[int], object] = lambda count: None) -> dict[str, Figure]:
        """Returns the figures of the images that are drawn, and writes them beside the published ones.

        Raises:
            InputError: Images and reference do not suit each other.
        """
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
    """Returns the names of a run's images that became non-finite, as its figures say."""
    with about("reproduce", path):
        return typed("lost", read_json(path)["lost"], list[str])


def _joined(sets: Sequence[ImageSet]) -> ImageSet:
    """Returns several sets as one."""
    owners = [(each, index) for each in sets for index in each.indices]

    def read(chosen: Sequence[int]) -> UInt8[Tensor, "B 3 H W"]:
        return torch.cat([owners[place][0].read([owners[place][1]]) for place in chosen])

    labels = tuple(label for each in sets for label in each.labels or ())
    return ImageSet(spec="samples", indices=range(len(owners)), read=read, labels=labels)
