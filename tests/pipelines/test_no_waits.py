"""A steered pipeline on a pretend accelerator: after the first step, nothing of ours waits for it."""

import copy

import pytest

import steersman
from pipelines.families import FAMILIES, draw, make, wide
from steersman.batching import each_tensor
from steersman.guidance import ClassProbability, Denoised, Lookahead
from steersman.pipelines.trajectory import PipelineTrajectory

CASES = ["DDPM", "DiT", "SD", "SDXL", "SD3", "Flux", "FLUX.2", "Z-Image", "Wan"]


WAYS = {"x0_hat": Denoised(clip=False), "x_t": Lookahead(clip=False, until=0.1)}


@pytest.mark.parametrize(
    ("name", "wrt"),
    wide([(name, wrt) for name in CASES for wrt in WAYS], [("DDPM", "x0_hat"), ("SD", "x_t")]),
)
def test_no_step_after_the_first_waits_for_the_accelerator(name, wrt, guide, classifier, accelerator, monkeypatch):
    make_step, waits = PipelineTrajectory.step, []

    def unwatched(call):
        """What diffusers waits for in its own code is not ours."""

        def run(*args, **kwargs):
            before = len(accelerator.waits)
            try:
                return call(*args, **kwargs)
            finally:
                del accelerator.waits[before:]

        return run

    def watched(self, own, call, turn):
        turn._run = unwatched(turn._run)
        before = len(accelerator.waits)
        outcome = make_step(self, unwatched(own), call, turn)
        waits.append(accelerator.waits[before:])
        return outcome

    monkeypatch.setattr(PipelineTrajectory, "step", watched)
    pipe = copy.deepcopy(make(name))  # other tests share its networks
    pipe.to("cuda")
    objective = ClassProbability(classifier=copy.deepcopy(classifier).to("cuda"))
    call = each_tensor(FAMILIES[name].call(), lambda x: x.to("cuda"))
    with steersman.steer(pipe, guide(objective=objective, wrt=wrt, input=WAYS[wrt]), target=1):
        draw(pipe, name, **{**call, "output_type": "latent", "generator": None})
    assert len(waits) >= 3
    assert not any(waits[1:])
