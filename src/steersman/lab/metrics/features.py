"""The features that sets of images are compared by: a network named in one line.

    inception[:FILE]            Inception-v3 of TensorFlow's 2015 release, 2048 features, from torch-fidelity, as papers
                                report it; its weights come from torch-fidelity's cache, the network or FILE
    zoo:NAME, imagenet:NAME, …  a classifier, as elsewhere: the input of its last layer
    clip:FOLDER or clip:ID      a CLIP's image embedding
    dinov2[:FOLDER or :ID]      DINOv2's class token; by default of ``facebook/dinov2-large`` (ViT-L/14)
    module:PACKAGE.NAME:FACTORY your own classifier, or a network from images in [-1, 1] to features (B, D)

Figures by different features are not comparable; saved statistics name theirs.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steersman.batching import Batches
from steersman.errors import InputError, unknown
from steersman.files import in_8_bits
from steersman.models.classifiers import Classifier, TextClassifier, load_classifier
from steersman.models.classifiers.load import SOURCES, as_classifier
from steersman.precision import ieee
from steersman.schedule import CLEAN
from steersman.trust import call_function

__all__ = ["DEFAULT", "INCEPTION", "Extractor", "classifier_features", "device_of", "load_extractor"]

DEFAULT = "zoo:sportballs-judge"
INCEPTION = "inception"
DINOV2 = "facebook/dinov2-large"

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
    batches = Batches(min(batch_size, len(images)))
    return torch.cat([*batches.map(lambda batch: classifier.features(batch.to(device)).cpu(), images)])


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
