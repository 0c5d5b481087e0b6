import pytest

from steersman.errors import InputError, unknown


def test_the_command_line_can_tell_it_from_a_bug():
    assert issubclass(InputError, ValueError)
    assert isinstance(unknown("recipe", "x", ["a"]), InputError)


@pytest.mark.parametrize(
    ("given", "known", "message"),
    [
        ("elcud", ["nrcg", "elucd"], "unknown recipe 'elcud'; did you mean 'elucd'? known: nrcg, elucd"),
        ("ELUCD", ["nrcg", "elucd"], "unknown recipe 'ELUCD'; did you mean 'elucd'? known: nrcg, elucd"),
        ("zzz", ["nrcg", "elucd"], "unknown recipe 'zzz'; known: nrcg, elucd"),
        (7, ["nrcg"], "unknown recipe '7'; known: nrcg"),
        ("zzz", (name for name in "abc"), "unknown recipe 'zzz'; known: a, b, c"),
        ("ab1", ["ab2", "ab3"], "unknown recipe 'ab1'; did you mean 'ab3' or 'ab2'? known: ab2, ab3"),
    ],
)
def test_names_the_problem_the_value_and_what_is_allowed(given, known, message):
    assert str(unknown("recipe", given, known)) == message


def test_a_long_list_is_cut_and_counted_but_searched_in_full():
    names = [f"class{i:02}" for i in range(99)] + ["goldfish"]
    message = str(unknown("class", "goldfsh", names, most=3))
    assert message == (
        "unknown class 'goldfsh'; did you mean 'goldfish'? known: class00, class01, class02, … (100 in all)"
    )
