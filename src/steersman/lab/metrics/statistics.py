"""What is known of a set of images by its features, and its file.

    mu, sigma       mean and covariance, ``sigma = sum_i (x_i - mu)(x_i - mu)^T / (n - 1)``: EDM's keys and format
    features        one row an image, so that the file serves every figure; and ``labels``, where there are any
    extractor       what maps the images to features
    whole           where mean and covariance are of a larger set than the features, as in ADM's references

A file of EDM's has the first two alone. It says no extractor: 2048 features are taken for Inception's.

Rows stand in the order of their images' digests, and not in that in which they were read, so that no figure, and no
random half of the set, depends on it.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from steersman.errors import InputError, unknown
from steersman.files import names_in_npz, read_npz, replacing
from steersman.lab.metrics.extractors import INCEPTION, Extractor
from steersman.lab.metrics.frechet import Moments, moments, moments_of_covariance
from steersman.lab.metrics.images import ImageSet, moments_in, read_images
from steersman.memory import halving
from steersman.names import same_class
from steersman.precision import ieee

__all__ = ["Statistics", "measured", "read_reference", "read_statistics", "write_statistics"]

WIDTH = 2048  # of Inception's features
WHOLE = "whole"


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """A set of images by its features.

    Attributes:
        spec: What they are of, for the messages.
        extractor: What maps the images to features.
        features: One row an image; None where the moments alone are known.
        labels: The name of each image's class; None where they have none.
        known: Mean and covariance, where there are no features, or of a larger set that the features are some of.
        side: Height and width of the images in pixels; None where unknown.
    """

    spec: str
    extractor: str
    features: Float[Tensor, "B D"] | None = None
    labels: tuple[str, ...] | None = None
    known: tuple[Float[Tensor, " D"], Float[Tensor, "D D"]] | None = None
    side: tuple[int, int] | None = None

    @cached_property
    def moments(self) -> Moments:
        """Mean and root of the covariance.

        Raises:
            InputError: There are fewer than two images.
        """
        if self.known is not None:
            return moments_of_covariance(*self.known)
        assert self.features is not None
        return moments(self.features)

    @property
    def width(self) -> int:
        """How many features an image has."""
        return self.known[0].shape[0] if self.features is None else self.features.shape[1]  # pyright: ignore

    def of(self, name: str) -> "Statistics":
        """Returns those of a class.

        Raises:
            InputError: There is none of that name, or no labels or features are known.
        """
        if self.labels is None or self.features is None:
            raise InputError(f"class {name!r} can only be chosen from a set with labels, but {self.spec!r} has none")
        meant = same_class([name], classes := dict.fromkeys(self.labels))
        chosen = [place for place, label in enumerate(self.labels) if label in meant]
        if not chosen:
            raise unknown(f"class of {self.spec!r}", name, classes)
        labels = tuple(self.labels[place] for place in chosen)
        return replace(self, features=self.features[chosen], labels=labels, known=None)


@ieee()
def measured(
    images: ImageSet,
    extractor: Extractor,
    *,
    batch_size: int = 64,
    on_images: Callable[[int], object] = lambda count: None,
) -> Statistics:
    """Returns the statistics of a set of images.

    Args:
        images: The set.
        extractor: What maps them to features.
        batch_size: How many images at a time.
        on_images: Is told after each batch how many there were.

    Raises:
        InputError: An image cannot be read, or a feature is not finite.
    """
    rows, digests, size = [], [], batch_size
    for pixels in images.pixels(batch_size):

        def embedded(size: int, pixels: UInt8[Tensor, "B 3 H W"] = pixels) -> Float[Tensor, "B D"]:
            return torch.cat([extractor.embed(each / 127.5 - 1) for each in pixels.split(size)])

        found, size = halving(embedded, min(size, len(pixels)))
        rows.append(found)
        digests += [hashlib.blake2b(image.numpy().tobytes()).digest() for image in pixels.contiguous()]
        on_images(len(pixels))
    named = images.labels or ("",) * len(digests)
    order = sorted(range(len(digests)), key=lambda place: (digests[place], named[place]))
    features = torch.cat(rows)[order]
    if not features.isfinite().all():
        raise InputError(f"features must be finite, but {extractor.name!r} returned values that are not")
    labels = images.labels and tuple(images.labels[place] for place in order)
    return Statistics(
        spec=images.spec,
        extractor=extractor.name,
        features=features,
        labels=labels or None,
        known=images.moments if extractor.name == INCEPTION and features.shape[1] == WIDTH else None,
        side=images.side,
    )


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Writes statistics with their features, of at least two images.

    Raises:
        InputError: There are fewer, or the file cannot be written.
    """
    mean, root = statistics.moments
    content = {"mu": mean.numpy(), "sigma": (root.T @ root).numpy(), "extractor": np.array(statistics.extractor)}
    if statistics.known is not None and statistics.features is not None:
        content[WHOLE] = np.array(True)
    if statistics.features is not None:
        content["features"] = statistics.features.numpy()
    if statistics.labels is not None:
        content["labels"] = np.array(statistics.labels)
    if statistics.side is not None:
        content["side"] = np.array(statistics.side)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as beside, beside.open("wb") as file:
            np.savez(file, **content)  # pyright: ignore[reportArgumentType]
    except OSError as error:
        raise InputError(
            f"statistics: {str(path)!r} cannot be written ({error.strerror}); give a file that can be written"
        ) from error


def read_statistics(path: str | Path) -> Statistics:
    """Returns the statistics of a file, ours or EDM's.

    Raises:
        InputError: The file cannot be read, or holds none.
    """
    held, spec = read_npz(Path(path), "statistics"), str(path)
    found = moments_in(held, spec)
    if found is None:
        raise InputError(
            f"statistics: {spec!r} must hold images as arr_0, or mu and sigma; it holds "
            f"{', '.join(held) or 'no arrays'}"
        )
    width = len(found[0])
    extractor = str(held["extractor"]) if "extractor" in held else INCEPTION if width == WIDTH else None
    if extractor is None:
        raise InputError(
            f"statistics: {spec!r} must name its extractor or have the {WIDTH} features of Inception, it has {width}"
        )
    features, labels = held.get("features"), held.get("labels")
    if features is not None and (features.ndim != 2 or features.shape[1] != width):
        raise InputError(f"statistics: features in {spec!r} must have the shape (N, {width}), got {features.shape}")
    if labels is not None and (features is None or labels.shape != (len(features),)):
        raise InputError(
            f"statistics: labels in {spec!r} must be one for each row of features, got shape {labels.shape}"
        )
    return Statistics(
        spec=spec,
        extractor=extractor,
        features=None if features is None else torch.from_numpy(features),
        labels=None if labels is None else tuple(map(str, labels.tolist())),
        known=found if features is None or WHOLE in held else None,
        side=tuple(map(int, held["side"])) if "side" in held else None,  # pyright: ignore[reportArgumentType]
    )


def read_reference(spec: str | Path) -> ImageSet | Statistics:
    """Returns what samples are compared with: images, or saved statistics, which an archive without images holds.

    Raises:
        InputError: It is neither.
    """
    path = Path(spec)
    if path.is_file() and path.suffix == ".npz" and "arr_0" not in names_in_npz(path, "reference"):
        return read_statistics(path)
    return read_images(spec)
