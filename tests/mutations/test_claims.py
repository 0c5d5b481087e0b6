"""What a file claims of itself is held against the file before it gets memory, and nothing that and asks for is run."""

import gzip
import io
import json
import os
import pickle
import re
import struct
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from mutations.formats import (
    Format,
    adm,
    cifar10,
    clip,
    dit_file,
    dit_folder,
    hf,
    idx,
    parquet,
    shard,
    timm,
    torchvision,
    unet_folder,
)
from mutations.watched import watched
from steersman.errors import InputError
from steersman.lab.data.images import read_images
from steersman.lab.metrics.features import read_reference


class Asks:
    """Would make a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.fixture
def refusal():
    """Loads a format where an allocation of some hundred MiB shows, and returns the line that it is refused with."""

    def load(format_):
        (outcome,) = watched([lambda: format_.load() and ""])
        assert outcome.kind == "refused" and outcome.grown < 200 << 20, outcome
        assert "memory" not in outcome.said and len(outcome.said.splitlines()) == 1
        return outcome.said

    return load


def rewrite(path, **settings):
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("part", "settings", "said"),
    [
        ("unet", {"block_out_channels": [8, 10**9]}, "a larger network than its weights"),
        ("unet", {"layers_per_block": 10**9}, "a larger network than its weights"),
        ("unet", {"in_channels": 10**9}, "a larger network than its weights"),
        ("unet", {"sample_size": 10**9}, "sample_size must be between 1 and 4096, got 1000000000"),
        ("unet", {"sample_size": [4, 0]}, "sample_size"),
        ("unet", {"sample_size": 3}, "Sizes of tensors must match"),
        ("unet", {"num_class_embeds": 4}, "class_embedding.weight"),
        (
            "scheduler",
            {"num_train_timesteps": 10**9},
            "num_train_timesteps must be between 1 and 1000000, got 1000000000",
        ),
        ("scheduler", {"trained_betas": [[0.1]]}, "schedule.alpha_bar"),
        ("scheduler", {"trained_betas": [0.1, -0.1]}, "schedule.alpha_bar"),
        ("scheduler", {"trained_betas": [0.1, float("nan")]}, "schedule.alpha_bar"),
        ("scheduler", {"prediction_type": "v"}, "unknown parameterization 'v'"),
    ],
)
def test_claims_of_a_unet(part, settings, said, refusal, tmp_path):
    format_ = unet_folder(tmp_path)
    rewrite(tmp_path / part / ("scheduler_config.json" if part == "scheduler" else "config.json"), **settings)
    line = refusal(format_)
    assert str(tmp_path) in line and said in line


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("part", "settings", "said"),
    [
        ("transformer", {"num_layers": 10**9}, "a larger network than its weights"),
        ("transformer", {"sample_size": 10**6}, "a larger network than its weights"),  # its places are kept
        ("transformer", {"num_attention_heads": 10**9}, "a larger network than its weights"),
        ("vae", {"block_out_channels": [8, 10**9]}, "a larger network than its weights"),
        ("vae", {"scaling_factor": 0}, "scaling_factor must leave latents finite, got 0"),
        ("vae", {"latents_mean": [1, 2], "latents_std": [1, 1]}, "broadcast"),
    ],
)
def test_claims_of_a_dit(part, settings, said, refusal, dit, tmp_path):
    format_ = dit_folder(tmp_path, dit)
    rewrite(tmp_path / part / "config.json", **settings)
    line = refusal(format_)
    assert str(tmp_path) in line and said in line


def test_claims_of_a_released_dits_vae(refusal, dit, tmp_path):
    format_ = dit_file(tmp_path, dit)
    rewrite(tmp_path / "vae" / "config.json", block_out_channels=[8, 10**9])
    assert f"vae: {str(tmp_path / 'vae')!r} cannot be used; its settings tell of a larger" in refusal(format_)


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("config.json", {"hidden_size": 10**9}),
        ("config.json", {"num_hidden_layers": 10**7}),
        ("config.json", {"image_size": 10**9}),
        ("config.json", {"num_labels": 10**9}),
        ("preprocessor_config.json", {"size": {"height": 10**9, "width": 10**9}}),
    ],
)
def test_claims_of_transformers(file, settings, refusal, tmp_path):
    format_ = hf(tmp_path)
    rewrite(tmp_path / file, **settings)
    assert str(tmp_path) in refusal(format_)


def test_tokens_that_a_network_does_not_know(refusal, clip_folder, tmp_path):
    format_ = clip(tmp_path, clip_folder())
    rewrite(tmp_path / "tokenizer_config.json", pad_token="<|other|>")
    assert f"clip:{tmp_path}' cannot be used; the numbers of its tokens must be" in refusal(format_)


@pytest.mark.parametrize("make", [adm, torchvision, lambda folder: timm(folder, "a.pt")])
@pytest.mark.parametrize("zipped", [True, False])
def test_what_a_pickle_asks_for_is_named_and_not_run(make, zipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    format_ = make(tmp_path)
    torch.save({"a": Asks()}, format_.files[0], _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=f"{format_.files[0].name}.*and asks for posix.mkdir"):
        format_.load()
    assert not (tmp_path / "ran").exists()


def test_a_storage_larger_than_its_file(refusal, tmp_path):
    format_ = adm(tmp_path, zipped=False)
    path = format_.files[0]
    content = path.read_bytes()
    huge = pickle.dumps(10**12, 2)[2:-1]  # without the start and the end of a pickle
    # what is told of a storage ends with its place, the count of its numbers, and None
    damaged = re.sub(rb"(cpuq.)(K.|M..|J....)(?=Nt)", lambda told: told[1] + huge, content, count=1, flags=re.DOTALL)
    assert damaged != content
    path.write_bytes(damaged)
    assert "cannot be read (damaged" in refusal(format_)


def archive(path, members):
    """A zip whose members claim other sizes than they have: name, content, and what its size is said to be."""
    with zipfile.ZipFile(path, "w") as file:
        for name, content, _ in members:
            file.writestr(name, content)
    whole = bytearray(path.read_bytes())
    place = 0
    for _, _, claimed in members:
        place = whole.index(b"PK\x01\x02", place)
        if claimed is not None:
            whole[place + 20 : place + 28] = struct.pack("<II", *([min(claimed, 2**32 - 2)] * 2))
        place += 4
    path.write_bytes(bytes(whole))
    return path


def array(shape, dtype="|u1", content=b""):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue() + content


RECORDS = array((1,), "|S4", b"none")
CLAIMS = {
    "2^40 images": [("arr_0.npy", array((2**40, 64, 64, 3), content=bytes(100)), None)],
    "images whose number overflows": [("arr_0.npy", array((2**33, 2**31, 2**31, 3)), None)],
    "fewer than none": [("arr_0.npy", array((-1, 8, 8, 3)), None)],
    "texts of 2^40 characters": [("arr_0.npy", array((1, 8, 8, 3), content=bytes(192)), None)]
    + [("extractor.npy", array((), "<U1099511627776"), None)],
    "objects": [("arr_0.npy", array((1,), "|O", pickle.dumps([1])), None)],
    "a member of 4 GiB": [("arr_0.npy", array((2**20, 32, 32, 4)), 2**32 - 2)],
    "an archive in an archive": [("arr_0.npy", b"PK\x03\x04" + bytes(100), None)],
    "many members at one place": 200 * [("arr_0.npy", array((2**14, 8, 8, 3), content=bytes(2**14)), None)],
    "a path out of the folder": [("../../arr_0.npy", array((1, 8, 8, 3), content=bytes(192)), None)],
}


@pytest.mark.few(4)
@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", CLAIMS)
@pytest.mark.parametrize("place", ["batch.npz", "images.npz"])
def test_claims_of_an_archive(name, place, refusal, tmp_path):
    path = archive(tmp_path / place, CLAIMS[name] + ([("records.npy", RECORDS, None)] if place == "images.npz" else []))
    spec = tmp_path if place == "images.npz" else path
    line = refusal(Format(files=[path], load=lambda: list(read_images(spec).pixels())))
    assert str(path) in line
    if place == "batch.npz":
        assert str(path) in refusal(Format(files=[path], load=lambda: list(read_reference(path).pixels())))


@pytest.mark.parametrize("claim", ["size", "negative", "sparse"])
def test_claims_of_a_webdataset(claim, refusal, tmp_path):
    format_ = shard(tmp_path, ".tar")
    content = bytearray(format_.files[0].read_bytes())
    if claim == "sparse":
        content[156:157] = b"S"
    size = {"size": b"77777777777\0", "negative": b"\xff" * 12, "sparse": b"77777777777\0"}[claim]
    content[124:136] = size
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    format_.files[0].write_bytes(bytes(content))
    assert str(format_.files[0]) in refusal(format_)


def test_what_unpacks_without_end(refusal, tmp_path):
    format_ = idx(tmp_path, packed=True)
    header = bytes([0, 0, 8, 3]) + np.array([4, 28, 28], ">u4").tobytes()
    format_.files[0].write_bytes(gzip.compress(header) + 400 * gzip.compress(bytes(1 << 20)))
    assert "cannot reshape" in refusal(format_)
    header = bytes([0, 0, 8, 3]) + np.array([2**31, 28, 28], ">u4").tobytes()
    format_.files[0].write_bytes(gzip.compress(header, 1))
    assert "must have at most" in refusal(format_)


@pytest.mark.long
def test_a_value_that_a_parquet_holds_once_for_many_rows(refusal, tmp_path):
    format_ = cifar10(tmp_path, "parquet")
    Image.new("RGB", (32, 32)).save(stream := io.BytesIO(), format="PNG")
    cell = {"bytes": stream.getvalue() + bytes(1 << 20), "path": None}
    parquet(format_.files[0], 400 * [{"img": cell, "label": 0}])
    assert format_.files[0].stat().st_size < 1 << 20
    assert "1 of 1 blocks" in refusal(format_)


def test_images_of_a_parquet_that_are_larger_than_the_published_ones(refusal, tmp_path):
    format_ = cifar10(tmp_path, "parquet")
    Image.new("RGB", (2000, 2000)).save(stream := io.BytesIO(), format="PNG")
    parquet(format_.files[0], 40 * [{"img": {"bytes": stream.getvalue(), "path": None}, "label": 0}])
    assert "must be of 32 by 32 pixels, got (2000, 2000)" in refusal(format_)
