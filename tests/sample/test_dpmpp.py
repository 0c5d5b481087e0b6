import math
from dataclasses import dataclass, replace

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from steersman.guidance import ClassProbability, Constant, Guide, NoisePrediction, Noisy
from steersman.sampling import DPMpp, Move, Recurrence, sample
from steersman.schedule import EDM, VP

F64 = torch.float64


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("recurrence", [None, Recurrence(times=3, ratio_min=0.2, ratio_max=3.0)])
def test_a_walk_is_the_formula_step_by_step(recording, draw, recurrence, clip):
    """Lu et al. 2022, Algorithm 2; of first order where the sample was renoised, as the history is another sample's."""
    reports, draws = [], [2 * draw(4, 2, 1, 1) for _ in range(40)]
    settings = {"recurrence": recurrence, "clip": clip, "steps": 12, "dtype": F64, "callbacks": [reports.append]}
    sample(recording, DPMpp(), seeds=range(4), noise=iter(draws), **settings)
    images = [x0.clamp(-1, 1) if clip else x0 for x0 in recording.predicted]
    for visit, report in enumerate(reports):
        (x_t, level), next, D = recording.asked[visit], report.step.next, images[visit]
        h = math.inf if next.sigma == 0 else math.log(next.alpha / next.sigma * level.sigma / level.alpha)
        if visit and report.step.repeat == 0 and next.sigma > 0:
            before = recording.asked[visit - 1][1]
            r = math.log(level.alpha / level.sigma * before.sigma / before.alpha) / h
            D = (1 + 1 / (2 * r)) * D - 1 / (2 * r) * images[visit - 1]
        expected = next.sigma / level.sigma * x_t - next.alpha * (math.exp(-h) - 1) * D
        torch.testing.assert_close(report.x, expected, rtol=0, atol=1e-10)  # rounding, over the first alpha of 5e-5
    assert any(report.step.repeat for report in reports) == (recurrence is not None)


@pytest.mark.parametrize("steps", [5, 20])
def test_a_walk_is_that_of_diffusers(mixture, start, steps):
    mixture = replace(mixture, schedule=VP.linear())
    scheduler = DPMSolverMultistepScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    theirs = start
    for t in scheduler.timesteps:
        level = mixture.schedule.at_time(t)
        eps = (theirs - level.alpha * mixture(theirs, level).x0_hat) / level.sigma
        theirs = scheduler.step(eps, t, theirs).prev_sample
    settings = {"seeds": range(20), "steps": steps, "spacing": "trailing", "clip": False, "dtype": F64}
    ours = sample(mixture, DPMpp(), noise=[start], **settings)
    # its levels and samples are float32, of size 1: some units of 2^-24; 5e-7 is seen
    torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-6)
    # no order tells r from 1 / r: the errors of the steps, h_u^2 - h^2, add up to nothing; 0.0014 and 0.031 are seen
    wrong = sample(mixture, Faulty(factor="r inverted"), noise=[start], **settings)
    assert (wrong - theirs).abs().max() > 1e-3


@pytest.mark.few(3)
def test_its_order_is_two(order, solution):
    assert order(DPMpp(), solution) == pytest.approx(2, abs=0.2)


@pytest.fixture
def guide(posterior):
    objective = ClassProbability(classifier=posterior)
    return Guide(objective=objective, input=Noisy(), weight=Constant(), injection=NoisePrediction())


@pytest.mark.few(3)
def test_guided_it_nears_the_conditional_law_at_its_order(order, conditional_solution, guide):
    """The exact classifier at scale 1: each sample goes where the class's own ODE takes it."""
    assert order(DPMpp(), conditional_solution, guides=[guide], target=2) == pytest.approx(2, abs=0.2)


@dataclass(frozen=True, kw_only=True)
class Faulty(DPMpp):
    """The step of first order, and the correction times a wrong factor; the right one is 1."""

    factor: float | str

    def step(self, x_t, step, predict, draw, state):
        first, _ = super().step(x_t, step, predict, draw, ())
        second, new = super().step(x_t, step, predict, draw, state[:2])
        h = float((step.level.sigma / step.level.alpha * step.next.alpha / step.next.sigma).log())
        r = state[2] / h if state else 1.0
        factor = {"r inverted": r**2, "r left out": r}.get(self.factor, self.factor)
        return Move(first.mean + factor * (second.mean - first.mean)), (*new, h)


@pytest.mark.parametrize("uneven", [EDM()], ids=["EDM"], indirect=True)
def test_no_fault_is_no_fault(order, solution):
    assert order(Faulty(factor=1.0), solution) == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("uneven", [EDM()], ids=["EDM"], indirect=True)
@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0, -1.0, "r left out"])
def test_a_wrong_correction_is_of_first_order(order, solution, factor):
    assert order(Faulty(factor=factor), solution) < 1.5


def test_an_image_depends_on_its_seed_and_target_alone(mixture, guide):
    seeds, targets = [11, 3, 8], [2, 0, 1]
    settings = {
        "guides": [guide],
        "steps": 10,
        "dtype": F64,
        "recurrence": Recurrence(times=2, ratio_min=0.2, ratio_max=3.0),
    }
    together = sample(mixture, DPMpp(), seeds=seeds, target=targets, **settings)
    for row, (seed, target) in enumerate(zip(seeds, targets, strict=True)):
        alone = sample(mixture, DPMpp(), seeds=[seed], target=target, **settings)
        torch.testing.assert_close(alone, together[row : row + 1], rtol=0, atol=1e-10)  # rounding, as above
