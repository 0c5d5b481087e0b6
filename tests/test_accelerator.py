"""The pretend accelerator refuses, waits and computes as a real one."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from accelerator import Accelerator, OnDevice, awaits_nothing
from steersman.batching import send, take


@pytest.fixture
def x(accelerator):
    return accelerator.put(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))


def test_values_and_gradients_are_those_of_the_cpu(accelerator, x):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.SiLU(), nn.Flatten(), nn.Linear(8, 1))
    of_host = x.values[None, None].requires_grad_()
    expected = torch.autograd.grad(network(of_host).sum(), of_host)[0]
    network.to(accelerator.device)
    of_device = x[None, None].requires_grad_()
    output = network(of_device)
    (found,) = torch.autograd.grad(output.sum(), of_device)
    assert output.device == found.device == network[0].weight.device == torch.device("cuda:0")
    assert isinstance(network[0].weight, nn.Parameter) and isinstance(copy.deepcopy(network)[0].weight, nn.Parameter)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=0)
    assert type(network.cpu()[0].weight) is nn.Parameter


def test_what_is_made_on_the_device_or_changed_in_place_is_of_it(accelerator, x):
    made = [torch.zeros(2, device="cuda"), torch.tensor([1, 2], device=accelerator.device), x.new_ones(2), x > 0, x[0]]
    assert all(isinstance(each, OnDevice) and each.device == x.device for each in made)
    assert x.mul_(2) is x and x.tolist() == [[2, -4], [6, 8]]
    x[0] = 1.0
    assert x.tolist() == [[1, 1], [6, 8]]
    assert torch.empty(2, device="meta").is_meta and torch.ones(2).device.type == "cpu"


@pytest.mark.parametrize(
    ("mixed", "allowed"),
    [
        (lambda x, number, host: x + number, True),
        (lambda x, number, host: number.sub(x), True),
        (lambda x, number, host: torch.maximum(x, number), True),
        (lambda x, number, host: x.masked_fill(x > 0, number), True),
        (lambda x, number, host: x.pow(number), True),
        (lambda x, number, host: x[host.long()], True),
        (lambda x, number, host: x.copy_(host), True),
        (lambda x, number, host: x + host, False),
        (lambda x, number, host: torch.lerp(number, number, x), False),
        (lambda x, number, host: torch.addcmul(number, x, number), False),
        (lambda x, number, host: x.clamp(number, number), False),
        (lambda x, number, host: torch.where(x > 0, x, host), False),
        (lambda x, number, host: torch.cat([x, host]), False),
        (lambda x, number, host: torch.stack([x[0, 0], number]), False),
        (lambda x, number, host: x @ host, False),
        (lambda x, number, host: x.gather(1, host.long()), False),
        (lambda x, number, host: host[(x > 0).long()], False),
        (lambda x, number, host: nn.functional.linear(x, host), False),
        (lambda x, number, host: torch.randn(2, device=x.device, generator=torch.Generator()), False),
    ],
)
def test_mixes_are_refused(x, mixed, allowed):
    number, host = torch.ones((), dtype=torch.float64 if allowed else torch.float32), torch.ones(2, 2)
    if allowed:
        assert mixed(x, number, host).dtype == torch.float32
    else:
        with pytest.raises(RuntimeError, match="same device|device type for generator|on cpu"):
            mixed(x, number, host)


@pytest.mark.parametrize(
    ("act", "what"),
    [
        (lambda x: x[0, 0].item(), "_local_scalar_dense"),
        (lambda x: bool((x > 0).any()), "_local_scalar_dense"),
        (lambda x: float(x.sum()), "_local_scalar_dense"),
        (lambda x: torch.equal(x, x), "equal"),
        (lambda x: x.tolist(), "copy to the host"),
        (lambda x: x.cpu(), "copy to the host"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: torch.where(x > 0), "nonzero"),
        (lambda x: x[x > 0], "index, by a mask"),
        (lambda x: x.masked_select(x > 0), "masked_select"),
        (lambda x: x.unique(), "_unique2"),
        (lambda x: x.abs().flatten().multinomial(1), "multinomial"),
        (lambda x: torch.ones(2, 2).copy_(x), "copy_ to the host"),
        (lambda x: x.copy_(torch.ones(2, 2)), "copy_ to the device"),
        (lambda x: torch.ones(2).to(x.device), "copy to the device"),
        (lambda x: torch.ones(2).to(x.device, non_blocking=True), "copy to the device"),
        (lambda x: torch.tensor([1.0], device=x.device), "copy to the device"),
        (lambda x: x[torch.tensor([0])], "index, by an index of the host"),
        (lambda x: torch.where(x > 0, x, torch.zeros(())), "where, of numbers of the host"),
        (lambda x: torch.cuda.synchronize(), "synchronize"),
    ],
)
def test_waits_are_written_down(accelerator, x, act, what):
    act(x)
    assert [wait.what for wait in accelerator.waits] == [what]
    assert accelerator.waits[0].line.startswith("test_accelerator.py:")


@pytest.mark.parametrize(
    "act",
    [
        lambda x: x * torch.ones((), dtype=torch.float64) + 1,
        lambda x: torch.full((2,), 0.5, device=x.device),
        lambda x: torch.where(x > 0, x, 0),
        lambda x: x[:, None, 0],
        lambda x: x[torch.zeros(2, dtype=torch.int64, device=x.device)],
        lambda x: torch.ones(2).pin_memory().to(x.device, non_blocking=True),
        lambda x: send(torch.ones(2), x.device),
        lambda x: x.to(x.device).argmax(1),
        lambda x: x.masked_fill_(x > 0, 0.0).softmax(1).cumsum(0).sort().values,
    ],
)
def test_nothing_else_waits(accelerator, x, act):
    with awaits_nothing(accelerator):
        act(x)


def test_a_wait_names_the_line_of_ours_that_asked(accelerator, x):
    take(x, torch.tensor([1]))
    assert accelerator.waits[0].line.startswith("batching.py:")
    with pytest.raises(AssertionError), awaits_nothing(accelerator):
        x.tolist()


def test_no_value_reaches_numpy(x):
    for attempt in (x.numpy, lambda: np.asarray(x)):
        with pytest.raises(TypeError, match="Tensor.cpu"):
            attempt()
    assert x.cpu().numpy().tolist() == x.numpy(force=True).tolist() == [[1, -2], [3, 4]]


def test_float64_is_written_down(accelerator, x):
    assert not accelerator.doubles
    x.double()
    assert [note.what for note in accelerator.doubles] == ["copy"]


def test_metal_has_no_float64():
    with Accelerator("mps") as metal:
        x = metal.put(torch.ones(2))
        assert x.device == torch.device("mps:0") and (x * torch.ones((), dtype=torch.float64)).dtype == torch.float32
        for attempt in (x.double, lambda: torch.zeros(2, dtype=torch.float64, device=x.device)):
            with pytest.raises(TypeError, match="float64"):
                attempt()


SHAPES = """
import itertools, sys, torch
import torch._meta_registrations as registered
registered._meta_lib_dont_use_me_use_register_meta._destroy()  # Python's, which let more in than the kernels do
for name, count in [line.split() for line in sys.argv[1:]]:
    operation = eval("torch.ops.aten." + name)
    for hosts in itertools.product((False, True), repeat=int(count)):
        tensors = [torch.ones(() if host else (2, 2), device="cpu" if host else "meta") for host in hosts]
        try:
            operation(*tensors)
            allowed = True
        except RuntimeError:
            allowed = False
        print(name, *map(int, hosts), int(allowed))
"""


def test_what_the_kernels_refuse_is_refused(accelerator):
    two = ("add.Tensor", "div.Tensor", "pow.Tensor_Tensor", "maximum", "clamp_min.Tensor", "lt.Tensor", "atan2")
    three = ("lerp.Tensor", "addcmul", "addcdiv", "clamp.Tensor")
    asked = [f"{name} 2" for name in two] + [f"{name} 3" for name in three]
    said = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SHAPES, *asked], capture_output=True, text=True, check=True
    )
    lines = said.stdout.splitlines()
    assert len(lines) == 4 * len(two) + 8 * len(three)
    for line in lines:
        name, *hosts, allowed = line.split()
        if "0" not in hosts or "1" not in hosts:
            continue
        packet, _, overload = name.partition(".")
        operation = getattr(getattr(torch.ops.aten, packet), overload or "default")
        tensors = [torch.ones(()) if host == "1" else accelerator.put(torch.ones(2, 2)) for host in hosts]
        if allowed == "1" and name in two:
            operation(*tensors)
        else:
            with pytest.raises(RuntimeError, match="same device"):
                operation(*tensors)
        assert allowed == "0" or len(hosts) == 2 or hosts.count("1") == 1
