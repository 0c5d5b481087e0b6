"""The floor: the same calls of the networks, in the same order and with the same gradients, and nothing else."""

import pytest
import torch
from torch import nn

from steersman.lab.bench import Calls, bench
from steersman.lab.run import Run
from steersman.lab.session import load_session
from steersman.recipes import load_recipe

GUIDE = "zoo:sportballs-mobilenet"


def run(denoiser, recipe="nrcg", **settings):
    given = {"targets": ("baseball",), "num": 5, "denoiser": denoiser, "classifiers": (GUIDE,), "judge": None}
    return Run(**given, recipe=load_recipe(recipe, ["sampling.steps=3"]), **settings)


class Watched(nn.Module):
    """Notes what it was asked, and each gradient that went back through it."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, scale=None):
        self.seen.append(("asked", x.tolist(), torch.is_grad_enabled() and x.requires_grad))
        if x.requires_grad:
            x.register_hook(lambda _: self.seen.append(("back", x.tolist())))
        return x * 2 * (1 if scale is None else scale)


def test_calls_are_played_again_with_their_values_graphs_and_gradients():
    network, calls = Watched(), Calls()
    with calls.recording([network]):
        network(torch.tensor([1.0]))
        x = torch.tensor([2.0], requires_grad=True)
        output = network(network(x), scale=torch.tensor([3.0]))
        torch.autograd.grad(output, x, retain_graph=True)
        torch.autograd.grad(output, x)
        with torch.no_grad():
            network(torch.tensor([5.0]))
    heard, network.seen = network.seen, []
    calls.replay()
    assert network.seen == heard
    assert [each for each in heard if each[0] == "back"] == [("back", [4.0]), ("back", [2.0])] * 2
    assert calls.count() == 4


def test_a_walks_floor_asks_each_network_as_often_as_the_walk(denoiser):
    session, calls = load_session(run(denoiser, batch_size=5)), Calls()
    networks = [session.denoiser.network, session.guide.network]
    asked = {network: 0 for network in networks}

    def count(network, *_):
        asked[network] += 1

    for network in networks:
        network.register_forward_hook(count)
    with calls.recording(networks):
        session.draw([(session.targets[0], seed) for seed in range(5)])
    walked = dict(asked)
    calls.replay()
    assert all(asked[network] == 2 * walked[network] for network in networks)
    # three steps of two blocks; the last one has no variance, so that nothing guides there
    assert list(walked.values()) == [6, 4]
    assert sum(back for _, back in calls.events) == 8


@pytest.mark.long
def test_a_bench_tells_the_floor_and_ours(denoiser):
    pairs = []
    found, _ = bench(run(denoiser), steps=30, repeats=2, on_pair=lambda: pairs.append(1))
    assert len(pairs) == 2
    assert found["least"] <= found["ratio"] <= found["most"]
    assert found["peak"] > found["peak_floor"] / 2 > 0
    assert found["images_per_second"] == 4 / found["ours"] * 3 / 30  # of five images, the first batch
    assert found["run"]["recipe"]["name"] == "nrcg"
