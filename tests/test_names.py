"""A class's number in another vocabulary."""

import pytest
from timm.data.imagenet_info import ImageNetInfo
from torchvision.models import ResNet50_Weights

from steersman.errors import InputError
from steersman.names import elsewhere, imagenet_names, resolve, same_class

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


@pytest.mark.parametrize("names", [imagenet_names(), tuple(ResNet50_Weights.DEFAULT.meta["categories"])])
def test_imagenets_ids_are_names_of_its_classes(names):
    ids = ImageNetInfo().label_names()
    assert [resolve(each, names) for each in ids] == list(range(1000))
    assert resolve(ids[429].upper(), names) == 429


@pytest.mark.parametrize("target", ["n02799071", "Baseball", "base_ball"])
def test_case_and_underscores_do_not_matter_and_ids_are_known_everywhere(target):
    assert resolve(target, ("Soccer_Ball", "base ball" if "_" in target else "baseball")) == 1
    assert resolve("soccer ball", ("Soccer_Ball", "baseball")) == resolve("n04254680", ("Soccer_Ball", "cat")) == 0


def test_synonyms_are_known_to_classifiers_that_have_one_name_a_class():
    sharks = ("tiger shark", "great_white_shark", "n01494475")
    assert [resolve(name, sharks) for name in ("man-eater", "n01491361", "hammerhead")] == [1, 0, 2]


@pytest.mark.parametrize("target", ["n99999999", "n04254680", "9" * 5000])
def test_what_names_no_class_is_unknown(target):
    with pytest.raises(InputError, match="unknown class"):
        resolve(target, BALLS[:2])


def test_a_name_of_two_classes_stays_ambiguous():
    with pytest.raises(InputError, match=r"class 'n02012849' is ambiguous: 0 \(crane\), 1 \(crane\)"):
        resolve("n02012849", ("crane", "crane"))


def test_labels_are_found_by_whatever_a_class_is_called():
    labels = ("n02799071", "Soccer_Ball", "cat")
    assert same_class(["baseball"], labels) == {"n02799071"}
    assert same_class(["n04254680"], labels) == same_class(["soccer ball"], labels) == {"Soccer_Ball"}
    assert same_class(["dog", "CAT"], labels) == {"cat"}
    assert same_class(["dog"], labels) == set()
    assert same_class(["house"], ["cat", "garden"]) == same_class(["house"], []) == set()  # WordNet's are ambiguous
