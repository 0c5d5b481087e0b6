import pytest
import torch

from steersman.guidance import ClassProbability, Log, Root
from steersman.schedule import EDM

F64 = torch.float64
LEVEL = EDM().at_ratio(1.0)
TARGET = torch.tensor([2, 0, 1])


def slope(objective, image):
    leaf = image.clone().requires_grad_()
    value = objective(leaf, TARGET, LEVEL)
    return torch.autograd.grad(value.sum(), leaf)[0], value.detach()


def test_the_root_of_a_squared_residual_is_its_norm(draw):
    """``l = -|x - y|^2``: up ``-|x - y|``, whose gradient has length 1 wherever it is (Chung et al. 2023)."""
    y, x = draw(3, 2, 4, 4), draw(3, 2, 4, 4)
    g, value = slope(Root(objective=lambda image, target, level: -(image - y).square().sum((1, 2, 3))), x)
    distance = (x - y).flatten(1).norm(dim=1)
    torch.testing.assert_close(value, -distance)
    torch.testing.assert_close(g, (y - x) / distance.reshape(3, 1, 1, 1))


def test_the_log_makes_the_gradient_relative_to_the_likelihood(posterior, draw):
    x = draw(3, 2, 1, 1)
    objective = ClassProbability(classifier=posterior)
    (g, value), (relative, _) = slope(objective, x), slope(Log(objective=objective), x)
    assert (value < 0).all()
    torch.testing.assert_close(relative, g / value.abs().reshape(3, 1, 1, 1))


@pytest.mark.parametrize(("loss", "factor"), [(Root, lambda size: 0.5 / size.sqrt()), (Log, lambda size: 1 / size)])
def test_they_rise_on_either_side_of_zero_and_leave_zero_alone(loss, factor):
    """``F'(l) > 0`` for positive values too, such as logits; no 0 / 0 where a classifier is certain."""
    x = torch.tensor([-2.0, 0.0, 3.0], dtype=F64).reshape(3, 1, 1, 1)
    g, value = slope(loss(objective=lambda image, target, level: 2 * image[:, 0, 0, 0]), x)
    sizes = 2 * factor(2 * x.flatten().abs())
    torch.testing.assert_close(g.flatten()[[0, 2]], sizes[[0, 2]])
    assert (g.flatten()[1], value[1]) == (2, 0)
    assert value[0] < value[2]
