import pytest
import torch

from steersman.denoise import Prediction
from steersman.errors import InputError
from steersman.guidance import (
    Adam,
    Chain,
    ClassProbability,
    Constant,
    Ema,
    Guide,
    NoisePrediction,
    Noisy,
    Rms,
    Sine,
    reverse_variance,
)
from steersman.sampling import DDIM, DDPM, Recurrence, SeededNoise, sample
from steersman.sampling.watch import Watch
from steersman.schedule import VP

F64 = torch.float64
SEEDS = [11, 3, 8, 0, 5]
TARGETS = [2, 0, 1, 1, 2]
ROUNDING = {"rtol": 0, "atol": 1e-10}
"""Float64's: 1e-16, divided by the first level's alpha of 5e-5, and then carried through the walk."""


@pytest.fixture
def objective(posterior):
    return ClassProbability(classifier=posterior)


@pytest.fixture
def settings(objective):
    """One choice of each kind that could tie one image to another."""
    noisy = Guide(objective=objective, input=Noisy())
    through = Guide(objective=objective, wrt="x_t", scale=0.5, stabilizer=Ema(beta=0.9))
    chain = Chain([Rms(), Adam()])
    adam = Guide(objective=objective, stabilizer=chain, scale=0.1, weight=Constant(), injection=NoisePrediction())
    return {
        "unguided": {"sampler": DDPM()},
        "guided": {"sampler": DDPM(fixed="large"), "guides": [noisy]},
        "two guides": {"sampler": DDIM(eta=0.5), "guides": [through, adam]},
        "recurrence": {
            "sampler": DDPM(),
            "guides": [noisy],
            "recurrence": Recurrence(times=2, ratio_min=0.2, ratio_max=3.0),
        },
    }


CHOICES = ("unguided", "guided", "two guides", "recurrence")


def draw(mixture, sampler, **settings):
    return sample(mixture, sampler, **{"steps": 12, "dtype": F64, "seeds": SEEDS, "target": TARGETS} | settings)


@pytest.mark.parametrize("choice", CHOICES)
def test_an_image_depends_on_its_seed_and_target_alone(mixture, settings, choice):
    together = draw(mixture, **settings[choice])
    for row, (seed, target) in enumerate(zip(SEEDS, TARGETS, strict=True)):
        alone = draw(mixture, **settings[choice], seeds=[seed], target=target)
        torch.testing.assert_close(alone, together[row : row + 1], **ROUNDING)
    turned = draw(mixture, **settings[choice], seeds=SEEDS[::-1], target=TARGETS[::-1])
    torch.testing.assert_close(turned.flip(0), together, **ROUNDING)


@pytest.mark.parametrize("choice", CHOICES)
def test_a_run_is_reproduced_to_the_bit(mixture, settings, choice):
    assert torch.equal(draw(mixture, **settings[choice]), draw(mixture, **settings[choice]))


def test_one_target_serves_all_images(mixture, settings):
    one = draw(mixture, **settings["guided"], target=1)
    assert torch.equal(one, draw(mixture, **settings["guided"], target=[1] * 5))
    assert torch.equal(one, draw(mixture, **settings["guided"], target=torch.full((5,), 1)))
    assert not torch.equal(one, draw(mixture, **settings["guided"]))


def draws_of(seeds, order):
    noise = SeededNoise(seeds, (2, 1, 1), "cpu", F64)
    return [noise(purpose) for purpose in order]


def test_given_noise_reproduces_a_seeded_run(mixture, settings):
    order = ["start", *["step"] * 11]  # none into the clean image
    given = draw(mixture, **settings["guided"], noise=draws_of(SEEDS, order))
    assert torch.equal(given, draw(mixture, **settings["guided"]))
    with pytest.raises(InputError, match="no draw left for the step"):
        draw(mixture, **settings["guided"], noise=draws_of(SEEDS, order[:-1]))


def test_given_noise_reproduces_a_seeded_run_with_recurrence(mixture):
    order = ["start", "step", "renoise", "step", "step", "renoise", "step", "renoise"]
    twice = {"steps": 3, "recurrence": Recurrence(times=2)}
    assert torch.equal(draw(mixture, DDPM(), noise=draws_of(SEEDS, order), **twice), draw(mixture, DDPM(), **twice))
    with pytest.raises(InputError, match="no draw left for the renoise"):
        draw(mixture, DDPM(), noise=draws_of(SEEDS, order[:-1]), **twice)


def test_recurrence_repeats_inside_its_window_alone(recording):
    levels = recording.schedule.levels(12)
    ratios = [float(level.sigma / level.alpha) for level in levels]
    reports = []
    recurrence = Recurrence(times=3, ratio_min=ratios[8], ratio_max=ratios[5])
    shares = []
    draw(recording, DDPM(), recurrence=recurrence, callbacks=[reports.append, Watch(shares.append, recurrence)])
    assert shares == [1 / 20] * 20  # what a progress bar shows, and its time left, grows evenly
    visited = [index for index in range(12) for _ in range(3 if 5 <= index <= 8 else 1)]
    assert [report.step.index for report in reports] == visited
    assert [report.step.repeat for report in reports[4:9]] == [0, 0, 1, 2, 0]
    assert [level for _, level in recording.asked] == [levels[index] for index in visited]


def test_recurrence_renoises_one_step_back(recording):
    """``x_t = r x_s + sqrt(beta) eps``, so that what was asked for again has the level's own noise."""
    order, reports = ["start", "step", "renoise", "step", "renoise", "step"], []
    draws = draws_of(SEEDS, order)
    recurrence = Recurrence(times=3, ratio_min=100.0)  # the first step alone
    rest = draws_of(SEEDS, ["step"] * 10)
    draw(recording, DDPM(), noise=draws + rest, recurrence=recurrence, callbacks=[reports.append])
    level, next = reports[0].step.level, reports[0].step.next
    ratio = level.alpha / next.alpha
    beta = level.sigma**2 - ratio**2 * next.sigma**2
    for repeat in (1, 2):
        expected = ratio * reports[repeat - 1].x + beta.sqrt() * draws[2 * repeat]
        torch.testing.assert_close(recording.asked[repeat][0], expected, rtol=1e-14, atol=1e-14)  # float64's rounding


def test_a_bad_gradient_of_one_image_is_dropped_and_no_other_notices(mixture, objective):
    def walk(bad):
        calls, reports = [], []

        def planted(image, target, level):
            calls.append(level)
            factor = torch.ones(5, dtype=F64)
            if bad and len(calls) in (4, 5):
                factor[2] = float("nan")
            return factor * objective(image, target, level)

        guide = Guide(objective=planted, stabilizer=Ema(beta=0.9), scale=0.1, weight=Constant())
        return draw(mixture, DDPM(), guides=[guide], callbacks=[reports.append]), reports

    (clean, _), (spoiled, reports) = walk(False), walk(True)
    others = [0, 1, 3, 4]
    assert torch.equal(spoiled[others], clean[others])
    assert spoiled[2].isfinite().all() and not torch.equal(spoiled[2], clean[2])
    for index, report in enumerate(reports):
        dropped = index in (3, 4)
        assert report.updates[0].finite.tolist() == [True, True, not dropped, True, True]
        assert bool((report.updates[0].value[2] == 0).all()) == dropped


def test_callbacks_see_each_step_in_turn(recording):
    reports, order = [], []
    callbacks = [reports.append, lambda report: order.append("first"), lambda report: order.append("second")]
    x = draw(recording, DDPM(), callbacks=callbacks)
    assert [report.step.index for report in reports] == list(range(12))
    assert order == ["first", "second"] * 12
    levels = recording.schedule.levels(12)
    assert [(report.step.level, report.step.next) for report in reports] == list(zip(levels, levels[1:], strict=False))
    assert all(torch.equal(report.x, asked[0]) for report, asked in zip(reports, recording.asked[1:], strict=False))
    assert torch.equal(reports[-1].x, x)
    assert all(report.updates == () for report in reports)


def test_a_report_holds_the_steps_own_variance(mixture):
    reports, peak = [], torch.zeros((), dtype=F64)
    draw(mixture, DDPM(), callbacks=[reports.append])
    for report in reports:
        variance = reverse_variance(report.step.level, report.step.next)
        peak = torch.maximum(peak, variance)
        torch.testing.assert_close(report.step.variance, variance)
        torch.testing.assert_close(report.step.peak, peak)


def test_the_condition_reaches_the_denoiser(mixture):
    label = torch.tensor(TARGETS)
    together = draw(mixture, DDPM(), condition={"label": label})
    assert not torch.equal(together, draw(mixture, DDPM()))


def test_the_walk_starts_from_the_schedules_own_noise(mixture):
    class Louder(VP):
        def start(self, level):
            return 3.0

    class Still:
        schedule, shape, classes = Louder(alpha_bar=VP.linear().alpha_bar), (2, 1, 1), ()

        def __call__(self, x_t, level, **_):
            assert torch.equal(x_t, 3 * draws_of(SEEDS, ["start"])[0])
            return Prediction(torch.zeros_like(x_t))

    Still.decode = mixture.decode
    assert torch.equal(draw(Still(), DDIM(), steps=1), torch.zeros(5, 2, 1, 1, dtype=F64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_have_the_type_that_was_asked_for(mixture, settings, dtype):
    assert draw(mixture, **settings["two guides"], dtype=dtype).dtype == dtype


def test_float32_is_float64_up_to_a_grey_level(mixture, settings):
    """From the same draws, within 1/255 of the range, as a picture would show."""
    order = ["start", *["step"] * 11]
    single, double = (
        draw(mixture, **settings["guided"], noise=draws_of(SEEDS, order), dtype=dtype)
        for dtype in (torch.float32, torch.float64)
    )
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1 / 255)


class Learned:
    """Denoises to zero with a learned variance."""

    schedule, shape, classes = VP.linear(), (1, 2, 2), ()

    def __call__(self, x_t, level, **_):
        return Prediction(torch.zeros_like(x_t), variance_fraction=torch.full_like(x_t, 0.5))

    def decode(self, x0):
        return x0


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_walk_is_the_same_on_every_device(device):
    if not (device == "cpu" or torch.cuda.is_available()):
        pytest.skip("compares with an accelerator")
    guide = Guide(objective=lambda image, target, level: -image.square().sum((1, 2, 3)), input=Noisy(), weight=Sine())
    ours, theirs = (draw(Learned(), DDPM(), guides=[guide], device=place).cpu() for place in ("cpu", device))
    torch.testing.assert_close(ours, theirs, **ROUNDING)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": None}, "target must be a class for all images, or one for each, as there are guides; got none"),
        ({"target": [0, 1]}, "target must be one, or one for each of 5 images, got 2"),
        ({"target": [0] * 6}, "for each of 5 images, got 6"),
        ({"steps": 0}, "steps must be between 1 and 1000, .*, got 0"),
        ({"steps": 1001}, "steps must be between 1 and 1000, .*, got 1001"),
        ({"seeds": [0, 1, 2, 3, -4]}, "seed must be between 0 and .*, got -4"),
        ({"spacing": "leadin"}, "unknown spacing of VP 'leadin'; did you mean 'leading'"),
    ],
)
def test_refuses_before_the_walk_begins(recording, settings, changes, message, unchecked):
    with pytest.raises(InputError, match=message):
        draw(recording, **settings["guided"], **changes)
    assert recording.asked == []


@pytest.mark.parametrize(
    "changes",
    [
        {"target": -1},
        {"target": [0, 1, 2, -1, 0]},
        {"seeds": [], "target": 0},
        {"noise": [torch.zeros(4, 2, 1, 1)] * 12},
        {"dtype": torch.float16},
    ],
)
def test_refuses_what_no_class_or_image_answers_to(recording, settings, changes, unchecked):
    with pytest.raises(InputError):
        draw(recording, **settings["guided"], **changes)
    assert recording.asked == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"times": 0}, "recurrence.times must be at least 1, got 0"),
        (
            {"ratio_min": 2.0, "ratio_max": 1.0},
            "recurrence.ratio_min and recurrence.ratio_max must satisfy 0 <= ratio_min <= ratio_max, got 2.0 and 1.0",
        ),
        (
            {"ratio_min": -1.0},
            "recurrence.ratio_min and recurrence.ratio_max must satisfy 0 <= ratio_min <= ratio_max, got -1.0 and inf",
        ),
    ],
)
def test_refuses_a_recurrence(settings, message):
    with pytest.raises(InputError, match=message):
        Recurrence(**settings)


@pytest.mark.parametrize("keeps", ["sample", "noise"])
def test_clipping_keeps_the_sample_or_the_noise(keeps, recording, draw):
    """DDIM by hand from ``x0_hat`` clipped, with the noise that belongs to it or with the model's own."""
    noise = draw(4, 2, 1, 1) * 30
    reports, settings = [], {"seeds": range(4), "steps": 8, "noise": [noise], "dtype": F64}
    sample(recording, DDIM(), keeps=keeps, callbacks=[reports.append], **settings)
    x, levels = noise, recording.schedule.levels(8)
    assert (recording.predicted[4].abs() > 1).any()
    for x0_hat, report, level, next in zip(recording.predicted, reports, levels, levels[1:], strict=False):
        x0 = x0_hat.clamp(-1, 1)
        eps = (x - level.alpha * (x0 if keeps == "sample" else x0_hat)) / level.sigma
        x = next.alpha * x0 + next.sigma * eps
        torch.testing.assert_close(report.x, x, **ROUNDING)


def test_clipping_keeps_nothing_else(recording, unchecked):
    with pytest.raises(InputError, match="unknown keeps 'nose'; did you mean 'noise'"):
        sample(recording, DDIM(), keeps="nose")
