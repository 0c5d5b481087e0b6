"""Imports go one way, from the command line down to the core, and never in a circle; late imports count as well."""

from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[1]


def check_no_cycle(package):
    """Raises a `CycleError`, which lists the modules, where some modules of a package import each other in a circle."""
    graph = grimp.build_graph(package, exclude_type_checking_imports=True, cache_dir=None)
    TopologicalSorter({module: graph.find_modules_directly_imported_by(module) for module in graph.modules}).prepare()


def test_modules_do_not_import_each_other_in_a_circle():
    check_no_cycle("steersman")


def test_a_circle_through_a_late_import_is_found(tmp_path, monkeypatch):
    package = tmp_path / "circular"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "first.py").write_text("from circular.second import there\n")
    (package / "second.py").write_text("def there():\n    from circular import first\n\n    return first\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CycleError):
        check_no_cycle("circular")


def test_layers_import_only_what_lies_below(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert lint_imports(no_cache=True) == 0, capsys.readouterr().out
