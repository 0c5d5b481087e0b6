"""Wide lists of cases, of which few are quick."""

import pytest


def few(cases, every):
    """Returns the cases as parametrize takes them: the first of every so many is quick, the others are long."""
    long = pytest.mark.long
    given = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*case, marks=[long] if place % every else []) for place, case in enumerate(given)]
