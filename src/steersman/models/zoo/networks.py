"""The bundled networks: their architectures, and their weights with a card beside each; folders in diffusers' layout.

For images of 64 by 64 pixels: `mobilenet_v3_small` is nrCG's classifier. The two others judge what it guided, each of
another family than the guide. Their penultimate features have 128 numbers (resnet10_narrow) and 122 (densenet_narrow),
few enough that a Fréchet distance between some thousands of images is well determined.

For images of about 32 by 32 pixels: `lenet`; `resnet9`, which learns CIFAR-10 in few epochs; and two to judge it,
`plainnet`, without shortcuts and with GELU, and `wide_resnet16`, with normalisation before each convolution and strides
in place of pooling (Zagoruyko & Komodakis 2016). Their features have 128, 256, 192 and 160 numbers.
"""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import relu

from steersman.errors import InputError, about, unknown
from steersman.files import class_names, read_json
from steersman.models.checkpoint import read_tensors
from steersman.names import ZOO, denoiser_names, network_names

__all__ = ["ARCHITECTURES", "build_network", "folder", "load_network", "read_network"]


def folder(name: str) -> Path:
    """Returns the folder of a bundled denoiser."""
    if name not in (known := denoiser_names()):
        raise unknown("bundled denoiser", name, known)
    return ZOO / name


def load_network(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """Returns a bundled network, in float32 and evaluation mode, and its card."""
    if name not in (known := network_names()):
        raise unknown("bundled network", name, known)
    return read_network(ZOO / f"{name}.safetensors", ZOO / f"{name}.json")


def read_network(weights: Path, card: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Returns the network of a safetensors file, in float32 and evaluation mode, and its card.

    The card names ``architecture`` and ``classes``, and ``channels`` where they are not 3.
    """
    with about("card", card):
        facts = read_json(card, "card")
        network = build_network(facts["architecture"], len(class_names(facts["classes"])), facts.get("channels", 3))
    with about("weights", weights):
        state = read_tensors(weights)
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise InputError(" ".join(str(error).split())) from error
    return network.eval(), facts


def build_network(architecture: str, num_classes: int, channels: int = 3) -> nn.Module:
    """Returns a network of `ARCHITECTURES` with fresh weights, from ``(B, channels, H, W)`` to ``(B, num_classes)``."""
    if architecture not in ARCHITECTURES:
        raise unknown("architecture", architecture, ARCHITECTURES)
    for name, value in (("num_classes", num_classes), ("channels", channels)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    return ARCHITECTURES[architecture](num_classes, channels)


def _mobilenet_v3_small(num_classes: int, channels: int) -> nn.Module:
    from torchvision.models import mobilenet_v3_small

    network = mobilenet_v3_small(weights=None, num_classes=num_classes)
    if channels != 3:
        network.features[0][0] = nn.Conv2d(channels, 16, 3, stride=2, padding=1, bias=False)  # pyright: ignore[reportIndexIssue]
    return network


def _resnet10_narrow(num_classes: int, channels: int) -> nn.Module:
    from timm.models.resnet import BasicBlock, ResNet

    return ResNet(
        BasicBlock,  # pyright: ignore[reportArgumentType]  # timm annotates the class as an instance
        layers=(1, 1, 1, 1),
        channels=(32, 64, 96, 128),
        stem_width=32,
        in_chans=channels,
        num_classes=num_classes,
    )


def _densenet_narrow(num_classes: int, channels: int) -> nn.Module:
    from timm.models.densenet import DenseNet

    return DenseNet(growth_rate=16, block_config=(3, 4, 4, 4), bn_size=2, in_chans=channels, num_classes=num_classes)


def _lenet(num_classes: int, channels: int) -> nn.Module:
    first, second = nn.Conv2d(channels, 16, 5, padding=2), nn.Conv2d(16, 32, 5, padding=2)
    head = [nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(32 * 49, 128), nn.ReLU(), nn.Linear(128, num_classes)]
    return nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.MaxPool2d(2), *head)


class _Residual(nn.Module):
    """``x + f(x)``."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _convolution(inputs: int, outputs: int, activation: type[nn.Module], *more: nn.Module) -> list[nn.Module]:
    """Returns a 3 x 3 convolution, further layers, a normalisation and an activation."""
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), *more, nn.BatchNorm2d(outputs), activation()]


def _resnet9(num_classes: int, channels: int) -> nn.Module:
    def pooled(inputs: int, outputs: int) -> list[nn.Module]:
        return _convolution(inputs, outputs, nn.ReLU, nn.MaxPool2d(2))

    def residual(width: int) -> nn.Module:
        return _Residual(*_convolution(width, width, nn.ReLU), *_convolution(width, width, nn.ReLU))

    body = [*_convolution(channels, 32, nn.ReLU), *pooled(32, 64), residual(64), *pooled(64, 128), *pooled(128, 256)]
    return nn.Sequential(*body, residual(256), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(256, num_classes))


def _plainnet(num_classes: int, channels: int) -> nn.Module:
    def stage(inputs: int, outputs: int) -> list[nn.Module]:
        return [
            *_convolution(inputs, outputs, nn.GELU, nn.MaxPool2d(2)),
            *_convolution(outputs, outputs, nn.GELU),
        ]

    body = [*_convolution(channels, 24, nn.GELU), *stage(24, 64), *stage(64, 192), *stage(192, 192)]
    return nn.Sequential(*body, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(192, num_classes))


class _Preactivated(nn.Module):
    """A residual block with normalisation and ReLU before each of its two convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        return shortcut + self.conv2(relu(self.norm2(self.conv1(activated))))


def _wide_resnet16(num_classes: int, channels: int) -> nn.Module:
    widths = (16, 40, 80, 160)
    layers: OrderedDict[str, nn.Module] = OrderedDict(stem=nn.Conv2d(channels, widths[0], 3, padding=1, bias=False))
    for stage in range(3):
        for block in range(2):
            inputs, outputs = widths[stage if block == 0 else stage + 1], widths[stage + 1]
            layers[f"block{stage + 1}{block + 1}"] = _Preactivated(inputs, outputs, 2 if stage and not block else 1)
    layers |= {"norm": nn.BatchNorm2d(widths[-1]), "relu": nn.ReLU(), "pool": nn.AdaptiveAvgPool2d(1)}
    return nn.Sequential(layers | {"flatten": nn.Flatten(), "head": nn.Linear(widths[-1], num_classes)})


ARCHITECTURES: dict[str, Callable[[int, int], nn.Module]] = {
    "mobilenet_v3_small": _mobilenet_v3_small,
    "resnet10_narrow": _resnet10_narrow,
    "densenet_narrow": _densenet_narrow,
    "lenet": _lenet,
    "resnet9": _resnet9,
    "plainnet": _plainnet,
    "wide_resnet16": _wide_resnet16,
}
