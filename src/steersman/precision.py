"""What float32 means while images are drawn or measured: IEEE arithmetic, and the same rounding every time.

Left alone, torch lets cuDNN convolve float32 in TF32, which keeps 10 of the 23 bits of a mantissa, and a program may
ask for TF32 or bfloat16 in matrix products, on a CPU too. cuDNN may also choose an algorithm by a race between several,
and take one that adds in no fixed order. Guidance amplifies rounding, so that two runs would then draw other images.

Within `ieee` none of that happens. The settings are those of the process, so they are put back when the last thread
leaves; a program that uses the library finds them as it left them.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch

__all__ = ["ieee"]

_lock = threading.Lock()
_inside = 0
_back: list[Callable[[], object]] = []


@contextmanager
def ieee() -> Iterator[None]:
    """Has float32 computed in IEEE arithmetic, by algorithms that round alike every time; also usable as a decorator.

    It concerns cuBLAS, cuDNN and oneDNN: products and convolutions in float32, and cuDNN's choice of an algorithm in
    any type.
    """
    global _inside
    with _lock:
        if _inside == 0:
            _back[:] = _set()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                while _back:
                    _back.pop()()


def _set() -> list[Callable[[], object]]:
    """Sets what is needed, and returns what puts each setting back, to be called last first."""
    cudnn, cublas, onednn = torch.backends.cudnn, torch.backends.cuda.matmul, torch.backends.mkldnn
    owners = [cublas, *(getattr(cudnn, each, None) for each in ("conv", "rnn"))]
    owners += [getattr(onednn, each, None) for each in ("matmul", "conv", "rnn")]
    back: list[Callable[[], object]] = []

    def put(held: object, wanted: object, setting: Callable[[Any], object]) -> None:
        back.append(partial(setting, held))
        setting(wanted)

    for name, wanted in (("deterministic", True), ("benchmark", False)):
        put(getattr(cudnn, name), wanted, partial(setattr, cudnn, name))
    # Since 2.9 torch has a second name for each of the settings below. Where a caller has set the newer names apart
    # from the older ones, reading an older one is an error, and then the newer ones are set alone.
    newer = [owner for owner in owners if hasattr(owner, "fp32_precision")]
    held = [owner.fp32_precision for owner in newer]
    for owner, value in zip(newer, held, strict=True):
        back.append(partial(setattr, owner, "fp32_precision", value))
    with suppress(RuntimeError):
        put(torch.get_float32_matmul_precision(), "highest", torch.set_float32_matmul_precision)
    with suppress(RuntimeError):
        put(cudnn.allow_tf32, False, partial(setattr, cudnn, "allow_tf32"))
    for owner in newer:
        owner.fp32_precision = "ieee"
    return back
