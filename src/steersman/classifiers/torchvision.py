"""Torchvision's classifiers: ``torchvision:NAME``, ``torchvision:NAME.WEIGHTS``, ``torchvision:NAME:FILE``.

The published weights say themselves how images are prepared: the shorter edge resized to R, the centre of S by S kept,
normalised. One's own weights in a FILE are prepared for as the published ones are, which are the default ones of that
network where none are named; how many classes there are is read from the weights of its head.

    ?names=FILE    a name a line, in the order of the logits; else the published ones if they are as many, else numbers
    ?crop=none     show the whole image, resized to S by S: only what the network sees is guided

Source: https://docs.pytorch.org/vision/stable/models.html
"""

import re
from typing import Any

import torch
from torch import Tensor, nn

from steersman.checkpoint import read_tensors
from steersman.classifiers.base import Classifier
from steersman.classifiers.preprocess import Preprocess
from steersman.classifiers.weights import class_names, fetched, misfit, read_options, uncropped
from steersman.errors import InputError, about, unknown

__all__ = ["load_torchvision"]

_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # heads of GoogLeNet and Inception, for training only


def load_torchvision(name: str) -> Classifier:
    """Returns one of torchvision's classifiers, in float32 on the CPU.

    Args:
        name: ``NAME[.WEIGHTS][:FILE][?names=FILE&crop=none]``, with the names of torchvision's functions and enums.

    Raises:
        InputError: There is no such network or weights, or they cannot be fetched or read, or do not fit.
    """
    spec = f"torchvision:{name}"
    given, options = read_options(spec, name, ("names", "crop"))
    chosen, _, file = given.partition(":")
    architecture, published = _published(chosen)
    state = read_tensors(file or fetched(spec, published.url))
    with about("classifier", spec):
        network, count, grey = _network(spec, architecture, published, state)
        preprocess = _preprocess(published.transforms())
        return Classifier(
            network,
            preprocess=uncropped(preprocess.grey() if grey else preprocess, options),
            names=class_names(spec, count, options.get("names"), published.meta["categories"]),
            binary=count == 1,
        )


def _published(name: str) -> tuple[str, Any]:
    """Returns the name of a network, and its published weights of the given name, or the default ones."""
    from torchvision import models

    architecture, _, weights = name.partition(".")
    known = models.list_models(module=models)
    if architecture not in known:
        raise unknown("torchvision classifier", architecture, known)
    offered = models.get_model_weights(architecture).__members__
    if weights and weights not in offered:
        raise unknown(f"weights of {architecture}", weights, offered)
    return architecture, offered[weights or "DEFAULT"]


def _network(spec: str, architecture: str, published: Any, state: dict[str, Tensor]) -> tuple[nn.Module, int, bool]:  # noqa: ANN401
    """Returns a network with these weights, how many logits it has, and whether it sees one channel."""
    from torchvision import models

    build, settings = models.get_model_builder(architecture), {}
    if architecture in ("googlenet", "inception_v3"):
        # With its published weights, which others' usually started from, it normalises once more.
        settings = {"transform_input": True, "aux_logits": False, "init_weights": False}
    if architecture.startswith("vit_"):
        settings = {"image_size": published.meta["min_size"][0]}
    if len({key.partition(".")[0] for key in state}) == 1:  # what held the network when it was saved
        state = {key.partition(".")[2]: each for key, each in state.items()}
    state = {_OLD_DENSENET.sub(r"\1", key): each for key, each in state.items() if not key.startswith(_AUXILIARY)}
    # Without memory, no weights are drawn that others replace; but RegNets work out their widths with tensors.
    with torch.device("cpu" if architecture.startswith("regnet") else "meta"):
        head = list(build(weights=None, **settings).state_dict())[-1]
        if head not in state or not state[head].ndim:
            raise InputError(f"classifier: the weights of {spec!r} do not fit the network (there is no {head})")
        count = len(state[head])
        network = build(weights=None, num_classes=count, **settings)
    grey = _sees_grey(network, state)
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise misfit(spec, error) from error
    return network, count, grey


def _sees_grey(network: nn.Module, state: dict[str, Tensor]) -> bool:
    """Returns whether the weights are for one channel; the network's first convolution is then made such a one."""
    from torchvision import models

    key, first = next((key, each) for key, each in network.named_modules() if isinstance(each, nn.Conv2d))
    weight = state.get(f"{key}.weight")
    if weight is None or weight.ndim != 4 or weight.shape[1] != 1:
        return False
    first.in_channels, first.weight = 1, nn.Parameter(torch.empty_like(weight, device=first.weight.device))
    if isinstance(network, models.GoogLeNet | models.Inception3):
        network.transform_input = False  # of three channels
    return True


def _preprocess(transforms: Any) -> Preprocess:  # noqa: ANN401
    (size,), (edge,) = transforms.crop_size, transforms.resize_size
    return Preprocess(
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        size=size,
        interpolation=transforms.interpolation.value,
        crop=size / edge,
    )
