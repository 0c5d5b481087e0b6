"""Proposition 4.2 against autograd."""

import pytest
import torch

from steersman.errors import InputError
from steersman.lab.analysis.gradients import FIELDS, example, fields, lattice
from steersman.schedule import CLEAN


def gradient(value, x):
    x = x.detach().requires_grad_()
    (g,) = torch.autograd.grad(value(x).sum(), x)
    return g


@pytest.mark.parametrize("time", [0.0, 300.0, 700.0])
def test_fields_are_the_gradients_of_the_log_densities(mixture, time):
    level, x = mixture.schedule.at_time(time), lattice(5)
    found = fields(mixture, x, level, 1)
    assert tuple(found) == FIELDS
    torch.testing.assert_close(found["joint"], gradient(lambda x: mixture.log_joint(x, level)[:, 1], x))
    torch.testing.assert_close(found["marginal"], gradient(lambda x: mixture.log_joint(x, level).logsumexp(1), x))
    torch.testing.assert_close(found["conditional"], gradient(lambda x: mixture.log_posterior(x, level)[:, 1], x))
    seen = gradient(lambda x: mixture.log_posterior(mixture(x, level).x0_hat, CLEAN)[:, 1], x)
    torch.testing.assert_close(found["on x0_hat"], seen)


def test_unit_shapes_lead_to_the_mean_and_along_the_differences_of_means():
    mixture, x = example(), lattice(4)
    found = fields(mixture, x, CLEAN, 0)
    p = mixture.log_posterior(x, CLEAN).exp()
    means = mixture.means[..., None, None]
    torch.testing.assert_close(found["joint"], (means[0] - x) / 0.04)
    differences = torch.einsum("pk,kdij->pdij", p, means[0] - means) / 0.04
    torch.testing.assert_close(found["conditional"], differences)


def test_a_lattice_goes_row_by_row_from_below():
    assert lattice(2, 1.0)[:, :, 0, 0].tolist() == [[-1, -1], [1, -1], [-1, 1], [1, 1]]


def test_refusals(mixture):
    with pytest.raises(InputError, match="side must be at least 2, got 1"):
        lattice(1)
    with pytest.raises(InputError, match="target must be 0 to 2, got 3"):
        fields(mixture, lattice(2), CLEAN, 3)
