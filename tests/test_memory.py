"""Memory that runs out: known by whatever says so, a smaller batch where there is one, else one line."""

import pytest
import torch

import steersman.lab.run
from steersman.batching import is_out_of_memory
from steersman.errors import InputError, Notice
from steersman.lab.run import Run
from steersman.lab.session import load_session

SAID = [
    torch.OutOfMemoryError("CUDA out of memory: 16 images"),
    RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes"
    ),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes. Error code 12"),
    MemoryError(),
]


@pytest.mark.parametrize("error", SAID, ids=lambda each: str(each)[:20])
def test_whatever_says_that_memory_ran_out_is_known(error):
    assert is_out_of_memory(error) and not is_out_of_memory(RuntimeError("shapes differ"))


@pytest.mark.few(2)
@pytest.mark.parametrize("error", [SAID[0], SAID[2]], ids=["torch", "cuDNN"])
@pytest.mark.parametrize("most", [4, 0])
def test_a_rehearsal_that_does_not_fit_halves_the_batch_or_ends_in_a_line(monkeypatch, denoiser, error, most):
    monkeypatch.setattr(steersman.lab.run, "block_size", lambda device, batch_size: batch_size)  # as on a GPU
    guide = "zoo:sportballs-mobilenet"
    session = load_session(
        Run(targets=("baseball",), batch_size=16, judge=None, denoiser=denoiser, classifiers=(guide,))
    )

    def full(network, inputs):
        if len(inputs[0]) > most:
            raise error

    session.denoiser.network.register_forward_pre_hook(full)
    if most:
        with pytest.warns(Notice, match="does not hold 16 images at a time: 4 are taken from now on"):
            session.rehearse()
        assert session.batches.size == 4
    else:
        with pytest.raises(InputError, match="does not hold one image"):
            session.rehearse()
