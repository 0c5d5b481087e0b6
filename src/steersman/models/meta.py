"""Networks no larger than their files: what settings claim is held against weights before it gets memory.

On torch's ``meta`` device a tensor has a shape and no values: a network is built there at no cost, however wide it is
said to be. How deep it is said to be is another matter, so its numbers are counted while it grows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from steersman.errors import InputError
from steersman.files import regular

__all__ = ["no_larger_than", "weights_size"]


@contextmanager
def no_larger_than(size: int) -> Iterator[None]:
    """Lets networks grow within, up to a size.

    Args:
        size: How many numbers may become parameters or buffers; as many as a file has bytes, no number being smaller.

    Raises:
        InputError: One has more.
    """
    built = 0

    def count(_module: nn.Module, _name: str, values: Tensor | None) -> None:
        nonlocal built
        built += 0 if values is None else values.numel()
        if built > size:
            raise InputError("its settings tell of a larger network than its weights do")

    hooks = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def weights_size(folder: Path) -> int:
    """Returns how many bytes a folder has of weights in safetensors' format, whose headers are read to see it whole."""
    files = list(folder.glob("*.safetensors"))
    for file in files:
        with safe_open(regular(file), "pt"):
            pass
    return sum(file.stat().st_size for file in files)
