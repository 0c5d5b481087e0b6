"""A run with its networks loaded and its targets resolved, ready to draw.

On a CPU, several batches are drawn side by side, each by a few threads of its own: faster than to share out every
operation among all threads. How many depends on the machine alone, since a sum is rounded by how it is shared.
"""

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steersman.batching import is_out_of_memory
from steersman.errors import InputError
from steersman.guidance import Guide
from steersman.guidance.step import Step, reverse_variance
from steersman.guidance.weight import needs_unconditional
from steersman.lab.realism import noise_error
from steersman.lab.run import TARGET, Run
from steersman.lab.speed.placement import DTYPES, prepare
from steersman.lab.stop import Stop, Stopped
from steersman.lab.verdicts import Verdict, judged
from steersman.models.classifiers import load_classifier
from steersman.models.denoisers import load_denoiser
from steersman.names import elsewhere, resolve
from steersman.precision import ieee
from steersman.sampling import Callback, Report, levels_of, sample
from steersman.sampling.watch import metered
from steersman.schedule import CLEAN, Level

if TYPE_CHECKING:
    from steersman.lab.generate import Summary

__all__ = ["SIDE_BY_SIDE", "Networks", "Session", "Target"]

Part = TypeVar("Part")
Made = TypeVar("Made")

SIDE_BY_SIDE = 4  # batches that a CPU draws at once, at most
COMPARED, COMPARED_STEPS = 8, 25  # unguided samples that a run's are compared with, and steps that they take at most


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


class Networks:
    """Networks by what they were loaded from, and how; each is loaded once."""

    def __init__(self) -> None:
        self.denoiser, self.classifier = cache(prepare(load_denoiser)), cache(prepare(load_classifier))


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
        if run.measured and not run.placed:
            from steersman.lab.speed.auto import chosen

            run = chosen(run)
        self.run, loaded = run, networks or Networks()
        lies = run.placement("denoiser")
        settings = {"device": run.device, "dtype": DTYPES[lies.dtype], "layout": lies.layout, "compile": run.compile}
        self.denoiser = loaded.denoiser(run.denoiser, checkpoint=run.checkpoint, **settings)
        lies = run.placement("classifier")
        settings |= {"dtype": DTYPES[lies.dtype], "layout": lies.layout, **run.recipe.classifier_settings()}
        self.classifiers = [loaded.classifier(spec, **settings) for spec in run.classifiers]
        self.guide, *self.others = self.classifiers
        self.fit(run.at_once)
        self.counted = {
            "denoiser": {self.denoiser.network},
            "classifier": {each.network for each in self.classifiers},
        }
        for counted in self.counted.values():
            metered(counted)
        self.judge = loaded.classifier(run.judge, device=run.device) if run.judge else None
        walk = run.recipe.sampling()
        walked = (walk[key] for key in ("steps", "spacing", "ratio_min", "ratio_max"))
        levels = levels_of(run.recipe.sampler(), self.denoiser.schedule, *walked)
        self.targets = self._targets()
        self.guides = self._guides() if run.guided else []
        self.condition = self._condition()
        if rehearse:
            self._rehearse(levels)

    @property
    def networks(self) -> list[nn.Module]:
        """What draws: the denoiser's network, each classifier's, and last a latent model's decoder."""
        vae = getattr(self.denoiser, "vae", None)
        return [
            self.denoiser.network,
            *(each.network for each in self.classifiers),
            *([] if vae is None else [vae.decoder]),
        ]

    def _targets(self) -> tuple[Target, ...]:
        wanted = self.run.targets or (max(self.run.blend, key=lambda name: self.run.blend[name]),)
        if wanted == ("all",):
            known = self.denoiser.classes or self.guide.names
            wanted = tuple(name for name in known if self.guide.find(name) is not None)
            if not wanted:
                listed = (
                    f"the guide knows none of {', '.join(known)}"
                    if known
                    else "neither denoiser nor guide lists classes"
                )
                raise InputError(f"target cannot be all, as {listed}; name a class or give its index")
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
    @ieee()
    def _rehearse(self, levels: tuple[Level, ...]) -> None:
        """Asks all parts of a blank image, and begins a walk, so that what they refuse is so before files are written.

        Guides that rest at first are asked too.
        """
        self.within_memory(partial(self._ask_all, levels), [(self.targets[0], self.run.seed)])

        def leave(report: Report) -> None:
            if report.step.index or report.step.repeat:
                raise CancelledError

        def begin(jobs: Sequence[tuple[Target, int]]) -> list[None]:
            with suppress(CancelledError):
                self.draw(jobs, [leave])
            return []

        self.within_memory(begin, [(self.targets[0], self.run.seed)])

    def _ask_all(self, levels: tuple[Level, ...], jobs: Sequence[tuple[Target, int]]) -> list[None]:
        """Asks denoiser, guides and judge of a blank image; returns nothing."""
        device = self.run.device
        blank = torch.zeros(1, *self.denoiser.shape, device=device)
        image = self.denoiser.decode(blank)
        if image.ndim != 4 or image.shape[1] not in (1, 3):
            raise InputError(
                f"the denoiser's images must have 1 or 3 channels, got images of shape {tuple(image.shape[1:])}; "
                "one of latents needs its vae/ beside unet/ and scheduler/"
            )
        self.verdicts(image, self.targets[:1])
        level, next = levels[:2]
        prediction = self.denoiser(blank, level, **self.told(self.targets[:1]))
        step = Step(0, 1, 0, 0, level, next, reverse_variance(level, next), torch.zeros((), device=device), levels)
        for guide in self.guides:
            guide.objective(image, torch.tensor([self.targets[0].guide], device=device), CLEAN)
            if guide.scale:
                guide.weight(step, blank, prediction, blank)
        return []

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
                raise InputError("prompt must be given, as the denoiser draws images of a text")
            if run.label is not None:
                raise InputError(
                    f"label must not be given, as the denoiser has no labels, got {run.label!r}; give a prompt"
                )
            if run.cfg_scale == 1 and run.negative_prompt is not None:
                raise InputError(
                    "cfg-scale must not be 1 with a negative-prompt, as 1 uses the prompt alone; give another cfg-scale"
                )
            asks = {"unconditional": True} if any(needs_unconditional(guide.weight) for guide in self.guides) else {}
            return texts | {"cfg_scale": run.cfg_scale} | asks
        if texts:
            said = next(iter(texts)).replace("_", "-")
            raise InputError(f"{said} must not be given, as the denoiser takes no text")
        if run.label is None:
            if run.cfg_scale != 1:
                raise InputError(f"cfg-scale must be 1 without a label, got {run.cfg_scale}; give a label too")
            return {}
        if not classes:
            raise InputError(f"label must not be given, as the denoiser has no labels, got {run.label!r}")
        return {"label": {each.guide: self._label(each) for each in self.targets}, "cfg_scale": run.cfg_scale}

    def _label(self, target: Target) -> int:
        """Returns the denoiser's number of what an image of a target is labelled with."""
        assert self.run.label is not None
        if self.run.label == TARGET:
            return elsewhere(target.guide, self.guide.names, self.denoiser.classes, "label")
        return resolve(self.run.label, self.denoiser.classes, "label")

    def told(self, targets: Sequence[Target]) -> dict[str, Any]:
        """Returns the conditions of images of these targets."""
        told = dict(self.condition)
        if "label" in told:
            told["label"] = torch.tensor([told["label"][each.guide] for each in targets], device=self.run.device)
        return told

    @ieee()
    def draw(self, jobs: Sequence[tuple[Target, int]], callbacks: Sequence[Callback] = ()) -> Float[Tensor, "B C H W"]:
        """Returns the images of a batch of targets and seeds, not clipped."""
        return self.denoiser.decode(self.samples(jobs, callbacks))

    def samples(
        self,
        jobs: Sequence[tuple[Target, int]],
        callbacks: Sequence[Callback] = (),
        *,
        guided: bool = True,
        **settings: Any,  # noqa: ANN401
    ) -> Float[Tensor, "B C H W"]:
        """Returns the samples of a batch of targets and seeds, in the denoiser's space, not clipped.

        Args:
            jobs: Target and seed of each sample.
            callbacks: Called after each step.
            guided: Whether the guides steer, if those of the run do.
            **settings: Settings of sampling in place of the recipe's.
        """
        run = self.run
        walk = run.recipe.sampling() | settings
        if not (guided := guided and run.guided):
            walk["particles"] = None
        return sample(
            self.denoiser,
            run.recipe.sampler(),
            guides=self.guides if guided else (),
            target=[target.guide for target, _ in jobs],
            seeds=[seed for _, seed in jobs],
            condition=self.told([target for target, _ in jobs]),
            device=run.device,
            callbacks=callbacks,
            **walk,
        )

    def noise_errors(self, samples: Float[Tensor, "B C H W"], jobs: Sequence[tuple[Target, int]]) -> list[float]:
        """Returns the error of the denoiser's noise prediction on finished samples (`steersman.lab.realism`)."""
        finished = samples if getattr(self.denoiser, "latent", False) else samples.clamp(-1, 1)
        condition = self.told([target for target, _ in jobs])
        return noise_error(self.denoiser, finished, [seed for _, seed in jobs], **condition).tolist()

    def unguided_errors(self) -> list[float]:
        """Returns the same for a few samples that the denoiser draws without guidance."""
        steps = min(COMPARED_STEPS, self.run.recipe.sampling()["steps"])

        def errors(jobs: Sequence[tuple[Target, int]]) -> list[float]:
            samples = self.samples(jobs, guided=False, steps=steps, recurrence=None)
            return self.noise_errors(samples, jobs)

        return self.within_memory(errors, [(self.targets[0], self.run.seed + each) for each in range(COMPARED)])

    def side_by_side(self, work: Callable[[Part, Callback], Made], parts: Iterable[Part]) -> Iterator[Made]:
        """Yields what is made of each part, as it comes; left early, what is under way ends with its next step.

        Args:
            work: Makes it, with a callback for its loop.
            parts: The parts; each is asked for when there is a thread for it.
        """
        left = threading.Event()

        def leave(_: Report) -> None:
            if left.is_set():
                raise CancelledError

        threads, parts = torch.get_num_threads(), iter(parts)
        workers = min(SIDE_BY_SIDE, threads) if self.run.device == "cpu" else 1
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,)) as pool:
            try:
                pending = {pool.submit(work, part, leave) for part in islice(parts, workers)}
                while pending:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    pending |= {pool.submit(work, part, leave) for part in islice(parts, len(done))}
                    yield from (each.result() for each in done)
            finally:
                left.set()
                torch.set_num_threads(threads)

    def within_memory(
        self,
        work: Callable[[Sequence[Part]], Sequence[Made]],
        parts: Sequence[Part],
        tell: Callable[[str], object] = warnings.warn,
    ) -> list[Made]:
        """Returns what is made of a batch; of one that the memory does not hold, in smaller ones from then on.

        Raises:
            InputError: It does not hold one image.
        """
        while True:
            size = self.at_once
            try:
                return [made for first in range(0, len(parts), size) for made in work(parts[first : first + size])]
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                # What was computed is freed when the error is, so that the next is tried after it
            if size == 1:
                raise InputError(
                    f"device: the memory of {self.run.device} does not hold one image; use a device with more memory, "
                    "another dtype, or a recipe whose wrt is x0_hat"
                )
            self.fit(size // 2)
            if size == self.run.at_once:
                tell(
                    f"The memory of {self.run.device} does not hold a batch of {size}: it is halved until it does. "
                    "A smaller --batch-size does so from the start."
                )

    def fit(self, batch_size: int) -> None:
        """Draws that many images at once from now on."""
        self.at_once = batch_size
        for part, networks in (("denoiser", [self.denoiser]), ("classifier", self.classifiers)):
            block = self.run.placement(part).block
            for each in networks:
                each.block = block if batch_size == self.run.at_once else min(block, batch_size)

    @torch.no_grad()
    @ieee()
    def verdicts(
        self, images: Float[Tensor, "B C H W"], targets: Sequence[Target]
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

    def generate(self, out: Path, *, stop: Stop | None = None, **settings: Any) -> "Summary":  # noqa: ANN401
        """Draws all images and writes the run's folder; as `steersman.lab.generate.generate`.

        Args:
            out: The folder.
            stop: What waits for signals meanwhile.
            **settings: Other settings of that function.

        Raises:
            InputError, Unfinished: As there.
            Stopped: A signal has come; what is finished is written.
        """
        from steersman.lab.generate import Unfinished, generate

        if stop is None:
            return generate(self, out, **settings)
        again = "the same command goes on"
        try:
            with stop:
                summary = generate(self, out, stop=lambda: bool(stop), **settings)
        except Unfinished as unfinished:
            if not stop:
                raise
            raise Stopped(f"stopped; {unfinished} in {str(out)!r}; {again}", stop.code or 1) from unfinished
        if stop:
            raise Stopped(f"stopped; the images in {str(out)!r} are whole; {again}", stop.code or 1)
        return summary
