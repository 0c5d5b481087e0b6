"""A class's number in another vocabulary."""

import pytest
from torchvision.models import ResNet50_Weights

from steersman.classifiers.imagenet import imagenet_names
from steersman.errors import InputError
from steersman.names import elsewhere

BALLS = ("baseball", "basketball", "volleyball", "soccer ball")


def test_imagenets_classes_have_one_number_however_they_are_called():
    """Some names differ ("crane bird"), some are another class's synonym ("Cardigan")."""
    ours, theirs = imagenet_names(), ResNet50_Weights.DEFAULT.meta["categories"]
    for index in (0, 124, 134, 264, 358, 517, 577, 639, 876, 999):  # the rest agree in name
        assert elsewhere(index, theirs, ours) == index


def test_other_classes_are_found_by_name():
    assert elsewhere(1, ("x", "Soccer  Ball, football"), BALLS) == 3
    assert elsewhere(0, tuple(reversed(BALLS)), BALLS) == 3
    with pytest.raises(InputError, match="unknown label 'cat'"):
        elsewhere(0, ("cat",), BALLS, "label")


def test_where_names_are_numbers_the_number_counts():
    numbers = ("0", "1", "2", "3")
    assert elsewhere(2, numbers, BALLS) == elsewhere(2, BALLS, numbers) == 2
    assert elsewhere(2, ("0", "1", "2"), BALLS) == 2
