"""What ``import steersman`` offers: each name has an example in its docstring, and the example runs."""

import ast
import doctest
import importlib.metadata
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import steersman as sm

STUB = Path(sm.__file__).with_suffix(".pyi")
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def run_examples(name, thing):
    """Runs the examples of one docstring; returns how many there are, and what the failing ones said."""
    said = []
    (test,) = doctest.DocTestFinder(recurse=False).find(thing, name, globs={})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=said.append)
    return result.attempted, said


@pytest.mark.parametrize("name", sorted(sm.__all__))
def test_each_name_has_an_example_that_runs(name):
    count, said = run_examples(name, getattr(sm, name))
    assert not said, "".join(said)
    assert count >= 2, f"the docstring of {name} has no example"


def test_the_example_of_the_package_runs():
    count, said = run_examples("steersman", sm)
    assert (said, count) == ([], 3)


def test_an_example_that_fails_is_seen():
    def wrong():
        """
        >>> 1 + 1
        3
        """

    _, said = run_examples("wrong", wrong)
    assert "Expected:\n    3\nGot:\n    2\n" in "".join(said)


def test_the_names_are_few_and_all_are_there():
    stated = {alias.asname for node in ast.parse(STUB.read_text()).body for alias in node.names}
    assert stated == set(sm.__all__)
    assert len(sm.__all__) == len(stated) <= 60
    assert stated <= set(dir(sm))
    for name in stated:
        assert getattr(sm, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        sm.nothing_of_the_kind  # noqa: B018


def test_the_version_is_the_installed_one():
    assert sm.__version__ == importlib.metadata.version("steersman")


def test_the_import_alone_is_light():
    code = (
        "import sys, steersman; dir(steersman); print(*{'torch', 'diffusers', 'numpy', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
