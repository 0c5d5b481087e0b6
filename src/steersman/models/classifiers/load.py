"""A classifier from one line of text: ``SOURCE:NAME``, or a folder."""

from collections.abc import Callable, Collection
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from steersman.errors import InputError, about, notice, unknown
from steersman.files import read_json
from steersman.models.classifiers.classifier import Classifier
from steersman.models.classifiers.libraries import load_imagenet, load_timm, load_torchvision
from steersman.models.classifiers.preprocess import RAW
from steersman.models.classifiers.smoothing import NoReLU
from steersman.models.classifiers.spec import Spec, read_spec
from steersman.models.classifiers.transformers import load_clip, load_transformers
from steersman.trust import call_function

__all__ = ["SOURCES", "as_classifier", "load_classifier", "prepared"]


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
            ``torchvision:NAME[.WEIGHTS][?checkpoint=FILE]``, ``timm:NAME[?checkpoint=FILE]``, ``hf:FOLDER`` or
            ``hf:ID`` for those libraries; ``clip:FOLDER`` or ``clip:ID`` for a CLIP, whose targets are texts;
            ``adm-classifier:FILE`` for a noise-aware one; ``module:PACKAGE.NAME:FUNCTION`` for one's own. Options state
            how images are prepared, what the classes are called and what the logits mean, as in
            ``?size=32&mean=0.5&std=0.5``
            (`steersman.models.classifiers.spec`).
        device: The device of its weights and of the images.
        dtype: Floating dtype of its weights; logits are at least float32.
        softplus: Sharpness β > 0 of the Softplus that replaces every ReLU (EluCD 4.3); None keeps the ReLUs.
        preprocess: ``own`` for the preprocessing of its training; ``raw`` for the sample as it is, in [-1, 1] (EluCD's
            released code).
        size: Height and width in pixels that the image is resized to; None for the network's own size, or for ``raw``
            the sample's.
        adapt: Whether softplus and size adapt to the network, as for a recipe: one without ReLU or of a fixed size
            stays as it is, with a notice, and no image is enlarged beyond the network's size. Otherwise a setting that
            does not fit the network is an error.

    Raises:
        InputError: The spec, its name or a setting cannot be used.

    Example:
        >>> import steersman as sm
        >>> classifier = sm.load_classifier("zoo:mnist-lenet", device="cpu")
        >>> classifier.resolve("7"), classifier.preprocess.size
        (7, 28)
        >>> sm.load_classifier("zoo:mnist-lenet", softplus=8.0).smoothed
        3
    """
    if not isinstance(spec, str):
        raise InputError(
            f"a classifier is loaded by a text such as 'timm:resnet50', got {type(spec).__name__}; a network is "
            "wrapped as Classifier(network, preprocess=..., names=...)"
        )
    if not dtype.is_floating_point:
        raise InputError(f"a classifier's dtype must be floating, got {dtype}")
    source, separator, name = spec.partition(":")
    if source in SOURCES:
        if not name:
            raise InputError(f"a classifier is given as {source}:NAME, got {spec!r}")
        load, own = SOURCES[source]
        parsed = read_spec(spec, name, own)
    else:
        load, parsed = _load_folder, read_spec(spec, spec)
        if not parsed.name or (separator and not Path(parsed.name).exists()):
            raise unknown("classifier source", source, SOURCES)
    settings = {"softplus": softplus, "preprocess": preprocess, "size": size, "adapt": adapt}
    classifier = parsed.apply(load(parsed))
    classifier.spec = spec
    return prepared(classifier, size_is_stated="size" in parsed.options, **settings).to(device, dtype)


def prepared(
    classifier: Classifier,
    *,
    softplus: float | None = None,
    preprocess: Literal["own", "raw"] = "own",
    size: int | None = None,
    adapt: bool = False,
    size_is_stated: bool = False,
) -> Classifier:
    """Returns a classifier with other preprocessing and smoothing and the same weights; the one given is unchanged.

    The settings are those of `load_classifier`. A recipe leaves a size that is stated.
    """
    if preprocess not in ("own", "raw"):
        raise unknown("preprocess", preprocess, ("own", "raw"))
    if size is not None and size < 1:
        raise InputError(f"size must be at least 1 pixel, got {size}")
    name = classifier.spec or type(classifier.network).__name__
    shown = classifier.preprocess
    if preprocess == "raw":
        shown = replace(RAW, channels=shown.channels)
        own = classifier.preprocess.size
        if adapt and own and not any(classifier.takes_size(side) for side in (own // 2, 2 * own)):
            notice(f"the classifier {name!r} takes squares of {own} pixels alone: images are resized to them")
            shown = shown.resized(own)
    # Of a recipe, a size that the user stated goes first, and no image is enlarged beyond the network's.
    kept = adapt and (size_is_stated or (size is not None and shown.size is not None and size > shown.size))
    if size not in (None, shown.size) and not kept:
        takes = "the image's own size" if shown.size is None else f"squares of {shown.size} pixels"
        if classifier.takes_size(size):
            shown = shown.resized(size)
        elif adapt:
            notice(f"the classifier {name!r} does not take images of {size} pixels: it is shown {takes}")
        else:
            raise InputError(f"size: the classifier {name!r} must be shown {takes}, got size {size}")
    if shown != classifier.preprocess:
        classifier = copy(classifier)
        classifier.preprocess = shown
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


def _load_folder(spec: Spec) -> Classifier:
    """Returns the classifier of a folder, which ``steersman train classifier`` or transformers wrote."""
    folder = Path(spec.name)
    if (folder / "card.json").is_file():
        from steersman.models.zoo import read_network

        return _of_card(spec, *read_network(folder / "model.safetensors", folder / "card.json"))
    if (folder / "config.json").is_file():
        kind = read_json(folder / "config.json").get("model_type")
        return (load_clip if kind == "clip" else load_transformers)(spec)
    if folder.is_dir():
        raise InputError(
            f"classifier: {spec.name!r} must hold card.json and model.safetensors, which steersman train classifier "
            "writes, or config.json, as transformers does"
        )
    raise InputError(f"classifier: there is no folder {spec.name!r}; use a folder, or one of {', '.join(SOURCES)}:NAME")


def _load_zoo(spec: Spec) -> Classifier:
    from steersman.models.zoo import load_network

    return _of_card(spec, *load_network(spec.name))


def _of_card(spec: Spec, network: nn.Module, card: dict[str, Any]) -> Classifier:
    with about("card", "card.json"):
        return spec.classifier(network, len(card["classes"]), card=card, grey=card.get("channels") == 1)


def _load_adm(spec: Spec) -> Classifier:
    from steersman.models.classifiers.adm import load_adm_classifier

    return load_adm_classifier(spec)


def as_classifier(name: str, made: object) -> Classifier:
    """Returns what the function ``PACKAGE.NAME:FUNCTION`` returned as a classifier.

    It is one, or a network with the names of its classes as ``names``, which maps images in [-1, 1] at the sample's own
    size to logits: of a softmax, or as its attribute ``binary`` or ``multilabel`` says.
    """
    if isinstance(made, Classifier):
        return made
    function = f"{name.replace(':', '.')}()"
    if not isinstance(made, nn.Module):
        kind = type(made).__name__
        raise InputError(f"classifier: {function} must return a Classifier, or a network with names, got a {kind}")
    names = getattr(made, "names", None)
    if not isinstance(names, list | tuple) or not names or not all(isinstance(each, str) for each in names):
        raise InputError(
            f"classifier: the network of {function} must have names, a list of its classes' names, got none"
        )
    binary, multilabel = (bool(getattr(made, head, False)) for head in ("binary", "multilabel"))
    return Classifier(made, preprocess=RAW, names=names, binary=binary, multilabel=multilabel)


class Source(NamedTuple):
    """Where classifiers come from: what loads them, and its own options, None for any."""

    load: Callable[[Spec], Classifier]
    own: Collection[str] | None = ()


SOURCES = {
    "adm-classifier": Source(_load_adm, own=None),
    "clip": Source(load_clip),
    "hf": Source(load_transformers),
    "imagenet": Source(load_imagenet),
    "module": Source(lambda spec: as_classifier(spec.name, call_function(spec.name, "classifier"))),
    "timm": Source(load_timm, own=("checkpoint",)),
    "torchvision": Source(load_torchvision, own=("checkpoint",)),
    "zoo": Source(_load_zoo),
}
