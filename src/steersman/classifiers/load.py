"""A classifier from one line of text, ``SOURCE:NAME``."""

from collections.abc import Callable
from typing import Literal

import torch

from steersman.classifiers.base import Classifier
from steersman.classifiers.clip import load_clip
from steersman.classifiers.imagenet import load_imagenet
from steersman.classifiers.module import load_module
from steersman.classifiers.preprocess import RAW
from steersman.classifiers.timm import load_timm
from steersman.classifiers.torchvision import load_torchvision
from steersman.classifiers.transformers import load_transformers
from steersman.errors import InputError, unknown

__all__ = ["SOURCES", "load_classifier"]


def load_classifier(
    spec: str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    softplus: float | None = None,
    preprocess: Literal["own", "raw"] = "own",
    size: int | None = None,
) -> Classifier:
    """Returns a trained classifier, ready to guide or to judge.

    Args:
        spec: Where the classifier comes from and its name there: ``imagenet:efficientnet-lite0``; ``zoo:NAME`` for a
            bundled one; ``torchvision:NAME[.WEIGHTS][:FILE]``, ``timm:NAME[?checkpoint=FILE]`` or ``hf:FOLDER`` or
            ``hf:ID`` for the classifiers of those libraries (options: `steersman.classifiers.torchvision`, ``.timm``,
            ``.transformers``); ``clip:FOLDER`` or ``clip:ID`` for a CLIP in transformers' format, whose targets are
            texts; ``adm-classifier:FILE`` for a noise-aware one (`steersman.classifiers.adm`); or
            ``module:PACKAGE.NAME:FACTORY`` for one's own (`steersman.classifiers.module`).
        device: Where its weights lie; images must lie there too.
        dtype: Floating dtype of its weights; logits are of float32 at least.
        softplus: Sharpness β > 0 of the Softplus that replaces every ReLU (EluCD 4.3); None keeps the ReLUs.
        preprocess: ``own`` feeds the network what it was trained on; ``raw`` the sample as it is, in [-1, 1] (EluCD's
            released code).
        size: Height and width in pixels that the image is resized to; None keeps what ``preprocess`` says: the
            network's own size, or for ``raw`` the sample's.

    Raises:
        InputError: The spec, its name or a setting cannot be used, or softplus is given and there is no ReLU.
    """
    source, separator, name = spec.partition(":")
    if source not in SOURCES:
        raise unknown("classifier source", source, SOURCES)
    if not separator or not name:
        raise InputError(f"a classifier is given as {source}:NAME, got {spec!r}")
    if preprocess not in ("own", "raw"):
        raise unknown("preprocess", preprocess, ("own", "raw"))
    if not dtype.is_floating_point:
        raise InputError(f"a classifier's dtype must be floating, got {dtype}")
    classifier = SOURCES[source](name)
    if preprocess == "raw":
        classifier.preprocess = RAW
    if size is not None:
        classifier.preprocess = classifier.preprocess.resized(size)
    if softplus is not None:
        classifier = classifier.smooth(softplus)
    return classifier.to(device, dtype)


def _load_adm(name: str) -> Classifier:
    from steersman.classifiers.adm import load_adm_classifier

    return load_adm_classifier(name)


def _load_zoo(name: str) -> Classifier:
    from steersman.zoo import load_network

    network, card = load_network(name)
    preprocess = RAW.grey() if card.get("channels") == 1 else RAW
    return Classifier(network, preprocess=preprocess, names=card["classes"])


SOURCES: dict[str, Callable[[str], Classifier]] = {
    "adm-classifier": _load_adm,
    "clip": load_clip,
    "hf": load_transformers,
    "imagenet": load_imagenet,
    "module": load_module,
    "timm": load_timm,
    "torchvision": load_torchvision,
    "zoo": _load_zoo,
}
"""Where classifiers come from: a source's word, and its function from a name to the classifier."""
