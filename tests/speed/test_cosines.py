"""What ``dtype: auto`` chooses where a faster type does not give what float32 gives, or the memory does not hold it."""

import sys
from functools import partial

import pytest
import torch
import yaml

from steersman import latent
from steersman.errors import InputError, Notice
from steersman.lab import placement
from steersman.lab.bench import bench
from steersman.lab.placement import choose_placement
from steersman.lab.run import Placement, Run, read_run
from steersman.recipes import load_recipe

MODULE = """
import torch
from torch import nn
from steersman.models.denoisers import NetworkDenoiser
from steersman.schedule import VP

class Linear(nn.Module):
    names = ["baseball", "basketball"]

    def __init__(self, rate=0.0):
        super().__init__()
        self.rate, generator = rate, torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(2, 768, generator=generator))

    def forward(self, x):
        x = x.flatten(1)
        return (torch.sin(self.rate * x) if self.rate else x) @ self.weight.T

class Noise(nn.Module):
    def __init__(self, fault=None):
        super().__init__()
        self.fault, self.layer = fault, nn.Conv2d(3, 3, 3, padding=1, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(self.layer.weight.shape, generator=torch.Generator().manual_seed(0)))

    def forward(self, x, time):
        y = self.layer(x).tanh()
        if x.dtype == torch.float32 or self.fault is None:
            return y
        return y.flip(-1) if self.fault == "prediction" else (6 * y).detach() - 5 * y

def smooth(): return Linear()
def rough(): return Linear(rate=400.0)

def denoiser(fault=None):
    schedule = VP.from_betas(torch.linspace(1e-4, 0.02, 1000))
    return NetworkDenoiser(Noise(fault), schedule=schedule, shape=(3, 16, 16), parameterization="v_prediction")

def wrong_prediction(): return denoiser("prediction")
def wrong_gradient(): return denoiser("gradient")
"""
RECIPES = {"x_t": ("nrcg", "smoothing=none"), "x0_hat": ("elucd-ddpm", "smoothing=none")}


@pytest.fixture
def spec(tmp_path, monkeypatch):
    """The spec of what a module of the user's makes: ``spec("smooth")``."""
    (tmp_path / "made_here.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield lambda name: f"module:made_here:{name}"
    sys.modules.pop("made_here", None)


@pytest.fixture
def faster(monkeypatch):
    """Makes bfloat16 look ten times as fast as float32, whatever this machine's is; or as slow."""

    def look(seconds=0.1):
        def measure(session, times, until):
            for part in times:
                times[part][Placement(dtype=session.run.dtype, block=4)] = {"bfloat16": seconds}.get(
                    session.run.dtype, 1
                )

        monkeypatch.setattr(placement, "_measure", measure)

    look()
    return look


def run(spec, classifier="smooth", denoiser="denoiser", wrt="x0_hat", **settings):
    name, *changes = RECIPES[wrt]
    given = {"targets": ("baseball",), "num": 2, "judge": None, "dtype": "auto", "batch_size": 4}
    given |= {"denoiser": denoiser if "/" in denoiser else spec(denoiser), "classifiers": (spec(classifier),)}
    return Run(**{**given, "recipe": load_recipe(name, ["sampling.steps=3", "scale=5", *changes]), **settings})


def placed(run):
    return choose_placement(run).placed


@pytest.mark.parametrize("wrt", RECIPES)
def test_a_faster_type_that_agrees_is_chosen(spec, faster, wrt):
    found = placed(run(spec, wrt=wrt))
    assert {part: each.dtype for part, each in found.items()} == dict.fromkeys(("denoiser", "classifier"), "bfloat16")
    assert all(0.98 < each.cosines["bfloat16"] <= 1 for each in found.values())


@pytest.mark.parametrize("wrt", RECIPES)
def test_a_classifier_whose_gradient_disagrees_stays_in_float32_however_fast_it_would_be(spec, faster, wrt):
    found = placed(run(spec, "rough", wrt=wrt))
    assert (found["classifier"].dtype, found["denoiser"].dtype) == ("float32", "bfloat16")
    assert found["classifier"].cosines["bfloat16"] < 0.98


@pytest.mark.parametrize(
    ("denoiser", "wrt", "dtype"),
    [
        ("wrong_prediction", "x0_hat", "float32"),
        ("wrong_gradient", "x_t", "float32"),
        ("wrong_gradient", "x0_hat", "bfloat16"),  # which never asks for it
    ],
)
def test_a_denoiser_that_disagrees_stays_in_float32(spec, faster, denoiser, wrt, dtype):
    found = placed(run(spec, denoiser=denoiser, wrt=wrt))["denoiser"]
    assert found.dtype == dtype
    assert (found.cosines["bfloat16"] < 0.98) == (dtype == "float32")


@pytest.mark.long
def test_a_decoder_whose_gradient_disagrees_keeps_its_denoiser_in_float32(spec, faster, dit_folder, monkeypatch):
    settings = {"denoiser": str(dit_folder), "label": "target"}
    assert placed(run(spec, **settings))["denoiser"].dtype == "bfloat16"
    own = latent._decode

    def mirrored(vae, z):
        return own(vae, z).flip(-1) if vae.dtype == torch.bfloat16 else own(vae, z)

    monkeypatch.setattr(latent, "_decode", mirrored)
    assert placed(run(spec, **settings))["denoiser"].dtype == "float32"


def test_a_type_that_is_not_faster_is_not_compared(spec, faster):
    faster(seconds=0.99)
    assert all(each == Placement(block=4) for each in placed(run(spec)).values())


@pytest.mark.long
def test_cosines_are_recorded_and_told(spec, faster, call, tmp_path):
    options = ["--target", "baseball", "--denoiser", spec("denoiser"), "--classifier", spec("rough"), "--dtype", "auto"]
    options += ["--recipe", "elucd-ddpm", "--set", "smoothing=none", "--steps", "3"]
    code, said, error = call("sample", *options, "--num", 2, "--judge", "none", "--out", tmp_path / "run")
    assert code == 0, error
    record = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())["placed"]
    assert record["classifier"]["cosines"]["bfloat16"] < 0.98 < record["denoiser"]["cosines"]["bfloat16"]
    read = read_run(tmp_path / "run" / "run.yaml", trusted=None).placed
    assert read["classifier"].cosines == record["classifier"]["cosines"]
    _, again, _ = call("bench", *options, "--batch-size", 2, "--repeats", 1)
    for each in (said, again):
        least = f"{record['denoiser']['cosines']['bfloat16']:.4f}"
        assert f"denoiser: bfloat16, contiguous, 4 images at a time, least cosine with float32 {least}" in each
        assert (
            "classifier: float32, contiguous, 4 images at a time; bfloat16 is faster but refused: least cosine" in each
        )
    code, _, error = call("sample", *options, "--num", 2, "--judge", "none", "--out", tmp_path / "run")
    assert code == 0, error


@pytest.mark.long
def test_the_bundled_classifier_of_imagenet_stays_in_float32(faster, spec):
    settings = {"classifiers": ("imagenet:efficientnet-lite0",), "num": 1}
    found = placed(run(spec, **settings))["classifier"]
    assert found.dtype == "float32" and 0 < found.cosines["bfloat16"] < 0.98


CUDA, CPU = torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")


@pytest.fixture
def memory(monkeypatch):
    """Has networks run out of memory: ``memory("denoiser", error, lambda x: len(x) > 2)``."""
    import steersman.lab.session

    def holds(part, error, full):
        own = getattr(steersman.lab.session, f"load_{part}")

        def check(network, inputs):
            if full(inputs[0]):
                raise error

        def load(*args, **kwargs):
            found = own(*args, **kwargs)
            found.network.register_forward_pre_hook(check)
            return found

        monkeypatch.setattr(steersman.lab.session, f"load_{part}", load)

    return holds


@pytest.mark.parametrize("error", [CUDA, CPU], ids=["cuda", "cpu"])
@pytest.mark.parametrize("part", ["denoiser", "classifier"])
@pytest.mark.parametrize("most", [1, 2, 5])
def test_a_block_that_memory_does_not_hold_is_halved_until_it_does(spec, memory, part, error, most):
    memory(part, error, lambda x: len(x) > most)
    found = placed(run(spec, dtype="auto-float32", batch_size=8))
    other = "classifier" if part == "denoiser" else "denoiser"
    assert found[part].block == {1: 1, 2: 2, 5: 4}[most]
    assert found[other].block in (4, 8)


def test_a_batch_that_an_accelerator_does_not_hold_is_halved(spec, memory, monkeypatch):
    monkeypatch.setattr(placement, "_blocks", lambda run, targets: (16,))  # as an accelerator takes it
    memory("denoiser", CUDA, lambda x: len(x) > 5)
    found = placed(run(spec, dtype="auto-float32", batch_size=16))
    assert (found["denoiser"].block, found["classifier"].block) == (4, 16)


@pytest.mark.parametrize("error", [CUDA, CPU], ids=["cuda", "cpu"])
def test_a_denoiser_that_fits_in_bfloat16_alone_runs_in_it_and_that_is_said(spec, memory, error):
    memory("denoiser", error, lambda x: x.dtype == torch.float32)
    with pytest.warns(Notice, match="does not hold the denoiser in float32, so that it runs in bfloat16"):
        found = placed(run(spec))
    assert (found["denoiser"].dtype, found["classifier"].dtype) == ("bfloat16", "float32")
    assert found["denoiser"].cosines == {}


def test_a_memory_that_holds_no_type_is_one_line(spec, memory):
    memory("denoiser", CUDA, lambda x: True)
    with pytest.raises(InputError, match="must hold one image in one of the types float32, bfloat16, but holds it in"):
        placed(run(spec))


def test_a_slow_call_is_made_once_and_larger_blocks_of_it_not_at_all(spec, monkeypatch):
    clock, sizes = {"float32": 1.0, "bfloat16": 9.0}, []

    def timed(ask, device):
        sizes.append(ask())
        return clock[sizes[-1]], 0.0

    def parts(session):
        asked = partial(lambda dtype, block: lambda: dtype, session.run.dtype)
        yield "denoiser", [], asked
        yield "classifier", [], asked

    monkeypatch.setattr(placement, "timed", timed)
    monkeypatch.setattr(placement, "_parts", parts)
    found = placed(run(spec, batch_size=16))
    assert {each.dtype for each in found.values()} == {"float32"}
    assert sizes.count("bfloat16") == 4  # each part in two layouts


def test_a_batch_that_bench_cannot_hold_is_halved(spec, memory):
    memory("denoiser", CUDA, lambda x: len(x) > 2)
    with pytest.warns(Notice, match="does not hold 8 images at a time: 2 are taken from now on"):
        figures, _ = bench(run(spec, dtype="float32", num=8, batch_size=8), repeats=1)
    assert figures["images"] == 2
