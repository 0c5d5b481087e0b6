"""What float32 means within a run, and that a program finds its own settings after it."""

import threading

import pytest
import torch

from steersman.precision import ieee
from steersman.sampling import DDIM, sample

NEWER = hasattr(torch.backends.cuda.matmul, "fp32_precision")


def settings():
    """All of torch's settings that decide what float32 is computed in; older names that cannot be read are None."""

    def read(name, owner):
        try:
            return getattr(owner, name)
        except RuntimeError:
            return None

    cudnn, cublas, onednn = torch.backends.cudnn, torch.backends.cuda.matmul, torch.backends.mkldnn
    found = {"deterministic": cudnn.deterministic, "benchmark": cudnn.benchmark}
    found |= {"cudnn": read("allow_tf32", cudnn), "cublas": read("allow_tf32", cublas)}
    if NEWER:
        parts = {"cublas": cublas, "conv": cudnn.conv, "rnn": cudnn.rnn}
        parts |= {f"onednn {each}": getattr(onednn, each) for each in ("matmul", "conv", "rnn")}
        found |= {f"newer {name}": part.fp32_precision for name, part in parts.items()}
    return found


WITHIN = {"deterministic": True, "benchmark": False, "cudnn": False, "cublas": False}
NAMES = ("cublas", "conv", "rnn", "onednn matmul", "onednn conv", "onednn rnn")
WITHIN |= {f"newer {name}": "ieee" for name in NAMES} if NEWER else {}


@pytest.fixture(params=["as it comes", "tf32", "bfloat16", "newer names", "all"])
def before(request):
    """A program's own settings; put back after the test."""
    cudnn = torch.backends.cudnn
    if request.param in ("newer names", "all") and not NEWER:
        pytest.skip("this torch has no such names")
    match request.param:
        case "tf32":
            torch.set_float32_matmul_precision("high")
            cudnn.benchmark = True
        case "bfloat16":
            torch.set_float32_matmul_precision("medium")
        case "newer names":
            cudnn.conv.fp32_precision = "tf32"
            cudnn.rnn.fp32_precision = torch.backends.cuda.matmul.fp32_precision = "ieee"
            torch.backends.mkldnn.conv.fp32_precision = "bf16"
        case "all":
            torch.backends.fp32_precision = "tf32"
    yield settings()
    if NEWER:
        torch.backends.fp32_precision = "none"
        cudnn.rnn.fp32_precision = "tf32"
        torch.backends.mkldnn.conv.fp32_precision = torch.backends.mkldnn.rnn.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = True, False, False


def within():
    now = settings()
    return {name: value for name, value in WITHIN.items() if now[name] is not None} | {
        name: None for name in now if now[name] is None
    } == now


def test_a_run_computes_in_ieee_arithmetic_and_leaves_the_programs_settings(before, mixture):
    seen = []
    sample(mixture, DDIM(), steps=2, callbacks=[lambda report: seen.append(within())])
    assert seen == [True, True] and settings() == before


def test_the_settings_are_put_back_after_an_error_too(before):
    with pytest.raises(KeyError), ieee():
        raise KeyError
    assert settings() == before


def test_of_runs_side_by_side_the_last_one_puts_them_back():
    before, begun, leave, seen = settings(), threading.Event(), threading.Event(), []

    def second():
        with ieee():
            begun.set()
            leave.wait(30)
            seen.append(within())

    thread = threading.Thread(target=second)
    with ieee():
        thread.start()
        assert begun.wait(30)
    assert within()
    leave.set()
    thread.join(30)
    assert seen == [True] and settings() == before
