import pytest
import torch

from steersman.errors import InputError
from steersman.guidance import BinaryProbability, ClassProbability, TargetLogit
from steersman.schedule import CLEAN

F64 = torch.float64
ROUNDING = {"rtol": 1e-13, "atol": 1e-13}
"""Float64's, through sums of a dozen terms of order 1."""


@pytest.fixture
def weights(draw):
    return draw(5, 12)


@pytest.fixture
def linear(weights):
    return lambda image, level=None: image.flatten(1) @ weights.T


@pytest.fixture
def image(draw):
    return draw(4, 3, 2, 2).requires_grad_()


TARGET = torch.tensor([0, 3, 3, 4])


def gradient(value, image):
    return torch.autograd.grad(value.sum(), image)[0].flatten(1)


@pytest.mark.parametrize(("joint", "marginal"), [(1.0, 1.0), (1.0, 0.5), (2.0, 0.3), (1.0, 0.0)])
def test_joint_and_marginal_temperatures(linear, weights, image, joint, marginal):
    """EluCD eq. 4, written out; its gradient is ``tau1 W_y - tau2 sum_i softmax(tau2 f)_i W_i``."""
    value = ClassProbability(classifier=linear, joint=joint, marginal=marginal)(image, TARGET, CLEAN)
    f = linear(image)
    expected = joint * f[range(4), TARGET] - (marginal * f).exp().sum(1).log()
    torch.testing.assert_close(value, expected, **ROUNDING)
    share = (marginal * f).softmax(1)
    torch.testing.assert_close(
        gradient(value, image), joint * weights[TARGET] - marginal * share.detach() @ weights, **ROUNDING
    )


def test_without_temperatures_it_is_the_log_softmax(linear, image):
    value = ClassProbability(classifier=linear)(image, TARGET, CLEAN)
    torch.testing.assert_close(value, linear(image).log_softmax(1)[range(4), TARGET], **ROUNDING)


def test_marginal_zero_is_the_direction_of_the_raw_logit(linear, weights, image):
    logit = TargetLogit(classifier=linear)(image, TARGET, CLEAN)
    torch.testing.assert_close(logit, linear(image)[range(4), TARGET], **ROUNDING)
    joint = ClassProbability(classifier=linear, marginal=0.0)(image, TARGET, CLEAN)
    assert torch.equal(gradient(joint, image), gradient(logit, image))


def test_large_logits_do_not_overflow(image):
    value = ClassProbability(classifier=lambda x, level: 1e5 * x.flatten(1))(image, TARGET, CLEAN)
    assert value.isfinite().all() and gradient(value, image).isfinite().all()


def test_binary_of_both_targets(linear, image):
    def one(x, level=None):
        return linear(x)[:, :1]

    f, target = linear(image)[:, 0], torch.tensor([0, 1, 1, 0])
    value = BinaryProbability(classifier=one)(image, target, CLEAN)
    expected = torch.where(target == 1, torch.sigmoid(f), torch.sigmoid(-f)).log()
    torch.testing.assert_close(value, expected, **ROUNDING)


def test_binary_refuses_a_classifier_of_many_classes(linear, image):
    with pytest.raises(InputError, match="binary, but the classifier has 5 logits; allowed: one logit"):
        BinaryProbability(classifier=linear)(image, TARGET, CLEAN)


def test_one_class_alone_has_no_probability_to_raise(linear, image):
    def one(x, level=None):
        return linear(x)[:, :1]

    with pytest.raises(InputError, match="objective: class, of which one alone has always the probability 1"):
        ClassProbability(classifier=one)(image, torch.zeros_like(TARGET), CLEAN)
    half = ClassProbability(classifier=one, marginal=0.5)(image, torch.zeros_like(TARGET), CLEAN)
    torch.testing.assert_close(half, 0.5 * one(image)[:, 0], **ROUNDING)


@pytest.mark.parametrize("objective", [ClassProbability, TargetLogit, BinaryProbability])
def test_the_classifier_is_told_the_level(objective, image, step):
    told = []

    def classifier(x, level=None):
        told.append(level)
        return x.flatten(1)[:, : 1 if objective is BinaryProbability else 2]

    at = step(3).level
    objective(classifier=classifier)(image, torch.zeros(4, dtype=torch.int64), at)
    assert told == [at]
