"""Image classifiers of transformers: ``hf:FOLDER``, or ``hf:ID`` of the hub.

The folder's own image processor says how images are prepared (`steersman.classifiers.processor`), its configuration
what the classes are called, and by ``problem_type`` whether they are labels of their own (multi-label). Weights are
read from safetensors alone, and no code of a repository is run.

    ?names=FILE    a name a line, in the order of the logits; else the configuration's ``id2label``
    ?crop=none     show the whole image, resized to the network's size: only what the network sees is guided
"""

import inspect
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from steersman.checkpoint import check_finite
from steersman.classifiers.base import Classifier
from steersman.classifiers.processor import read_processor
from steersman.classifiers.weights import class_names, held, read_options, uncropped
from steersman.errors import InputError, about
from steersman.hub import check_whole, load_pretrained, quiet

__all__ = ["load_transformers"]


def load_transformers(name: str) -> Classifier:
    """Returns an image classifier in transformers' format, in float32 on the CPU.

    Args:
        name: ``FOLDER`` or ``ID``, with ``?names=FILE&crop=none``; the folder holds ``config.json``,
            ``model.safetensors`` and the file of the image processor, as transformers saves them.

    Raises:
        InputError: transformers is not installed, or no classifier can be read there.
    """
    spec = f"hf:{name}"
    place, options = read_options(spec, name, ("names", "crop"))
    with about("classifier", spec), quiet("hf") as transformers, held(place):
        model, processor = load_pretrained(
            spec, place, lambda *args, **where: _read(transformers, spec, *args, **where)
        )
        preprocess = read_processor(spec, processor, grey=getattr(model.config, "num_channels", 3) == 1)
    with about("classifier", spec):
        check_finite(model.state_dict())
        count = model.config.num_labels
        return Classifier(
            _Logits(model),
            preprocess=uncropped(preprocess, options),
            names=class_names(spec, count, options.get("names"), _labels(model.config)),
            binary=count == 1,
            multilabel=count > 1 and model.config.problem_type == "multi_label_classification",
        )


def _read(transformers: Any, spec: str, name: str, **where: bool) -> tuple[Any, Any]:  # noqa: ANN401
    config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, **where)
    if config.problem_type == "regression":
        raise InputError(f"classifier: {spec!r} was trained for regression; allowed: an image classifier")
    processor = transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=False, **where)
    model, info = transformers.AutoModelForImageClassification.from_pretrained(
        name, config=config, trust_remote_code=False, use_safetensors=True, output_loading_info=True, **where
    )
    check_whole(f"classifier: {spec!r}", info)
    return model.float(), processor


def _labels(config: Any) -> list[str]:  # noqa: ANN401
    return [str(config.id2label[index]) for index in sorted(config.id2label)]


class _Logits(nn.Module):
    """From preprocessed images to logits; place embeddings are interpolated at a size that is not the network's own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        takes = inspect.signature(model.forward).parameters
        self.settings = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}

    def forward(self, pixels: Float[Tensor, "B C h w"]) -> Float[Tensor, "B K"]:
        return self.model(pixel_values=pixels, **self.settings).logits
