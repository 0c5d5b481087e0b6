"""The forward process of a set of images: what an analysis asks about a batch of them.

Each image's target is its own class, found in each classifier's vocabulary by its name. Where the denoiser is one of
latents, noise comes to the images' latents, as its VAE encodes them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.denoise import Conditioned, Denoiser
from steersman.errors import InputError
from steersman.lab.analysis.noise import forward_noise
from steersman.lab.metrics.images import ImageSet
from steersman.models.classifiers import Classifier
from steersman.schedule import Level

__all__ = ["Batch", "Forward", "numbers"]


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
    """A set of images under noise, for a denoiser and classifiers.

    Args:
        denoiser: The denoiser; one of latents can ``encode`` too, one that is told a text is told an empty one.
        classifiers: They, by name.
        images: The images.
        seed: Of the noise.
        num: How many images, drawn of the set without order; all of them if None.
        target: One class for all images, instead of each one's own.
        labelled: Whether the denoiser is told each image's class.
        device: Where the networks run.

    Raises:
        InputError: A denoiser of latents that cannot encode, images of another size than its own, fewer images than
            asked for, none with a label, or a class that a network does not know.
    """

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
    """Returns each name's number in a classifier's vocabulary: as it is, or by the first of its synonyms.

    Raises:
        InputError: It has no such class.
    """
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
