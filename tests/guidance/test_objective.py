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
    with pytest.raises(
        InputError, match="needs a classifier with one logit .* got a softmax over 5; use objective class"
    ):
        BinaryProbability(classifier=linear)(image, TARGET, CLEAN)


def test_one_class_alone_has_no_probability_to_raise(linear, image):
    def one(x, level=None):
        return linear(x)[:, :1]

    with pytest.raises(InputError, match="objective class needs two classes or more, got one"):
        ClassProbability(classifier=one)(image, torch.zeros_like(TARGET), CLEAN)
    half = ClassProbability(classifier=one, marginal=0.5)(image, torch.zeros_like(TARGET), CLEAN)
    torch.testing.assert_close(half, 0.5 * one(image)[:, 0], **ROUNDING)


class Head:
    """A linear classifier that says what its logits mean."""

    def __init__(self, weights, *, binary=False, multilabel=False):
        self.weights, self.binary, self.multilabel = weights, binary, multilabel

    def __call__(self, image, level=None):
        return image.flatten(1) @ self.weights.T


TEMPERATURES = [(1.0, 1.0), (1.0, 0.5), (2.0, 0.3), (1.0, 0.0)]


@pytest.mark.parametrize(("joint", "marginal"), TEMPERATURES)
def test_one_logit_stands_for_two_opposite_ones(weights, image, joint, marginal):
    """The objectives of a softmax over ``(-f / 2, f / 2)``, for either class."""
    one, target = Head(weights[:1], binary=True), torch.tensor([0, 1, 1, 0])

    def two(x, level=None):
        f = one(x)
        return torch.cat([-f / 2, f / 2], 1)

    given = {"joint": joint, "marginal": marginal}
    value = ClassProbability(classifier=one, **given)(image, target, CLEAN)
    expected = ClassProbability(classifier=two, **given)(image, target, CLEAN)
    torch.testing.assert_close(value, expected, **ROUNDING)
    g = gradient(value, image)
    torch.testing.assert_close(g, gradient(expected, image), **ROUNDING)
    # towards class 1 along the weights, towards class 0 against them, and never still
    assert torch.equal((g @ weights[0]).sign(), 2.0 * target - 1)
    mirrored = ClassProbability(classifier=one, **given)(-image, 1 - target, CLEAN)
    torch.testing.assert_close(mirrored, value, **ROUNDING)


@pytest.mark.parametrize(("joint", "marginal"), TEMPERATURES)
def test_of_several_labels_each_is_guided_for_itself(weights, image, joint, marginal):
    labels, value = Head(weights, multilabel=True), []
    given = {"joint": joint, "marginal": marginal}
    value = ClassProbability(classifier=labels, **given)(image, TARGET, CLEAN)
    for place, y in enumerate(TARGET.tolist()):
        one = ClassProbability(classifier=Head(weights[y : y + 1], binary=True), **given)
        alone = one(image[place : place + 1], torch.tensor([1]), CLEAN)
        torch.testing.assert_close(value[place : place + 1], alone, **ROUNDING)
    # up along the target's own weights, whatever the others are
    g = gradient(value, image)
    along = g * weights[TARGET]
    torch.testing.assert_close(
        g, along.sum(1, keepdim=True) / weights[TARGET].square().sum(1, keepdim=True) * weights[TARGET]
    )
    assert (along.sum(1) > 0).all()


def test_without_temperatures_a_sigmoid_head_gives_its_own_log_probability(weights, image):
    f, target = Head(weights)(image), torch.tensor([0, 1, 1, 0])
    sign = torch.tensor([-1, 1, 1, -1])
    for objective in (ClassProbability, BinaryProbability):
        value = objective(classifier=Head(weights[:1], binary=True))(image, target, CLEAN)
        torch.testing.assert_close(value, torch.sigmoid(sign * f[:, 0]).log(), **ROUNDING)
        value = objective(classifier=Head(weights, multilabel=True))(image, TARGET, CLEAN)
        torch.testing.assert_close(value, torch.sigmoid(f[range(4), TARGET]).log(), **ROUNDING)
    value = TargetLogit(classifier=Head(weights[:1], binary=True))(image, target, CLEAN)
    torch.testing.assert_close(value, sign * f[:, 0], **ROUNDING)
    value = TargetLogit(classifier=Head(weights, multilabel=True))(image, TARGET, CLEAN)
    torch.testing.assert_close(value, f[range(4), TARGET], **ROUNDING)


def test_binary_refuses_what_says_that_it_is_a_softmax(weights, image):
    with pytest.raises(InputError, match="got a softmax over 1"):
        BinaryProbability(classifier=Head(weights[:1]))(image, torch.zeros_like(TARGET), CLEAN)


@pytest.mark.parametrize("objective", [ClassProbability, TargetLogit, BinaryProbability])
def test_the_classifier_is_told_the_level(objective, image, step):
    told = []

    def classifier(x, level=None):
        told.append(level)
        return x.flatten(1)[:, : 1 if objective is BinaryProbability else 2]

    at = step(3).level
    objective(classifier=classifier)(image, torch.zeros(4, dtype=torch.int64), at)
    assert told == [at]
