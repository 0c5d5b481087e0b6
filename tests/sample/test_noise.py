import pytest
import torch

from steersman.errors import InputError
from steersman.sample import GivenNoise, SeededNoise

F64 = torch.float64
SHAPE = (3, 4, 4)


def seeded(seeds, dtype=F64):
    return SeededNoise(seeds, SHAPE, "cpu", dtype)


def test_an_image_draws_by_its_own_seed_whatever_its_neighbours():
    together = seeded([5, 7, 2])
    alone = [seeded([seed]) for seed in (5, 7, 2)]
    for purpose in ("start", "step", "step", "renoise", "step"):
        assert torch.equal(together(purpose), torch.cat([each(purpose) for each in alone]))


def test_one_purpose_does_not_move_another_on():
    one, other = seeded([3]), seeded([3])
    for _ in range(5):
        one("renoise")
    assert torch.equal(one("step"), other("step"))
    assert torch.equal(one("start"), other("start"))


def test_no_two_streams_are_the_same():
    noise = seeded(range(200))
    draws = torch.cat([noise(purpose) for purpose in ("start", "step", "renoise", "step")]).flatten(1)
    assert len(torch.unique(draws, dim=0)) == 800


def test_draws_are_standard_normal_and_independent_of_each_other():
    noise = seeded(range(1000))
    draws = torch.stack([noise("start"), noise("step"), noise("renoise"), noise("step")]).flatten(2).flatten(0, 1)
    n = draws.numel()
    # five standard errors of the mean, of the variance, and of 48 columns' correlations with the next column
    assert abs(float(draws.mean())) < 5 / n**0.5
    assert abs(float(draws.var()) - 1) < 5 * (2 / n) ** 0.5
    assert abs(float((draws[:, 1:] * draws[:, :-1]).mean())) < 5 / n**0.5
    assert abs(float((draws[1:] * draws[:-1]).mean())) < 5 / n**0.5  # neighbouring seeds


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_have_the_type_that_was_asked_for(dtype):
    assert seeded([0, 1], dtype)("start").dtype == dtype
    assert seeded([0, 1], dtype)("start").shape == (2, *SHAPE)


def test_given_draws_come_in_their_order_whatever_they_are_for(draw):
    draws = [draw(2, *SHAPE) for _ in range(3)]
    given = GivenNoise(iter(draws), "cpu", F64)
    assert all(
        torch.equal(given(purpose), each) for purpose, each in zip(("start", "renoise", "step"), draws, strict=True)
    )
    with pytest.raises(InputError, match="noise: no draw left for the renoise; allowed: the start and one for each"):
        given("renoise")


def test_given_draws_are_cast(draw):
    assert GivenNoise([draw(2, *SHAPE)], "cpu", torch.float32)("start").dtype == torch.float32
