"""Pipelines called in torch.inference_mode(), whose tensors take part in no gradient."""

import itertools

import pytest
import torch

import steersman
from pipelines.families import FAMILIES, draw, make, wide
from steersman.errors import InputError
from steersman.guidance import Denoised, Lookahead

VIEWS = {"denoised": Denoised(clip=False), "lookahead": Lookahead(clip=False, until=0.1)}
CASES = list(itertools.product(["SD3", "SD"], ["x0_hat", "x_t"], VIEWS))


@pytest.mark.parametrize(
    ("name", "wrt", "input"), wide(CASES, [("SD3", "x0_hat", "denoised"), ("SD", "x_t", "lookahead")])
)
def test_inference_mode_changes_nothing(name, wrt, input, guide):
    pipe, steering = make(name), guide(wrt=wrt, input=VIEWS[input])
    with steersman.steer(pipe, steering, target=1):
        expected = draw(pipe, name)
        with torch.inference_mode():
            assert torch.equal(draw(pipe, name), expected)
    with torch.inference_mode(), steersman.steer(pipe, steering, target=1):
        assert torch.equal(draw(pipe, name, **FAMILIES[name].call()), expected)


def test_weights_that_were_made_in_it_are_refused(guide):
    pipe = make("SD")
    with torch.inference_mode():
        pipe.vae.to(torch.float64).to(torch.float32)
    with pytest.raises(InputError, match="made in torch.inference_mode"), steersman.steer(pipe, guide(), target=1):
        pass
