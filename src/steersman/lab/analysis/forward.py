"""The forward process of a set of images, ``x_t = alpha x_0 + sigma eps``, and how often a classifier sees through it.

    acc(t) = (1/n) sum_k 1[argmax_i f_i(input(x_t^k)) = y_k]                                  (nrCG 2.1, fig. 1)

A variance-preserving schedule has T noise levels; of a continuous one, 1000 stand for all. Each image's target is its
own class, found among each classifier's names. Where the denoiser is one of latents, noise comes to the images'
latents, as its VAE encodes them.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steersman.batching import broadcast
from steersman.denoise import Conditioned, Denoiser
from steersman.errors import InputError
from steersman.guidance.input import ClassifierInput
from steersman.guidance.objective import Logits
from steersman.lab.analysis.parts import Key
from steersman.lab.metrics import correct
from steersman.lab.metrics.images import ImageSet
from steersman.models.classifiers import Classifier
from steersman.precision import ieee
from steersman.schedule import EDM, VP, Level, Schedule

__all__ = ["Batch", "Forward", "all_levels", "axis", "choose", "forward_noise", "noised", "numbers", "seen"]


def forward_noise(images: Sequence[int], like: Float[Tensor, "B C H W"], level: Level, seed: int) -> Tensor:
    """Returns each image's ``eps`` at a time, drawn on the CPU in the images' type."""
    (time,) = struct.unpack("<Q", struct.pack("<d", float(level.time)))  # its bits, as times need not be whole
    draws = []
    for image in images:
        (state,) = np.random.SeedSequence((seed, image, time)).generate_state(1)
        generator = torch.Generator().manual_seed(int(state))
        draws.append(torch.randn(like.shape[1:], generator=generator, dtype=like.dtype))
    return torch.stack(draws).to(like.device)


def noised(x_0: Float[Tensor, "B C H W"], eps: Float[Tensor, "B C H W"], level: Level) -> Float[Tensor, "B C H W"]:
    """Returns ``x_t = alpha x_0 + sigma eps``."""
    return broadcast(level.alpha, x_0) * x_0 + broadcast(level.sigma, x_0) * eps


FINE = 1000  # levels of a schedule without discrete times


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
    if sum(each is not None for each in (times, every, count)) > 1:
        raise InputError("times, every and count must not be given together; give one of --times, --every, --count")
    known = [float(level.time) for level in levels]
    if times is not None:
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
        return [place for place in range(len(levels)) if (len(levels) - 1 - place) % every == 0]
    if count is not None:
        if not 1 <= count <= len(levels):
            raise InputError(f"count must be 1 to {len(levels)}, got {count}")
        return [round(i * (len(levels) - 1) / max(count - 1, 1)) for i in range(count)]
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
        targets: A class each, in each classifier's own numbers.
        eps: The noise at a level.
    """

    denoiser: Denoiser
    images: Float[Tensor, "B C H W"]
    targets: Mapping[str, Int[Tensor, " B"]]
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
        encode = getattr(denoiser, "encode", None) if getattr(denoiser, "latent", False) else _itself
        if encode is None:
            raise InputError("denoiser must be one of pixels, or of latents with an encoder; this one has no encoder")
        shape = _decoded_shape(denoiser, device) if getattr(denoiser, "latent", False) else tuple(denoiser.shape)
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
        self.denoiser, self.images, self.seed, self.device = denoiser, images, seed, device
        self.encode, self.grey = encode, shape[0] == 1
        # without order, as folders come class by class; always the same, whatever their number
        shuffled = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
        self.chosen: list[int] = shuffled if num is None else shuffled[:num]
        own = images.labels or ()
        self.targets = {
            name: numbers(classifier, own if target is None else [target] * len(images))
            for name, classifier in classifiers.items()
        }
        self.labels = _labels(denoiser, own) if labelled else None

    def __len__(self) -> int:
        return len(self.chosen)

    def batch(self, places: Sequence[int]) -> Batch:
        """Returns some of the images, by their numbers from 0."""
        chosen = [self.chosen[place] for place in places]
        read = self.images.read([self.images.indices[each] for each in chosen]).to(self.device) / 127.5 - 1
        images = self.encode(read.mean(1, keepdim=True) if self.grey else read)

        def of(values: Sequence[int]) -> Int[Tensor, " B"]:
            return torch.tensor([values[each] for each in chosen], device=self.device)

        told = {"prompt": ""} if getattr(self.denoiser, "prompted", False) else {}
        return Batch(
            denoiser=Conditioned(self.denoiser, told if self.labels is None else told | {"label": of(self.labels)}),
            images=images,
            targets={name: of(values) for name, values in self.targets.items()},
            eps=partial(_noise, chosen, images, self.seed),
        )


def numbers(classifier: Classifier, names: Sequence[str]) -> list[int]:
    """Returns each name's number in a classifier's vocabulary: as it is, or by the first of its synonyms."""
    found: dict[str, int] = {}
    for name in dict.fromkeys(names):
        try:
            found[name] = classifier.resolve(name)
        except InputError:
            first = name.split(",")[0].strip()
            if first == name:
                raise
            found[name] = classifier.resolve(first)
    return [found[name] for name in names]


def _labels(denoiser: Denoiser, names: Sequence[str]) -> list[int]:
    for name in dict.fromkeys(names):
        if name not in denoiser.classes:
            known = ", ".join(denoiser.classes) or "it has none"
            raise InputError(f"label: the data's classes must be among the denoiser's ({known}), got {name!r}")
    return [denoiser.classes.index(name) for name in names]


def _itself(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    return images


@torch.no_grad()
def _decoded_shape(denoiser: Denoiser, device: torch.device | str) -> tuple[int, ...]:
    return tuple(denoiser.decode(torch.zeros(1, *denoiser.shape, device=device)).shape[1:])


def _noise(chosen: Sequence[int], images: Tensor, seed: int, level: Level) -> Tensor:
    return forward_noise(chosen, images, level, seed)


@torch.no_grad()
@ieee()
def seen(
    denoiser: Denoiser,
    classifiers: Mapping[str, Logits],
    images: Float[Tensor, "B C H W"],
    targets: Mapping[str, Int[Tensor, " B"]],
    levels: Sequence[Level],
    *,
    eps: Callable[[Level], Float[Tensor, "B C H W"]],
    views: Mapping[str, ClassifierInput],
    on_step: Callable[[], None] = lambda: None,
) -> dict[Key, Bool[Tensor, "B T"]]:
    """Returns, by classifier and view, at which levels each image is given its class.

    The denoiser is asked once a level, whatever the number of classifiers, and not at all where no view needs it.
    """
    found: dict[Key, list[Tensor]] = {(name, input): [] for name in classifiers for input in views}
    asked = any(input.needs_denoiser for input in views.values())
    for level in levels:
        x_t = noised(images, eps(level), level)
        prediction = denoiser(x_t, level) if asked else None
        for shown, input in views.items():
            image = denoiser.decode(input(x_t, prediction, level, denoiser))
            for name, classifier in classifiers.items():
                multilabel = getattr(classifier, "multilabel", False)
                found[name, shown].append(correct(classifier(image, level), targets[name], multilabel=multilabel))
        on_step()
    return {key: torch.stack(columns, 1) for key, columns in found.items()}
