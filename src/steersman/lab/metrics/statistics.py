"""The features of a set of images, and their file.

    mu, sigma       mean and covariance ``sum_i (x_i - mu)(x_i - mu)^T / (n - 1)``, with EDM's names
    features        one row for each image, so that the file serves every figure; and ``labels``, if there are any
    extractor       the network of the features
    whole           whether mu and sigma are of a larger set than the features, as in ADM's references

EDM's own files have the first two alone and no extractor: 2048 features are taken for Inception's. Rows are ordered by
their images' digests, so that no figure and no random half depends on the order in which files were read.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steersman.batching import Batches
from steersman.errors import InputError
from steersman.files import names_in_npz, read_npz, replacing
from steersman.lab.metrics.distances import Moments, moments, moments_of_covariance
from steersman.lab.metrics.features import INCEPTION, Extractor
from steersman.lab.metrics.images import ImageSet, indices_of, moments_in, read_images
from steersman.precision import ieee

__all__ = ["Statistics", "measured", "read_reference", "read_statistics", "write_statistics"]

WIDTH = 2048  # of Inception's features
WHOLE = "whole"


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """The features of a set of images.

    Attributes:
        spec: The text that names the set.
        extractor: The name of the network.
        features: One row for each image; None if only the moments are known.
        labels: Each image's class; None without classes.
        known: Mean and covariance, if there are no features or they are of a larger set.
        side: Height and width of the images in pixels; None if unknown.
    """

    spec: str
    extractor: str
    features: Float[Tensor, "B D"] | None = None
    labels: tuple[str, ...] | None = None
    known: tuple[Float[Tensor, " D"], Float[Tensor, "D D"]] | None = None
    side: tuple[int, int] | None = None

    @property
    def rows(self) -> Float[Tensor, "B D"]:
        """The features in float64, of which there must be some."""
        assert self.features is not None
        return self.features.double()

    @cached_property
    def moments(self) -> Moments:
        """Mean and root of the covariance, of at least two images."""
        return moments(self.rows) if self.known is None else moments_of_covariance(*self.known)

    @property
    def width(self) -> int:
        """Number of features of an image."""
        return self.rows.shape[1] if self.known is None else len(self.known[0])

    def of(self, name: str) -> "Statistics":
        """Returns the statistics of a class."""
        labels = () if self.labels is None else self.labels
        chosen = indices_of(name, None if self.features is None else self.labels, self.spec)
        features = None if self.features is None else self.features[chosen]
        return replace(self, features=features, labels=tuple(labels[i] for i in chosen), known=None)


@ieee()
def measured(
    images: ImageSet,
    extractor: Extractor,
    *,
    batch_size: int = 64,
    on_images: Callable[[int], object] = lambda count: None,
) -> Statistics:
    """Returns the statistics of a set of images; ``on_images`` is called after each batch with its size."""
    rows, digests, batches = [], [], Batches(batch_size)
    for pixels in images.pixels(batch_size):
        rows += batches.map(lambda batch: extractor.embed(batch / 127.5 - 1), pixels)
        digests += [hashlib.blake2b(image.numpy().tobytes()).digest() for image in pixels.contiguous()]
        on_images(len(pixels))
    labels = images.labels or ("",) * len(digests)
    order = sorted(range(len(digests)), key=lambda i: (digests[i], labels[i]))
    features = torch.cat(rows)[order]
    if not features.isfinite().all():
        raise InputError(f"features must be finite, but {extractor.name!r} returned values that are not")
    return Statistics(
        spec=images.spec,
        extractor=extractor.name,
        features=features,
        labels=tuple(labels[i] for i in order) if images.labels else None,
        known=images.moments if extractor.name == INCEPTION and features.shape[1] == WIDTH else None,
        side=images.side,
    )


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Writes statistics of at least two images, with their features."""
    mean, root = statistics.moments
    arrays = {"mu": mean.numpy(), "sigma": (root.T @ root).numpy(), "extractor": np.array(statistics.extractor)}
    if statistics.features is not None:
        arrays["features"] = statistics.features.numpy()
        if statistics.known is not None:
            arrays[WHOLE] = np.array(True)
    for name in ("labels", "side"):
        if (value := getattr(statistics, name)) is not None:
            arrays[name] = np.array(value)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as beside, beside.open("wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    except OSError as error:
        raise InputError(
            f"statistics: {str(path)!r} cannot be written ({error.strerror}); give a file that can be written"
        ) from error


def read_statistics(path: str | Path) -> Statistics:
    """Returns the statistics in a file, ours or EDM's."""
    arrays, spec = read_npz(Path(path), "statistics"), str(path)
    known = moments_in(arrays, spec)
    if known is None:
        raise InputError(
            f"statistics: {spec!r} must hold images as arr_0, or mu and sigma; it holds "
            f"{', '.join(arrays) or 'no arrays'}"
        )
    width = len(known[0])
    extractor = str(arrays["extractor"]) if "extractor" in arrays else INCEPTION if width == WIDTH else None
    if extractor is None:
        raise InputError(
            f"statistics: {spec!r} must name its extractor or have the {WIDTH} features of Inception, it has {width}"
        )
    features, labels = arrays.get("features"), arrays.get("labels")
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
        known=known if features is None or WHOLE in arrays else None,
        side=tuple(map(int, arrays["side"])) if "side" in arrays else None,  # pyright: ignore[reportArgumentType]
    )


def read_reference(spec: str | Path) -> ImageSet | Statistics:
    """Returns what samples are compared with: images, or the statistics in an archive without images."""
    path = Path(spec)
    if path.is_file() and path.suffix == ".npz" and "arr_0" not in names_in_npz(path, "reference"):
        return read_statistics(path)
    return read_images(spec)
