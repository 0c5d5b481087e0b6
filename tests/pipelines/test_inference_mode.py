"""Pipelines called in torch.inference_mode(), whose tensors take part in no gradient."""

import pytest
import torch

import steersman
from pipelines.families import FAMILIES, draw, make
from steersman.errors import InputError
from steersman.guidance import Ahead, Denoised


@pytest.mark.parametrize("view", [Denoised(clip=False), Ahead(clip=False, until=0.1)], ids=["denoised", "ahead"])
@pytest.mark.parametrize("route", ["direct", "through"])
@pytest.mark.parametrize("name", ["SD3", "SD"])
def test_inference_mode_changes_nothing(name, route, view, guide):
    pipe, steering = make(name), guide(route=route, view=view)
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
