"""Classifiers along the forward process of a set of images, ``x_t = alpha x_0 + sigma eps``.

    accuracy     acc(t) = (1/n) sum_k 1[argmax_i f_i(input(x_t^k)) = y_k]                          (nrCG 2.1, fig. 1)
    logits       S_l(t) = |f(x_t) - f(x_{t-1})| / |x_t - x_{t-1}|                                  (eq. 3, fig. 2)
    gradients    S_g(t) = |g(x_t) - g(x_{t-1})| / |x_t - x_{t-1}|,  g = d/dx log p(y | input(x))   (eq. 4, 6, fig. 3)
    stabilised   the same of what a stabilizer makes of either sequence of gradients, t falling    (eq. 7, 8, fig. 4)

The noise of an image is fresh at each t, and the same for ``x_t`` and ``x_{t-1}``. The denoiser is asked about either
at its own time; nrCG's released code asks it about ``x_{t-1}`` at time t too (``shared``), and has one class as the
target of all images. Here each image's target is its own class, found among each classifier's names.

A variance-preserving schedule has T noise levels; of a continuous one, 1000 stand for all. Where the denoiser is one of
latents, noise comes to the images' latents, as its VAE encodes them.
"""

import struct
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steersman.batching import norm
from steersman.denoise import Conditioned, Denoiser, Prediction
from steersman.errors import InputError
from steersman.guidance.guide import Guide
from steersman.guidance.objective import Logits, Objective
from steersman.guidance.stabilizer import Stabilizer
from steersman.guidance.step import Classes, ClassifierInput, Step, reverse_variance
from steersman.guidance.target import class_rows
from steersman.lab.analysis.parts import Key, stacked
from steersman.lab.data.images import ImageSet
from steersman.lab.metrics import correct
from steersman.models.classifiers import Classifier
from steersman.precision import ieee
from steersman.schedule import EDM, VP, Level, Schedule, noised

__all__ = [
    "GRADIENTS",
    "LOGITS",
    "Batch",
    "Forward",
    "all_levels",
    "answers",
    "axis",
    "choose",
    "forward_noise",
    "indices_among",
    "accuracies",
    "sensitivities",
]

FINE = 1000  # levels of a schedule without discrete times
LOGITS, GRADIENTS = "logits", "gradients"

Name = TypeVar("Name")


def forward_noise(images: Sequence[int], like: Float[Tensor, "B C H W"], level: Level, seed: int) -> Tensor:
    """Returns each image's ``eps`` at a time, drawn on the CPU in the images' type."""
    (time,) = struct.unpack("<Q", struct.pack("<d", float(level.time)))  # its bits, as times need not be whole
    draws = []
    for image in images:
        (state,) = np.random.SeedSequence((seed, image, time)).generate_state(1)
        generator = torch.Generator().manual_seed(int(state))
        draws.append(torch.randn(like.shape[1:], generator=generator, dtype=like.dtype))
    return torch.stack(draws).to(like.device)


def all_levels(schedule: Schedule) -> tuple[Level, ...]:
    """Returns all levels of a schedule, noisiest first, without the clean image."""
    return schedule.levels(len(schedule.alpha_bar) if isinstance(schedule, VP) else FINE)[:-1]


def choose(
    levels: Sequence[Level],
    *,
    times: Sequence[float] | None = None,
    every: int | None = None,
    count: int | None = None,
) -> list[int]:
    """Returns the places of the chosen levels among these, noisiest first; all where nothing is chosen by."""
    if sum(choice is not None for choice in (times, every, count)) > 1:
        raise InputError("times, every and count must not be given together; give one of --times, --every, --count")
    last = len(levels) - 1
    if times is not None:
        known = [float(level.time) for level in levels]
        low, high = min(known), max(known)
        for time in times:
            if not low - 0.5 <= time <= high + 0.5:
                raise InputError(f"times must be {low:g} to {high:g}, got {time:g}")
        if not times:
            raise InputError("times must have at least 1 time, got none")
        return sorted({min(range(len(known)), key=lambda place: abs(known[place] - time)) for time in times})
    if every is not None:
        if every < 1:
            raise InputError(f"every must be at least 1, got {every}")
        return [place for place in range(len(levels)) if (last - place) % every == 0]
    if count is not None:
        if not 1 <= count <= len(levels):
            raise InputError(f"count must be 1 to {len(levels)}, got {count}")
        return [round(i * last / max(count - 1, 1)) for i in range(count)]
    return list(range(len(levels)))


def axis(schedule: Schedule, levels: Sequence[Level]) -> tuple[list[float], str, bool]:
    """Returns where levels stand on an axis, what the axis shows, and whether it is logarithmic.

    By time where that is what noise is counted in; by sigma for EDM, whose time is a logarithm.
    """
    if isinstance(schedule, EDM):
        return [float(level.sigma) for level in levels], "noise level σ", True
    last = float(all_levels(schedule)[0].time)
    return [float(level.time) for level in levels], f"time t (0 clean, {last:g} noise)", False


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some images with what belongs to them.

    Attributes:
        denoiser: The denoiser, with their conditions.
        images: ``x_0``, in [-1, 1], or their latents.
        targets: A class each, or a set of classes, as indices of each classifier.
        eps: The noise at a level.
    """

    denoiser: Denoiser
    images: Float[Tensor, "B C H W"]
    targets: Mapping[str, Classes]
    eps: Callable[[Level], Float[Tensor, "B C H W"]]


class Forward:
    """A set of images under noise, for a denoiser and classifiers."""

    def __init__(
        self,
        denoiser: Denoiser,
        classifiers: Mapping[str, Classifier],
        images: ImageSet,
        *,
        seed: int = 0,
        num: int | None = None,
        target: str | None = None,
        labelled: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.denoiser, self.classifiers = denoiser, classifiers
        self.images, self.seed, self.device = images, seed, device
        self.latent = getattr(denoiser, "latent", False)
        if self.latent and not hasattr(denoiser, "encode"):
            raise InputError("denoiser must be one of pixels, or of latents with an encoder; this one has no encoder")
        with torch.no_grad():
            blank = torch.zeros(1, *denoiser.shape, device=device)
            shape = tuple((denoiser.decode(blank) if self.latent else blank).shape[1:])
        if shape[0] not in (1, 3) or images.side != shape[1:]:
            wanted = "x".join(map(str, shape))
            raise InputError(
                f"data must have images of the denoiser's shape, {wanted}, got {images.side[1]}x{images.side[0]} "
                f"pixels; resize them with {images.spec.partition('?')[0]}?resolution={shape[1]}"
            )
        if num is not None and not 1 <= num <= len(images):
            raise InputError(f"num must be 1 to {len(images)}, the number of images of the data, got {num}")
        if images.labels is None and (target is None or labelled):
            raise InputError(
                f"data must have labels, as a folder with a folder for each class, but {images.spec!r} has none"
            )
        self.grey = shape[0] == 1
        # Shuffled, as folders come class by class; always the same way, so that fewer images are the first of more.
        self.chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()[:num]
        own = images.labels or ()
        names = own if target is None else [target] * len(images)
        self.targets = {name: indices_among(classifier, names) for name, classifier in classifiers.items()}
        self.labels = _labels(denoiser, own) if labelled else None

    def __len__(self) -> int:
        return len(self.chosen)

    def batch(self, places: Sequence[int]) -> Batch:
        """Returns some of the images, by their places in the shuffled set."""
        chosen = [self.chosen[place] for place in places]
        (read,) = self.images.some(chosen).batches(len(chosen))
        read = read.to(self.device)
        read = read.mean(1, keepdim=True) if self.grey else read
        images = self.denoiser.encode(read) if self.latent else read  # pyright: ignore[reportAttributeAccessIssue]

        def of(values: Sequence[int] | Sequence[tuple[int, ...]]) -> Classes:
            return class_rows([values[image] for image in chosen]).to(self.device)

        condition: dict[str, Any] = {"prompt": ""} if getattr(self.denoiser, "prompted", False) else {}
        if self.labels is not None:
            condition["label"] = of(self.labels)
        return Batch(
            denoiser=Conditioned(self.denoiser, condition),
            images=images,
            targets={name: of(values) for name, values in self.targets.items()},
            eps=lambda level: forward_noise(chosen, images, level, self.seed),
        )


def indices_among(classifier: Classifier, names: Sequence[str]) -> list[tuple[int, ...]]:
    """Returns the classifier's classes that each name means, as it is or by the first of its synonyms."""
    found: dict[str, tuple[int, ...]] = {}
    for name in dict.fromkeys(names):
        try:
            found[name] = classifier.members(name)
        except InputError:
            first = name.split(",")[0].strip()
            if first == name:
                raise
            found[name] = classifier.members(first)
    return [found[name] for name in names]


def _labels(denoiser: Denoiser, names: Sequence[str]) -> list[int]:
    for name in dict.fromkeys(names):
        if name not in denoiser.classes:
            known = ", ".join(denoiser.classes) or "it has none"
            raise InputError(f"label: the data's classes must be among the denoiser's ({known}), got {name!r}")
    return [denoiser.classes.index(name) for name in names]


def answers(
    classifiers: Mapping[Name, Logits],
    targets: Mapping[Name, Classes],
    inputs: Mapping[str, ClassifierInput],
    x_t: Float[Tensor, "B C H W"],
    prediction: Prediction | None,
    level: Level,
    denoiser: Denoiser,
) -> Iterator[tuple[Name, str, Float[Tensor, "B K"], Classes, bool]]:
    """Yields a classifier's name, what it is shown, its logits, the targets, and whether it is multi-label."""
    for shown, input in inputs.items():
        image = denoiser.decode(input(x_t, prediction, level, denoiser))
        for name, classifier in classifiers.items():
            yield name, shown, classifier(image, level), targets[name], getattr(classifier, "multilabel", False)


@torch.no_grad()
@ieee()
def accuracies(
    batch: Batch,
    classifiers: Mapping[str, Logits],
    levels: Sequence[Level],
    *,
    inputs: Mapping[str, ClassifierInput],
    on_step: Callable[[], None] = lambda: None,
) -> dict[Key, Bool[Tensor, "B T"]]:
    """Returns, by classifier and view, at which levels each image is given its class.

    The denoiser is asked once a level, whatever the number of classifiers, and not at all where no view needs it.
    """
    found = defaultdict(list)
    asked = any(input.needs_denoiser for input in inputs.values())
    for level in levels:
        x_t = noised(batch.images, batch.eps(level), level)
        prediction = batch.denoiser(x_t, level) if asked else None
        for name, shown, logits, target, multilabel in answers(
            classifiers, batch.targets, inputs, x_t, prediction, level, batch.denoiser
        ):
            found[name, shown].append(correct(logits, target, multilabel=multilabel))
        on_step()
    return stacked({key: found[key] for key in product(classifiers, inputs)})  # in the order of the curves


@ieee()
def sensitivities(
    batch: Batch,
    classifiers: Mapping[str, Logits],
    pairs: Sequence[tuple[Level, Level]],
    *,
    objective: Callable[[Logits], Objective],
    inputs: Mapping[str, ClassifierInput],
    stabilizers: Mapping[str, Stabilizer],
    shared: bool = False,
    on_step: Callable[[], None] = lambda: None,
) -> dict[Key, Float[Tensor, "B T"]]:
    """Returns ``S_l`` by (`LOGITS`, classifier, view), and ``S_g`` by (`GRADIENTS`, classifier, view, stabilizer)."""
    heard = {name: _Heard(classifier) for name, classifier in classifiers.items()}
    guides = {
        (name, shown): Guide(objective=objective(classifier), input=input, wrt="x_t")
        for name, classifier in heard.items()
        for shown, input in inputs.items()
    }
    states = {
        (*key, name): [stabilizer.init(batch.images)] * 2 for key in guides for name, stabilizer in stabilizers.items()
    }
    found = defaultdict(list)
    for level, next in pairs:
        eps = batch.eps(level)
        ahead, behind = noised(batch.images, eps, level), noised(batch.images, eps, next)
        distance = norm(ahead - behind).flatten()
        said = [
            _said(x_t, at, next, guides, heard, batch)
            for x_t, at in ((ahead, level), (behind, level if shared else next))
        ]
        for key in guides:
            (logits, g), (logits_next, g_next) = (of_image[key] for of_image in said)
            found[(LOGITS, *key)].append(norm(logits - logits_next).flatten() / distance)
            for name, stabilizer in stabilizers.items():
                # Either sequence has a state of its own.
                updates = map(stabilizer.update, (g, g_next), states[*key, name])
                (g_steady, g_next_steady), states[*key, name] = zip(*updates, strict=True)
                found[(GRADIENTS, *key, name)].append(norm(g_steady - g_next_steady).flatten() / distance)
        on_step()
    return stacked(found)


@dataclass
class _Heard:
    """A classifier whose last logits are kept, so that a gradient need not be followed by another look."""

    classifier: Logits
    logits: Tensor = field(init=False)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self.classifier, name)  # such as what its head is

    def __call__(self, image: Float[Tensor, "B C H W"], level: Level | None = None) -> Float[Tensor, "B K"]:
        logits = self.classifier(image, level)
        self.logits = logits.detach()
        return logits


def _said(
    x_t: Float[Tensor, "B C H W"],
    level: Level,
    next: Level,
    guides: Mapping[tuple[str, str], Guide],
    heard: Mapping[str, _Heard],
    batch: Batch,
) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
    """Returns logits and gradient of each guide at noisy images; the denoiser is asked once."""
    x_t = x_t.detach().requires_grad_()
    asked = any(guide.input.needs_denoiser for guide in guides.values())
    with torch.enable_grad():
        prediction = batch.denoiser(x_t, level) if asked else None
    variance = reverse_variance(level, next)
    step = Step(0, 1, 0, 0, level, next, variance, variance)
    said = {}
    for (name, shown), guide in guides.items():
        g, _ = guide.gradient(x_t, prediction, step, batch.targets[name], batch.denoiser, retain_graph=True)
        said[name, shown] = heard[name].logits, g
    return said
