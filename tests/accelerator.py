"""A pretend accelerator: tensors that say ``cuda:0``, on a machine without one.

Their values are computed on the CPU, so that the right ones are known. What sets an accelerator apart is kept:

    mixing      a CPU tensor in an operation on the device is refused, except where CUDA takes one: a scalar in an
                operation of two tensors, an index, the source or the destination of a copy
    waits       whatever makes the host wait for the device is recorded, with the line of steersman that asked for it:
                ``item``, ``tolist``, ``bool``, ``nonzero``, indices by a mask, copies that block, in both directions
    float64     float64 tensors on the device are recorded, too; the pretend ``mps:0`` refuses them, as Metal does
    generators  a random draw on the device from a CPU generator is refused

Operations of three tensors take no number of the host at all: `torch.lerp` and `torch.addcmul` let one in since some
version of torch only, `torch.clamp` and `torch.addcdiv` never. A copy to the device waits unless it is asked not to and
its source is pinned.
"""

import copy
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SOURCE = str(Path("steersman") / "_")[:-1]
RUN = threading.Thread.run
CPU = torch.device("cpu")
INNER = torch.device("lazy", 0)  # what torch's own C++ takes the tensors for: no CPU, and nothing else uses it

VALUES_READ = {"_local_scalar_dense", "equal", "is_nonzero"}  # their results are no tensors
SHAPES_READ = {  # their results are as long as the values say
    "nonzero",
    "masked_select",
    "unique_dim",
    "_unique",
    "_unique2",
    "unique_consecutive",
    "unique_dim_consecutive",
    "bincount",
    "repeat_interleave",
}
CHECKED = {"multinomial", "_linalg_check_errors", "histc"}  # look at their arguments, or at what came of them
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
FILLED = {"fill", "fill_", "masked_fill", "masked_fill_"}  # take a number of the host as a number


class Note(NamedTuple):
    """Something that happened.

    Attributes:
        what: The operation.
        line: Of steersman's code, ``guidance/step.py:108``; of whichever code asked, where none of that was at work.
    """

    what: str
    line: str


class OnDevice(Tensor):
    """A tensor of the pretend accelerator."""

    @staticmethod
    def __new__(cls, values: Tensor, accelerator: "Accelerator") -> "OnDevice":
        """Wraps values of the CPU."""
        made = Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=INNER,
        )
        made.values, made.accelerator = values, accelerator
        return made

    def __init__(self, values: Tensor, accelerator: "Accelerator") -> None:
        pass

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        """Computes an operation, in a thread of its own, too, where the mode is not at work."""
        found: list[Tensor] = []
        _unwrapped((args, kwargs or {}), found)
        own = next(each for each in found if isinstance(each, OnDevice))
        return own.accelerator.compute(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def is_mps(self) -> bool:
        return self.device.type == "mps"

    def tolist(self):
        return self.detach().cpu().tolist()

    def numpy(self, *, force: bool = False):
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy it to the host"
        )

    def __deepcopy__(self, memo):
        made = OnDevice(copy.deepcopy(self.values, memo), self.accelerator).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            made._is_param = True
        return made

    def __repr__(self, *, tensor_contents=None) -> str:
        return f"OnDevice({self.values!r}, device='{self.device}')"


class Accelerator(TorchDispatchMode):
    """The pretend accelerator: a context within which ``cuda:0`` is there.

    Args:
        kind: ``cuda`` or ``mps``.

    Attributes:
        device: Its name.
        waits: Each time that the host waited.
        doubles: Each tensor of float64 that was made on the device.
    """

    _mode_key = torch._C._TorchDispatchModeKey.FAKE  # so that torch's C++ does not look for the device itself

    def __init__(self, kind: str = "cuda") -> None:
        super().__init__()
        self.device = torch.device(kind, 0)
        self.waits: list[Note] = []
        self.doubles: list[Note] = []
        self.pinned: dict[int, Tensor] = {}
        self.entered: list[ExitStack] = []

    def put(self, values: Tensor) -> OnDevice:
        """Returns a tensor of the device, as if it had always been there."""
        return OnDevice(values, self)

    def __enter__(self) -> "Accelerator":
        patches = ExitStack()
        if hasattr(torch._C, "_ensureCUDADeviceGuardSet"):
            torch._C._ensureCUDADeviceGuardSet()
        else:  # older versions of torch ask the driver which device a bare "cuda" is
            patches.enter_context(mock.patch("torch.Tensor.to", self._moved))
        torch._C._set_only_lift_cpu_tensors(True)
        for name, value in self._answers().items():
            patches.enter_context(mock.patch(name, value))
        patches.enter_context(mock.patch("threading.Thread.run", lambda thread: self._run(thread)))
        self.entered.append(patches)
        return super().__enter__()

    def __exit__(self, *raised):
        torch._C._set_only_lift_cpu_tensors(False)
        self.entered.pop().close()
        return super().__exit__(*raised)

    def _run(self, thread: threading.Thread) -> None:
        """Runs a thread that was started while the device is there; a mode is one thread's."""
        super().__enter__()
        try:
            RUN(thread)
        finally:
            super().__exit__(None, None, None)

    def _answers(self) -> dict[str, object]:
        """Returns what torch's own functions say of the device."""
        if self.device.type == "mps":
            return {"torch.backends.mps.is_available": lambda: True, "torch.mps.synchronize": self._synchronize}
        return {
            "torch.cuda.is_available": lambda: True,
            "torch.cuda.device_count": lambda: 1,
            "torch.cuda.synchronize": self._synchronize,
            "torch.cuda.memory_allocated": lambda device=None: 0,
            "torch.cuda.max_memory_allocated": lambda device=None: 0,
            "torch.cuda.reset_peak_memory_stats": lambda device=None: None,
            "torch.cuda.get_device_name": lambda device=None: "pretend",
            "torch.cuda.empty_cache": lambda: None,
        }

    @property
    def _moved(self) -> Callable:
        """Returns `torch.Tensor.to` as it is, but that a device without a number becomes this one."""
        own, kind, device = torch.Tensor.to, self.device.type, self.device

        def numbered(given):
            bare = isinstance(given, str | torch.device) and str(given) == kind
            return device if bare else given

        def to(tensor, *args, **kwargs):
            return own(tensor, *map(numbered, args), **{key: numbered(each) for key, each in kwargs.items()})

        return to

    def _synchronize(self, device: object = None) -> None:
        self._wait("synchronize")

    def _wait(self, what: str) -> None:
        self.waits.append(Note(what, _line()))

    def _own(self, device: torch.device | str | None) -> bool:
        return device is not None and torch.device(device).type in (self.device.type, INNER.type)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Computes an operation that may have no tensor of the device yet."""
        return self.compute(func, args, kwargs or {})

    def compute(self, func, args, kwargs):
        """Computes an operation of torch as the accelerator would."""
        name = func._schema.name.removeprefix("aten::") if hasattr(func, "_schema") else func.name()
        tensors: list[Tensor] = []
        values, named = _unwrapped(args, tensors), _unwrapped(kwargs, tensors)
        device = [each for each in tensors if isinstance(each, OnDevice)]
        asked = kwargs.get("device")
        if name in ("_pin_memory", "is_pinned") and not device:
            return self._pin(args[0]) if name == "_pin_memory" else id(args[0]) in self.pinned
        if not device and not self._own(asked):
            return func(*args, **kwargs)
        if asked is not None:
            named["device"] = CPU
        if name == "_to_copy":
            return self._copied(func, args[0], values[1:], named, to_device=asked is None or self._own(asked))
        if name == "copy_":
            if not all(isinstance(each, OnDevice) for each in args[:2]):
                self._wait(f"copy_ to the {'device' if isinstance(args[0], OnDevice) else 'host'}")
        elif name not in INDEXED:
            self._refuse_mixes(name, tensors, kwargs)
        else:
            self._index(name, args)
        if name in VALUES_READ | SHAPES_READ | CHECKED:
            self._wait(name)
        out = func(*values, **named)
        if name in VALUES_READ:
            return out
        wrappers = {id(_values(each)): each for each in tensors}
        return _mapped(out, lambda each: self._kept(each, wrappers, name))

    def _kept(self, values: Tensor, wrappers: dict[int, Tensor], name: str) -> Tensor:
        """Returns a result on the device; what was changed in place is the tensor that it was."""
        if id(values) in wrappers:
            return wrappers[id(values)]
        if values.dtype == torch.float64:
            if self.device.type == "mps":
                raise TypeError(
                    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. "
                    f"Please use float32 instead. ({name} at {_line()})"
                )
            self.doubles.append(Note(name, _line()))
        return OnDevice(values, self)

    def _copied(self, func, source: Tensor, rest, kwargs, *, to_device: bool) -> Tensor:
        waits = isinstance(source, OnDevice) != to_device
        if to_device and id(source) in self.pinned and kwargs.get("non_blocking"):
            waits = False
        if waits:
            self._wait(f"copy to the {'device' if to_device else 'host'}")
        values = _values(source)
        changed = kwargs.get("dtype") not in (None, values.dtype) or kwargs.get("memory_format") is not None
        if isinstance(source, OnDevice) and to_device and not changed:
            return OnDevice(values, self)  # a real one would return the source itself
        out = func(values, *rest, **{**kwargs, "non_blocking": False, "pin_memory": None})
        return self._kept(out, {}, "copy") if to_device else out

    def _pin(self, source: Tensor) -> Tensor:
        pinned = source.clone()
        self.pinned[id(pinned)] = pinned
        return pinned

    def _refuse_mixes(self, name: str, tensors: list[Tensor], kwargs) -> None:
        if isinstance(kwargs.get("generator"), torch.Generator) and kwargs["generator"].device.type == "cpu":
            raise RuntimeError(f"Expected a '{self.device.type}' device type for generator but found 'cpu' ({_line()})")
        host = [each for each in tensors if not isinstance(each, OnDevice)]
        if not host:
            return
        number = len(host) == 1 and host[0].ndim == 0
        if name == "where" and all(each.ndim == 0 for each in host):
            self._wait("where, of numbers of the host")
        elif not number or not (name in FILLED or (len(tensors) == 2 and name not in ("cat", "stack"))):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {self.device} and "
                f"cpu! ({name} at {_line()})"
            )

    def _index(self, name: str, args) -> None:
        source, indices, *values = args
        if not isinstance(source, OnDevice):
            raise RuntimeError(
                f"indices should be either on cpu or on the same device as the indexed tensor (cpu) ({_line()})"
            )
        for index in indices:
            if index is not None and not isinstance(index, OnDevice):
                self._wait(f"{name}, by an index of the host")
            elif index is not None and index.dtype in (torch.bool, torch.uint8):
                if not (values and not isinstance(values[0], OnDevice) and values[0].ndim == 0):  # else it is a fill
                    self._wait(f"{name}, by a mask")
        if values and isinstance(values[0], Tensor) and not isinstance(values[0], OnDevice) and values[0].ndim:
            raise RuntimeError(f"Expected all tensors to be on the same device ({name} at {_line()})")


def _values(held: Tensor) -> Tensor:
    return held.values if isinstance(held, OnDevice) else held


def _mapped(held, change):
    """Returns the same with every tensor in it changed; torch's own trees take most of an operation's time."""
    if isinstance(held, Tensor):
        return change(held)
    if isinstance(held, tuple | list):
        return type(held)([_mapped(each, change) for each in held])
    return {key: _mapped(each, change) for key, each in held.items()} if isinstance(held, dict) else held


def _unwrapped(held, found: list[Tensor]):
    """Returns the same with the values of every tensor in it, and adds the tensors to those found."""
    return _mapped(held, lambda each: found.append(each) or _values(each))


def _line() -> str:
    """Returns where steersman's code is at work, or else whichever is."""
    frame, outer = sys._getframe(1), None
    while frame is not None:
        path = frame.f_code.co_filename
        if SOURCE in path and "site-packages" not in path.rpartition(SOURCE)[2]:
            return f"{path.rpartition(SOURCE)[2]}:{frame.f_lineno}"
        if outer is None and path != __file__ and f"{Path('torch')}/" not in path:
            outer = f"{Path(path).name}:{frame.f_lineno}"
        frame = frame.f_back
    return outer or "?"


@contextmanager
def awaits_nothing(accelerator: Accelerator) -> Iterator[None]:
    """Fails where the host waits for the device within."""
    before = len(accelerator.waits)
    yield
    assert accelerator.waits[before:] == []


class Steps:
    """A callback of the sampling loop that counts the waits by the end of each step.

    Args:
        accelerator: Where the samples are.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.marks: list[int] = []

    def __call__(self, report: object = None) -> None:
        """Counts those so far."""
        self.marks.append(len(self.accelerator.waits))

    @property
    def waits(self) -> list[Note]:
        """Those after the first step and up to the end of the last."""
        assert len(self.marks) > 1
        return self.accelerator.waits[self.marks[0] : self.marks[-1]]
