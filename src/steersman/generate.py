"""A run: many images of one or several targets, written to a folder with what made them and how they were judged.

    OUT/000000.png …      one image a seed; with several targets, a folder each
    OUT/grid.png          the first of each target
    OUT/run.yaml          every resolved setting, seeds, versions; `read_run` reads it back
    OUT/metrics.json      accuracy, probability and similarity by guide and by judge, time, network evaluations

On a CPU, several batches are drawn side by side, each by a few threads of its own: faster than to share out every
operation among all threads. How many depends on the machine alone, since a sum is rounded by how it is shared.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from jaxtyping import Float
from torch import Tensor

from steersman.advice import advice
from steersman.blocks import block_size
from steersman.classifiers import load_classifier
from steersman.denoisers import load_denoiser
from steersman.errors import InputError
from steersman.files import file_name, replacing, write_image, write_json, writing_to
from steersman.guidance import Guide
from steersman.guidance.step import Step, reverse_variance
from steersman.names import elsewhere, resolve
from steersman.run import DTYPES, TARGET, Run, check_folder
from steersman.sample import Callback, Report, levels_of, sample
from steersman.schedule import CLEAN, Level
from steersman.verdicts import Tally, Verdict, figures, judged
from steersman.watch import Meter, Watch

__all__ = ["Networks", "Session", "Summary", "Target"]

SIDE_BY_SIDE = 4  # batches that a CPU draws at once, at most


@dataclass(frozen=True, kw_only=True)
class Target:
    """One target, in each network's vocabulary.

    Attributes:
        name: Its name, the first of the synonyms.
        guide: Its index in the guide's.
        others: Its index in those of the further classifiers that steer.
        judge: Its index in the judge's, None where the judge has no such class.
    """

    name: str
    guide: int
    others: tuple[int, ...] = ()
    judge: int | None


@dataclass(kw_only=True)
class Summary:
    """What came of a run.

    Attributes:
        metrics: What ``metrics.json`` holds.
        warnings: What the user should know and do.
        lost: The names of images that became non-finite and were not written.
    """

    metrics: dict[str, Any]
    warnings: list[str]
    lost: list[str]


class Networks:
    """Networks by what they were loaded from, and how; each is loaded once."""

    def __init__(self) -> None:
        self.denoiser, self.classifier = cache(load_denoiser), cache(load_classifier)


class Session:
    """A run with its networks loaded and its targets resolved; nothing is written before `generate`.

    Args:
        run: The run.
        networks: Those that are loaded already, for sessions that follow one another.
        rehearse: Whether all parts are tried first; one that follows another of the same settings need not.

    Raises:
        InputError: A network that cannot be loaded, or a target or label that it does not know.
    """

    def __init__(self, run: Run, networks: Networks | None = None, *, rehearse: bool = True) -> None:
        self.run = run
        loaded, dtype = networks or Networks(), DTYPES[run.dtype]
        self.denoiser = loaded.denoiser(run.denoiser, device=run.device, dtype=dtype)
        settings = run.recipe.classifier_settings()
        self.classifiers = [
            loaded.classifier(spec, device=run.device, dtype=dtype, **settings) for spec in run.classifiers
        ]
        self.guide, *self.others = self.classifiers
        for each in (self.denoiser, *self.classifiers):
            each.block = block_size(run.device, run.at_once)
        counted = {"denoiser": [self.denoiser.network], "classifier": [each.network for each in self.classifiers]}
        self.meters = {name: Meter(each) for name, each in counted.items()}
        self.judge = loaded.classifier(run.judge, device=run.device) if run.judge else None
        walk = run.recipe.walk()
        walked = (walk[key] for key in ("steps", "spacing", "low", "high"))
        levels = levels_of(run.recipe.sampler(), self.denoiser.schedule, *walked)
        self.targets = self._targets()
        self.guides = self._guides() if run.guided else []
        self.condition = self._condition()
        if rehearse:
            self._rehearse(levels)

    def _targets(self) -> tuple[Target, ...]:
        wanted = self.run.targets or (max(self.run.blend, key=lambda name: self.run.blend[name]),)
        if wanted == ("all",):
            known = self.denoiser.classes or self.guide.names
            wanted = tuple(name for name in known if self.guide.find(name) is not None)
            if not wanted:
                listed = (
                    f"the guide knows none of {', '.join(known)}" if known else "neither denoiser nor guide lists any"
                )
                raise InputError(f"target: all given, but {listed}")
        indices = dict.fromkeys(self.guide.resolve(target) for target in wanted)
        names = {index: self.guide.title(index) for index in indices}
        return tuple(
            Target(
                name=name,
                guide=index,
                others=self._elsewhere(index),
                judge=None if self.judge is None else self.judge.find(name),
            )
            for index, name in names.items()
        )

    def _guides(self) -> list[Guide]:
        indices = [self.guide.resolve(name) for name in self.run.blend]
        named = zip(self.run.blend.values(), indices, strict=True)
        blend = [(weight, (index, *self._elsewhere(index))) for weight, index in named]
        others = [
            (classifier, {target.guide: target.others[place] for target in self.targets})
            for place, classifier in enumerate(self.others)
        ]
        return self.run.recipe.guides(self.guide, *others, blend=blend)

    @torch.no_grad()
    def _rehearse(self, levels: tuple[Level, ...]) -> None:
        """Asks all parts of a blank image, and begins a walk, so that what they refuse is so before files are written.

        Guides that rest at first are asked too.
        """
        device = self.run.device
        blank = torch.zeros(1, *self.denoiser.shape, device=device)
        image = self.denoiser.decode(blank)
        if image.shape[1] != 3:
            raise InputError(f"denoiser: one of images of {image.shape[1]} channels given; allowed: 3")
        self._verdicts(image, self.targets[:1])
        level, next = levels[:2]
        prediction = self.denoiser(blank, level, **self._told(self.targets[:1]))
        step = Step(0, 1, 0, 0, level, next, reverse_variance(level, next), torch.zeros((), device=device), levels)
        for guide in self.guides:
            guide.objective(image, torch.tensor([self.targets[0].guide], device=device), CLEAN)
            if guide.scale:
                guide.strength(step, blank, prediction, blank)

        def leave(report: Report) -> None:
            if report.step.index or report.step.repeat:
                raise CancelledError

        with suppress(CancelledError):
            self.draw([(self.targets[0], self.run.seed)], [leave])

    def _elsewhere(self, index: int) -> tuple[int, ...]:
        """Returns the index of a class of the guide's in the vocabularies of the further classifiers."""
        return tuple(each.resolve(self.guide.title(index)) for each in self.others)

    def _condition(self) -> dict[str, Any]:
        """Returns the conditions of the images, where the denoiser follows such; of labels, each target's."""
        run, classes = self.run, self.denoiser.classes
        given = {"prompt": run.prompt, "negative_prompt": run.negative_prompt}
        texts = {key: text for key, text in given.items() if text is not None}
        if getattr(self.denoiser, "prompted", False):
            if run.prompt is None:
                raise InputError("prompt: none given, but the denoiser draws what a text says; allowed: a text")
            if run.label is not None:
                raise InputError(f"label: {run.label!r} given; the denoiser has no labels; allowed: a prompt")
            if run.cfg_scale == 1 and run.negative_prompt is not None:
                raise InputError(
                    "negative-prompt: given at cfg-scale 1, which asks for the prompt alone; allowed: another cfg-scale"
                )
            return texts | {"cfg_scale": run.cfg_scale}
        if texts:
            said = next(iter(texts)).replace("_", "-")
            raise InputError(f"{said}: given, but the denoiser is told no text; allowed: none")
        if run.label is None:
            if run.cfg_scale != 1:
                raise InputError(f"cfg-scale: {run.cfg_scale} given without a label; allowed: 1, or a label too")
            return {}
        if not classes:
            raise InputError(f"label: {run.label!r} given; the denoiser has no labels; allowed: none")
        return {"label": {each.guide: self._label(each) for each in self.targets}, "cfg_scale": run.cfg_scale}

    def _label(self, target: Target) -> int:
        """Returns the denoiser's number of what an image of a target is labelled with."""
        assert self.run.label is not None
        if self.run.label == TARGET:
            return elsewhere(target.guide, self.guide.names, self.denoiser.classes, "label")
        return resolve(self.run.label, self.denoiser.classes, "label")

    def _told(self, targets: Sequence[Target]) -> dict[str, Any]:
        """Returns the conditions of images of these targets."""
        told = dict(self.condition)
        if "label" in told:
            told["label"] = torch.tensor([told["label"][each.guide] for each in targets], device=self.run.device)
        return told

    def draw(self, jobs: Sequence[tuple[Target, int]], callbacks: Sequence[Callback] = ()) -> Float[Tensor, "B 3 H W"]:
        """Returns the images of a batch of targets and seeds, not clipped."""
        run = self.run
        walk = run.recipe.walk()
        if not run.guided:
            walk["particles"] = None
        with self.meters["denoiser"], self.meters["classifier"]:
            samples = sample(
                self.denoiser,
                run.recipe.sampler(),
                guides=self.guides,
                target=[target.guide for target, _ in jobs],
                seeds=[seed for _, seed in jobs],
                condition=self._told([target for target, _ in jobs]),
                device=run.device,
                callbacks=callbacks,
                **walk,
            )
        return self.denoiser.decode(samples)

    def _side_by_side(
        self, batches: Sequence[Sequence[tuple[Target, int]]], callbacks: Sequence[Sequence[Callback]]
    ) -> Iterator[Float[Tensor, "B 3 H W"]]:
        """Yields the images of each batch in turn; if it is left early, those under way end with their next step."""
        left = threading.Event()

        def leave(_: Report) -> None:
            if left.is_set():
                raise CancelledError

        threads = torch.get_num_threads()
        workers = min(SIDE_BY_SIDE, threads) if self.run.device == "cpu" else 1
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,)) as pool:
            try:
                yield from pool.map(self.draw, batches, [[leave, *each] for each in callbacks])
            finally:
                left.set()
                torch.set_num_threads(threads)

    def generate(
        self,
        out: Path,
        *,
        on_step: Callable[[], None] = lambda: None,
        callbacks: Sequence[Callback] = (),
    ) -> Summary:
        """Draws all images and writes the run's folder.

        Args:
            out: The folder; made if it is not there.
            on_step: Called after each step of each batch.
            callbacks: More callbacks for the loop of the first batch.

        Raises:
            InputError: The folder cannot be written to, or holds a run with other settings.
        """
        folders = self._claim(out)
        seeds = range(self.run.seed, self.run.seed + self.run.num)
        jobs = [(target, seed) for target in self.targets for seed in seeds]
        size = self.run.at_once
        batches = [jobs[first : first + size] for first in range(0, len(jobs), size)]
        watches = [Watch(on_step) for _ in batches]
        followed = [[watch, *(callbacks if watch is watches[0] else ())] for watch in watches]
        tallies = {target.name: Tally() for target in self.targets}
        for meter in self.meters.values():
            meter.images = 0
        lost, moved, dropped, began = [], [], 0, time.monotonic()
        drawn = self._side_by_side(batches, followed)
        for batch, watch, images in zip(batches, watches, drawn, strict=True):
            moved += watch.moved()
            dropped += int(watch.dropped)
            whole = images.isfinite().flatten(1).all(1).tolist()
            images = images.clamp(-1, 1)
            verdicts = self._verdicts(images, [target for target, _ in batch])
            for place, (target, seed) in enumerate(batch):
                if whole[place]:
                    write_image(folders[target.name] / f"{seed:06d}.png", images[place])
                    tallies[target.name].add(images[place], {name: rows[place] for name, rows in verdicts.items()})
                else:
                    lost.append(f"{target.name} {seed}")
        seconds = time.monotonic() - began
        metrics = figures(tallies) | {
            "seconds": round(seconds, 3),
            "images_per_second": round(len(jobs) / seconds, 4),
            "network_evaluations": {name: meter.images / len(jobs) for name, meter in self.meters.items()},
            "nonfinite_gradients": dropped,
            "lost": lost,
        }
        _write_grid(out / "grid.png", tallies)
        write_json(out / "metrics.json", metrics)
        return Summary(metrics=metrics, warnings=advice(metrics, moved, self.run.recipe), lost=lost)

    @torch.no_grad()
    def _verdicts(
        self, images: Float[Tensor, "B 3 H W"], targets: Sequence[Target]
    ) -> dict[str, Sequence[Verdict | None]]:
        """Returns what guide and judge say of each image; the judge nothing of a class that it does not have."""
        verdicts: dict[str, Sequence[Verdict | None]] = {
            "guide": judged(self.guide, images, [target.guide for target in targets]),
            "judge": [None] * len(images),
        }
        if self.judge is not None and any(target.judge is not None for target in targets):
            indices = [target.judge for target in targets]
            said = judged(self.judge, images, [index or 0 for index in indices])
            verdicts["judge"] = [row if index is not None else None for row, index in zip(said, indices, strict=True)]
        return verdicts

    def _claim(self, out: Path) -> dict[str, Path]:
        """Makes the folders and writes ``run.yaml``, and returns each target's folder."""
        record = self.run.record()
        several = len(self.targets) > 1
        folders = {target.name: out / file_name(target.name) if several else out for target in self.targets}
        check_folder(out, self.run)
        with writing_to(out):
            for folder in folders.values():
                folder.mkdir(parents=True, exist_ok=True)
            with replacing(out / "run.yaml") as path:
                path.write_text(yaml.safe_dump(record, sort_keys=False))
        return folders


def _write_grid(path: Path, tallies: Mapping[str, Tally]) -> None:
    from steersman.report import grid

    rows = {name: torch.stack(tally.shown) for name, tally in tallies.items() if tally.shown}
    if rows:
        grid(rows, path)
