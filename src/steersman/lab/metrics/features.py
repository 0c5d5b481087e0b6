"""The features that sets of images are compared by: from a network named in one line, or from a file.

    inception[:FILE]            Inception-v3 of TensorFlow's 2015 release, 2048 features, from torch-fidelity, as papers
                                report it; its weights come from torch-fidelity's cache, the network or FILE
    zoo:NAME, imagenet:NAME, …  a classifier, as elsewhere: the input of its last layer
    clip:FOLDER or clip:ID      a CLIP's image embedding
    dinov2[:FOLDER or :ID]      DINOv2's class token; by default of ``facebook/dinov2-large`` (ViT-L/14)
    module:PACKAGE.NAME:FACTORY your own classifier, or a network from images in [-1, 1] to features (B, D)

Figures by different features are not comparable; saved statistics name theirs. Their file has

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
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from steersman.batching import Batches
from steersman.errors import InputError, unknown
from steersman.files import in_8_bits, names_in_npz, read_npz, replacing
from steersman.lab.data.images import ImageSet, indices_of, moments_in, read_images
from steersman.lab.metrics.distances import Moments, moments, moments_of_covariance
from steersman.models.classifiers import Classifier, TextClassifier, load_classifier
from steersman.models.classifiers.load import SOURCES, as_classifier
from steersman.precision import ieee
from steersman.schedule import CLEAN
from steersman.trust import call_function

__all__ = [
    "DEFAULT",
    "Extractor",
    "Statistics",
    "classifier_features",
    "device_of",
    "load_extractor",
    "statistics_of",
    "read_reference",
    "write_statistics",
]

DEFAULT = "zoo:sportballs-judge"
INCEPTION, WIDTH = "inception", 2048
DINOV2 = "facebook/dinov2-large"
WHOLE = "whole"

Embed = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A network that maps images to features.

    Attributes:
        name: What statistics record; two extractors of the same name give the same features.
        embed: Maps images in [-1, 1] to features on the CPU, one row for each image.
    """

    name: str
    embed: Callable[[Float[Tensor, "B 3 H W"]], Float[Tensor, "B D"]]


def load_extractor(spec: str = DEFAULT, *, device: torch.device | str = "cpu") -> Extractor:
    """Returns the extractor that a text names, with its network on a device."""
    source, _, name = spec.partition(":")
    if source not in (*OWN, *SOURCES):
        raise unknown("features", source, (*OWN, *SOURCES))
    recorded, embed = (
        OWN[source](name, device) if source in OWN else (spec, _penultimate(load_classifier(spec), device))
    )

    @torch.no_grad()
    def on_device(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        return embed(images.to(device)).cpu()

    return Extractor(name=recorded, embed=on_device)


@torch.no_grad()
@ieee()
def classifier_features(
    classifier: Classifier, images: Float[Tensor, "B C H W"], batch_size: int = 64
) -> Float[Tensor, "B D"]:
    """Returns the input of a classifier's last layer for each image, on the CPU."""
    device = device_of(classifier)
    return torch.cat(list(Batches(batch_size).map(lambda batch: classifier.features(batch.to(device)).cpu(), images)))


def device_of(network: nn.Module) -> torch.device:
    """Returns the device of a network's weights, the CPU if it has none."""
    return next((weight.device for weight in network.parameters()), torch.device("cpu"))


def _penultimate(classifier: Classifier, device: torch.device | str) -> Embed:
    classifier.to(device)
    return lambda images: classifier.features(images, CLEAN)


def _clip(name: str, device: torch.device | str) -> tuple[str, Embed]:
    spec = f"clip:{name}"
    clip = load_classifier(spec, device=device)
    assert isinstance(clip, TextClassifier)
    return spec, clip.embed


def _module(name: str, device: torch.device | str) -> tuple[str, Embed]:
    spec, made = f"module:{name}", call_function(name, "classifier")
    if isinstance(made, Classifier) or hasattr(made, "names"):
        return spec, _penultimate(as_classifier(name, made), device)
    if not isinstance(made, nn.Module):
        kind = type(made).__name__
        raise InputError(f"features: {spec!r} must return a classifier or a torch.nn.Module, got {kind}")
    network = made.to(device).eval()

    def embed(images: Tensor) -> Tensor:
        features = network(images)
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images):
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise InputError(
                f"features: {spec!r} must map {len(images)} images to the shape ({len(images)}, D), got {shape}"
            )
        return features

    return spec, embed


def _inception(name: str, device: torch.device | str) -> tuple[str, Embed]:
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

    from steersman.models.checkpoint import read_tensors
    from steersman.models.classifiers.libraries import misfit
    from steersman.models.hub import fetched

    spec = f"{INCEPTION}:{name}" if name else INCEPTION
    path = Path(name) if name else fetched(spec, URL_INCEPTION_V3)
    read_tensors(path)  # torch-fidelity unpickles the file, so it must hold nothing but tensors
    try:
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    except Exception as error:
        raise misfit(spec, error) from error
    network.to(device)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:8]
    published = Path(URL_INCEPTION_V3).stem.endswith(digest)
    return INCEPTION if published else f"{INCEPTION}:{digest}", lambda images: network(in_8_bits(images))[0]


def _dinov2(name: str, device: torch.device | str) -> tuple[str, Embed]:
    from steersman.models.classifiers.transformers import read_pretrained, read_processor

    model_id = name or DINOV2
    spec = f"dinov2:{model_id}"

    def check(config: Any) -> None:  # noqa: ANN401
        if not config.model_type.startswith("dinov2"):
            raise InputError(f"features: {spec!r} must be a model of the type dinov2, got {config.model_type}")

    model, processor = read_pretrained(spec, model_id, check, "AutoModel", "AutoImageProcessor", kind="features")
    preprocess = read_processor(spec, processor)
    model.to(device)
    return spec, lambda images: model(pixel_values=preprocess(images)).pooler_output


OWN: dict[str, Callable[[str, torch.device | str], tuple[str, Embed]]] = {
    INCEPTION: _inception,
    "clip": _clip,
    "dinov2": _dinov2,
    "module": _module,
}
"""The sources besides those of classifiers: from the name and a device to the recorded name and the network."""


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

    def of(self, *names: str) -> "Statistics":
        """Returns the statistics of a class."""
        chosen = indices_of(names, self.labels, self.spec)
        assert self.features is not None and self.labels is not None
        return replace(self, features=self.features[chosen], labels=tuple(self.labels[i] for i in chosen), known=None)


@ieee()
def statistics_of(
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


def _read_statistics(path: Path) -> Statistics:
    """Returns the statistics in a file, ours or EDM's."""
    arrays, spec = read_npz(path, "statistics"), str(path)
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
        return _read_statistics(path)
    return read_images(spec)
