"""A classifier from one line of text: ``SOURCE:NAME``, or a folder."""

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from steersman.errors import InputError, about, notice, unknown
from steersman.files import read_json
from steersman.models.classifiers.base import Classifier
from steersman.models.classifiers.clip import load_clip
from steersman.models.classifiers.imagenet import load_imagenet
from steersman.models.classifiers.module import load_module
from steersman.models.classifiers.preprocess import RAW, Preprocess
from steersman.models.classifiers.smoothing import NoReLU
from steersman.models.classifiers.stated import Stated, split
from steersman.models.classifiers.timm import load_timm
from steersman.models.classifiers.torchvision import load_torchvision
from steersman.models.classifiers.transformers import load_transformers

__all__ = ["SOURCES", "load_classifier", "prepared"]


def load_classifier(
    spec: str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    softplus: float | None = None,
    preprocess: Literal["own", "raw"] = "own",
    size: int | None = None,
    adapt: bool = False,
) -> Classifier:
    """Loads a trained classifier, to guide with or to evaluate with.

    Args:
        spec: Where the classifier comes from and its name there: ``imagenet:efficientnet-lite0``; ``zoo:NAME`` for a
            bundled one; ``FOLDER`` for what ``steersman train classifier`` wrote, or transformers saved;
            ``torchvision:NAME[.WEIGHTS][:FILE]``, ``timm:NAME[?checkpoint=FILE]`` or ``hf:FOLDER`` or ``hf:ID`` for the
            classifiers of those libraries; ``clip:FOLDER`` or ``clip:ID`` for a CLIP in transformers' format, whose
            targets are texts; ``adm-classifier:FILE`` for a noise-aware one (`steersman.models.classifiers.adm`); or
            ``module:PACKAGE.NAME:FACTORY`` for one's own (`models.classifiers.module`). To each, options may be
            added that say how images are prepared, what the classes are called and what the logits mean, as in
            ``?size=32&mean=0.5&std=0.5`` (`steersman.models.classifiers.stated`).
        device: The device of its weights and of the images.
        dtype: Floating dtype of its weights; logits are at least float32.
        softplus: Sharpness β > 0 of the Softplus that replaces every ReLU (EluCD 4.3); None keeps the ReLUs.
        preprocess: ``own`` for the preprocessing of its training; ``raw`` for the sample as it is, in [-1, 1] (EluCD's
            released code).
        size: Height and width in pixels that the image is resized to; None for the network's own size, or for ``raw``
            the sample's.
        adapt: Whether smoothing and size, as a recipe asks for them, adapt to the network: one without ReLU stays
            unsmoothed, with a notice; one of a fixed size keeps its size, with a notice; one of a smaller size than
            ``size`` keeps its size. Without ``adapt``, a setting that does not fit the network is an error.

    Raises:
        InputError: The spec, its name or a setting cannot be used; or, without ``adapt``, there is no ReLU to smooth or
            the network takes only its own size.

    Example:
        >>> import steersman as sm
        >>> classifier = sm.load_classifier("zoo:mnist-lenet", device="cpu")
        >>> classifier.resolve("7"), classifier.preprocess.size
        (7, 28)
        >>> sm.load_classifier("zoo:mnist-lenet", softplus=8.0).smoothed
        3
    """
    if not dtype.is_floating_point:
        raise InputError(f"a classifier's dtype must be floating, got {dtype}")
    classifier, stated = _loaded(spec)
    settings = {"softplus": softplus, "preprocess": preprocess, "size": size, "adapt": adapt}
    return prepared(classifier, name=stated.spec, size_is_stated=stated.size is not None, **settings).to(device, dtype)


def prepared(
    classifier: Classifier,
    *,
    softplus: float | None = None,
    preprocess: Literal["own", "raw"] = "own",
    size: int | None = None,
    adapt: bool = False,
    name: str | None = None,
    size_is_stated: bool = False,
) -> Classifier:
    """Returns a classifier with other input and smoothing, and the same weights; the one given stays as it is.

    What it has already is not done again.

    Args:
        classifier: The classifier.
        softplus: As in `load_classifier`, like the three that follow.
        preprocess: How the image is prepared.
        size: The side in pixels that the image is resized to.
        adapt: Whether smoothing and size follow what the network is, rather than are refused.
        name: What the messages call it; its network's class by default.
        size_is_stated: Whether the user stated the network's size, so that a recipe leaves it.

    Raises:
        InputError: A setting is out of range or cannot be followed, or the classifier is smoothed otherwise already.
    """
    if preprocess not in ("own", "raw"):
        raise unknown("preprocess", preprocess, ("own", "raw"))
    if size is not None and size < 1:
        raise InputError(f"size must be at least 1 pixel, got {size}")
    given, classifier, name = classifier, copy(classifier), name or type(classifier.network).__name__
    if preprocess == "raw":
        _feed_raw(classifier, name, adapt=adapt)
    if size is not None:
        _resize(classifier, name, size, adapt=adapt, is_stated=size_is_stated)
    if classifier.preprocess == given.preprocess:
        classifier = given
    if softplus is None or softplus == classifier.softplus:
        return classifier
    if classifier.softplus is not None:
        raise InputError(
            f"smoothing: softplus {softplus:g} was asked for, but the classifier {name!r} is smoothed by softplus "
            f"{classifier.softplus:g} already; give the one that is not"
        )
    try:
        return classifier.smooth(softplus)
    except NoReLU as error:
        if not adapt:
            raise
        notice(f"{error}; it guides without smoothing")
    return classifier


def _loaded(spec: str) -> tuple[Classifier, Stated]:
    """Returns a classifier as its spec alone has it."""
    source, separator, name = spec.partition(":")
    if source in SOURCES:
        if not name:
            raise InputError(f"a classifier is given as {source}:NAME, got {spec!r}")
        name, stated = split(spec, name, OWN.get(source, ()))
        return stated.applied(SOURCES[source](name, stated)), stated
    folder, stated = split(spec, spec)
    if not folder or (separator and not Path(folder).exists()):
        raise unknown("classifier source", source, SOURCES)
    return stated.applied(_load_folder(folder, stated)), stated


def _feed_raw(classifier: Classifier, name: str, *, adapt: bool) -> None:
    """Feeds a network the sample as it is; for a recipe, one that takes its own size alone is fed at that size."""
    own = classifier.preprocess
    classifier.preprocess = replace(RAW, channels=own.channels)
    if (
        adapt
        and own.size is not None
        and not any(classifier.takes_size(side) for side in (own.size // 2, 2 * own.size))
    ):
        notice(f"the classifier {name!r} takes squares of {own.size} pixels alone: images are resized to that")
        classifier.preprocess = classifier.preprocess.resized(own.size)


def _resize(classifier: Classifier, name: str, size: int, *, adapt: bool, is_stated: bool) -> None:
    """Has images resized to a size; where that is a recipe's, not against what is known of the network."""
    own = classifier.preprocess.size
    if size == own or (adapt and (is_stated or (own is not None and size > own))):
        return
    if classifier.takes_size(size):
        classifier.preprocess = classifier.preprocess.resized(size)
        return
    takes = "the image's own size" if own is None else f"squares of {own} pixels"
    if not adapt:
        raise InputError(f"size: the classifier {name!r} must be shown {takes}, got size {size}")
    notice(f"the classifier {name!r} does not take images of {size} pixels: it is shown {takes}")


def _load_adm(name: str, stated: Stated) -> Classifier:
    from steersman.models.classifiers.adm import load_adm_classifier

    return load_adm_classifier(name)


def _load_folder(name: str, stated: Stated) -> Classifier:
    """Returns the classifier of a folder, which ``steersman train classifier`` or transformers wrote."""
    folder = Path(name)
    if (folder / "card.json").is_file():
        from steersman.models.zoo import read_network

        return _of_card(*read_network(folder / "model.safetensors", folder / "card.json"))
    if (folder / "config.json").is_file():
        kind = read_json(folder / "config.json").get("model_type")
        return (load_clip if kind == "clip" else load_transformers)(name, stated)
    if folder.is_dir():
        raise InputError(
            f"classifier: {name!r} must hold card.json and model.safetensors, which steersman train classifier writes, "
            "or config.json, as transformers does"
        )
    raise InputError(f"classifier: there is no folder {name!r}; use a folder, or one of {', '.join(SOURCES)}:NAME")


def _load_zoo(name: str, stated: Stated) -> Classifier:
    from steersman.models.zoo import load_network

    return _of_card(*load_network(name))


def _of_card(network: torch.nn.Module, card: dict[str, Any]) -> Classifier:
    """Returns a network of a training with what its card says of it: images in [-1, 1] of a size, and names."""
    with about("card", "card.json"):
        preprocess = Preprocess(size=card.get("resolution"), channels="grey" if card.get("channels") == 1 else None)
        return Classifier(network, preprocess=preprocess, names=card["classes"])


SOURCES: dict[str, Callable[[str, Stated], Classifier]] = {
    "adm-classifier": _load_adm,
    "clip": load_clip,
    "hf": load_transformers,
    "imagenet": load_imagenet,
    "module": load_module,
    "timm": load_timm,
    "torchvision": load_torchvision,
    "zoo": _load_zoo,
}
"""Where classifiers come from: a source's word, and its function from a name, and what else is stated, to the
classifier."""

OWN = {"adm-classifier": ("size", "weights")}
"""Options of all classifiers that a source reads for itself."""
