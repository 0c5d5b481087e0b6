import pytest
import torch

from steersman.denoise import Prediction
from steersman.errors import InputError
from steersman.guidance import (
    Adam,
    Chain,
    ClassProbability,
    Constant,
    Denoised,
    DenoisedImage,
    Ema,
    Estimate,
    Every,
    Guide,
    Interval,
    Lookahead,
    Mean,
    Momentum,
    NoisePrediction,
    Noisy,
    Rescaled,
    Rms,
    Sample,
    Steering,
    Variance,
)
from steersman.sampling import DDPM, sample
from steersman.schedule import VP

F64 = torch.float64
ROUNDING = {"rtol": 1e-12, "atol": 1e-12}
"""Float64's, through one denoiser and one classifier of a few operations each."""

TARGET = torch.tensor([2, 0, 1])
VIEWS = [Noisy(), Denoised(), Denoised(clip=False), Lookahead(), Lookahead(clip=False), Rescaled()]


class Refusing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        raise AssertionError("the denoiser was differentiated")


class Undifferentiable:
    """The mixture, with a denoiser that refuses to be differentiated."""

    def __init__(self, mixture):
        self.mixture, self.schedule, self.shape, self.classes = mixture, mixture.schedule, mixture.shape, ()

    def decode(self, x0):
        return x0

    def __call__(self, x_t, level, **_):
        return Prediction(Refusing.apply(self.mixture(x_t, level).x0_hat))


class Latent(Undifferentiable):
    """Samples that are not images."""

    def decode(self, latent):
        return 3 * latent + 0.1


@pytest.fixture
def clean(mixture):
    """A classifier of clean images: the mixture's own at a small noise."""
    at = mixture.schedule.at_time(50.0)
    return ClassProbability(classifier=lambda image, level=None: mixture.log_posterior(image, at))


def gradient(function, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


def test_direct_is_the_gradient_at_the_view(mixture, clean, draw, step):
    x_t, at = draw(3, 2, 1, 1), step(4)
    prediction = mixture(x_t, at.level)
    for input in VIEWS:
        g, value = Guide(objective=clean, input=input).gradient(x_t, prediction, at, TARGET, mixture)
        seen = input(x_t, prediction, at.level, mixture)
        torch.testing.assert_close(g, gradient(lambda image: clean(image, TARGET, at.level), seen), **ROUNDING)
        torch.testing.assert_close(value, clean(seen, TARGET, at.level), **ROUNDING)
        assert not value.requires_grad


@pytest.mark.parametrize("input", VIEWS, ids=repr)
def test_through_is_the_gradient_of_the_whole(mixture, clean, draw, step, input):
    x_t, at = draw(3, 2, 1, 1), step(4)
    leaf = x_t.clone().requires_grad_()
    guide = Guide(objective=clean, input=input, wrt="x_t")
    g, _ = guide.gradient(leaf, mixture(leaf, at.level), at, TARGET, mixture)
    whole = gradient(lambda x: clean(input(x, mixture(x, at.level), at.level, mixture), TARGET, at.level), x_t)
    torch.testing.assert_close(g, whole, **ROUNDING)


def test_through_the_denoiser_is_the_chain_rule(mixture, clean, draw, step):
    """``d/dx_t = (d x0_hat / d x_t)^T d/dx0_hat``: the two routes differ by the denoiser's Jacobian."""
    x_t, at = draw(1, 2, 1, 1), step(4)
    jacobian = torch.autograd.functional.jacobian(lambda x: mixture(x, at.level).x0_hat, x_t).reshape(2, 2)
    leaf = x_t.clone().requires_grad_()
    settings = {"objective": clean, "input": Denoised(clip=False)}
    through, _ = Guide(wrt="x_t", **settings).gradient(leaf, mixture(leaf, at.level), at, TARGET[:1], mixture)
    direct, _ = Guide(**settings).gradient(x_t, mixture(x_t, at.level), at, TARGET[:1], mixture)
    torch.testing.assert_close(through.flatten(), jacobian.T @ direct.flatten(), **ROUNDING)


@pytest.mark.parametrize("wrt", ["x0_hat", "x_t"])
def test_the_classifier_sees_the_decoded_view(mixture, clean, draw, step, wrt):
    x_t, at = draw(3, 2, 1, 1), step(4)
    leaf = x_t.clone().requires_grad_()
    guide = Guide(objective=clean, input=Noisy(), wrt=wrt)
    g, _ = guide.gradient(leaf, None, at, TARGET, Latent(mixture))
    expected = gradient(lambda x: clean(3 * x + 0.1, TARGET, at.level), x_t)
    torch.testing.assert_close(g, expected, **ROUNDING)


SETTINGS = {"target": 1, "seeds": range(3), "steps": 6, "clip": False, "dtype": F64}


@pytest.mark.parametrize("input", [Noisy(), Denoised(), Lookahead(evaluations=2), Rescaled()], ids=repr)
def test_direct_never_differentiates_the_denoiser(mixture, clean, input):
    sample(Undifferentiable(mixture), DDPM(), guides=[Guide(objective=clean, input=input)], **SETTINGS)


def test_through_a_view_of_the_noisy_sample_does_not_either(mixture, clean):
    for input in (Noisy(), Rescaled()):
        guide = Guide(objective=clean, input=input, wrt="x_t")
        assert not guide.differentiates_denoiser
        sample(Undifferentiable(mixture), DDPM(), guides=[guide], **SETTINGS)


def test_through_the_denoised_view_does(mixture, clean):
    guide = Guide(objective=clean, wrt="x_t")
    assert guide.differentiates_denoiser
    with pytest.raises(AssertionError, match="the denoiser was differentiated"):
        sample(Undifferentiable(mixture), DDPM(), guides=[guide], **SETTINGS)


def test_a_direct_guide_beside_one_through_still_does_not_see_the_denoiser(mixture, clean, draw, step):
    x_t, at = draw(3, 2, 1, 1), step(4)
    leaf = x_t.clone().requires_grad_()
    prediction = Undifferentiable(mixture)(leaf, at.level)
    assert prediction.x0_hat.requires_grad
    g, _ = Guide(objective=clean).gradient(leaf, prediction, at, TARGET, mixture)
    assert not g.requires_grad


class Network(torch.nn.Module):
    """A denoiser with a weight."""

    schedule, shape, classes = VP.cosine(), (2, 1, 1), ()

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((2, 1, 1), 0.3, dtype=F64))
        self.recorded = []

    def forward(self, x_t, level, **_):
        x0_hat = self.weight * x_t
        self.recorded.append(x0_hat.requires_grad)
        return Prediction(x0_hat)

    def decode(self, x0):
        return x0


def test_no_gradient_is_kept_for_the_denoisers_weights(clean):
    network = Network()
    images = sample(network, DDPM(), guides=[Guide(objective=clean, wrt="x_t")], **SETTINGS)
    assert network.weight.grad is None and not images.requires_grad
    *guided, last = network.recorded
    assert all(guided) and not last  # the last step has no variance, so that its push would be zero


def test_a_graph_is_recorded_only_where_a_guide_needs_it(clean):
    network = Network()
    guide = Guide(objective=clean, wrt="x_t", weight=Every(k=2))
    sample(network, DDPM(), guides=[guide, Guide(objective=clean)], **SETTINGS)
    assert network.recorded == [True, False, True, False, True, False]


def found(x_t, prediction, at):
    x0 = prediction.x0_hat.detach()
    eps = (x_t.detach() - at.level.alpha * x0) / at.level.sigma
    return Estimate(x0, eps, at.variance)


def test_guides_on_one_prediction_push_as_they_would_alone(mixture, clean, draw, step):
    """Three routes through one graph: none frees it before the last has used it, and the pushes add."""
    x_t, at = draw(3, 2, 1, 1), step(4)
    guides = [
        Guide(objective=clean, wrt="x_t", scale=2.0),
        Guide(objective=clean, weight=Constant(), injection=NoisePrediction()),
        Guide(objective=clean, wrt="x_t", input=Denoised(clip=False), injection=NoisePrediction()),
    ]

    def steer(guides):
        leaf = x_t.clone().requires_grad_()
        prediction = mixture(leaf, at.level)
        steering = Steering(guides, TARGET, mixture)
        estimate = steering.estimate(leaf, prediction, found(leaf, prediction, at), at)
        return steering.updates, estimate, steering.mean(torch.zeros_like(x_t))

    updates, estimate, mean = steer(guides)
    alone = [steer([guide]) for guide in guides]
    for update, (each, _, _) in zip(updates, alone, strict=True):
        assert torch.equal(update.value, each[0].value)
    torch.testing.assert_close(mean, updates[0].value, **ROUNDING)
    plain = found(x_t, mixture(x_t, at.level), at)
    moved = plain.eps - at.level.sigma * (updates[1].value + updates[2].value)
    torch.testing.assert_close(estimate.eps, moved, **ROUNDING)


def test_a_push_is_scale_times_weight_times_stabilised_gradient(mixture, clean, draw, step):
    x_t, at = draw(3, 2, 1, 1), step(4)
    prediction = mixture(x_t, at.level)
    guide = Guide(objective=clean, scale=2.5, stabilizer=Rms(), weight=Variance())
    steering = Steering([guide], TARGET, mixture)
    steering.estimate(x_t, prediction, found(x_t, prediction, at), at)
    (update,) = steering.updates
    g = gradient(lambda image: clean(image, TARGET, at.level), prediction.x0_hat.clamp(-1, 1))
    torch.testing.assert_close(update.gradient, g, **ROUNDING)
    unit = g / g.flatten(1).norm(dim=1).reshape(3, 1, 1, 1)
    torch.testing.assert_close(update.value, 2.5 * at.variance * unit, **ROUNDING)
    torch.testing.assert_close(update.log_likelihood, clean(prediction.x0_hat.clamp(-1, 1), TARGET, at.level))
    assert update.finite.tolist() == [True, True, True]


def test_the_second_stage_sees_the_state_as_the_step_found_it(mixture, clean, draw, step):
    """Heun's second evaluation: from the same average as the first, and it does not move the average on."""
    x_t = draw(3, 2, 1, 1)
    settings = {"input": Noisy(), "weight": Constant(), "injection": NoisePrediction()}
    steering = Steering([Guide(objective=clean, stabilizer=Ema(beta=0.9), **settings)], TARGET, mixture)
    gradients, averages = [], []
    for index in range(3):
        for stage in (0, 1):
            at, x = step(index, stage=stage), x_t * (1 + index + 0.3 * stage)
            prediction = mixture(x, at.level)
            before = found(x, prediction, at)
            after = steering.estimate(x, prediction, before, at)
            averages.append((before.eps - after.eps) / at.level.sigma)
            gradients.append(gradient(lambda image, level=at.level: clean(image, TARGET, level), x))
    m = torch.zeros_like(x_t)
    for index in range(3):
        for stage in (0, 1):
            expected = 0.9 * m + 0.1 * gradients[2 * index + stage]
            torch.testing.assert_close(averages[2 * index + stage], expected, **ROUNDING)
        m = averages[2 * index]


def test_a_push_that_does_not_enter_the_estimate_is_taken_once_a_step(mixture, step, draw):
    """Before the step for the sample, in its first stage for the mean; never in Heun's second."""
    asked = []

    def objective(image, target, level):
        asked.append(level)
        return image.sum((1, 2, 3))

    settings = {"input": Noisy(), "weight": Constant(), "stabilizer": Momentum(beta=0.5)}
    guides = [Guide(objective=objective, injection=injection, **settings) for injection in (Sample(), Mean())]
    steering, x_t = Steering(guides, TARGET, mixture), draw(3, 2, 1, 1)
    for index, size in enumerate((1.0, 1.5, 1.75)):
        moved = steering.sample(x_t, None, step(index))
        torch.testing.assert_close(moved, x_t + size, **ROUNDING)
        for stage in (0, 1):
            at = step(index, stage=stage)
            prediction = mixture(moved, at.level)
            before = found(moved, prediction, at)
            assert steering.estimate(moved, prediction, before, at) is before
        torch.testing.assert_close(steering.mean(x_t), x_t + size, **ROUNDING)
        assert [float(update.value.max()) for update in steering.updates] == [size, size]
        assert len(asked) == 2 * (index + 1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "stabilizer",
    [Ema(beta=0.9), Momentum(), Adam(), Adam(corrected=True), Chain([Rms(), Ema(beta=0.5)])],
    ids=repr,
)
def test_a_gradient_that_is_not_finite_is_dropped_and_its_image_keeps_its_state(mixture, stabilizer, bad, draw, step):
    """Image 1 has a bad gradient at step 2: no push there, and afterwards as if that step had not been."""
    wanted = list(draw(5, 3, 2, 1, 1))
    wanted[2][1, 0] = bad
    guide = Guide(
        objective=lambda image, target, level: (image * wanted[now]).sum((1, 2, 3)),
        input=Noisy(),
        weight=Constant(),
        stabilizer=stabilizer,
        injection=Mean(),
    )
    steering, updates = Steering([guide], TARGET, mixture), []
    for now in range(5):
        x_t, at = torch.zeros(3, 2, 1, 1, dtype=F64), step(now)
        steering.estimate(x_t, Prediction(x_t), found(x_t, Prediction(x_t), at), at)
        updates.append(steering.updates[0])
    assert [update.finite.tolist() for update in updates] == [[True, now != 2, True] for now in range(5)]
    assert torch.equal(updates[2].value[1], torch.zeros(2, 1, 1, dtype=F64))
    assert not updates[2].gradient[1].isfinite().all()
    for row in range(3):
        state = stabilizer.init(torch.zeros(1, 2, 1, 1, dtype=F64))
        for now in range(5):
            if row == 1 and now == 2:
                continue
            expected, state = stabilizer.update(wanted[now][row : row + 1], state)
            torch.testing.assert_close(updates[now].value[row : row + 1], expected, **ROUNDING)


def test_inactive_steps_leave_the_state_alone(mixture, step, draw):
    """An average over the steps at which the guide acts: those between are no zeros in it."""
    wanted = list(draw(4, 3, 2, 1, 1))
    guide = Guide(
        objective=lambda image, target, level: (image * wanted[now]).sum((1, 2, 3)),
        input=Noisy(),
        weight=Every(k=2),
        stabilizer=Ema(beta=0.9),
    )
    steering = Steering([guide], TARGET, mixture)
    for now in range(4):
        x_t, at = torch.zeros(3, 2, 1, 1, dtype=F64), step(now)
        steering.estimate(x_t, Prediction(x_t), found(x_t, Prediction(x_t), at), at)
        if now % 2:
            assert steering.updates == (None,)
    torch.testing.assert_close(steering.states[0][0], 0.09 * wanted[0] + 0.1 * wanted[2], **ROUNDING)


def test_gradients_are_taken_only_inside_the_interval(mixture, clean):
    guide = Guide(objective=clean, wrt="x_t", weight=Interval(ratio_min=1e9))
    sample(Undifferentiable(mixture), DDPM(), guides=[guide], **SETTINGS)


@pytest.mark.parametrize("wrt", ["x0_hat", "x_t"])
def test_an_objective_without_a_gradient_is_refused(mixture, wrt):
    guide = Guide(objective=lambda image, target, level: (image > 0).sum((1, 2, 3)).double(), wrt=wrt)
    with pytest.raises(InputError, match="objective must be differentiable, got one without a gradient"):
        sample(mixture, DDPM(), guides=[guide], target=0, steps=2, dtype=F64)


def test_refuses_a_route(clean, unchecked):
    with pytest.raises(InputError, match="unknown wrt 'x_tt'; did you mean 'x_t'"):
        Guide(objective=clean, wrt="x_tt")


def denoised(objective, **settings):
    return Guide(objective=objective, **{"weight": Constant(), "injection": DenoisedImage(), **settings})


@pytest.mark.parametrize("input", [Denoised(), Denoised(clip=False), Lookahead()], ids=repr)
def test_each_ascent_starts_where_the_one_before_it_ended(mixture, clean, draw, step, input):
    x_t, at = draw(3, 2, 1, 1), step(4)
    prediction = mixture(x_t, at.level)
    seen = begin = input(x_t, prediction, at.level, mixture)
    for _ in range(3):
        seen = seen + 0.05 * gradient(lambda image: clean(image, TARGET, at.level), seen)
    steering = Steering([denoised(clean, input=input, scale=0.05, ascents=3)], TARGET, mixture)
    before = found(x_t, prediction, at)
    after = steering.estimate(x_t, prediction, before, at)
    torch.testing.assert_close(after.x0 - before.x0, seen - begin, **ROUNDING)
    (update,) = steering.updates
    torch.testing.assert_close(update.value, seen - begin, **ROUNDING)
    torch.testing.assert_close(
        update.gradient, gradient(lambda image: clean(image, TARGET, at.level), begin), **ROUNDING
    )
    torch.testing.assert_close(update.log_likelihood, clean(begin, TARGET, at.level), **ROUNDING)


def test_the_stabilizer_sees_every_ascent(mixture, step, draw):
    """The heavy ball over a gradient of 1: 1, 1.5, 1.75 in the first step, and on from there in the second."""
    guide = denoised(
        lambda image, target, level: image.sum((1, 2, 3)), scale=1.0, ascents=3, stabilizer=Momentum(beta=0.5)
    )
    steering, x_t = Steering([guide], TARGET, mixture), draw(3, 2, 1, 1)
    for index, size in enumerate((1 + 1.5 + 1.75, 1.875 + 1.9375 + 1.96875)):
        at = step(index)
        prediction = mixture(x_t, at.level)
        steering.estimate(x_t, prediction, found(x_t, prediction, at), at)
        torch.testing.assert_close(steering.updates[0].value, torch.full_like(x_t, size), **ROUNDING)


def test_an_ascent_whose_gradient_is_not_finite_is_dropped_alone(mixture, step, draw):
    """Image 1's second gradient of three: the other two push."""
    asked = []

    def objective(image, target, level):
        asked.append(len(asked) + 1)
        bad = torch.tensor([1.0, float("nan") if asked[-1] == 2 else 1.0, 1.0], dtype=F64)
        return image.sum((1, 2, 3)) * bad

    steering, x_t, at = Steering([denoised(objective, ascents=3)], TARGET, mixture), draw(3, 2, 1, 1), step(4)
    prediction = mixture(x_t, at.level)
    steering.estimate(x_t, prediction, found(x_t, prediction, at), at)
    (update,) = steering.updates
    assert update.value[:, 0, 0, 0].tolist() == [3, 2, 3]
    assert update.finite.tolist() == [True, False, True]


@pytest.mark.parametrize("wrt", ["x0_hat", "x_t"])
@pytest.mark.parametrize("guided", [False, True])
def test_a_guided_view_stands_where_the_guides_before_it_moved_the_image(mixture, clean, draw, step, guided, wrt):
    """After the noise's injection of p: at ``x0_hat + (sigma^2 / alpha) p``, as in the code of Universal Guidance."""
    x_t, at = draw(3, 2, 1, 1), step(4)
    leaf = x_t.clone().requires_grad_()
    prediction, input = mixture(leaf, at.level), Denoised(clip=False, guided=guided)
    guides = [
        Guide(objective=clean, weight=Constant(), scale=0.1, injection=NoisePrediction()),
        denoised(clean, input=input, wrt=wrt, scale=0.5),
        denoised(clean, input=input, wrt=wrt, scale=0.5),
    ]
    steering = Steering(guides, TARGET, mixture)
    steering.estimate(leaf, prediction, found(leaf, prediction, at), at)
    updates = [update.value for update in steering.updates]
    shift = at.level.sigma**2 / at.level.alpha * updates[0]

    def expected(shift):
        def whole(x):
            return clean((mixture(x, at.level).x0_hat if wrt == "x_t" else x) + shift, TARGET, at.level)

        return 0.5 * gradient(whole, x_t if wrt == "x_t" else prediction.x0_hat.detach())

    torch.testing.assert_close(updates[1], expected(shift if guided else 0.0), **ROUNDING)
    torch.testing.assert_close(updates[2], expected(shift + updates[1] if guided else 0.0), **ROUNDING)


@pytest.mark.parametrize(
    "settings",
    [{"wrt": "x_t"}, {"injection": Mean()}, {"injection": NoisePrediction()}, {"input": Noisy()}],
    ids=lambda settings: next(iter(settings)),
)
def test_only_a_denoised_image_that_is_moved_directly_ascends_again(clean, settings):
    with pytest.raises(InputError, match="wrt.ascents must be 1 unless wrt is x0_hat, .*, got 2"):
        denoised(clean, ascents=2, **settings)
    assert denoised(clean, **settings).ascents == 1


def test_there_is_at_least_one_ascent(clean):
    with pytest.raises(InputError, match="wrt.ascents must be at least 1, got 0"):
        denoised(clean, ascents=0)
