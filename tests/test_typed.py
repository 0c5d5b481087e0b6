"""What is wrong with a setting is said in one line."""

import pytest
from pydantic import BaseModel, ConfigDict

from steersman.errors import InputError
from steersman.typed import filled_in, typed


class Book(BaseModel):
    model_config = ConfigDict(strict=True)
    name: str
    pages: int = 1


def test_a_value_is_had_in_its_type():
    assert typed("scale", "3", float) == 3.0
    assert filled_in(Book, {"name": "a"}, "book", "a.yaml") == Book(name="a")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (3, r"^book 'a.yaml' must hold a mapping with name, pages, got 3$"),
        ({"nam": "a"}, r"^unknown key of a book 'nam'; did you mean 'name'\?"),
        ({"name": "a", "pages": "b"}, r"^book 'a.yaml': pages must be a valid integer, got 'b'$"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(content, message):
    with pytest.raises(InputError, match=message):
        filled_in(Book, content, "book", "a.yaml")


def test_what_is_wrong_with_a_value_is_said_in_one_line():
    with pytest.raises(InputError, match=r"^steps must be a valid integer, got 'few'$"):
        typed("steps", "few", int)
