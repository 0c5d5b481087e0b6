"""From an image processor of transformers to how a classifier wants its input.

A processor resizes, crops, rescales by a factor r of pixels in [0, 255], and normalises:

    input = (255 r u - mean) / std = (u - mean / 255 r) / (std / 255 r),    u in [0, 1].

Processors differ in what their settings mean, so the result is held against what the processor itself makes of a
picture: one that prepares images in a way which is not among these is refused, instead of read wrongly.
"""

import math
from typing import Any

import numpy as np
import torch
from PIL import Image

from steersman.errors import InputError, about, one_line
from steersman.models.classifiers.preprocess import Interpolation, Preprocess

__all__ = ["read_processor"]

INTERPOLATIONS: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}
"""By Pillow's numbers, which processors are saved with."""

LARGEST = 4096  # pixels across
CLOSE = 0.02
"""Largest difference from the processor on a smooth picture, of a range of 1: roundings to 8 bits, half a pixel's shift
where a crop has no middle; another crop, order of channels or mean differs by more."""


def read_processor(spec: str, processor: Any, *, grey: bool = False) -> Preprocess:  # noqa: ANN401
    """Returns what an image processor does to a square image; of others it keeps the centre square, if it crops.

    Args:
        spec: What the user gave, for the messages.
        processor: Any image processor of transformers.
        grey: Whether its images have one channel.

    Raises:
        InputError: It does anything else than to resize, crop, rescale and normalise.
    """
    with about("classifier", spec):
        try:
            preprocess = _settings(spec, processor, grey)
        except AttributeError as error:
            raise _otherwise(spec, one_line(error)) from error
        if (preprocess.size or 0) > LARGEST:
            raise InputError(f"size must be at most {LARGEST}, got {preprocess.size}")
        difference = _difference(spec, processor, preprocess)
    if not difference <= CLOSE:
        raise _otherwise(spec, f"{type(processor).__name__} differs by {difference:.2g} of the range")
    return preprocess


def _otherwise(spec: str, why: str) -> InputError:
    return InputError(
        f"classifier: {spec!r} prepares images otherwise than by resize, crop, rescale and normalise ({why})"
    )


def _settings(spec: str, processor: Any, grey: bool) -> Preprocess:  # noqa: ANN401
    edge = _side(processor.size) if processor.do_resize else None
    kept = _side(processor.crop_size) if getattr(processor, "do_center_crop", None) else None
    if processor.do_resize and edge is None:
        raise _otherwise(spec, f"size {processor.size}")
    share = getattr(processor, "crop_pct", None)
    if edge and share and (kept or edge < 384):  # ConvNeXT crops only below 384
        kept, edge = kept or edge, int(edge / share)
    if processor.resample not in INTERPOLATIONS or (kept or 0) > (edge or math.inf):
        raise InputError(f"classifier: {spec!r} resizes neither bicubically nor bilinearly, or pads its images")
    if kept and not edge:
        raise _otherwise(spec, "it crops without a resize")
    factor = 255 * processor.rescale_factor if processor.do_rescale else 255.0
    factor = 1.0 if math.isclose(factor, 1) else factor
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
    mean, std = (tuple(each) if isinstance(each, list | tuple) else (each,) for each in (mean, std))
    return Preprocess(
        mean=tuple(each / factor for each in mean),
        std=tuple(each / factor for each in std),
        size=kept or edge,
        interpolation=INTERPOLATIONS[processor.resample],
        crop=kept / edge if kept and edge else None,
        channels="grey" if grey else "bgr" if getattr(processor, "do_flip_channel_order", None) else "rgb",
    )


def _difference(spec: str, processor: Any, preprocess: Preprocess) -> float:  # noqa: ANN401
    """Returns the largest difference from the processor, of a range of 1, on a smooth picture of another size."""
    across = torch.linspace(0, math.pi, 5 * (preprocess.size or 64) // 4)
    waves = torch.stack(
        [
            (across[:, None] + 2 * across).cos(),
            (3 * across[:, None] - across).sin(),
            across.cos() ** 3 * across[:, None].sin(),
        ]
    )
    pixels = (127.5 + 80 * waves).to(torch.uint8)
    picture = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    if preprocess.channels == "grey":
        picture = picture.convert("L")
    try:
        theirs = processor(images=picture, return_tensors="pt")["pixel_values"].double()
    except Exception as error:
        raise _otherwise(spec, one_line(error)) from error
    ours = preprocess(pixels[None].double() / 127.5 - 1)
    if ours.shape != theirs.shape:
        return math.inf
    return ((ours - theirs).abs() * torch.tensor(preprocess.std, dtype=torch.float64).reshape(-1, 1, 1)).max().item()


def _side(size: Any) -> int | None:  # noqa: ANN401
    """Returns the side of a square, or of the shorter edge, None where the size says neither."""
    given = {key: value for key, value in dict(size or {}).items() if value}
    height, width = given.get("height"), given.get("width")
    return given.get("shortest_edge") or (height if height == width else None)
