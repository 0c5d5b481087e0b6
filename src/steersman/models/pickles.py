"""Pickles read without running anything: as text that says what an object was, never as the program it is.

A pickle is a program for a stack machine: ``GLOBAL`` imports a name, and ``REDUCE``, ``NEWOBJ`` and ``BUILD`` call it
and what it made. NVIDIA's network files even carry source code that is executed as they are loaded. Here the opcodes
come from Python's own parser, `pickletools.genops`, which decodes and does no more; a name stays a name, and what it
would have been called with makes

    a container         dict, list, tuple, set, of the same content
    a tensor            from a storage in the file, checked against its length
    a `Record`          for the rest: the name, the arguments, the state

In a network file of NVIDIA's, only the names in `CALLS` are let through, whatever their place in the file; any other is
refused by its name, before the next opcode is read. In a checkpoint of torch's, anything may lie beside the tensors
(`argparse.Namespace`, a configuration, a scheduler, numbers of NumPy): a name that is not among them becomes a record.
What is built stays within the order of the file's size, and within `MOST` opcodes.

A tensor's storage is a file in the file (PyTorch's layout before 1.6): five pickles, which are a magic number, a
version, the sizes of the writer's types, the storage's type, key and count n, and a list of its key; then n as 64 bits
and the n values. A checkpoint of that layout is the same with any number of storages. Since 1.6 it is an archive: the
pickle ``data.pkl``, and each storage in a file of its own, which is mapped into memory and not read.

Sources: https://docs.python.org/3/library/pickletools.html; https://github.com/NVlabs/edm, torch_utils/persistence.py
(the records); https://github.com/pytorch/pytorch, torch/serialization.py (the storages).
"""

import math
import pickletools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from torch import Tensor

from steersman.errors import InputError, one_line
from steersman.files import regular

__all__ = ["Record", "read_checkpoint", "read_pickle"]

MOST = 500_000  # opcodes; EDM's network of ImageNet takes some 60,000, of a checkpoint a tensor with its moments 100
LONGEST = 80  # characters of a file's own text in a message

NAME_LENGTHS = 26  # where a file in an archive says how long its name and more are, before its content
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001

DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.storage.UntypedStorage": torch.uint8,  # of bytes; the tensor says its type
    "torch.UntypedStorage": torch.uint8,
}


@dataclass(kw_only=True, eq=False, repr=False)
class Record:
    """What a file says of one object.

    Attributes:
        name: The name of its class, or of the function that would have made it.
        args: What that would have been called with.
        state: What its attributes would have been set from; None where the file has none.
        items: What it would have held by key, where it is a mapping of its own kind.
    """

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Name:
    """A name that a pickle would have imported."""

    text: str


@dataclass(frozen=True)
class Stored:
    """A storage as a pickle announces it."""

    dtype: torch.dtype
    key: str
    count: int


Load = Callable[[Stored], Any]
"""From a storage that a pickle announces to what stands for it."""


def read_pickle(path: str | Path) -> Any:  # noqa: ANN401
    """Returns what a file holds, tensors on the CPU; nothing of it is imported, called or executed.

    Args:
        path: A pickle of protocol 2 to 5, written as Python 3 writes it.

    Raises:
        InputError: It cannot be read, is damaged, or names anything but tensors, plain containers and
            `torch_utils.persistence`'s objects.
    """
    with _about(path), regular(Path(path)).open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as stream:
        return _run(stream, CALLS)


def read_checkpoint(path: str | Path) -> Any:  # noqa: ANN401
    """Returns what a file of `torch.save` holds, tensors on the CPU; nothing of it is imported, called or executed.

    Whatever is neither a tensor nor a plain container or value becomes a `Record`.

    Args:
        path: The file, an archive or of the older layout; or a plain pickle.

    Raises:
        InputError: It cannot be read, or is damaged.
    """
    with _about(path):
        if is_zipfile(path):
            return _archive(Path(path))
        with Path(path).open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as stream:
            return _older(stream)


@contextmanager
def _about(path: str | Path) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"{str(path)!r} cannot be read ({error})") from error
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        AttributeError,
        RuntimeError,
        MemoryError,
        BadZipFile,
    ) as error:
        raise InputError(
            f"{str(path)!r} cannot be read (no pickle, or a damaged one: {_short(one_line(error))})"
        ) from error


def _archive(path: Path) -> Any:  # noqa: ANN401
    """Returns what an archive holds, its storages mapped into memory."""
    whole = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
    with ZipFile(path) as archive, path.open("rb") as file:
        parts = {each.filename: each for each in archive.infolist()}
        (pickled,) = (name for name in parts if name.endswith("/data.pkl") or name == "data.pkl")
        root = pickled.removesuffix("data.pkl")
        if f"{root}byteorder" in parts and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("values of another byte order")

        def load(stored: Stored) -> Tensor:
            part = parts[f"{root}data/{stored.key}"]
            file.seek(part.header_offset + NAME_LENGTHS)
            name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
            start = part.header_offset + NAME_LENGTHS + 4 + name + extra
            values = whole[start : start + part.file_size]
            if len(values) != stored.count * stored.dtype.itemsize:
                raise ValueError("a storage that is not as long as it says")
            aligned = values if start % stored.dtype.itemsize == 0 else values.clone()
            return aligned.view(stored.dtype)

        return _run(BytesIO(archive.read(pickled)), ANYTHING, load=load, strict=False)


def _older(stream: mmap) -> Any:  # noqa: ANN401
    """Returns what a file of the older layout holds, or a plain pickle."""
    first = _run(stream, ANYTHING, strict=False)
    if first != MAGIC:
        return first
    version, system = (_run(stream, {}) for _ in range(2))
    if version != VERSION or _of(dict, system).get("little_endian") is not True:
        raise ValueError("a checkpoint of another layout")
    storages: dict[str, Tensor] = {}

    def load(stored: Stored) -> Tensor:
        if stored.key not in storages:
            room = len(stream) - sum(each.nbytes for each in storages.values())
            if not 0 <= stored.count * stored.dtype.itemsize <= room:
                raise ValueError("storages longer than the file")
            storages[stored.key] = torch.empty(stored.count, dtype=stored.dtype)
        return storages[stored.key]

    content = _run(stream, ANYTHING, load=load, strict=False)
    for key in _of(list, _run(stream, {})):
        values = storages[_of(str, key)]
        written = stream.read(8 + values.nbytes)
        if int.from_bytes(written[:8], "little", signed=True) != len(values) or len(written) != 8 + values.nbytes:
            raise ValueError("a storage that is not as long as it says")
        if len(values):
            values.copy_(torch.frombuffer(bytearray(written[8:]), dtype=values.dtype))
    return content


def _run(
    stream: Any,  # noqa: ANN401
    calls: Mapping[str, Callable[..., Any]],
    *,
    load: Load | None = None,
    strict: bool = True,
) -> Any:  # noqa: ANN401
    """Returns what the opcodes up to ``STOP`` leave on the stack; the stream stands behind it then.

    Args:
        stream: Of bytes, with ``read``, ``readline`` and ``tell``.
        calls: What a name makes of its arguments.
        load: Makes what stands for a storage of its persistent id; None where none may occur.
        strict: Whether no other names than those of calls and of storages may occur; else they make records.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    names = (DTYPES if load else calls) if strict else None
    arg: Any
    for number, (opcode, arg, _) in enumerate(pickletools.genops(stream)):
        if number >= MOST:
            raise InputError(f"more than {MOST} opcodes")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                (result,) = stack
                return result
            case "MARK":
                marks.append(len(stack))
            case "POP_MARK":
                _since(marks, stack)
            case "POP":
                stack.pop()
            case "DUP":
                stack.append(stack[-1])
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case literal if literal in LITERALS:
                stack.append(arg)
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_SET":
                stack.append(set())
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                if len(stack) < count:
                    raise ValueError("too few items for a tuple")
                stack[-count:] = [tuple(stack[-count:])]
            case "LIST":
                items = _since(marks, stack)
                stack.append(items)
            case "TUPLE":
                items = _since(marks, stack)
                stack.append(tuple(items))
            case "DICT":
                items = _since(marks, stack)
                stack.append(_filled({}, items, strict))
            case "FROZENSET":
                items = _since(marks, stack)
                stack.append(frozenset(_key(each, strict) for each in items))
            case "APPEND" | "APPENDS":
                items = _since(marks, stack) if opcode.name == "APPENDS" else [stack.pop()]
                _extended(stack[-1], items)
            case "ADDITEMS":
                items = _since(marks, stack)
                _of(set, stack[-1]).update(_key(each, strict) for each in items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _filled(stack[-1], [key, value], strict)
            case "SETITEMS":
                items = _since(marks, stack)
                _filled(stack[-1], items, strict)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "GLOBAL":
                stack.append(_named(names, arg.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                last, module = _of(str, stack.pop()), _of(str, stack.pop())
                stack.append(_named(names, f"{module}.{last}"))
            case "INST":
                name, args = _named(names, arg.replace(" ", ".", 1)), _since(marks, stack)
                stack.append(_call(calls, name, tuple(args), strict))
            case "OBJ":
                name, *args = _since(marks, stack)
                stack.append(_call(calls, name, tuple(args), strict))
            case "REDUCE" | "NEWOBJ":
                args, name = stack.pop(), stack.pop()
                stack.append(_call(calls, name, args, strict))
            case "NEWOBJ_EX" if not strict:
                settings, args, name = stack.pop(), stack.pop(), stack.pop()
                stack.append(_call({}, name, (*args, settings), strict))
            case "BUILD":
                _build(stack[-2], stack.pop(), strict)
            case "BINPERSID" if load is not None:
                stack.append(load(_stored(*_of(tuple, stack.pop()))))
            case other:
                raise InputError(f"the opcode {other} is not allowed")
    raise ValueError("it has no end")


LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE "
    "SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8".split()
)
"""Opcodes whose argument, as it was parsed, is the value."""


def _since(marks: list[int], stack: list[Any]) -> list[Any]:
    """Takes what was stacked since the last mark."""
    start = marks.pop()
    if start > len(stack):
        raise ValueError("a mark above the stack")
    items = stack[start:]
    del stack[start:]
    return items


def _named(names: Mapping[str, Any] | None, text: str) -> Name:
    if names is not None and text not in names:
        raise InputError(f"it asks for {_short(text)}; only tensors, plain containers and records of networks are read")
    return Name(text)


def _call(calls: Mapping[str, Callable[..., Any]], name: Any, args: Any, strict: bool) -> Any:  # noqa: ANN401
    known = isinstance(name, Name) and isinstance(args, tuple) and name.text in calls
    if strict and not known:
        raise InputError(f"it calls {_short(name.text if isinstance(name, Name) else type(name).__name__)}")
    if known:
        return calls[name.text](name.text, *args)
    return Record(name=name.text if isinstance(name, Name) else "", args=args if isinstance(args, tuple) else ())


def _of(kind: type, value: Any) -> Any:  # noqa: ANN401
    if type(value) is not kind:
        raise TypeError(f"a {type(value).__name__} in place of a {kind.__name__}")
    return value


def _key(value: Any, strict: bool = True) -> Any:  # noqa: ANN401
    """A key or a member: of a kind whose hash looks at nothing else, however deep the file nests.

    Where it need not be strict, another one stands as a record of its kind, equal to nothing else.
    """
    if value is None or type(value) in (str, int, float, bool, bytes):
        return value
    if strict:
        raise TypeError(f"a {type(value).__name__} as a key")
    return Record(name=type(value).__name__)


def _filled(content: Any, items: list[Any], strict: bool) -> Any:  # noqa: ANN401
    held = content.items if isinstance(content, Record) and not strict else _of(dict, content)
    for key, value in zip(items[::2], items[1::2], strict=True):
        held[_key(key, strict)] = value
    return content


def _extended(content: Any, items: list[Any]) -> None:  # noqa: ANN401
    """Adds to a list; a record stands for a kind of list of its own, whose items are not needed."""
    if not isinstance(content, Record):
        _of(list, content).extend(items)


def _build(made: Any, state: Any, strict: bool) -> None:  # noqa: ANN401
    """Keeps a record's state; a mapping's own attributes (a state dict's versions) are not its content."""
    if type(made) is dict or not (strict or isinstance(made, Record)):
        return
    if _of(Record, made).state is not None and strict:
        raise TypeError("a second state for one object")
    made.state = state


def _stored(kind: Any, name: Any, key: Any, _location: Any, count: Any, input: Any = None) -> Stored:  # noqa: ANN401
    if kind != "storage" or type(name) is not Name or input is not None:
        raise ValueError("a persistent id that is no whole storage's")
    return Stored(DTYPES[name.text], _of(str, key), _of(int, count))


def _storage(_: str, blob: Any) -> Tensor:  # noqa: ANN401
    """Returns the values of one storage, as a tensor of one axis."""
    stream = BytesIO(_of(bytes, blob))
    magic, version, system, stored, keys = (_run(stream, {}, load=lambda stored: stored) for _ in range(5))
    if _of(int, magic) != MAGIC or _of(int, version) != VERSION or _of(dict, system).get("little_endian") is not True:
        raise ValueError("a storage of another layout")
    dtype, key, count = _of(Stored, stored).dtype, stored.key, stored.count
    (announced,) = _of(list, keys)
    written = int.from_bytes(stream.read(8), "little", signed=True)
    values = bytearray(memoryview(blob)[stream.tell() :])
    if _of(str, announced) != key or written != count or len(values) != count * dtype.itemsize:
        raise ValueError("a storage that is not as long as it says")
    return torch.frombuffer(values, dtype=dtype) if count else torch.empty(0, dtype=dtype)


def _tensor(_: str, storage: Any, offset: Any, size: Any, stride: Any, *_more: Any) -> Tensor:  # noqa: ANN401
    """Returns a view of a storage, which must hold each of its values."""
    numbers = [_of(int, each) for each in (offset, *_of(tuple, size), *_of(tuple, stride))]
    if len(size) != len(stride) or min(numbers) < 0:
        raise ValueError("a tensor of an impossible shape")
    held, asked = len(_of(Tensor, storage)), math.prod(size)
    last = offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True)) if asked else offset - 1
    if asked > held or last >= held:
        raise ValueError("a tensor larger than its storage")
    return storage.as_strided(size, stride, storage.storage_offset() + offset)


def _tensor_of_type(_: str, storage: Any, offset: Any, size: Any, stride: Any, *more: Any) -> Tensor:  # noqa: ANN401
    """Returns a view of a storage of bytes in the type that the tensor says, as of float8."""
    dtype = getattr(torch, more[2].text.removeprefix("torch."), None) if isinstance(more[2], Name) else None
    if not isinstance(dtype, torch.dtype):
        raise ValueError("a tensor of an unknown type")
    return _tensor(_, _of(Tensor, storage).view(dtype), offset, size, stride)


def _tensor_of_class(_: str, function: Any, _class: Any, args: Any, *_more: Any) -> Any:  # noqa: ANN401
    """Returns a tensor of a class of its own as a plain one."""
    return _call(ANYTHING, function, args, False)


def _parameter(_: str, data: Any, *_more: Any) -> Tensor:  # noqa: ANN401
    return _of(Tensor, data)


def _mapping(_: str, *content: Any) -> dict[Any, Any]:  # noqa: ANN401
    """Returns a mapping, which its items follow, or which is made of one."""
    return dict(content[-1]) if content and type(content[-1]) is dict else {}


def _size(_: str, sides: Any) -> tuple[Any, ...]:  # noqa: ANN401
    return _of(tuple, sides)


def _set(_: str, members: Any) -> set[Any]:  # noqa: ANN401
    return set(map(_key, _of(list, members)))


def _persistent(_: str, meta: Any) -> Record:  # noqa: ANN401
    """An object of `torch_utils.persistence`, without the source code that it brings along."""
    return Record(name=_of(str, _of(dict, meta)["class_name"]), state=_of(dict, meta["state"]))


def _encoded(_: str, text: Any, _encoding: Any) -> bytes:  # noqa: ANN401
    """Returns bytes, which protocol 2 has no opcode for."""
    return _of(str, text).encode("latin-1")


def _record(name: str, *args: Any) -> Record:  # noqa: ANN401
    return Record(name=name, args=args)


CALLS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encoded,
    "builtins.set": _set,
    "collections.OrderedDict": _mapping,
    "dnnlib.util.EasyDict": _mapping,
    "numpy._core.multiarray._reconstruct": _record,
    "numpy._core.multiarray.scalar": _record,
    "numpy.core.multiarray._reconstruct": _record,
    "numpy.core.multiarray.scalar": _record,
    "numpy.dtype": _record,
    "numpy.ndarray": _record,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.nn.modules.container.ModuleDict": _record,
    "torch.nn.modules.container.ModuleList": _record,
    "torch.nn.modules.container.Sequential": _record,
    "torch.storage._load_from_bytes": _storage,
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
}
"""The names that a pickle may call, and what is made of their arguments instead."""


ANYTHING: dict[str, Callable[..., Any]] = CALLS | {
    "builtins.set": _record,
    "collections.Counter": _mapping,
    "collections.defaultdict": _mapping,
    "torch.Size": _size,
    "torch._tensor._rebuild_from_type_v2": _tensor_of_class,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_type,
}
"""The same for a checkpoint of torch's, in which any other name makes a record."""


def _short(text: str) -> str:
    """A file's own text, fit for a line."""
    return ascii(text)[1:-1][:LONGEST]
