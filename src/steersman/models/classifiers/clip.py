"""CLIP (Radford et al. 2021) as a classifier of texts, in the format of transformers.

    f_i(x) = exp(t) cos(image tower(x), text tower(i)),        t the trained logit scale.

The image is resized, cropped and normalised as the folder's own processor does it, but differentiably; on 8-bit images
that need no resize both agree to rounding. The text tower stays on the CPU, in float32: it is asked once a text.
"""

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from steersman.errors import InputError, about
from steersman.models.checkpoint import check_finite
from steersman.models.classifiers.processor import read_processor
from steersman.models.classifiers.stated import NOTHING, Stated
from steersman.models.classifiers.text import TextClassifier
from steersman.models.classifiers.weights import held
from steersman.models.hub import check_whole, load_pretrained, quiet

__all__ = ["load_clip"]


def load_clip(name: str, stated: Stated = NOTHING) -> TextClassifier:
    """Returns a CLIP.

    Args:
        name: A folder with ``config.json``, ``model.safetensors``, and the files of tokenizer and image processor, as
            transformers saves them; or the id of such a model on the hub, taken from transformers' cache, and fetched
            into it where it is not there.
        stated: What else its spec says.

    Raises:
        InputError: transformers is not installed, or no CLIP can be read there.
    """
    spec = f"clip:{name}"
    with about("classifier", spec), quiet("clip") as transformers, held(name):
        model, processor = load_pretrained(spec, name, lambda *args, **where: _read(transformers, spec, *args, **where))
        preprocess = read_processor(spec, processor.image_processor)
        check_finite(model.state_dict())
        _check_tokens(processor.tokenizer, model.config.text_config.vocab_size)
    config = model.config.vision_config
    return TextClassifier(
        _ImageTower(model.vision_model, model.visual_projection, config.patch_size),
        encode=_TextTower(model.text_model, model.text_projection, processor.tokenizer),
        sharpness=model.logit_scale.exp().item(),
        preprocess=preprocess,
    )


def _read(transformers: Any, spec: str, name: str, **where: bool) -> tuple[Any, Any]:  # noqa: ANN401
    kind = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, **where).model_type
    if kind != "clip":
        raise InputError(f"classifier: {spec!r} must be of the type clip, got {kind}")
    processor = transformers.CLIPProcessor.from_pretrained(name, **where)
    model, info = transformers.CLIPModel.from_pretrained(name, use_safetensors=True, output_loading_info=True, **where)
    check_whole(f"classifier: {spec!r}", info)
    return model.float().eval().requires_grad_(False), processor


def _check_tokens(tokenizer: Any, known: int) -> None:  # noqa: ANN401
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if not 0 <= largest < known:
        raise InputError(
            f"the numbers of its tokens must be 0 to {known - 1}, the last that its network knows, got {largest}"
        )


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
                f"preprocess.size must be at least {self.patch}, a patch of CLIP, got {min(pixels.shape[-2:])}"
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
            raise InputError(f"target must have at most {longest} tokens, with start and end, got {count}, {text!r}")
        output = self.tower(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return self.projection(output.pooler_output)[0]
