"""Small networks for images of 64 by 64 pixels in [-1, 1], built without weights.

`mobilenet_v3_small` is nrCG's classifier. The two others judge what it guided: each is of another family than
the guide. Their penultimate features have 128 numbers (resnet10_narrow) and 122 (densenet_narrow), few enough that a
Fréchet distance between some thousands of images is well determined.
"""

from collections.abc import Callable

from torch import nn

from steersman.errors import InputError, unknown

__all__ = ["ARCHITECTURES", "build_network"]


def build_network(architecture: str, num_classes: int) -> nn.Module:
    """Returns a network with fresh weights, from images ``(B, 3, 64, 64)`` in [-1, 1] to logits ``(B, num_classes)``.

    Args:
        architecture: ``mobilenet_v3_small``, ``resnet10_narrow`` or ``densenet_narrow``.
        num_classes: Number of logits, at least 1 (1: a binary classifier).

    Raises:
        InputError: The architecture is unknown, or there would be no logits.
    """
    if architecture not in ARCHITECTURES:
        raise unknown("architecture", architecture, ARCHITECTURES)
    if num_classes < 1:
        raise InputError(f"num_classes must be at least 1, got {num_classes}")
    return ARCHITECTURES[architecture](num_classes)


def _mobilenet_v3_small(num_classes: int) -> nn.Module:
    from torchvision.models import mobilenet_v3_small

    return mobilenet_v3_small(weights=None, num_classes=num_classes)


def _resnet10_narrow(num_classes: int) -> nn.Module:
    from timm.models.resnet import BasicBlock, ResNet

    return ResNet(
        BasicBlock,  # pyright: ignore[reportArgumentType]  # timm annotates the class as an instance
        layers=(1, 1, 1, 1),
        channels=(32, 64, 96, 128),
        stem_width=32,
        num_classes=num_classes,
    )


def _densenet_narrow(num_classes: int) -> nn.Module:
    from timm.models.densenet import DenseNet

    return DenseNet(growth_rate=16, block_config=(3, 4, 4, 4), bn_size=2, num_classes=num_classes)


ARCHITECTURES: dict[str, Callable[[int], nn.Module]] = {
    "mobilenet_v3_small": _mobilenet_v3_small,
    "resnet10_narrow": _resnet10_narrow,
    "densenet_narrow": _densenet_narrow,
}
"""The networks that can be built, by name: from the number of logits to the network."""
