"""An update that is not finite although its gradient is: dropped for that image and counted, with the state kept."""

from dataclasses import dataclass

import pytest
import torch

from steersman.errors import InputError
from steersman.guidance import Adam, Constant, DenoisedImage, Guide, Mean, NoisePrediction, Polyak, Sample, Spherical
from steersman.recipes import load_recipe
from steersman.sampling import DDIM, DDPM, Heun, sample


@dataclass(frozen=True)
class Sized:
    """An objective whose gradient has a size of each image's own at each step."""

    sizes: tuple[tuple[float, ...], ...]
    asked: list

    def __call__(self, image, target, level):
        sizes = torch.tensor(self.sizes[min(len(self.asked), len(self.sizes) - 1)], dtype=image.dtype)
        self.asked.append(level)
        return sizes * image.flatten(1).sum(1)


def drawn(mixture, sizes, sampler=DDIM(), **settings):  # noqa: B008
    dropped = []
    guide = Guide(objective=Sized(sizes, []), scale=0.01, **settings)
    x = sample(
        mixture,
        sampler,
        guides=[guide],
        target=0,
        seeds=range(len(sizes[0])),
        steps=4,
        callbacks=[
            lambda report: dropped.append([update and (~update.finite).tolist() for update in report.updates][0])
        ],
    )
    return x, dropped


@pytest.mark.parametrize("size", [1e-19, 1e-20, 1e-22, 1e-30])
def test_a_weight_that_overflows_loses_no_image(mixture, size):
    x, dropped = drawn(mixture, ((size, 1.0),), weight=Polyak())
    assert x.isfinite().all() and not any(second for _, second in dropped)


def test_adam_forgets_a_gradient_whose_square_overflows(mixture):
    """The image goes on as if that step had not been: the state is the one from before."""
    x, dropped = drawn(mixture, ((1.0, 1.0), (1e20, 1.0), (1.0, 1.0)), stabilizer=Adam(), weight=Constant())
    assert dropped == [[False, False], [True, False], [False, False], [False, False]]
    assert x.isfinite().all()
    _, (m, v, n) = Adam().update(torch.ones(1, 2, 1, 1), Adam().init(torch.zeros(1, 2, 1, 1)))
    assert v.isfinite().all() and n == 1


def test_adam_without_a_gradient_and_with_a_vanishing_eps_divides_nothing_by_nothing(mixture):
    x, dropped = drawn(mixture, ((0.0, 1.0),), stabilizer=Adam(eps=1e-50), weight=Constant())
    assert x.isfinite().all() and dropped == [[True, False]] * 4


@pytest.mark.parametrize("sampler", [DDPM(), Heun(churn=2.0)], ids=lambda sampler: type(sampler).__name__)
@pytest.mark.parametrize(
    "injection",
    [Mean(), NoisePrediction(), DenoisedImage(), DenoisedImage(keeps="sample"), Sample(), Spherical()],
    ids=repr,
)
@pytest.mark.parametrize("size", [1e37, 3e40])
def test_an_update_that_overflows_the_step_is_dropped_for_that_image(mixture, sampler, injection, size):
    """Updates are 0.01 of it, finite at first: what enters the step is not, or its squares are not."""
    if isinstance(injection, Spherical) and isinstance(sampler, Heun):
        pytest.skip("its steps end without noise")
    size = min(size, 3e38)
    settings = {"sampler": sampler, "weight": Constant(), "injection": injection}
    x, dropped = drawn(mixture, ((1.0, size),), **settings)
    small, _ = drawn(mixture, ((1.0, 1.0),), **settings)
    assert x.isfinite().all()
    torch.testing.assert_close(x[0], small[0])
    if not isinstance(injection, Spherical):  # which only turns the noise, however large the update is
        assert [second for _, second in dropped if second is not None] == [True] * len(dropped)
    assert not any(first for first, _ in dropped)


@pytest.mark.parametrize(
    "change",
    [
        "weight={kind: taper, gamma: .inf}",
        "weight={kind: sine, gamma: .nan}",
        "weight={kind: interval, ratio_min: .inf}",
        "stabilizer={kind: clip, norm: .inf}",
        "stabilizer={kind: adam, eps: .inf}",
        "objective.joint=.inf",
        "smoothing={kind: softplus, beta: .inf}",
        "smoothing={kind: montecarlo, radius: .inf}",
        "ensemble={kind: sum, weights: [.inf]}",
        "ensemble={kind: switch, at: .inf}",
        "input={kind: lookahead, until: .inf}",
        "scale=.inf",
        "sampling.ratio_min=.inf",
        "recurrence.ratio_max=.nan",
        "particles={count: 2, ratio_min: .inf}",
        "particles={count: 2, temperature: .nan}",
        "sampler={kind: heun, churn: .inf}",
        "sampler={kind: ddim, eta: .nan}",
    ],
)
def test_settings_that_are_not_finite_are_refused_in_a_line(change):
    with pytest.raises(InputError) as refused:
        load_recipe("default", [change])
    assert "\n" not in str(refused.value)


def test_a_limit_may_be_infinite():
    for change in (
        "weight={kind: interval, ratio_max: .inf}",
        "recurrence.ratio_max=.inf",
        "sampler={kind: heun, ratio_max: .inf}",
    ):
        load_recipe("default", [change])
