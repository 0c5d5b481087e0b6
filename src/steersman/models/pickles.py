"""Pickles read as data: names stay names, and nothing is imported, called or executed.

A pickle is a program for a stack machine. `pickletools` parses its opcodes and says what each pops and pushes;
`_Reader` keeps the stack, and makes

    a container    dict, list, tuple, set, of the same content
    a tensor       a view of a storage in the file, checked against its length
    a `Record`     of anything else: the name, the arguments, the state

`pickle.Unpickler` would not do, whatever names it is allowed: it hashes keys, which takes 2^n steps for n nested pairs,
takes memory for the indices and lengths that a file claims, and calls ``__setstate__`` of what it made.

`read_pickle` refuses all names but those of NVIDIA's network files (https://github.com/NVlabs/edm), `read_checkpoint`
makes records of them. A checkpoint of torch's is an archive with ``data.pkl`` and a file per storage, which are mapped
into memory. Before 1.6 it was five pickles (magic number, version, system, content, keys of the storages), then count
and values of each storage (https://github.com/pytorch/pytorch, torch/serialization.py).
"""

import math
import pickletools
from collections.abc import Callable, Collection, Iterator
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

MOST = 500_000  # opcodes; EDM's network of ImageNet has some 60,000, a checkpoint 100 for a tensor with its moments
LONGEST = 80  # characters of a file's own text in a message

NAME_LENGTHS = 26  # where an archive's header of a file has the lengths of its name and extra field
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001

TYPES = (
    "Float float32, Half float16, BFloat16 bfloat16, Double float64, Long int64, Int int32, Short int16, Char int8, "
    "Byte uint8, Bool bool, ComplexFloat complex64, ComplexDouble complex128, Untyped uint8"
)
DTYPES = {f"torch.{name}Storage": getattr(torch, dtype) for name, dtype in map(str.split, TYPES.split(","))}
DTYPES["torch.storage.UntypedStorage"] = torch.uint8  # of bytes; the tensor has the type


@dataclass(kw_only=True, eq=False, repr=False)
class Record:
    """An object of a file.

    Attributes:
        name: The name of its class, or of the function that would have made it.
        args: The arguments of that.
        state: The attributes; None where the file has none.
        items: The content of a mapping of its own kind.
    """

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Name:
    """A name that a pickle would have imported."""

    text: str


Storage = Callable[[torch.dtype, str, int], Tensor]
"""From type, key and count of a storage to its values."""


def read_pickle(path: str | Path) -> Any:  # noqa: ANN401
    """Returns what a pickle of plain containers, tensors and NVIDIA's networks holds; refuses any other name."""
    with _about(path), regular(Path(path)).open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as stream:
        return _Reader(len(stream)).run(stream, names={*MAKERS, *RECORDS})


def read_checkpoint(path: str | Path) -> Any:  # noqa: ANN401
    """Returns what a file of `torch.save` or a plain pickle holds, with a `Record` for any unknown object."""
    with _about(path):
        if is_zipfile(path):
            return _archive(Path(path))
        with Path(path).open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as stream:
            return _Reader(len(stream)).legacy(stream)


@contextmanager
def _about(path: str | Path) -> Iterator[None]:
    damage = (OSError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError, MemoryError)
    try:
        yield
    except InputError as error:
        raise InputError(f"{str(path)!r} cannot be read ({error})") from error
    except (*damage, BadZipFile) as error:
        reason = _short(one_line(error))
        raise InputError(f"{str(path)!r} cannot be read (no pickle, or a damaged one: {reason})") from error


def _archive(path: Path) -> Any:  # noqa: ANN401
    """Returns the content of an archive, its storages mapped into memory."""
    mapped = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
    with ZipFile(path) as archive, path.open("rb") as file:
        parts = {part.filename: part for part in archive.infolist()}
        (pickled,) = (name for name in parts if name.endswith("/data.pkl") or name == "data.pkl")
        root = pickled.removesuffix("data.pkl")
        if f"{root}byteorder" in parts and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("values of another byte order")
        storages: dict[str, Tensor] = {}

        def storage(dtype: torch.dtype, key: str, count: int) -> Tensor:
            if key not in storages:
                part = parts[f"{root}data/{key}"]
                file.seek(part.header_offset + NAME_LENGTHS)
                name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
                start = part.header_offset + NAME_LENGTHS + 4 + name + extra
                values = mapped[start : start + part.file_size]
                storages[key] = (values if start % dtype.itemsize == 0 else values.clone()).view(dtype)
            return _checked(storages[key], dtype, count)

        content = archive.read(pickled)
        return _Reader(len(content)).run(BytesIO(content), storage=storage)


class _Reader:
    """The stack machine for the pickles of a file of so many bytes."""

    def __init__(self, size: int) -> None:
        # Bytes and items that may still be copied. Protocol 2 has bytes as text, and a storage is in bytes.
        self._room = 4 * size

    def run(self, stream: Any, names: Collection[str] | None = None, storage: Storage | None = None) -> Any:  # noqa: ANN401
        """Returns the value of the next pickle of a stream."""
        stack: list[Any] = []
        memo: dict[int, Any] = {}
        arg: Any
        for number, (opcode, arg, _) in enumerate(pickletools.genops(stream)):
            if number >= MOST:
                raise InputError(f"more than {MOST} opcodes")
            operands = _pop(stack, opcode.stack_before)
            match opcode.name:
                case "PROTO" | "FRAME" | "POP" | "POP_MARK":
                    continue
                case "PUT" | "BINPUT" | "LONG_BINPUT":
                    memo[arg] = stack[-1]
                    continue
                case "STOP" if not stack and operands[0] is not pickletools.markobject:
                    return operands[0]
                case "MARK":
                    result = pickletools.markobject
                case "DUP":
                    stack.append(result := operands[0])
                case "MEMOIZE":
                    result = memo[len(memo)] = operands[0]
                case "GET" | "BINGET" | "LONG_BINGET":
                    result = memo[arg]
                case literal if literal in LITERALS:
                    result = arg
                case container if container in CONTAINERS:
                    result = CONTAINERS[container](*operands)
                case "GLOBAL":
                    result = _named(arg, names)
                case "STACK_GLOBAL":
                    result = _named(" ".join(operands), names)
                case "INST":
                    result = self.call(_named(arg, names), tuple(operands), names)
                case "OBJ":
                    result = self.call(operands[0], tuple(operands[1:]), names)
                case "REDUCE" | "NEWOBJ":
                    function, args = operands
                    result = self.call(function, args, names)
                case "NEWOBJ_EX":
                    result = self.call(operands[0], (*_of(tuple, operands[1]), operands[2]), names)
                case "BUILD":
                    result = _build(*operands)
                case "BINPERSID" if storage is not None:
                    kind, name, key, _location, count, *view = _of(tuple, operands[0])
                    if kind != "storage" or view not in ([], [None]):
                        raise ValueError("a persistent id that is no whole storage's")
                    result = storage(DTYPES[_of(_Name, name).text], _of(str, key), _of(int, count))
                case "STOP":
                    raise ValueError("more than one value at its end")
                case other:
                    raise InputError(f"the opcode {other} is not allowed")
            stack.append(result)
        raise ValueError("it has no end")

    def legacy(self, stream: Any, names: Collection[str] | None = None) -> Any:  # noqa: ANN401
        """Returns the content of a checkpoint of the older layout, or of a plain pickle."""
        first = self.run(stream, names)
        if type(first) is not int or first != MAGIC:
            return first
        version, system = (self.run(stream, ()) for _ in range(2))
        if version != VERSION or _of(dict, system).get("little_endian") is not True:
            raise ValueError("a checkpoint of another layout")
        storages: dict[str, Tensor] = {}

        def storage(dtype: torch.dtype, key: str, count: int) -> Tensor:
            if key not in storages:
                self._spend(max(count, 0) * dtype.itemsize)
                storages[key] = torch.empty(count, dtype=dtype)
            return _checked(storages[key], dtype, count)

        content = self.run(stream, names, storage)
        for key in _of(list, self.run(stream, ())):
            values = storages[_of(str, key)]
            count, written = stream.read(8), stream.read(values.nbytes)
            if int.from_bytes(count, "little", signed=True) != len(values) or len(written) != values.nbytes:
                raise ValueError("a storage that is not as long as it says")
            if len(values):
                values.copy_(torch.frombuffer(bytearray(written), dtype=values.dtype))
        if stream.read(1):
            raise ValueError("more values than those of its storages")
        return content

    def _spend(self, count: int) -> None:
        """Counts what is copied against the file's size."""
        self._room -= count
        if self._room < 0:
            raise ValueError("content larger than the file")

    def call(self, function: Any, args: Any, names: Collection[str] | None = None) -> Any:  # noqa: ANN401
        """Returns what stands for the result of a call."""
        name = function.text if isinstance(function, _Name) else ""
        if name in MAKERS:
            return MAKERS[name](self, *_of(tuple, args))
        if names is not None and name not in RECORDS:
            raise InputError(f"it calls {_short(name or type(function).__name__)}")
        return Record(name=name, args=args if type(args) is tuple else ())

    def blob(self, content: Any) -> Tensor:  # noqa: ANN401
        """A storage that is pickled as a checkpoint of the older layout."""
        return _of(Tensor, self.legacy(BytesIO(_of(bytes, content)), DTYPES))

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_more: Any) -> Tensor:  # noqa: ANN401
        """A view of a storage, which must hold each of its values."""
        numbers = [_of(int, number) for number in (offset, *_of(tuple, size), *_of(tuple, stride))]
        if len(size) != len(stride) or min(numbers) < 0:
            raise ValueError("a tensor of an impossible shape")
        count, length = math.prod(size), len(_of(Tensor, storage))
        last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True)) if count else offset - 1
        if count > length or last >= length:
            raise ValueError("a tensor larger than its storage")
        return storage.as_strided(size, stride, storage.storage_offset() + offset)

    def tensor_of_type(self, storage: Any, offset: Any, size: Any, stride: Any, *more: Any) -> Tensor:  # noqa: ANN401
        """A view of a storage of bytes in the tensor's own type, such as float8."""
        dtype = getattr(torch, _of(_Name, more[2]).text.removeprefix("torch."), None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError("a tensor of an unknown type")
        return self.tensor(_of(Tensor, storage).view(dtype), offset, size, stride)

    def tensor_of_class(self, function: Any, _class: Any, args: Any, *_more: Any) -> Any:  # noqa: ANN401
        """A plain tensor for one of a class of its own."""
        return self.call(function, args)

    def mapping(self, *content: Any) -> dict[Any, Any]:  # noqa: ANN401
        """A mapping, made of another or followed by its items."""
        if not content or type(content[-1]) is not dict:
            return {}
        self._spend(len(content[-1]))
        return dict(content[-1])

    def set(self, members: Any) -> set[Any]:  # noqa: ANN401
        """A set, for which protocol 3 and older have no opcode."""
        self._spend(len(_of(list, members)))
        return {_key(member) for member in members}

    def encoded(self, text: Any, _encoding: Any) -> bytes:  # noqa: ANN401
        """Bytes, for which protocol 2 has no opcode."""
        self._spend(len(_of(str, text)))
        return text.encode("latin-1")

    def persistent(self, meta: Any) -> Record:  # noqa: ANN401
        """An object of NVIDIA's ``torch_utils.persistence``, without the source code that comes with it."""
        return Record(name=_of(str, _of(dict, meta)["class_name"]), state=_of(dict, meta["state"]))


MAKERS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _Reader.encoded,
    "builtins.set": _Reader.set,
    "collections.Counter": _Reader.mapping,
    "collections.OrderedDict": _Reader.mapping,
    "collections.defaultdict": _Reader.mapping,
    "dnnlib.util.EasyDict": _Reader.mapping,
    "torch.Size": lambda _reader, sides: _of(tuple, sides),
    "torch._tensor._rebuild_from_type_v2": _Reader.tensor_of_class,
    "torch._utils._rebuild_parameter": lambda _reader, data, *_more: _of(Tensor, data),
    "torch._utils._rebuild_parameter_with_state": lambda _reader, data, *_more: _of(Tensor, data),
    "torch._utils._rebuild_tensor": _Reader.tensor,
    "torch._utils._rebuild_tensor_v2": _Reader.tensor,
    "torch._utils._rebuild_tensor_v3": _Reader.tensor_of_type,
    "torch.storage._load_from_bytes": _Reader.blob,
    "torch_utils.persistence._reconstruct_persistent_obj": _Reader.persistent,
}
"""What stands for the result of a call of these names."""

RECORDS = {
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *("numpy.dtype", "numpy.ndarray"),
    *(f"torch.nn.modules.container.{name}" for name in ("ModuleDict", "ModuleList", "Sequential")),
}
"""The other names of NVIDIA's network files and NumPy's arrays."""

LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE "
    "SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8".split()
)
"""Opcodes whose argument, as it was parsed, is the value."""


def _pop(stack: list[Any], before: list[pickletools.StackObject]) -> list[Any]:
    """Takes an opcode's operands from the stack: as many as it says, or those since the last mark, without the mark."""
    start, mark = len(stack) - len(before), None
    if pickletools.markobject in before:
        mark = len(stack) - 1
        while mark >= 0 and stack[mark] is not pickletools.markobject:
            mark -= 1
        start = mark - before.index(pickletools.markobject)
    if start < 0:
        raise ValueError("too few values for an opcode")
    operands = stack[start:] if mark is None else stack[start:mark] + stack[mark + 1 :]
    del stack[start:]
    return operands


def _named(text: str, names: Collection[str] | None) -> _Name:
    text = text.replace(" ", ".", 1)
    if names is not None and text not in names:
        raise InputError(f"it asks for {_short(text)}; only tensors, plain containers and records of networks are read")
    return _Name(text)


def _of(kind: type, value: Any) -> Any:  # noqa: ANN401
    if type(value) is not kind:
        raise TypeError(f"a {type(value).__name__} in place of a {kind.__name__}")
    return value


def _checked(values: Tensor, dtype: torch.dtype, count: int) -> Tensor:
    if values.dtype != dtype or len(values) != count:
        raise ValueError("a storage that is not as long as it says")
    return values


def _key(value: Any) -> Any:  # noqa: ANN401
    """Returns a key or a member, whose hash looks at nothing else; any other object becomes a record of its kind."""
    if value is None or type(value) in (str, int, float, bool, bytes):
        return value
    if isinstance(value, list | dict | set):
        raise TypeError(f"a {type(value).__name__} as a key")
    return Record(name=type(value).__name__)


def _fill(content: Any, *items: Any) -> Any:  # noqa: ANN401
    """Sets items, keys and values in turn."""
    mapping = content.items if isinstance(content, Record) else _of(dict, content)
    for key, value in zip(items[::2], items[1::2], strict=True):
        mapping[_key(key)] = value
    return content


def _extend(content: Any, *items: Any) -> Any:  # noqa: ANN401
    """Extends a list; the items of a record, a kind of list of its own, are not kept."""
    if not isinstance(content, Record):
        _of(list, content).extend(items)
    return content


def _add(content: Any, *items: Any) -> Any:  # noqa: ANN401
    _of(set, content).update(map(_key, items))
    return content


def _build(content: Any, state: Any) -> Any:  # noqa: ANN401
    """Sets a record's state; the attributes of a mapping (a state dict's versions) or a tensor are not kept."""
    if not isinstance(content, dict | Tensor):
        _of(Record, content).state = state
    return content


CONTAINERS: dict[str, Callable[..., Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "EMPTY_TUPLE": tuple,
    **dict.fromkeys(("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"), lambda *items: items),
    "LIST": lambda *items: list(items),
    "DICT": lambda *items: _fill({}, *items),
    "FROZENSET": lambda *items: frozenset(map(_key, items)),
    **dict.fromkeys(("APPEND", "APPENDS"), _extend),
    **dict.fromkeys(("SETITEM", "SETITEMS"), _fill),
    "ADDITEMS": _add,
}
"""What opcodes make of their operands."""


def _short(text: str) -> str:
    """Returns a file's own text, fit for a message."""
    return ascii(text)[1:-1][:LONGEST]
