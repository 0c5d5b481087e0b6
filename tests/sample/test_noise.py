import pytest
import torch

from steersman.errors import InputError
from steersman.guidance import ClassProbability, Guide, Noisy
from steersman.sampling import DDIM, DDPM, GivenNoise, Particles, SeededNoise, sample

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
    given = GivenNoise(iter(draws), 2, SHAPE, "cpu", F64)
    assert all(
        torch.equal(given(purpose), each) for purpose, each in zip(("start", "renoise", "step"), draws, strict=True)
    )
    with pytest.raises(
        InputError,
        match="noise must have a draw for .*, got 3: no draw left for the renoise",
    ):
        given("renoise")


def test_given_draws_are_cast(draw):
    assert GivenNoise([draw(2, *SHAPE)], 2, SHAPE, "cpu", torch.float32)("start").dtype == torch.float32


@pytest.mark.parametrize(
    "wrong", [torch.zeros(1, *SHAPE), torch.zeros(6, *SHAPE), torch.zeros(2, 2), torch.zeros(2, *SHAPE).long(), None]
)
@pytest.mark.parametrize("place", [0, 1, 3])
def test_each_given_draw_has_a_row_an_image_and_the_samples_shape(mixture, wrong, place, unchecked):
    """A row for all images would be broadcast in silence; the mixture's samples are no images."""
    draws = [torch.zeros(2, *mixture.shape) for _ in range(4)]
    draws[place] = [] if wrong is None else wrong
    with pytest.raises(InputError, match=f"noise: draw {place + 1}, for the .*, must be a tensor of floats of shape "):
        sample(mixture, DDPM(), seeds=[0, 1], steps=4, noise=draws)


def test_draws_that_nothing_uses_are_refused(mixture):
    draws = [torch.zeros(2, *mixture.shape) for _ in range(5)]
    sample(mixture, DDPM(), seeds=[0, 1], steps=4, noise=draws[:4])
    with pytest.raises(InputError, match="noise must have the 4 draws that these settings use, got more"):
        sample(mixture, DDPM(), seeds=[0, 1], steps=4, noise=draws)
    rest = iter(draws)
    sample(mixture, DDIM(), seeds=[0, 1], steps=4, noise=rest)
    assert len(list(rest)) == 4
    with pytest.raises(InputError, match="noise must have the 1 draws that these settings use, got more"):
        sample(mixture, DDIM(), seeds=[0, 1], steps=4, noise=draws)


@pytest.mark.parametrize("wrong", [torch.tensor([0.5]), torch.tensor([0.5, 1.5]), torch.tensor([0.5, float("nan")])])
def test_a_draw_for_the_choice_is_a_number_an_image(mixture, posterior, wrong):
    weigher = Guide(objective=ClassProbability(classifier=posterior), input=Noisy(), scale=0)
    settings = {
        "guides": [weigher],
        "target": 0,
        "particles": Particles(count=2, ratio_max=0),
        "seeds": [0, 1],
        "steps": 1,
    }
    start = torch.zeros(4, *mixture.shape)
    sample(mixture, DDIM(), noise=[start, torch.tensor([0.5, 1.0])], **settings)
    with pytest.raises(InputError, match="noise: draw 2, for the choice, must be"):
        sample(mixture, DDIM(), noise=[start, wrong], **settings)
