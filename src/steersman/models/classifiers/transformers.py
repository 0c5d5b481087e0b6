"""Classifiers in the format of transformers: ``hf:FOLDER`` or ``hf:ID`` of the hub, and ``clip:FOLDER`` or ``clip:ID``.

The image processor says how images are prepared. It resizes, crops, rescales by a factor r of pixels in [0, 255], and
normalises:

    input = (255 r u - mean) / std = (u - mean / 255 r) / (std / 255 r),    u in [0, 1].

Processors differ in what their settings mean, so the result is compared with what the processor itself makes of a
picture, and one that prepares images in another way is refused. Weights are read from safetensors alone, and no code of
a repository is run.

A CLIP (Radford et al. 2021) is a `TextClassifier`. Its text tower stays on the CPU, in float32: it runs once per text.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from steersman.errors import InputError, about, one_line
from steersman.files import read_json
from steersman.models.checkpoint import check_finite, no_larger_than, weights_size
from steersman.models.classifiers.classifier import Classifier, TextClassifier
from steersman.models.classifiers.preprocess import Interpolation, Preprocess
from steersman.models.classifiers.spec import Spec
from steersman.models.hub import check_whole, load_pretrained, quiet

__all__ = ["load_clip", "load_transformers", "read_pretrained", "read_processor"]

_PROCESSORS = ("preprocessor_config.json", "processor_config.json")  # files of an image processor's settings
_INTERPOLATIONS: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}  # by Pillow's numbers
_LARGEST = 4096  # pixels across
_CLOSE = 0.02
"""Largest difference from the processor on a smooth picture, of a range of 1: roundings to 8 bits, half a pixel's shift
where a crop has no middle; another crop, order of channels or mean differs by more."""


def read_pretrained(
    spec: str,
    name: str,
    check: Callable[[Any], None],
    model: str,
    processor: str | None,
    *,
    kind: str = "classifier",
) -> tuple[Any, Any]:
    """Returns a model with all its weights, in float32, and its processor, both by the names of their classes.

    The name is a folder or an id of the hub; ``check`` refuses the configuration of another kind of model.
    """

    def read(name: str, **where: bool) -> tuple[Any, Any]:
        where |= {"trust_remote_code": False}
        config = transformers.AutoConfig.from_pretrained(name, **where)
        check(config)
        made = getattr(transformers, processor).from_pretrained(name, **where) if processor else None
        network, info = getattr(transformers, model).from_pretrained(
            name, config=config, use_safetensors=True, output_loading_info=True, **where
        )
        check_whole(f"{kind}: {spec!r}", info)
        return network.float().eval().requires_grad_(False), made

    with quiet(spec.partition(":")[0], kind=kind) as transformers, _no_larger_than_weights(name):
        network, made = load_pretrained(spec, name, read, kind=kind)
        check_finite(network.state_dict())
        return network, made


def load_transformers(spec: Spec) -> Classifier:
    """Returns an image classifier, in float32 on the CPU; the name is a folder or an id of the hub."""

    def check(config: Any) -> None:  # noqa: ANN401
        if config.problem_type == "regression":
            raise InputError(f"classifier: {spec.text!r} was trained for regression, and must be an image classifier")

    folder = Path(spec.name)
    unprocessed = folder.is_dir() and not any((folder / file).is_file() for file in _PROCESSORS)
    with about("classifier", spec.text):
        processor_class = None if unprocessed else "AutoImageProcessor"
        model, processor = read_pretrained(
            spec.text, spec.name, check, "AutoModelForImageClassification", processor_class
        )
        config, preprocess = model.config, None
        grey, size = getattr(config, "num_channels", 3) == 1, getattr(config, "image_size", None)
        try:
            preprocess = None if processor is None else read_processor(spec.text, processor, grey=grey)
        except InputError:
            if not ("preprocess" in spec.options or {"mean", "std"} <= spec.options.keys()):
                raise
        return spec.classifier(
            _Logits(model),
            config.num_labels,
            preprocess=preprocess,
            size=size if preprocess is None and isinstance(size, int) and size > 0 else None,
            grey=grey and preprocess is None,
            names=[str(config.id2label[index]) for index in sorted(config.id2label)],
            multilabel=config.num_labels > 1 and config.problem_type == "multi_label_classification",
        )


class _Logits(nn.Module):
    """From preprocessed images to logits; position embeddings are interpolated where the size is not the network's."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        takes = inspect.signature(model.forward).parameters
        self.settings = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}

    def forward(self, pixels: Float[Tensor, "B C h w"]) -> Float[Tensor, "B K"]:
        return self.model(pixel_values=pixels, **self.settings).logits


def load_clip(spec: Spec) -> TextClassifier:
    """Returns a CLIP; the name is a folder, with the files of tokenizer and image processor, or an id of the hub."""

    def check(config: Any) -> None:  # noqa: ANN401
        if config.model_type != "clip":
            raise InputError(f"classifier: {spec.text!r} must be of the type clip, got {config.model_type}")

    def encode(text: str) -> Float[Tensor, " D"]:
        tokens = processor.tokenizer(text, return_tensors="pt", verbose=False)
        longest, count = model.config.text_config.max_position_embeddings, tokens["input_ids"].shape[1]
        if count > longest:
            raise InputError(f"target must have at most {longest} tokens, with start and end, got {count}, {text!r}")
        output = text_tower(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return text_projection(output.pooler_output)[0]

    with about("classifier", spec.text):
        model, processor = read_pretrained(spec.text, spec.name, check, "CLIPModel", "CLIPProcessor")
        preprocess = read_processor(spec.text, processor.image_processor)
        known = model.config.text_config.vocab_size
        largest = max(processor.tokenizer.get_vocab().values(), default=-1)
        if not 0 <= largest < known:
            raise InputError(f"the numbers of its tokens must be 0 to {known - 1}, as its network has, got {largest}")
    text_tower, text_projection = model.text_model, model.text_projection
    return TextClassifier(
        _ImageTower(model.vision_model, model.visual_projection, model.config.vision_config.patch_size),
        encode=encode,
        sharpness=model.logit_scale.exp().item(),
        preprocess=preprocess,
    )


class _ImageTower(nn.Module):
    """From preprocessed images to embeddings of any length; position embeddings are interpolated at another size."""

    def __init__(self, tower: nn.Module, projection: nn.Module, patch: int) -> None:
        super().__init__()
        self.tower, self.projection, self.patch = tower, projection, patch

    def forward(self, pixels: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B D"]:
        if min(pixels.shape[-2:]) < self.patch:
            raise InputError(
                f"preprocess.size must be at least {self.patch}, a patch of CLIP, got {min(pixels.shape[-2:])}"
            )
        return self.projection(self.tower(pixel_values=pixels, interpolate_pos_encoding=True).pooler_output)


@contextmanager
def _no_larger_than_weights(name: str) -> Iterator[None]:
    """Refuses settings in a folder that claim more labels or a larger network than its weights can be of."""
    size = weights_size(Path(name))
    if not size:  # an id of the hub
        yield
        return
    settings = read_json(Path(name) / "config.json")
    for part in (settings, *(part for part in settings.values() if isinstance(part, dict))):
        if isinstance(labels := part.get("num_labels"), int | float) and labels > size:  # each gets a name
            raise InputError(f"num_labels must be at most {size}, the number of bytes of the weights, got {labels}")
    with no_larger_than(4 * size):  # built without memory and then filled, with numbers of a byte and more
        yield


def read_processor(spec: str, processor: Any, *, grey: bool = False) -> Preprocess:  # noqa: ANN401
    """Returns the preprocessing of an image processor of transformers, for images of one channel if ``grey``."""

    def otherwise(why: str) -> InputError:
        return InputError(
            f"classifier: {spec!r} prepares images otherwise than by resize, crop, rescale and normalise ({why})"
        )

    with about("classifier", spec):
        try:
            preprocess = _processor_settings(processor, grey=grey)
            if (preprocess.size or 0) > _LARGEST:
                raise InputError(f"size must be at most {_LARGEST}, got {preprocess.size}")
            difference = _difference(processor, preprocess)
        except InputError:
            raise
        except Exception as error:  # another processor may have other settings, and fail in any way
            raise otherwise(one_line(error)) from error
        if not difference <= _CLOSE:
            raise otherwise(f"{type(processor).__name__} differs by {difference:.2g} of the range")
        return preprocess


def _processor_settings(processor: Any, *, grey: bool) -> Preprocess:  # noqa: ANN401
    edge = _side(processor.size) if processor.do_resize else None
    kept = _side(processor.crop_size) if getattr(processor, "do_center_crop", None) else None
    if (processor.do_resize or kept) and not edge:
        raise ValueError(f"it resizes to {processor.size}" if processor.do_resize else "it crops without a resize")
    share = getattr(processor, "crop_pct", None)
    if edge and share and (kept or edge < 384):  # ConvNeXT crops only below 384
        kept, edge = kept or edge, int(edge / share)
    if processor.resample not in _INTERPOLATIONS or (kept or 0) > (edge or math.inf):
        raise InputError("it resizes neither bicubically nor bilinearly, or pads its images")
    factor = 255 * processor.rescale_factor if processor.do_rescale else 255.0
    factor = 1.0 if math.isclose(factor, 1) else factor
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
    mean, std = (values if isinstance(values, list | tuple) else (values,) for values in (mean, std))
    return Preprocess(
        mean=tuple(value / factor for value in mean),
        std=tuple(value / factor for value in std),
        size=kept or edge,
        interpolation=_INTERPOLATIONS[processor.resample],
        crop=kept / edge if kept and edge else None,
        channels="grey" if grey else "bgr" if getattr(processor, "do_flip_channel_order", None) else "rgb",
    )


def _side(size: Any) -> int | None:  # noqa: ANN401
    """Returns the side of a square or the shorter edge, None where the size says neither."""
    given = {key: value for key, value in dict(size or {}).items() if value}
    height, width = given.get("height"), given.get("width")
    return given.get("shortest_edge") or (height if height == width else None)


def _difference(processor: Any, preprocess: Preprocess) -> float:  # noqa: ANN401
    """Returns the largest difference from the processor, of a range of 1, on a smooth picture of another size."""
    x = torch.linspace(0, math.pi, 5 * (preprocess.size or 64) // 4)
    y = x[:, None]
    waves = torch.stack([(y + 2 * x).cos(), (3 * y - x).sin(), x.cos() ** 3 * y.sin()])
    pixels = (127.5 + 80 * waves).to(torch.uint8)
    picture = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    if preprocess.channels == "grey":
        picture = picture.convert("L")
    theirs = processor(images=picture, return_tensors="pt")["pixel_values"].double()
    ours = preprocess(pixels[None].double() / 127.5 - 1)
    if ours.shape != theirs.shape:
        return math.inf
    return ((ours - theirs).abs() * torch.tensor(preprocess.std, dtype=torch.float64).reshape(-1, 1, 1)).max().item()
