"""Noise that belongs to an image at a time."""

import torch

from steersman.lab.analysis.forward import forward_noise
from steersman.schedule import EDM, VP, noised

SCHEDULE = VP.cosine()
LIKE = torch.zeros(3, 2, 4, 4)


def test_noise_is_of_seed_image_and_time_alone():
    level, other = SCHEDULE.at_time(500), SCHEDULE.at_time(499)
    whole = forward_noise([4, 5, 6], LIKE, level, 1)
    assert torch.equal(forward_noise([6, 4], LIKE[:2], level, 1), whole[[2, 0]])
    same = [whole[0], whole[1], forward_noise([4], LIKE[:1], other, 1)[0], forward_noise([4], LIKE[:1], level, 2)[0]]
    assert all(not torch.equal(a, b) for i, a in enumerate(same) for b in same[:i])
    twice = [forward_noise([0], LIKE[:1], EDM().at_ratio(sigma), 0) for sigma in (0.50, 0.51)]
    assert not torch.equal(*twice)  # times need not be whole


def test_noise_is_standard_normal():
    draws = forward_noise(range(2000), torch.zeros(2000, 1, 4, 4, dtype=torch.float64), SCHEDULE.at_time(3), 0)
    assert abs(float(draws.mean())) < 4 / 32000**0.5
    assert abs(float(draws.var()) - 1) < 4 * (2 / 32000) ** 0.5


def test_noised_is_the_forward_process():
    level, x, eps = SCHEDULE.at_time(300), torch.randn(2, 1, 2, 2).double(), torch.randn(2, 1, 2, 2).double()
    torch.testing.assert_close(noised(x, eps, level), level.alpha * x + level.sigma * eps)
