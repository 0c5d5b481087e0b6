"""Names of files."""

import pytest

from steersman.files import file_name


@pytest.mark.parametrize("name", ["soccer ball", "a photo of a baseball", "jack-o'-lantern", "a, b (c) é", 60 * "ü"])
def test_a_sane_name_stays(name):
    assert file_name(name) == name


WILD = [
    "../../etc",
    "a/b",
    "a\\b",
    "a b",
    "a:b",
    ".",
    "..",
    "",
    " a",
    "a.",
    ".a",
    "a\nb",
    'say "b"',
    "a?",
    "a*",
    200 * "ü",
]


@pytest.mark.parametrize("text", WILD)
def test_any_text_becomes_one_name_in_the_folder(text, tmp_path):
    path = tmp_path / file_name(text)
    path.write_text("")
    assert list(tmp_path.iterdir()) == [path]
    assert not set(path.name) & set('\\/:*?"<>|\n') and not path.name.startswith(".")


def test_different_texts_have_different_names():
    assert len({file_name(text) for text in [*WILD, 200 * "ü" + "x", "a-b"]}) == len(WILD) + 2
