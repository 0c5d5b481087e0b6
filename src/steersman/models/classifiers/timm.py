"""Timm's classifiers: ``timm:NAME``, ``timm:NAME.TAG``, ``timm:NAME?checkpoint=FILE``.

Timm's configuration of the pretrained weights says how images are prepared, and a crop of the fraction c is

    the shorter edge resized to floor(S / c), the centre of S by S kept.

Of one's own weights in a FILE this is stated by the user (`models.classifiers.stated`), unless it is read: from the
card that ``steersman train`` leaves beside them, or from what timm's own training script was told, which the file
holds. How many classes there are, how many channels, and for which size where that is fixed, is read from the weights.
Names are those of the ImageNet subset of as many classes, where they are not stated.

Source: https://huggingface.co/docs/timm
"""

import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from steersman.errors import InputError, about, unknown
from steersman.models.checkpoint import Checkpoint, Misfit, open_checkpoint
from steersman.models.classifiers.base import Classifier
from steersman.models.classifiers.preprocess import Interpolation, Preprocess
from steersman.models.classifiers.stated import KEYS, NOTHING, Stated, Unstated
from steersman.models.classifiers.weights import beside, class_names, fetched, fixed_size, misfit
from steersman.models.hub import hub_file
from steersman.names import split_options

__all__ = ["load_timm"]


def load_timm(name: str, stated: Stated = NOTHING) -> Classifier:
    """Returns one of timm's classifiers, in float32 on the CPU.

    Args:
        name: ``NAME[.TAG][?checkpoint=FILE]``, with timm's names and tags.
        stated: What else its spec says.

    Raises:
        InputError: There is no such network or tag, or its weights cannot be fetched or read, or do not fit.
    """
    spec = f"timm:{name}"
    model, options = split_options(name, ("checkpoint", *KEYS))
    config = _config(spec, model)
    own = options.get("checkpoint")
    path = _published(spec, config) if own is None else Path(own)
    checkpoint = open_checkpoint(path)
    with about("classifier", spec):
        names, preprocess = _labels(config), _preprocess(spec, config)
        if own is None:
            count, channels = _counts(config, checkpoint.tensors())
            try:
                network = _network(model, {"file": str(path)}, count, (channels, *config["input_size"][1:]))
            except Exception as error:  # of timm's own code, which expects a network's weights
                raise misfit(spec, error) from error
        else:
            network, count, channels, side = _own(spec, model, config, checkpoint, stated)
            card = beside(path)
            names = card.get("classes") or names
            if (read := _stated_in(spec, config, card, checkpoint.facts)) is None:
                published = preprocess if side is None else preprocess.resized(side)
                preprocess = Unstated(spec=stated.spec or spec, published=published, size=side)
            else:
                preprocess = read if side is None else read.resized(side)
        return Classifier(
            network,
            preprocess=preprocess.grey() if channels == 1 else preprocess,
            names=class_names(spec, count, None, names if len(names) == count else _subset(count)),
            binary=count == 1,
        )


def _own(
    spec: str, model: str, config: Mapping[str, Any], checkpoint: Checkpoint, stated: Stated
) -> tuple[nn.Module, int, int, int | None]:
    """Returns a network with the weights of one's own file, its logits and channels, and the size that it takes alone.

    A file in a format that timm itself turns into its own is left to it.
    """
    bare, unfit = _bare(model), None
    try:
        state = checkpoint.state(list(bare.state_dict()), weights=stated.weights)
    except Misfit as error:
        if stated.weights is not None:
            raise misfit(spec, error) from error
        state, unfit = checkpoint.tensors(), error
    count, channels = _counts(dict(config) | {"label_offset": 0}, state)
    side = None
    if "img_size" in inspect.signature(type(bare).__init__).parameters:
        given = {"num_classes": count, "in_chans": channels}
        usual = stated.size or config["input_size"][1]
        side = fixed_size(lambda size: _bare(model, img_size=size, **given), state, usual)
        if stated.size not in (None, side):
            raise InputError(
                f"classifier: size must be {side}, which the weights of {spec!r} are for, got {stated.size}"
            )
    own = {"state_dict": state, "label_offset": 0}
    height, width = config["input_size"][1:] if side is None else (side, side)
    more = {} if side is None else {"img_size": side}
    try:
        return _network(model, own, count, (channels, height, width), **more), count, channels, side
    except Exception as error:  # of timm's own code, which expects a network's weights
        raise misfit(spec, unfit or error) from error


def _bare(model: str, **settings: Any) -> nn.Module:  # noqa: ANN401
    """Returns a network without memory for its weights."""
    import timm

    with torch.device("meta"):
        return timm.create_model(model, pretrained=False, **settings)


def _config(spec: str, model: str) -> dict[str, Any]:
    """Returns timm's configuration of the pretrained weights of that name."""
    import timm
    from timm.models import get_pretrained_cfg

    architecture, _, tag = model.partition(".")
    if not timm.is_model(architecture):
        raise unknown("timm classifier", architecture, timm.list_models())
    try:
        config = get_pretrained_cfg(model, allow_unregistered=False)
    except RuntimeError as error:
        tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{architecture}.*")]
        raise unknown(f"weights of {architecture}", tag, tags) from error
    assert config is not None
    if not config.num_classes:
        raise InputError(f"classifier: {spec!r} must have classes, got a network of features only")
    return config.to_dict()


def _published(spec: str, config: Mapping[str, Any]) -> Path:
    if config.get("hf_hub_id"):
        file = config.get("hf_hub_filename") or "model.safetensors"
        return hub_file(spec, config["hf_hub_id"], file.replace("pytorch_model.bin", "model.safetensors"))
    if config.get("url"):
        return fetched(spec, config["url"])
    raise InputError(f"classifier: {spec!r} has no published weights; give a file, {spec}?checkpoint=FILE")


def _counts(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[int, int]:
    """Returns how many logits and channels weights are for, by the layers that timm names as the first and the last."""
    head, first = (each if isinstance(each, str) else (each or [""])[0] for each in map(config.get, _LAYERS))
    last = state.get(f"{head}.bias", state.get(f"{head}.weight"))
    stem = state.get(f"{first}.weight")
    published = config["num_classes"]
    grey = stem is not None and stem.ndim == 4 and stem.shape[1] == 1
    count = published if last is None else len(last) - (config.get("label_offset") or 0) * (len(last) > published)
    return count, 1 if grey else config["input_size"][0]


_LAYERS = ("classifier", "first_conv")


def _network(
    model: str,
    weights: Mapping[str, Any],
    count: int,
    size: tuple[int, int, int],
    **settings: Any,  # noqa: ANN401
) -> nn.Module:
    """Returns the network with some weights, which timm itself turns from a published format into its own."""
    import timm

    own = {
        "source": None,
        "hf_hub_id": None,
        "custom_load": False,
        "num_classes": count,
        "input_size": size,
        **weights,
    }
    return timm.create_model(
        model, pretrained=True, pretrained_cfg_overlay=own, num_classes=count, in_chans=size[0], **settings
    )


def _stated_in(
    spec: str, config: Mapping[str, Any], card: Mapping[str, Any], facts: Mapping[str, Any]
) -> Preprocess | None:
    """Returns how images are prepared, where the file or the card beside it says so."""
    if card:
        return Preprocess(size=card.get("resolution"))
    if not {"mean", "std", "img_size", "crop_pct", "interpolation"} <= facts.keys():
        return None
    return _preprocess(spec, config, facts)


def _preprocess(spec: str, config: Mapping[str, Any], told: Mapping[str, Any] | None = None) -> Preprocess:
    """Returns how images are prepared by timm's configuration, and by what else its training script was told."""
    from timm.data.config import resolve_data_config

    data = resolve_data_config(args=dict(told or {}), pretrained_cfg=config)
    _, height, width = data["input_size"]
    if height != width or data["interpolation"] not in get_args(Interpolation):
        raise InputError(
            f"classifier: {spec!r} must take square images, resized by {' or '.join(get_args(Interpolation))}, got "
            f"{width} by {height} pixels, resized by {data['interpolation']}"
        )
    return Preprocess(
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        size=height,
        interpolation=data["interpolation"],
        crop=height / math.floor(height / data["crop_pct"]),
    )


def _labels(config: Mapping[str, Any]) -> list[str]:
    said = config.get("label_descriptions") or {}
    return [said.get(each, each) for each in config.get("label_names") or ()]


def _subset(count: int) -> list[str]:
    """Returns the names of the subset of ImageNet that has as many classes, none where there is none."""
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": count})
    return list(ImageNetInfo(subset).label_descriptions()) if subset else []
