"""Pipelines in float16: a small gradient comes back through their network and their VAE."""

import copy

import pytest
import torch
from torch import nn

import steersman
from pipelines.families import draw, make
from steersman.guidance import ClassProbability, Constant, Denoised, Guide, Lookahead
from steersman.models.classifiers import Classifier
from steersman.models.classifiers.preprocess import RAW

NAMES = ("red", "green", "blue")


class Kept:
    """A stabilizer that keeps the gradients which it is shown."""

    def __init__(self):
        self.seen = []

    def init(self, x):
        return ()

    def update(self, g, state):
        self.seen.append(g.clone())
        return g, state


def gradient(name, dtype, input):
    """The first step's, of a classifier that is sure of what it is to see."""
    torch.manual_seed(3)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, len(NAMES)))
    with torch.no_grad():
        network[2].weight *= 10
        network[2].bias[1] += 60
    objective = ClassProbability(classifier=Classifier(network, preprocess=RAW, names=NAMES))
    settings = {"input": input, "wrt": "x_t", "stabilizer": (kept := Kept()), "weight": Constant()}
    pipe = copy.deepcopy(make(name))  # other tests share its networks
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.to(dtype)
    with steersman.steer(pipe, Guide(objective=objective, scale=1e-3, **settings), target="green"):
        draw(pipe, name)
    return kept.seen[0].flatten(1).double()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("name", "input"),
    [("SD", Denoised(clip=False)), ("DDIM", Lookahead(clip=False, until=0.01))],
    ids=["SD", "DDIM-ahead"],
)
def test_the_gradient_is_that_of_float32(name, input, monkeypatch):
    own = torch.randn  # some versions of torch draw other noise in float16
    monkeypatch.setattr(torch, "randn", lambda *size, dtype=None, **more: own(*size, **more).to(dtype))
    exact, half = (gradient(name, dtype, input) for dtype in (torch.float32, torch.float16))
    assert exact.abs().max() < 1e-20
    # Without the part that passes the network it is below 0.98.
    assert (torch.cosine_similarity(exact, half, dim=1, eps=1e-300) > 0.999).all()
