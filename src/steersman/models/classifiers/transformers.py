"""Image classifiers of transformers: ``hf:FOLDER``, or ``hf:ID`` of the hub.

The folder's own image processor says how images are prepared (`models.classifiers.processor`), its configuration
what the classes are called, and by ``problem_type`` whether they are labels of their own (multi-label). Weights are
read from safetensors alone, and no code of a repository is run.

A folder without an image processor says nothing of how images are prepared: that must be stated
(`steersman.models.classifiers.stated`), as it may be in place of what a processor says.
"""

import inspect
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from steersman.errors import InputError, about
from steersman.models.checkpoint import check_finite
from steersman.models.classifiers.base import Classifier
from steersman.models.classifiers.preprocess import Preprocess
from steersman.models.classifiers.processor import read_processor
from steersman.models.classifiers.stated import NOTHING, Stated, Unstated
from steersman.models.classifiers.weights import class_names, held
from steersman.models.hub import check_whole, load_pretrained, quiet

__all__ = ["load_transformers"]

PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""Where transformers writes an image processor's settings."""


def load_transformers(name: str, stated: Stated = NOTHING) -> Classifier:
    """Returns an image classifier in transformers' format, in float32 on the CPU.

    Args:
        name: ``FOLDER`` or ``ID``; the folder holds ``config.json``, ``model.safetensors`` and the file of the image
            processor, as transformers saves them.
        stated: What else its spec says.

    Raises:
        InputError: transformers is not installed, or no classifier can be read there.
    """
    spec = f"hf:{name}"
    with about("classifier", spec), quiet("hf") as transformers, held(name):
        model, processor = load_pretrained(spec, name, lambda *args, **where: _read(transformers, spec, *args, **where))
        preprocess = _preprocess(spec, processor, model.config, stated)
    with about("classifier", spec):
        check_finite(model.state_dict())
        count = model.config.num_labels
        return Classifier(
            _Logits(model),
            preprocess=preprocess,
            names=class_names(spec, count, None, _labels(model.config)),
            binary=count == 1,
            multilabel=count > 1 and model.config.problem_type == "multi_label_classification",
        )


def _read(transformers: Any, spec: str, name: str, **where: bool) -> tuple[Any, Any]:  # noqa: ANN401
    """Returns the model and its image processor, None where the folder has none."""
    config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, **where)
    if config.problem_type == "regression":
        raise InputError(f"classifier: {spec!r} was trained for regression, and needs to be an image classifier")
    processor = None
    if not Path(name).is_dir() or any((Path(name) / file).is_file() for file in PROCESSORS):
        processor = transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=False, **where)
    model, info = transformers.AutoModelForImageClassification.from_pretrained(
        name, config=config, trust_remote_code=False, use_safetensors=True, output_loading_info=True, **where
    )
    check_whole(f"classifier: {spec!r}", info)
    return model.float(), processor


def _preprocess(spec: str, processor: Any, config: Any, stated: Stated) -> Preprocess:  # noqa: ANN401
    """Returns how the processor prepares images; where it cannot be read, what the user states has to do."""
    grey = getattr(config, "num_channels", 3) == 1
    try:
        if processor is not None:
            return read_processor(spec, processor, grey=grey)
    except InputError:
        if not stated.prepares:
            raise
    size = getattr(config, "image_size", None)
    unstated = Unstated(spec=stated.spec or spec, size=size if isinstance(size, int) and size > 0 else None)
    return unstated.grey() if grey else unstated


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
