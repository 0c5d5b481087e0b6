import copy
import math

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

from steersman.errors import InputError
from steersman.models.classifiers import soften
from steersman.models.classifiers.smoothing import SoftActivation, SoftCalls, softplus

BETAS = [0.5, 3.0, 8.0, 100.0]
HARD = {
    "relu": (nn.ReLU(), functional.relu),
    "relu6": (nn.ReLU6(), functional.relu6),
    "hardsigmoid": (nn.Hardsigmoid(), functional.hardsigmoid),
    "hardswish": (nn.Hardswish(), functional.hardswish),
}


class Calls(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.act(self.conv(x))
        x = functional.relu(x - 1) + torch.relu(x - 2) + (x - 3).relu() + functional.relu6(x)
        return self.head(functional.hardswish(x).mean((2, 3)))


class Branches(Calls):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


def grid(dtype=torch.float64):
    return torch.linspace(-60, 60, 12001, dtype=dtype)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softplus_and_its_slope_are_exact(beta, dtype):
    a = grid(dtype).requires_grad_()
    values = softplus(a, beta)
    (slope,) = torch.autograd.grad(values.sum(), a)
    exact = a.detach().double()
    # exp(z) carries the rounding of z, |z| eps, where z is not below the bound, whose exponential is tiny^(1/4)
    info = torch.finfo(dtype)
    tolerance = {"rtol": -math.log(info.tiny) / 2 * info.eps, "atol": 1.01 * info.tiny ** (1 / 4) * max(1, 1 / beta)}
    expected = torch.logaddexp(torch.zeros_like(exact), beta * exact) / beta
    torch.testing.assert_close(values.double(), expected, **tolerance)
    torch.testing.assert_close(slope.double(), torch.sigmoid(beta * exact), **tolerance)


@pytest.mark.parametrize("beta", [0.5, 3.0, 8.0, 20.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_relu6_in_one_piece_is_the_difference_of_two_softplus(beta, dtype):
    a = grid(dtype).requires_grad_()
    values = soften(nn.ReLU6(), beta)[0](a)
    (slope,) = torch.autograd.grad(values.sum(), a)
    exact = a.detach().double()
    # the difference of two values near |a| <= 60, each rounded
    tolerance = {"rtol": 0, "atol": 64 * torch.finfo(dtype).eps}
    zero = torch.zeros_like(exact)
    expected = (torch.logaddexp(zero, beta * exact) - torch.logaddexp(zero, beta * (exact - 6))) / beta
    torch.testing.assert_close(values.double(), expected, **tolerance)
    expected = torch.sigmoid(beta * exact) - torch.sigmoid(beta * (exact - 6))
    # exp(z) carries the rounding of z, which is 3 beta at the kinks
    tolerance = {"rtol": 0, "atol": (4 + 3 * beta) * torch.finfo(dtype).eps + 1e-9}
    torch.testing.assert_close(slope.double(), expected, **tolerance)


@pytest.mark.parametrize("kind", HARD)
def test_every_kind_tends_to_its_activation(kind):
    module, _ = HARD[kind]
    a = grid()
    for beta in (10.0, 1e3, 1e5):
        soft, count = soften(module, beta)
        assert count == 1
        # |sp - relu| <= log 2 / beta, and the kinds multiply that by at most 2 · |a| / 6 near their kinks, |a| <= 4
        bound = 2 * torch.log(torch.tensor(2.0)).item() / beta
        torch.testing.assert_close(soft(a), module(a), rtol=0, atol=bound + 1e-12)


@pytest.mark.parametrize("kind", HARD)
def test_calls_and_modules_soften_alike(kind):
    module, function = HARD[kind]

    class Call(nn.Module):
        def forward(self, a):
            return function(a)

    called, count = soften(Call(), 3.0)
    assert count == 1
    assert torch.equal(called(grid()), soften(module, 3.0)[0](grid()))


def test_calls_within_a_network(generator):
    network = Calls().double()
    before = copy.deepcopy(network.state_dict())
    x = torch.randn(2, 3, 6, 6, generator=generator, dtype=torch.float64)
    hard = network(x)
    soft, count = soften(network, 4.0)
    assert count == 6
    assert not torch.allclose(soft(x), hard)
    # five kinks in a row, each off by log 2 / beta = 7e-7 at most, through weights below 1
    torch.testing.assert_close(soften(network, 1e6)[0](x), hard, rtol=0, atol=1e-4)
    assert torch.equal(network(x), hard)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])


def test_the_weights_are_shared_and_the_modules_are_not():
    network = Calls()
    soft, _ = soften(network, 4.0)
    assert {id(p) for p in soft.parameters()} == {id(p) for p in network.parameters()}
    assert isinstance(network.act, nn.ReLU)
    assert not {id(m) for m in soft.modules()} & {id(m) for m in network.modules()}


def test_what_cannot_be_traced_is_softened_too(generator):
    network = Branches().double()
    x = torch.randn(2, 3, 6, 6, generator=generator, dtype=torch.float64)
    soft, count = soften(network, 4.0)
    assert isinstance(soft, SoftCalls) and count == 1
    traced, _ = soften(Calls().double(), 4.0)
    traced.load_state_dict({f"network.{key}": value for key, value in network.state_dict().items()})
    torch.testing.assert_close(soft(x), traced(x if x.sum() > 0 else -x))


def test_calls_that_write_into_their_input(generator):
    class InPlace(nn.Module):
        def forward(self, x):
            x = x * 1
            functional.relu_(x)
            functional.relu(x - 1, inplace=True)
            return x

    a = torch.randn(50, generator=generator, requires_grad=True)
    soft, count = soften(InPlace(), 2.0)
    assert count == 2
    assert torch.equal(soft(a), softplus(a, 2.0))
    (slope,) = torch.autograd.grad(soft(a).sum(), a)
    torch.testing.assert_close(slope, torch.sigmoid(2 * a))


def test_torch_transformer_layers_hold_their_activation_as_a_function(generator):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval().requires_grad_(False)
    x = torch.randn(2, 3, 8, generator=generator)
    soft, _ = soften(layer, 1.0)
    assert not torch.allclose(soft(x), layer(x), atol=1e-3)


@pytest.mark.parametrize("name", ["HardSwish", "HardSigmoid"])
def test_timm_has_activations_of_its_own(name):
    module = getattr(timm.layers, name)()
    soft, count = soften(nn.Sequential(module), 5.0)
    assert count == 1
    assert isinstance(soft[0], SoftActivation) and soft[0].kind == name.lower()


def test_a_module_in_two_places_counts_once():
    act = nn.ReLU()
    soft, count = soften(nn.Sequential(act, nn.Linear(2, 2), act), 5.0)
    assert count == 1
    assert soft[0] is soft[2]


def test_nothing_to_replace():
    network = nn.Sequential(nn.Linear(2, 2), nn.GELU())
    soft, count = soften(network, 5.0)
    assert count == 0
    assert isinstance(soft, nn.Sequential)


@pytest.mark.parametrize("beta", [0.0, -1.0, float("inf"), float("nan")])
def test_refuses_a_beta_that_is_not_positive(beta):
    with pytest.raises(InputError, match="positive"):
        soften(nn.ReLU(), beta)
