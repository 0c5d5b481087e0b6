"""Torchvision's classifiers: ``torchvision:NAME``, ``torchvision:NAME.WEIGHTS``, ``torchvision:NAME:FILE``.

The published weights say themselves how images are prepared: the shorter edge resized to R, the centre of S by S kept,
normalised. Of one's own weights in a FILE (or ``?checkpoint=FILE``) this is stated by the user
(`models.classifiers.stated`), unless it is read: from the card that ``steersman train`` leaves beside them, or from
what torchvision's own training script was told, which the file holds. How many classes there are, how many channels,
and of a ViT for which size, is read from the weights.

Source: https://docs.pytorch.org/vision/stable/models.html
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from steersman.errors import about, unknown
from steersman.models.checkpoint import Checkpoint, Misfit, open_checkpoint
from steersman.models.classifiers.base import Classifier
from steersman.models.classifiers.preprocess import Interpolation, Preprocess
from steersman.models.classifiers.stated import IMAGENET, KEYS, NOTHING, Stated, Unstated
from steersman.models.classifiers.weights import beside, class_names, fetched, fixed_size, misfit
from steersman.names import split_options

__all__ = ["load_torchvision"]

_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")
_AUXILIARY = re.compile(r"(?:^|\.)(?:aux1|aux2|AuxLogits)\.")  # heads of GoogLeNet and Inception, for training only


def load_torchvision(name: str, stated: Stated = NOTHING) -> Classifier:
    """Returns one of torchvision's classifiers, in float32 on the CPU.

    Args:
        name: ``NAME[.WEIGHTS][:FILE]``, with the names of torchvision's functions and enums.
        stated: What else its spec says.

    Raises:
        InputError: There is no such network or weights, or they cannot be fetched or read, or do not fit.
    """
    spec = f"torchvision:{name}"
    given, options = split_options(name, ("checkpoint", *KEYS))
    chosen, _, file = given.partition(":")
    file = file or options.get("checkpoint", "")
    architecture, published = _published(chosen)
    path = Path(file) if file else fetched(spec, published.url)
    checkpoint = open_checkpoint(path)
    with about("classifier", spec):
        network, count, grey, side = _network(spec, architecture, checkpoint, stated)
        preprocess, names = _preprocess(published.transforms()), published.meta["categories"]
        if file:
            card = beside(path)
            preprocess = preprocess if side is None else preprocess.resized(side)
            preprocess = _stated_in(card, checkpoint.facts) or Unstated(
                spec=stated.spec or spec, published=preprocess, size=side
            )
            names = card.get("classes") or names
        return Classifier(
            network,
            preprocess=preprocess.grey() if grey else preprocess,
            names=class_names(spec, count, None, names),
            binary=count == 1,
        )


def _stated_in(card: Mapping[str, Any], facts: Mapping[str, Any]) -> Preprocess | None:
    """Returns how images are prepared, where the file or the card beside it says so."""
    if card:
        return Preprocess(size=card.get("resolution"))
    edge, size, how = (facts.get(key) for key in ("val_resize_size", "val_crop_size", "interpolation"))
    if not (isinstance(edge, int) and isinstance(size, int) and how in get_args(Interpolation)):
        return None
    return replace(
        IMAGENET, size=size, crop=size / edge, interpolation=how
    )  # the script's mean and deviation are fixed


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


def _network(
    spec: str, architecture: str, checkpoint: Checkpoint, stated: Stated
) -> tuple[nn.Module, int, bool, int | None]:
    """Returns a network with these weights, its logits, whether it sees one channel, and the one size that it takes."""
    from torchvision import models

    build = models.get_model_builder(architecture)
    settings: dict[str, Any] = {}
    if architecture in ("googlenet", "inception_v3"):
        # With its published weights, which others' usually started from, it normalises once more.
        settings = {"transform_input": True, "aux_logits": False, "init_weights": False}

    def bare(**more: Any) -> nn.Module:  # noqa: ANN401
        # Without memory, no weights are drawn that others replace; but RegNets work out their widths with tensors.
        with torch.device("cpu" if architecture.startswith("regnet") else "meta"):
            return build(weights=None, **settings, **more)

    names = list(bare().state_dict())
    parts = {
        holder: {_OLD_DENSENET.sub(r"\1", key): each for key, each in held.items() if not _AUXILIARY.search(key)}
        for holder, held in checkpoint.parts.items()
    }
    try:
        state = replace(checkpoint, parts=parts).state(names, weights=stated.weights)
        count, side = state[names[-1]].numel(), None
        if architecture.startswith("vit_"):
            usual = cast(int, bare().image_size)
            side = fixed_size(lambda size: bare(num_classes=count, image_size=size), state, usual)
            settings["image_size"] = side
        network = bare(num_classes=count)
        grey = _sees_grey(network, state)
        network.load_state_dict(state, assign=True)
    except (Misfit, RuntimeError) as error:
        raise misfit(spec, error) from error
    return network, count, grey, side


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
