"""CLIP (Radford et al. 2021) as a classifier of texts, in the format of transformers.

    f_i(x) = exp(t) cos(image tower(x), text tower(i)),        t the trained logit scale.

The image is resized, cropped and normalised as the folder's own processor does it, but differentiably; on 8-bit images
that need no resize both agree to rounding. The text tower stays on the CPU, in float32: it is asked once a text.
"""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from steersman.classifiers.preprocess import Interpolation, Preprocess
from steersman.classifiers.text import TextClassifier
from steersman.errors import InputError, one_line

__all__ = ["load_clip"]

INTERPOLATIONS: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}
"""By Pillow's numbers, which processors are saved with."""


def load_clip(name: str) -> TextClassifier:
    """Returns a CLIP.

    Args:
        name: A folder with ``config.json``, ``model.safetensors``, and the files of tokenizer and image processor, as
            transformers saves them; or the id of such a model on the hub, taken from transformers' cache, and fetched
            into it where it is not there.

    Raises:
        InputError: transformers is not installed, or no CLIP can be read there.
    """
    try:
        import transformers
    except ImportError as error:
        raise InputError("classifier: clip needs transformers; allowed: after pip install 'steersman[text]'") from error
    with _silent(transformers):
        model, processor = _found(transformers, name)
    config = model.config.vision_config
    return TextClassifier(
        _ImageTower(model.vision_model, model.visual_projection, config.patch_size),
        encode=_TextTower(model.text_model, model.text_projection, processor.tokenizer),
        sharpness=model.logit_scale.exp().item(),
        preprocess=_preprocess(name, processor.image_processor),
    )


def _found(transformers: Any, name: str) -> tuple[Any, Any]:  # noqa: ANN401
    """Returns model and processor: of a folder, else from the cache, else from the hub."""
    if Path(name).is_dir():
        return _read(transformers, name, local_files_only=True)
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise InputError(
            f"classifier: 'clip:{name}' given, and no such folder; allowed: clip:FOLDER, or clip:ID of the hub"
        )
    try:
        return _read(transformers, name, local_files_only=True)
    except InputError:
        _ask_hub(name)
    return _read(transformers, name, local_files_only=False)


def _ask_hub(name: str) -> None:
    """Refuses an id that the hub does not have or cannot be asked for; asked once, where the loaders would try on."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(name, timeout=10)
    except Exception as error:  # the network fails in its own classes
        raise InputError(
            f"classifier: 'clip:{name}' is neither a folder nor in transformers' cache, and the hub does not give it "
            f"({type(error).__name__}); allowed: clip:FOLDER, filled where there is a network by: hf download {name} "
            "--local-dir FOLDER"
        ) from error


def _read(transformers: Any, name: str, **where: bool) -> tuple[Any, Any]:  # noqa: ANN401
    try:
        kind = transformers.AutoConfig.from_pretrained(name, **where).model_type
        if kind != "clip":
            raise InputError(f"classifier: 'clip:{name}' is of the type {kind}; allowed: clip")
        processor = transformers.CLIPProcessor.from_pretrained(name, **where)
        model, info = transformers.CLIPModel.from_pretrained(
            name, use_safetensors=True, output_loading_info=True, **where
        )
    except InputError:
        raise
    except Exception as error:  # a folder may be damaged in any way
        raise InputError(f"classifier: 'clip:{name}' cannot be read ({one_line(error)})") from error
    if info["missing_keys"]:
        raise InputError(
            f"classifier: 'clip:{name}' lacks the weights {', '.join(sorted(info['missing_keys'])[:3])}, …"
        )
    return model.float().eval().requires_grad_(False), processor


def _preprocess(name: str, processor: Any) -> Preprocess:  # noqa: ANN401
    """Returns what an image processor does to a square image; of others it keeps the centre square, as that does."""
    size = _side(processor.size)
    kept = _side(processor.crop_size) if processor.do_center_crop else None
    usual = processor.do_resize and processor.do_rescale and processor.do_normalize
    if not (usual and size and math.isclose(255 * processor.rescale_factor, 1)):
        raise InputError(f"classifier: 'clip:{name}' prepares images otherwise than by resize, rescale and normalise")
    if processor.resample not in INTERPOLATIONS or (kept or 0) > size:
        raise InputError(f"classifier: 'clip:{name}' resizes neither bicubically nor bilinearly, or pads its images")
    return Preprocess(
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
        size=kept or size,
        interpolation=INTERPOLATIONS[processor.resample],
        crop=kept / size if kept else None,
    )


def _side(size: Any) -> int | None:  # noqa: ANN401
    """Returns the side of a square, or of the shorter edge, None where the size says neither."""
    given = {key: value for key, value in dict(size or {}).items() if value}
    height, width = given.get("height"), given.get("width")
    return given.get("shortest_edge") or (height if height == width else None)


class _ImageTower(nn.Module):
    """From preprocessed images to embeddings; at a size that is not its own, its place embeddings are interpolated."""

    def __init__(self, tower: nn.Module, projection: nn.Module, patch: int) -> None:
        super().__init__()
        self.tower, self.projection, self.patch = tower, projection, patch

    def forward(self, pixels: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B D"]:
        """Returns the embeddings, of any length.

        Raises:
            InputError: The images are smaller than a patch.
        """
        if min(pixels.shape[-2:]) < self.patch:
            raise InputError(
                f"input.size: {min(pixels.shape[-2:])} given; allowed: {self.patch} and more, a patch of CLIP"
            )
        return self.projection(self.tower(pixel_values=pixels, interpolate_pos_encoding=True).pooler_output)


class _TextTower:
    """From a text to its embedding."""

    def __init__(self, tower: Any, projection: nn.Module, tokenizer: Callable[..., Any]) -> None:  # noqa: ANN401
        self.tower, self.projection, self.tokenizer = tower, projection, tokenizer

    def __call__(self, text: str) -> Float[Tensor, " D"]:
        tokens = self.tokenizer(text, return_tensors="pt", verbose=False)
        longest, count = self.tower.config.max_position_embeddings, tokens["input_ids"].shape[1]
        if count > longest:
            raise InputError(f"target: {text!r} has {count} tokens, with start and end; allowed: {longest} at most")
        output = self.tower(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return self.projection(output.pooler_output)[0]


@contextmanager
def _silent(transformers: Any) -> Iterator[None]:  # noqa: ANN401
    """Keeps transformers from telling what it loads: what fails is said in our own line."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
