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
from zipfile import ZipFile, is_zipfile

import torch
from torch import Tensor

from steersman.errors import InputError, one_line
from steersman.files import regular

__all__ = ["Record", "excerpt", "read_checkpoint", "read_pickle"]

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


def read_pickle(path: str | Path) -> Any:  # noqa: ANN401
    """Returns what a pickle of plain containers, tensors and NVIDIA's networks holds; refuses any other name."""
    with _about(path), _mapped(regular(Path(path))) as stream:
        return _Reader(len(stream), names={*MAKERS, *RECORDS}).run(stream)


def read_checkpoint(path: str | Path) -> Any:  # noqa: ANN401
    """Returns what a file of `torch.save` or a plain pickle holds, with a `Record` for any unknown object."""
    with _about(path):
        if is_zipfile(path):
            return _archive(Path(path))
        with _mapped(Path(path)) as stream:
            return _Reader(len(stream)).legacy(stream)


@contextmanager
def _about(path: str | Path) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"{str(path)!r} cannot be read ({error})") from error
    except Exception as error:  # a damaged file may fail anywhere
        reason = excerpt(one_line(error))
        raise InputError(f"{str(path)!r} cannot be read (no pickle, or a damaged one: {reason})") from error


@contextmanager
def _mapped(path: Path) -> Iterator[mmap]:
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as stream:
        yield stream


def _archive(path: Path) -> Any:  # noqa: ANN401
    """Returns the content of an archive, its storages mapped into memory."""
    size = path.stat().st_size
    mapped = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).untyped_storage()
    with ZipFile(path) as archive, path.open("rb") as file:
        parts = {part.filename: part for part in archive.infolist()}
        (pickled,) = (name for name in parts if name.endswith("/data.pkl") or name == "data.pkl")
        root = pickled.removesuffix("data.pkl")
        if f"{root}byteorder" in parts and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("values of another byte order")

        def storage(dtype: torch.dtype, key: str, _count: int) -> Tensor:
            part = parts[f"{root}data/{key}"]
            file.seek(part.header_offset + NAME_LENGTHS)
            name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
            start = part.header_offset + NAME_LENGTHS + 4 + name + extra
            # A storage of its own: the length of the storage tells a tensor with all its values from an expanded one.
            values = torch.empty(0, dtype=torch.uint8).set_(mapped[start : start + part.file_size])
            return (values if start % dtype.itemsize == 0 else values.clone()).view(dtype)

        content = archive.read(pickled)
        return _Reader(len(content), storage=storage).run(BytesIO(content))


class _Reader:
    """The stack machine for the pickles of a file.

    Args:
        size: Number of bytes of the file.
        names: The names that it may ask for; None for any, of which records are made.
        storage: From type, key and count of a storage to its values; None where there are no storages.
    """

    def __init__(
        self,
        size: int,
        *,
        names: Collection[str] | None = None,
        storage: Callable[[torch.dtype, str, int], Tensor] | None = None,
    ) -> None:
        # Bytes and items that may still be copied. Protocol 2 has bytes as text, and a storage is in bytes.
        self._room = 4 * size
        self._names, self._storage = names, storage
        self._storages: dict[str, Tensor] = {}

    def run(self, stream: Any) -> Any:  # noqa: ANN401
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
                case "STOP" if stack or operands[0] is pickletools.markobject:
                    raise ValueError("more than one value at its end")
                case "STOP":
                    return operands[0]
                case "MARK":
                    result = pickletools.markobject
                case "DUP":
                    stack.append(result := operands[0])
                case "MEMOIZE":
                    result = memo[len(memo)] = operands[0]
                case "GET" | "BINGET" | "LONG_BINGET":
                    result = memo[arg]
                case other if other not in OPCODES or (other == "BINPERSID" and self._storage is None):
                    raise InputError(f"the opcode {other} is not allowed")
                case other:
                    result = OPCODES[other](self, *([] if opcode.arg is None else [arg]), *operands)
            stack.append(result)
        raise ValueError("it has no end")

    def legacy(self, stream: Any) -> Any:  # noqa: ANN401
        """Returns the content of a checkpoint of the older layout, or of a plain pickle."""
        first = self.run(stream)
        if type(first) is not int or first != MAGIC:
            return first
        version, system = self.run(stream), self.run(stream)
        if version != VERSION or _of(dict, system).get("little_endian") is not True:
            raise ValueError("a checkpoint of another layout")
        self._storage = self._empty
        content = self.run(stream)
        for key in _of(list, self.run(stream)):
            values = self._storages.pop(_of(str, key))
            count, written = stream.read(8), stream.read(values.nbytes)
            if int.from_bytes(count, "little", signed=True) != len(values) or len(written) != values.nbytes:
                raise ValueError("a storage that is not as long as it says")
            if len(values):
                values.copy_(torch.frombuffer(bytearray(written), dtype=values.dtype))
        if self._storages or stream.read(1):
            raise ValueError("storages without values, or values without a storage")
        return content

    def _empty(self, dtype: torch.dtype, _key: str, count: int) -> Tensor:
        """A storage whose values come after the pickle."""
        self._spend(max(count, 0) * dtype.itemsize)
        return torch.empty(count, dtype=dtype)

    def _spend(self, count: int) -> None:
        """Counts what is copied against the file's size."""
        self._room -= count
        if self._room < 0:
            raise ValueError("content larger than the file")

    def named(self, *parts: Any) -> _Name:  # noqa: ANN401
        """The name of a module and of what is in it, in one text or in two."""
        text = " ".join(parts).replace(" ", ".", 1)
        if self._names is not None and text not in self._names:
            raise InputError(
                f"it asks for {excerpt(text)}; only tensors, plain containers and records of networks are read"
            )
        self._spend(len(text))
        return _Name(text)

    def call(self, function: Any, args: Any, *_settings: Any) -> Any:  # noqa: ANN401
        """What stands for the result of a call."""
        name = function.text if isinstance(function, _Name) else ""
        if name in MAKERS:
            return MAKERS[name](self, *_of(tuple, args))
        if self._names is not None and name not in RECORDS:
            raise InputError(f"it calls {excerpt(name or type(function).__name__)}")
        return Record(name=name, args=args if type(args) is tuple else ())

    def persistent_id(self, told: Any) -> Tensor:  # noqa: ANN401
        """A storage, by what a checkpoint tells of it."""
        assert self._storage is not None
        kind, name, key, _location, count, *view = _of(tuple, told)
        if kind != "storage" or view not in ([], [None]):
            raise ValueError("a persistent id that is no whole storage's")
        dtype, key, count = DTYPES[_of(_Name, name).text], _of(str, key), _of(int, count)
        if key not in self._storages:
            self._storages[key] = self._storage(dtype, key, count)
        if (values := self._storages[key]).dtype != dtype or len(values) != count:
            raise ValueError("a storage that is not as long as it says")
        return values

    def blob(self, content: Any) -> Tensor:  # noqa: ANN401
        """A storage that is pickled as a checkpoint of the older layout."""
        self._spend(len(_of(bytes, content)))
        return _of(Tensor, _Reader(len(content), names=DTYPES).legacy(BytesIO(content)))

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_more: Any) -> Tensor:  # noqa: ANN401
        """A view of a storage, which must hold each of its values.

        A checkpoint may hold an expanded tensor, whose values are fewer, beside its weights.
        """
        numbers = [_of(int, number) for number in (offset, *_of(tuple, size), *_of(tuple, stride))]
        self._spend(len(numbers))
        if len(size) != len(stride) or min(numbers) < 0:
            raise ValueError("a tensor of an impossible shape")
        count, length = math.prod(size), len(_of(Tensor, storage))
        last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True)) if count else offset - 1
        if last >= length or (count > length and self._names is not None):
            raise ValueError("a tensor larger than its storage")
        return storage.as_strided(size, stride, storage.storage_offset() + offset)

    def tensor_of_type(self, storage: Any, offset: Any, size: Any, stride: Any, *more: Any) -> Tensor:  # noqa: ANN401
        """A view of a storage of bytes in the tensor's own type, such as float8."""
        dtype = getattr(torch, _of(_Name, more[2]).text.removeprefix("torch."), None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError("a tensor of an unknown type")
        return self.tensor(_of(Tensor, storage).view(dtype), offset, size, stride)

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


def _persistent(_reader: _Reader, meta: Any) -> Record:  # noqa: ANN401
    """Returns an object of NVIDIA's ``torch_utils.persistence``, without the source code that comes with it."""
    return Record(name=_of(str, _of(dict, meta)["class_name"]), state=_of(dict, meta["state"]))


def _parameter(_reader: _Reader, data: Any, *_more: Any) -> Tensor:  # noqa: ANN401
    return _of(Tensor, data)


MAKERS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _Reader.encoded,
    "builtins.set": _Reader.set,
    "collections.Counter": _Reader.mapping,
    "collections.OrderedDict": _Reader.mapping,
    "collections.defaultdict": _Reader.mapping,
    "dnnlib.util.EasyDict": _Reader.mapping,
    "torch.Size": lambda _reader, sides: _of(tuple, sides),
    # A plain tensor stands for one of a class of its own.
    "torch._tensor._rebuild_from_type_v2": lambda reader, function, _class, args, *_more: reader.call(function, args),
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_tensor": _Reader.tensor,
    "torch._utils._rebuild_tensor_v2": _Reader.tensor,
    "torch._utils._rebuild_tensor_v3": _Reader.tensor_of_type,
    "torch.storage._load_from_bytes": _Reader.blob,
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
}
"""What stands for the result of a call of these names."""

RECORDS = {
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *("numpy.dtype", "numpy.ndarray"),
    *(f"torch.nn.modules.container.{name}" for name in ("ModuleDict", "ModuleList", "Sequential")),
}
"""The other names of NVIDIA's network files and NumPy's arrays."""


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


def _of(kind: type, value: Any) -> Any:  # noqa: ANN401
    if type(value) is not kind:
        raise TypeError(f"a {type(value).__name__} in place of a {kind.__name__}")
    return value


def _key(value: Any) -> Any:  # noqa: ANN401
    """Returns a key or a member, whose hash looks at nothing else; any other object becomes a record of its kind."""
    if value is None or type(value) in (str, int, float, bool, bytes):
        return value
    if isinstance(value, list | dict | set):
        raise TypeError(f"a {type(value).__name__} as a key")
    return Record(name=type(value).__name__)


def _fill(_reader: _Reader, content: Any, *items: Any) -> Any:  # noqa: ANN401
    """Sets items, keys and values in turn."""
    mapping = content.items if isinstance(content, Record) else _of(dict, content)
    for key, value in zip(items[::2], items[1::2], strict=True):
        mapping[_key(key)] = value
    return content


def _extend(_reader: _Reader, content: Any, *items: Any) -> Any:  # noqa: ANN401
    """Extends a list; the items of a record, a kind of list of its own, are not kept."""
    if not isinstance(content, Record):
        _of(list, content).extend(items)
    return content


def _add(_reader: _Reader, content: Any, *items: Any) -> Any:  # noqa: ANN401
    _of(set, content).update(map(_key, items))
    return content


def _build(_reader: _Reader, content: Any, state: Any) -> Any:  # noqa: ANN401
    """Sets a record's state; the attributes of a mapping (a state dict's versions) or a tensor are not kept."""
    if not isinstance(content, dict | Tensor):
        _of(Record, content).state = state
    return content


LITERALS = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE "
    "SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8"
)
OPCODES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(LITERALS.split(), lambda _reader, value: value),
    "NONE": lambda _reader: None,
    "NEWTRUE": lambda _reader: True,
    "NEWFALSE": lambda _reader: False,
    "EMPTY_LIST": lambda _reader: [],
    "EMPTY_DICT": lambda _reader: {},
    "EMPTY_SET": lambda _reader: set(),
    **dict.fromkeys(("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"), lambda _reader, *items: items),
    "LIST": lambda _reader, *items: list(items),
    "DICT": lambda reader, *items: _fill(reader, {}, *items),
    "FROZENSET": lambda _reader, *items: frozenset(map(_key, items)),
    **dict.fromkeys(("APPEND", "APPENDS"), _extend),
    **dict.fromkeys(("SETITEM", "SETITEMS"), _fill),
    "ADDITEMS": _add,
    **dict.fromkeys(("GLOBAL", "STACK_GLOBAL"), _Reader.named),
    "INST": lambda reader, name, *args: reader.call(reader.named(name), args),
    "OBJ": lambda reader, function, *args: reader.call(function, args),
    **dict.fromkeys(("REDUCE", "NEWOBJ", "NEWOBJ_EX"), _Reader.call),
    "BUILD": _build,
    "BINPERSID": _Reader.persistent_id,
}
"""What opcodes make of their argument, where they have one, and of the operands that they take from the stack."""


def excerpt(text: str) -> str:
    """Returns a file's own text, fit for a message."""
    return ascii(text)[1:-1][:LONGEST]
