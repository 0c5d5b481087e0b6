"""Shares and their intervals."""

import math

import pytest
import torch

from steersman.errors import InputError
from steersman.lab.metrics import accuracy, correct, target_probability, wilson
from steersman.lab.metrics.classification import confidence


def test_counts_the_images_with_their_target():
    logits = torch.tensor([[2.0, 1, 0], [0, 1, 2], [0, 3, 1], [5, 4, 3]])
    target = torch.tensor([0, 1, 1, 0])
    assert correct(logits, target).tolist() == [True, False, True, True]
    assert accuracy(logits, target) == 0.75


def test_target_probability_is_the_softmax():
    logits = torch.tensor([[1.0, 2.0, 5.0], [1.0, 2.0, 5.0]]).log()
    torch.testing.assert_close(target_probability(logits, torch.tensor([2, 0])), torch.tensor([5 / 8, 1 / 8]))


def test_one_logit_is_the_log_odds_of_class_one():
    logits = torch.tensor([[math.log(3)], [math.log(3)], [-1.0]])
    target = torch.tensor([1, 0, 0])
    torch.testing.assert_close(target_probability(logits, target), torch.tensor([0.75, 0.25, 1 / (1 + math.exp(-1))]))
    assert accuracy(logits, target) == pytest.approx(2 / 3)


def test_of_several_labels_each_is_a_question_of_its_own():
    """The likeliest label takes nothing from the others."""
    logits = torch.tensor([[math.log(3), 5.0, -1.0], [-math.log(3), 5.0, -1.0]])
    target = torch.tensor([0, 0])
    probability = target_probability(logits, target, multilabel=True)
    torch.testing.assert_close(probability, torch.tensor([0.75, 0.25]))
    assert correct(logits, target, multilabel=True).tolist() == [True, False]
    assert accuracy(logits, torch.tensor([1, 2]), multilabel=True) == 0.5
    sure = confidence(logits, target, multilabel=True)
    torch.testing.assert_close(sure.float(), torch.tensor([0.75, 0.75]))


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    # published in tables of the Wilson score interval at 95 %
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_interval(successes: int, count: int, low: float, high: float):
    assert wilson(successes, count) == pytest.approx((low, high), abs=5e-5)


def test_wilson_ends_where_the_count_is_z_deviations_away():
    for p in wilson(913, 1000, confidence=0.6826894921370859):  # one standard deviation
        assert abs(0.913 - p) == pytest.approx(math.sqrt(p * (1 - p) / 1000))


def test_refusals():
    with pytest.raises(InputError, match="at least 1 image, got 0"):
        accuracy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(InputError, match="3 of 2"):
        wilson(3, 2)
    with pytest.raises(InputError, match="0 of 0"):
        wilson(0, 0)
    with pytest.raises(InputError, match="confidence"):
        wilson(1, 2, confidence=95.0)
