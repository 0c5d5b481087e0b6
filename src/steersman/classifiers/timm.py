"""Timm's classifiers: ``timm:NAME``, ``timm:NAME.TAG``, ``timm:NAME?checkpoint=FILE``.

Timm's configuration of the pretrained weights says how images are prepared, and a crop of the fraction c is

    the shorter edge resized to floor(S / c), the centre of S by S kept.

    ?checkpoint=FILE   one's own weights; how many classes and channels there are is read from them
    ?names=FILE        a name a line, in the order of the logits; else those of the ImageNet subset of as many classes
    ?crop=none         show the whole image, resized to S by S: only what the network sees is guided

Source: https://huggingface.co/docs/timm
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from torch import Tensor, nn

from steersman.checkpoint import read_tensors
from steersman.classifiers.base import Classifier
from steersman.classifiers.preprocess import Interpolation, Preprocess
from steersman.classifiers.weights import class_names, fetched, misfit, read_options, uncropped
from steersman.errors import InputError, about, unknown
from steersman.hub import hub_file

__all__ = ["load_timm"]


def load_timm(name: str) -> Classifier:
    """Returns one of timm's classifiers, in float32 on the CPU.

    Args:
        name: ``NAME[.TAG][?checkpoint=FILE&names=FILE&crop=none]``, with timm's names and tags.

    Raises:
        InputError: There is no such network or tag, or its weights cannot be fetched or read, or do not fit.
    """
    spec = f"timm:{name}"
    model, options = read_options(spec, name, ("checkpoint", "names", "crop"))
    config = _config(spec, model)
    path = Path(options["checkpoint"]) if "checkpoint" in options else _published(spec, config)
    state = read_tensors(path)
    with about("classifier", spec):
        count, channels = _counts(config, state)
        network = _network(spec, model, path, count, (channels, *config["input_size"][1:]))
        preprocess = _preprocess(spec, config)
        return Classifier(
            network,
            preprocess=uncropped(preprocess.grey() if channels == 1 else preprocess, options),
            names=class_names(spec, count, options.get("names"), _labels(config, count)),
            binary=count == 1,
        )


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
        raise InputError(
            f"classifier: {spec!r} has features, but no classes; allowed: a network that tells classes apart"
        )
    return config.to_dict()


def _published(spec: str, config: Mapping[str, Any]) -> Path:
    if config.get("hf_hub_id"):
        file = config.get("hf_hub_filename") or "model.safetensors"
        return hub_file(spec, config["hf_hub_id"], file.replace("pytorch_model.bin", "model.safetensors"))
    if config.get("url"):
        return fetched(spec, config["url"])
    raise InputError(f"classifier: {spec!r} has no published weights; allowed: {spec}?checkpoint=FILE")


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


def _network(spec: str, model: str, path: Path, count: int, size: tuple[int, int, int]) -> nn.Module:
    """Returns the network with the weights of a file, which timm itself turns from a published format into its own."""
    import timm

    own = {
        "file": str(path),
        "source": None,
        "hf_hub_id": None,
        "custom_load": False,
        "num_classes": count,
        "input_size": size,
    }
    try:
        return timm.create_model(
            model, pretrained=True, pretrained_cfg_overlay=own, num_classes=count, in_chans=size[0]
        )
    except Exception as error:  # of timm's own code, which expects a network's weights
        raise misfit(spec, error) from error


def _preprocess(spec: str, config: Mapping[str, Any]) -> Preprocess:
    from timm.data.config import resolve_data_config

    data = resolve_data_config(pretrained_cfg=config)
    _, height, width = data["input_size"]
    if height != width or data["interpolation"] not in get_args(Interpolation):
        raise InputError(
            f"classifier: {spec!r} takes {width} by {height} pixels, resized by {data['interpolation']}; allowed: a "
            f"square, and {' or '.join(get_args(Interpolation))}"
        )
    return Preprocess(
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        size=height,
        interpolation=data["interpolation"],
        crop=height / math.floor(height / data["crop_pct"]),
    )


def _labels(config: Mapping[str, Any], count: int) -> list[str]:
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    if config.get("label_names"):
        said = config.get("label_descriptions") or {}
        return [said.get(each, each) for each in config["label_names"]]
    subset = infer_imagenet_subset({"num_classes": count})
    return list(ImageNetInfo(subset).label_descriptions()) if subset else []
