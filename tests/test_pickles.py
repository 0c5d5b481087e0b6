"""Pickles that are read without running anything: what comes out, and what is refused with nothing run."""

import collections
import io
import os
import pickle
import random
import struct
import subprocess
import sys
import tracemalloc
import types
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from steersman.errors import InputError
from steersman.models import pickles
from steersman.models.pickles import Record, read_checkpoint, read_pickle


class Asks:
    """Pickles as a call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.fixture
def read(tmp_path):
    def read(content):
        path = tmp_path / "a.pkl"
        path.write_bytes(content)
        return read_pickle(path)

    return read


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_content_comes_out_as_it_went_in(protocol, read):
    shared = [1, 2]
    content = {
        "text": "ü" * 300,
        "numbers": [0, -1, 255, 70000, 2**40, -(2**2100), 0.5, float("inf")],
        3: (None, True, False, (), (1,), (1, 2), (1, 2, 3), tuple(range(9))),
        "nested": {"empty": {}, "list": [[], [[]]], "pair": (shared, shared)},
        "ordered": collections.OrderedDict(b=1, a=2),
    }
    if protocol >= 3:
        content |= {"bytes": b"\0" * 300, "set": {1, "b"}}
    if protocol >= 4:
        content["frozen"] = frozenset("a")
    found = read(pickle.dumps(content, protocol))
    assert found == content
    assert found["nested"]["pair"][0] is found["nested"]["pair"][1]
    assert list(found["ordered"]) == ["b", "a"]


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_tensors(protocol, read):
    torch.manual_seed(0)
    whole = torch.randn(4, 6)
    tensors = {
        "plain": whole,
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "input": whole[1:3, ::2],
        "turned": whole.T,
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        **{
            str(dtype): torch.arange(5).to(dtype)
            for dtype in (
                torch.float16,
                torch.bfloat16,
                torch.float64,
                torch.int64,
                torch.int8,
                torch.uint8,
                torch.bool,
            )
        },
    }
    found = read(pickle.dumps(tensors, protocol))
    for name, tensor in tensors.items():
        assert type(found[name]) is torch.Tensor
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_a_module_is_a_record_of_its_name_and_state(read, monkeypatch, tmp_path):
    """NVIDIA's way: a function of theirs, which executes the source code that comes with the object."""

    def rebuild(meta):
        raise AssertionError("it was run")

    rebuild.__module__, rebuild.__qualname__ = "torch_utils.persistence", "_reconstruct_persistent_obj"
    module = types.ModuleType("torch_utils.persistence")
    module._reconstruct_persistent_obj = rebuild
    source = f"open({str(tmp_path / 'ran')!r}, 'w')"
    meta = {"type": "class", "version": 6, "module_src": source, "class_name": "Net", "state": {"a": [1]}}
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
        patched.setitem(sys.modules, "torch_utils.persistence", module)
        contents = [pickle.dumps(Asks(rebuild, meta), protocol) for protocol in (2, 3, 4, 5)]
    for content in contents:
        record = read(content)
        assert isinstance(record, Record)
        assert (record.name, record.args, record.state) == ("Net", (), {"a": [1]})
    assert not (tmp_path / "ran").exists()


def test_containers_and_numpy_scalars_are_records(read):
    np = pytest.importorskip("numpy")
    inner = torch.nn.ModuleDict({"b": torch.nn.ModuleList()})
    found = read(pickle.dumps([inner, np.float64(0.5)], 4))
    assert found[0].name == "torch.nn.modules.container.ModuleDict"
    assert found[0].state["_modules"]["b"].name == "torch.nn.modules.container.ModuleList"
    assert found[1].name.endswith("multiarray.scalar")


def places(bad):
    """A pickled object in every place that holds one."""
    return {
        "alone": bad,
        "in a list": [1, [bad]],
        "in a mapping": {"ema": {"state": bad}},
        "as a key": {"a": {bad: 1}},
        "in a tuple": (1, (bad,)),
        "in arguments": Asks(collections.OrderedDict, bad),
        "in a hook": Asks(torch._utils._rebuild_parameter, 1, False, bad),
        "after a record": [torch.nn.ModuleList(), bad],
    }


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("place", places(None))
def test_what_would_run_is_refused_by_its_name_and_does_not(place, protocol, read, tmp_path):
    sentinel = tmp_path / "ran"
    opens = f"open({str(sentinel)!r}, 'w')"
    for bad, name in (
        (Asks(os.system, f"touch {sentinel}"), "(posix|nt).system"),
        (Asks(eval, opens), "(builtins|__builtin__).eval"),
        (Asks(exec, opens), "(builtins|__builtin__).exec"),
        (Asks(__import__, "antigravity"), "(builtins|__builtin__).__import__"),
        (Asks(subprocess.Popen, ["touch", str(sentinel)]), "(subprocess|commands).Popen"),
        (Asks(Path, "x"), "pathlib(._local)?.Path"),
        (Asks(getattr, "x", "y"), "(builtins|__builtin__).getattr"),
        (Asks(torch.load, str(sentinel)), "torch.serialization.load"),
        (os.system, "(posix|nt).system"),
    ):
        # what protocols before 3 ask for themselves
        before = "|copy_?reg._reconstructor|__builtin__.set" if protocol < 3 and place == "after a record" else ""
        with pytest.raises(InputError, match=rf"cannot be read \(it asks for ({name}{before}); only tensors"):
            read(pickle.dumps(places(bad)[place], protocol))
        assert not sentinel.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'touch x'\ntR.",
        b"(S'touch x'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch x'\no.",
        b"\x80\x02cos\nsystem\n)\x81.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93)}\x92.",
        b"\x80\x04}\x8c\x02os\x8c\x06system\x93b.",
        b"\x80\x04\x8c\x02os\x8c\x0bsystem\nevil\x93.",
    ],
)
def test_every_opcode_that_calls(content, read):
    with pytest.raises(InputError, match=r"it asks for os.system") as error:
        read(content)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot mmap an empty file"),
        (b"PK\x03\x04 an archive", "no pickle, or a damaged one"),
        (b"<html>not found</html>", "no pickle, or a damaged one"),
        (b"\x80\x04N", "no pickle, or a damaged one"),
        (b"\x80\x04.", "no pickle, or a damaged one"),
        (b"\x80\x04NN.", "no pickle, or a damaged one"),
        (b"\x80\x02ccollections\nOrderedDict\n)b.", "no pickle, or a damaged one"),
        (b"\x80\x02NN\x86R.", "no pickle, or a damaged one"),
        (b"\x80\x02N)R.", "it calls NoneType"),
        (b"\x80\x02\x82\x01.", "the opcode EXT1 is not allowed"),
        (b"P1\n.", "the opcode PERSID is not allowed"),
        (b"\x80\x02K\x01Q.", "the opcode BINPERSID is not allowed"),
        (b"\x80\x02ctorch\nFloatStorage\n.", "it asks for torch.FloatStorage"),
        (b"\x80\x05\x97.", "the opcode NEXT_BUFFER is not allowed"),
        (b"\x80\x02}]K\x01s.", "a list as a key"),
    ],
)
def test_what_is_no_such_pickle_is_said_in_a_line(content, said, read):
    with pytest.raises(InputError, match=r"a.pkl' cannot be read \(") as error:
        read(content)
    assert said in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "none.pkl", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_pickle(path)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.",
        b"\x80\x04B" + struct.pack("<I", 2**32 - 1) + b"abc.",
        b"\x80\x04X" + struct.pack("<I", 2**32 - 1) + b"abc.",
        b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
        b"\x80\x04\x8b" + struct.pack("<i", 2**31 - 1) + b"abc.",
        b"\x80\x04Nr" + struct.pack("<I", 2**32 - 1) + b".",
        b"\x80\x02" + b"]" * 4_000 + b"a" * 3_999 + b".",
        b"\x80\x04" + b")" + b"\x85" * 4_000 + b".",
        b"\x80\x04}" + b")" + b"\x85" * 20_000 + b"Ns.",
        b"(" * 4_000 + b".",
        b"\x80\x02c_codecs\nencode\nq\0X"
        + struct.pack("<I", 10**5)
        + b"a" * 10**5
        + b"q\1"
        # the same text as bytes, again and again
        + 1_000 * b"h\0h\1U\6latin1\x86R"
        + b".",
    ],
)
def test_no_file_takes_more_memory_than_it_is_large(content, read):
    tracemalloc.start()
    with suppress(InputError):
        read(content)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2e7


def test_no_checkpoint_takes_more_memory_for_names_than_it_is_large(tmp_path):
    name, path = b"X" + struct.pack("<I", 10**5) + b"a" * 10**5, tmp_path / "a.pt"
    path.write_bytes(b"\x80\x04" + name + b"q\0](" + 1_000 * b"h\0h\0\x93" + b"e.")
    tracemalloc.start()
    with pytest.raises(InputError, match="content larger than the file"):
        read_checkpoint(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2e7


def test_no_file_takes_more_memory_for_shapes_than_it_is_large(read):
    storage, shape = torch.arange(6.0)._typed_storage(), (1,) * 1000
    rebuild = (torch._utils._rebuild_tensor_v2, storage, 0, shape, shape, False, None)
    assert read(pickle.dumps([Asks(*rebuild)], 4))[0].shape == shape
    with pytest.raises(InputError, match="content larger than the file"):
        read(pickle.dumps([Asks(*rebuild) for _ in range(100)], 4))


def test_a_file_of_too_many_opcodes(read, monkeypatch):
    monkeypatch.setattr(pickles, "MOST", 100)
    assert read(b"\x80\x04" + b"N0" * 48 + b"N.") is None
    with pytest.raises(InputError, match="more than 100 opcodes"):
        read(b"\x80\x04" + b"\x8f" * 200)


def test_damaged_files_end_in_one_line(read):
    """200 files cut short, with bits turned over, with bytes put in; what is still a pickle is still plain."""
    module = torch.nn.ModuleDict({"a": torch.nn.ModuleList()})
    content = {"ema": module, "tensor": torch.arange(6.0), "set": {1, 2}, "text": "abc", "numbers": (1.5, 2**40, [3])}
    whole = pickle.dumps(content, 4)
    chance = random.Random(0)
    refused = 0
    for number in range(200):
        damaged, at = bytearray(whole), chance.randrange(len(whole))
        match number % 4:
            case 0:
                del damaged[at:]
            case 1:
                damaged[at] ^= 1 << chance.randrange(8)
            case 2:
                damaged[at:at] = chance.randbytes(4)
            case _:
                damaged[at] = chance.choice(b"\x8b\x8e\x8d\x95BXTrjRbcopqh\x93\x81\x92\x82\x97")
        try:
            read(bytes(damaged))
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 400
            refused += 1
    assert refused > 100


def blob(storage):
    stream = io.BytesIO()
    torch.save(storage, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def test_storages_and_tensors_that_are_not_as_long_as_they_say(read):
    storage = torch.arange(6.0)._typed_storage()
    load, rebuild = torch.storage._load_from_bytes, torch._utils._rebuild_tensor_v2

    def tensor(*shape, held=storage):
        return pickle.dumps(Asks(rebuild, held, *shape, False, collections.OrderedDict()), 4)

    assert torch.equal(read(tensor(0, (2, 3), (3, 1))), torch.arange(6.0).reshape(2, 3))
    for shape in (
        (0, (2, 4), (4, 1)),
        (1, (2, 3), (3, 1)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (10**9, 10**9), (0, 0)),
        (0, (2, 3), (3,)),
        (0, (2.0,), (1,)),
        (10**30, (2,), (1,)),
    ):
        with pytest.raises(InputError, match="damaged"):
            read(tensor(*shape))
    whole = blob(storage)
    key = str(storage._cdata)
    keys, none, twice = (pickle.dumps(keys, 2) for keys in ([key], [], [key, key]))
    assert keys in whole
    for wrong in (
        whole[: whole.index(keys)] + none,
        whole.replace(keys, none),
        whole.replace(keys, twice) + whole[-32:],
        whole[:-1],
        whole + b"\0",
        whole[:-4],
        b"",
        whole[10:],
        whole.replace(struct.pack("<q", 6), b"\xff" * 8),
    ):
        with pytest.raises(InputError):
            read(pickle.dumps(Asks(load, wrong), 4))
    with pytest.raises(InputError, match="damaged"):
        read(pickle.dumps(Asks(load, "text"), 4))


def test_a_storage_may_ask_for_nothing_either(read, tmp_path):
    sentinel = tmp_path / "ran"
    whole = blob(torch.arange(6.0)._typed_storage())
    start = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    assert whole.startswith(start[:20])
    for bad in (Asks(os.system, f"touch {sentinel}"), collections.OrderedDict()):
        with pytest.raises(InputError, match=r"it asks for (posix.system|collections.OrderedDict)"):
            read(pickle.dumps(Asks(torch.storage._load_from_bytes, start + pickle.dumps(bad, 2)), 4))
    with pytest.raises(InputError, match="it calls torch.FloatStorage"):
        huge = pickle.dumps(Asks(torch.FloatStorage, 10**12), 2)
        read(pickle.dumps(Asks(torch.storage._load_from_bytes, start + huge), 4))
    assert not sentinel.exists()
