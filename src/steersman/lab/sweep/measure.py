"""The figures of a run's images, kept in its ``evaluation.json``; of use to `sweep` and `tune`."""

from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from steersman.errors import InputError
from steersman.files import read_json, write_json
from steersman.lab.data.images import ImageSet, read_images
from steersman.lab.metrics.evaluate import DISTANCES, evaluate
from steersman.lab.metrics.features import Statistics, load_extractor, read_reference, statistics_of
from steersman.lab.metrics.intervals import Figure
from steersman.lab.session import Session
from steersman.lab.sweep.cells import Sweep
from steersman.typed import typed

__all__ = ["Measure"]

FEW = max(samples for samples, _ in DISTANCES.values())


class Measure:
    """Measures runs against a reference, whose features are taken once.

    A figure that needs more images than there are stays undefined, as do all of a run without images.
    """

    def __init__(self, sweep: Sweep, *, num: int, device: str) -> None:
        self.sweep, self.num = sweep, num
        self.given = read_reference(sweep.reference)
        self.extractor = load_extractor(sweep.features, device=device)

    @cached_property
    def reference(self) -> Statistics:
        """The reference's features."""
        return self.given if isinstance(self.given, Statistics) else statistics_of(self.given, self.extractor)

    def rehearse(self, session: Session) -> dict[str, Figure]:
        """Measures a few grey images of a session's size, so that errors come before the first image is drawn."""
        with torch.no_grad():
            blank = torch.zeros(1, *session.denoiser.shape, device=session.run.device)
            size = (3, *session.denoiser.decode(blank).shape[2:])
        count = min(self.num, FEW)
        names = tuple(target.name for target in session.targets for _ in range(count))
        grey = ImageSet(
            spec="samples",
            indices=range(len(names)),
            read=lambda chosen: torch.full((len(chosen), *size), 128, dtype=torch.uint8),
            labels=names,
        )
        return self._figures(session, grey, count, resamples=0)

    def __call__(self, session: Session, folder: Path) -> dict[str, Figure]:
        """Returns the figures of the images in a run's folder, and writes them there."""
        images = self.images(folder)
        if images is None:
            return dict.fromkeys(self.sweep.figures, Figure())
        fewest = min(images.labels.count(each) for each in images.classes) if images.labels else len(images)
        figures = self._figures(session, images, fewest, resamples=self.sweep.resamples)
        content = {
            "figures": {name: asdict(figure) for name, figure in figures.items()},
            "samples": {"from": str(folder), "count": len(images)},
            **self._asked(),
        }
        write_json(folder / "evaluation.json", content)
        return figures

    def known(self, folder: Path) -> dict[str, Figure] | None:
        """Returns the figures in a run's folder; None if there are none, or they are of another evaluation."""
        try:
            content = read_json(folder / "evaluation.json")
            if any(content[key] != value for key, value in self._asked().items()):
                return None
            return {name: typed(name, content["figures"][name], Figure) for name in self.sweep.figures}
        except (InputError, TypeError, KeyError, AttributeError):
            return None

    def images(self, folder: Path) -> ImageSet | None:
        """Returns a run's images; None if all were lost."""
        try:
            return read_images(folder)
        except InputError:
            return None

    def _asked(self) -> dict[str, Any]:
        """Returns the settings of the evaluation as `steersman evaluate` records them; None for those of the run."""
        asked: dict[str, Any] = {"reference": self.sweep.reference, "features": self.extractor.name}
        return asked | {"target": None, "guide": None, "judge": None, "resamples": self.sweep.resamples, "seed": 0}

    def _figures(self, session: Session, images: ImageSet, fewest: int, *, resamples: int) -> dict[str, Figure]:
        real = None if self.reference.features is None else len(self.reference.features)
        possible = [
            name
            for name in self.sweep.figures
            if name not in DISTANCES or (fewest >= DISTANCES[name][0] and (real is None or real >= DISTANCES[name][1]))
        ]
        found = evaluate(
            images,
            self.reference,
            features=self.extractor,
            target=session.targets[0].name if len(session.targets) == 1 else None,
            guide=session.guide,
            judge=session.judge,
            figures=possible,
            resamples=resamples,
        )
        return dict.fromkeys(self.sweep.figures, Figure()) | found
