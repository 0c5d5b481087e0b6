"""A run with its networks loaded and its targets resolved, ready to draw."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steersman.batching import Batches, metered
from steersman.denoise import Denoiser
from steersman.errors import InputError
from steersman.guidance import Guide
from steersman.guidance.step import Classes, Step
from steersman.guidance.target import class_rows
from steersman.guidance.weight import needs_unconditional
from steersman.lab.evaluation import Evaluation, evaluate_images, noise_error
from steersman.lab.run import DTYPES, LAYOUTS, TARGET, Run
from steersman.models.classifiers import Classifier, load_classifier
from steersman.models.denoisers import load_denoiser
from steersman.names import elsewhere, resolve
from steersman.precision import ieee
from steersman.recipes.schema import shared_classes
from steersman.sampling import Callback, Report, levels_of, sample
from steersman.schedule import CLEAN

__all__ = ["Networks", "Session", "Target", "load_session", "set_layout"]

UNGUIDED, UNGUIDED_STEPS = 8, 25  # how many unguided samples a run's are compared with, and their most steps


@dataclass(frozen=True, kw_only=True)
class Target:
    """A target: its name, and the indices of its classes, one or a set, of the guide and of the judge."""

    name: str
    guide: tuple[int, ...]
    judge: tuple[int, ...] | None  # None where the judge has no such class


Jobs = Sequence[tuple[Target, int]]
"""The target and the seed of each image of a batch."""


class Networks:
    """Loaders that load each network once for each combination of settings."""

    def __init__(self) -> None:
        self.denoiser = cache(partial(_load, load_denoiser))
        self.classifier = cache(partial(_load, load_classifier))


def _load(
    load: Callable[..., Any],
    spec: str,
    *,
    layout: str = "contiguous",
    recompute: bool = False,
    compile: bool = False,
    **settings: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """Returns a denoiser or classifier whose network is laid out, recomputes and is compiled as asked."""
    loaded = load(spec, **settings)
    network = loaded.network
    set_layout(network, layout)
    if recompute:
        if not getattr(network, "_supports_gradient_checkpointing", False):
            raise InputError(f"recompute must not be given, as {type(network).__name__} has no gradient checkpointing")
        network.enable_gradient_checkpointing()
    if compile:
        network.forward = torch.compile(network.forward)  # not the module, whose hooks count its calls
    return loaded


def set_layout(network: nn.Module, layout: str) -> None:
    """Brings the weights of a network into a memory layout, in place."""
    nn.Module.to(network, memory_format=LAYOUTS[layout])


@dataclass(kw_only=True, eq=False)
class Session:
    """A run with its networks loaded, as `load_session` returns it."""

    run: Run
    denoiser: Any
    classifiers: Sequence[Classifier]
    judge: Classifier | None
    targets: tuple[Target, ...]
    guides: Sequence[Guide]  # none in an unguided run
    condition: Mapping[str, Any]  # of the denoiser, its labels by the guide's index of each target
    batches: Batches = field(init=False)  # of the run's size, or of a smaller one where the memory does not hold it

    def __post_init__(self) -> None:
        self.batches = Batches(
            self.run.at_once,
            on_halved=self.fit,
            refusal=f"device: the memory of {self.run.device} does not hold one image; use a device with more memory, "
            "another dtype, or a recipe whose wrt is x0_hat",
        )
        self.fit(self.run.at_once)

    @property
    def guide(self) -> Classifier:
        """The classifier that steers and measures."""
        return self.classifiers[0]

    @property
    def counted(self) -> dict[str, set[nn.Module]]:
        """The networks whose evaluations are counted, by what they are in the run."""
        return {"denoiser": {self.denoiser.network}, "classifier": {each.network for each in self.classifiers}}

    @property
    def networks(self) -> list[nn.Module]:
        """The networks that draw: of the denoiser, of each classifier, and last the decoder of a latent model."""
        vae = getattr(self.denoiser, "vae", None)
        networks = [self.denoiser.network, *(classifier.network for classifier in self.classifiers)]
        return networks if vae is None else [*networks, vae.decoder]

    @property
    def sets(self) -> dict[str, tuple[int, ...]]:
        """The classes of those targets that are sets, by name."""
        return {target.name: target.guide for target in self.targets if len(target.guide) > 1}

    def fit(self, batch_size: int) -> None:
        """Has the networks see blocks that suit batches of a size."""
        for part, networks in (("denoiser", [self.denoiser]), ("classifier", self.classifiers)):
            block = self.run.placement(part).block
            for network in networks:
                # A block is filled up to its size, so that a smaller batch in a larger block would save nothing
                network.block = block if batch_size == self.run.at_once else min(block, batch_size)

    def conditioning(self, targets: Sequence[Target]) -> dict[str, Any]:
        """Returns the conditioning of images of these targets."""
        condition = dict(self.condition)
        if "label" in condition:
            labels = [condition["label"][target.guide] for target in targets]
            condition["label"] = torch.tensor(labels, device=self.run.device)
        return condition

    def rows(self, targets: Sequence[Target]) -> Classes:
        """Returns the batch of these targets that the guides' objectives take."""
        return class_rows([target.guide for target in targets]).to(self.run.device)

    @ieee()
    def draw(self, jobs: Jobs, callbacks: Sequence[Callback] = ()) -> Float[Tensor, "B C H W"]:
        """Returns the images of a batch of targets and seeds, not clipped."""
        return self.denoiser.decode(self.samples(jobs, callbacks))

    def samples(
        self,
        jobs: Jobs,
        callbacks: Sequence[Callback] = (),
        *,
        guided: bool = True,
        **settings: Any,  # noqa: ANN401
    ) -> Float[Tensor, "B C H W"]:
        """Returns the samples of a batch, not decoded; ``settings`` of sampling replace those of the recipe."""
        recipe = self.run.recipe
        settings = recipe.sampling() | settings
        if not (guided := guided and self.run.guided):
            settings["particles"] = None
        return sample(
            self.denoiser,
            recipe.sampler(),
            guides=self.guides if guided else (),
            target=[target.guide for target, _ in jobs],
            seeds=[seed for _, seed in jobs],
            condition=self.conditioning([target for target, _ in jobs]),
            device=self.run.device,
            callbacks=callbacks,
            **settings,
        )

    @torch.no_grad()
    @ieee()
    def evaluate(
        self, images: Float[Tensor, "B C H W"], targets: Sequence[Target]
    ) -> dict[str, Sequence[Evaluation | None]]:
        """Returns what ``guide`` and ``judge`` say of each image; None from a judge that lacks the class."""
        evaluations: dict[str, Sequence[Evaluation | None]] = {
            "guide": evaluate_images(self.guide, images, [target.guide for target in targets]),
            "judge": [None] * len(images),
        }
        if self.judge is not None and any(target.judge is not None for target in targets):
            rows = evaluate_images(self.judge, images, [target.judge or (0,) for target in targets])
            evaluations["judge"] = [
                None if target.judge is None else row for row, target in zip(rows, targets, strict=True)
            ]
        return evaluations

    def noise_errors(self, samples: Float[Tensor, "B C H W"], jobs: Jobs) -> list[float]:
        """Returns the error of the denoiser's noise prediction on finished samples (`steersman.lab.evaluation`)."""
        finished = samples if getattr(self.denoiser, "latent", False) else samples.clamp(-1, 1)
        condition = self.conditioning([target for target, _ in jobs])
        return noise_error(self.denoiser, finished, [seed for _, seed in jobs], **condition).tolist()

    def unguided_errors(self) -> list[float]:
        """Returns these errors for a few samples that are drawn without guidance."""
        steps = min(UNGUIDED_STEPS, self.run.steps)

        def errors(jobs: Jobs) -> list[float]:
            return self.noise_errors(self.samples(jobs, guided=False, steps=steps, recurrence=None), jobs)

        jobs = [(self.targets[0], self.run.seed + index) for index in range(UNGUIDED)]
        return list(chain.from_iterable(self.batches.map(errors, jobs)))

    @torch.no_grad()
    @ieee()
    def rehearse(self) -> None:
        """Asks all parts about a blank image, and takes the first step of a sample: what fails, fails here."""

        def rehearsed(jobs: Jobs) -> None:
            self._ask_all(jobs[0][0])
            with suppress(CancelledError):
                self.draw(jobs, [_leave_in_second_step])

        list(self.batches.map(rehearsed, [(self.targets[0], self.run.seed)]))

    def _ask_all(self, target: Target) -> None:
        """Asks denoiser, guides and judge, also the guides that are at rest in the first step."""
        run, denoiser = self.run, self.denoiser
        settings = {key: run.recipe.sampling()[key] for key in ("steps", "spacing", "ratio_min", "ratio_max")}
        levels = levels_of(run.recipe.sampler(), denoiser.schedule, **settings)
        blank = torch.zeros(1, *denoiser.shape, device=run.device)
        image = denoiser.decode(blank)
        if image.ndim != 4 or image.shape[1] not in (1, 3):
            raise InputError(
                f"the denoiser's images must have 1 or 3 channels, got images of shape {tuple(image.shape[1:])}; "
                "one of latents needs its vae/ beside unet/ and scheduler/"
            )
        self.evaluate(image, [target])
        prediction = denoiser(blank, levels[0], **self.conditioning([target]))
        step = Step.at(levels, 0)
        for guide in self.guides:
            guide.objective(image, self.rows([target]), CLEAN)
            if guide.scale:
                guide.weight(step, blank, prediction, blank)


def _leave_in_second_step(report: Report) -> None:
    if report.step.index or report.step.repeat:
        raise CancelledError


def load_session(run: Run, networks: Networks | None = None) -> Session:
    """Returns a run with its networks loaded, and its targets and labels resolved; nothing is computed yet."""
    networks = networks or Networks()
    denoiser = networks.denoiser(run.denoiser, recompute=run.recompute, **_loading(run, "denoiser"))
    settings = _loading(run, "classifier") | run.recipe.classifier_settings()
    classifiers = [networks.classifier(spec, **settings) for spec in run.classifiers]
    judge = networks.classifier(run.judge, device=run.device) if run.judge else None
    targets = _resolve_targets(run, denoiser, classifiers, judge)
    guides = _guides(run, classifiers, targets) if run.guided else []
    condition = (_prompts if getattr(denoiser, "prompted", False) else _labels)(run, denoiser, classifiers[0], targets)
    if "prompt" in condition and any(needs_unconditional(guide.weight) for guide in guides):
        condition["unconditional"] = True
    session = Session(
        run=run,
        denoiser=denoiser,
        classifiers=classifiers,
        judge=judge,
        targets=targets,
        guides=guides,
        condition=condition,
    )
    metered(session.counted["denoiser"] | session.counted["classifier"])
    return session


def _loading(run: Run, part: str) -> dict[str, Any]:
    """Returns the settings with which a part is loaded."""
    placement = run.placement(part)
    dtype = DTYPES[placement.dtype]
    return {"device": run.device, "dtype": dtype, "layout": placement.layout, "compile": run.compile}


def _resolve_targets(
    run: Run, denoiser: Denoiser, classifiers: Sequence[Classifier], judge: Classifier | None
) -> tuple[Target, ...]:
    """Returns the targets of a run; of a blend, the class with the largest weight is the target."""
    guide = classifiers[0]
    names = run.targets or (max(run.blend, key=lambda name: run.blend[name]),)
    if names == ("all",):
        known = denoiser.classes or guide.names
        names = tuple(name for name in known if guide.find(name) is not None)
        if not names:
            reason = (
                f"the guide knows none of {', '.join(known)}" if known else "neither denoiser nor guide has classes"
            )
            raise InputError(f"target cannot be all, as {reason}; name a class or give its index")
    meant: dict[tuple[int, ...], str] = {}
    for name in names:
        meant.setdefault(guide.members(name), " ".join(name.split()))
    targets = []
    for indices, name in meant.items():
        if len(indices) == 1:
            name = guide.title(indices[0])
        judged = None if judge is None else _judged(judge, guide, name, indices)
        targets.append(Target(name=name, guide=indices, judge=judged))
    return tuple(targets)


def _judged(judge: Classifier, guide: Classifier, name: str, indices: Sequence[int]) -> tuple[int, ...] | None:
    """Returns the classes of the judge that a target's name means, else those of all its classes if there are all."""
    if (found := judge.find(name)) is not None:
        return found
    each = [judge.find(guide.title(index)) for index in indices]
    return None if None in each else tuple(sorted({index for there in each for index in there or ()}))


def _guides(run: Run, classifiers: Sequence[Classifier], targets: Sequence[Target]) -> list[Guide]:
    """Returns the guides of a run, each target and blended class translated to the classes of every classifier."""
    guide, *others = classifiers
    blended = {name: guide.members(name) for name in run.blend}
    wanted = {target.name: target.guide for target in targets} | blended
    indices = sorted({index for each in wanted.values() for index in each})
    translated = [(other, shared_classes(guide, other, indices)) for other in others]
    for other, classes in translated:
        for name, each in wanted.items():
            if not any(index in classes for index in each):
                other.members(name if len(each) > 1 else guide.title(each[0]))  # says what it knows instead
    blend = []
    for name, weight in run.blend.items():
        in_others = [
            {there for index in blended[name] for there in classes.get(index, ())} for _, classes in translated
        ]
        blend.append((weight, (blended[name], *map(sorted, in_others))))
    return run.recipe.bind_prepared(guide, *translated, blend=blend)


def _prompts(run: Run, *_: object) -> dict[str, Any]:
    """Returns the conditioning of a denoiser that draws images of a text."""
    if run.prompt is None:
        raise InputError("prompt must be given, as the denoiser draws images of a text")
    if run.label is not None:
        raise InputError(f"label must not be given, as the denoiser has no labels, got {run.label!r}; give a prompt")
    if run.cfg_scale == 1 and run.negative_prompt is not None:
        raise InputError(
            "cfg-scale must not be 1 with a negative-prompt, as 1 uses the prompt alone; give another cfg-scale"
        )
    negative = {} if run.negative_prompt is None else {"negative_prompt": run.negative_prompt}
    return {"prompt": run.prompt, **negative, "cfg_scale": run.cfg_scale}


def _labels(run: Run, denoiser: Denoiser, guide: Classifier, targets: Sequence[Target]) -> dict[str, Any]:
    """Returns the conditioning of any other denoiser: the label of each target by the guide's index, if asked for."""
    for option, text in (("prompt", run.prompt), ("negative-prompt", run.negative_prompt)):
        if text is not None:
            raise InputError(f"{option} must not be given, as the denoiser takes no text")
    if run.label is None:
        if run.cfg_scale != 1:
            raise InputError(f"cfg-scale must be 1 without a label, got {run.cfg_scale}; give a label too")
        return {}
    if not (classes := denoiser.classes):
        raise InputError(f"label must not be given, as the denoiser has no labels, got {run.label!r}")
    if run.label == TARGET:
        labels = {target.guide: _label(target, guide, classes) for target in targets}
    else:
        labels = dict.fromkeys((target.guide for target in targets), resolve(run.label, classes, "label"))
    return {"label": labels, "cfg_scale": run.cfg_scale}


def _label(target: Target, guide: Classifier, classes: Sequence[str]) -> int:
    """Returns the denoiser's label of a target; of a set of classes, that of its name."""
    if len(target.guide) > 1:
        return resolve(target.name, classes, "label")
    return elsewhere(target.guide[0], guide.names, classes, "label")
