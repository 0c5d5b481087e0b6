"""Every module can be imported, offers what others take from it, and loads no more than it needs."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

import steersman
from steersman.batching import broadcast

ROOT = Path(steersman.__file__).parent
TESTS = Path(__file__).parent
FILES = {
    ".".join(("steersman", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
MODULES = [name for name in FILES if not name.endswith("__main__")]  # that one runs the command line
ROOMS = ("guidance", "sampling", "models.classifiers", "models.denoisers", "models.zoo")
ROOMS += tuple(
    f"lab.{name}" for name in ("analysis", "data", "metrics", "report", "reproduce", "sweep", "train", "tune")
)
HEAVY = ("diffusers", "matplotlib", "timm", "torchvision", "transformers")


def taken(name):
    """What a module imports from the other modules of the package, as pairs of module and name."""
    nodes = ast.walk(ast.parse(FILES[name].read_text()))
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("steersman")]
    return {(node.module, alias.name) for node in froms for alias in node.names}


@pytest.mark.parametrize("name", MODULES)
def test_imports_and_has_what_it_offers(name):
    module = importlib.import_module(name)
    offered = getattr(module, "__all__", [])
    assert [each for each in offered if not hasattr(module, each)] == []
    assert len(set(offered)) == len(offered)


@pytest.mark.parametrize("name", MODULES)
def test_nothing_shares_its_name_with_a_module(name):
    """So that ``import steersman.lab.metrics.features as features`` gives the module, whatever its package offers."""
    module, (package, _, own) = importlib.import_module(name), name.rpartition(".")
    assert not package or getattr(importlib.import_module(package), own) is module


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_offers_what_it_reexports(room):
    offered = getattr(importlib.import_module(f"steersman.{room}"), "__all__", [])
    assert set(offered) == {each for _, each in taken(f"steersman.{room}")}


def test_what_one_module_takes_from_another_is_offered():
    offered = {name: getattr(importlib.import_module(name), "__all__", []) for name in MODULES}
    pairs = {(name, *pair) for name in FILES for pair in taken(name)}
    lacking = {
        f"{name} takes {each} from {module}"
        for name, module, each in pairs
        if f"{module}.{each}" not in FILES and each not in offered[module]
    }
    assert lacking == set()


def test_nothing_heavy_is_imported_before_it_is_used():
    code = (
        "import sys, steersman, steersman.mixture, steersman.guidance, steersman.sampling\n"
        f"print(*[name for name in {HEAVY} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_types_and_shapes_are_checked_in_the_tests():
    with pytest.raises(TypeCheckError):
        broadcast(torch.zeros(2, dtype=torch.int64), torch.zeros(2))


def names_of(requirements):
    """The packages of requirements, as pip compares them."""
    found = (re.match(r"[\w.-]+", each) for each in requirements)
    return {re.sub(r"[-_.]+", "-", each[0]).lower() for each in found if each}


def used(folder, known):
    """The packages of others that the modules of a folder import anywhere; ``known`` has the packages of modules."""
    nodes = [node for path in folder.rglob("*.py") for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    ours = {path.stem for name in ("src", "tests", "benchmarks") for path in (TESTS.parent / name).iterdir()}
    roots = {each.partition(".")[0] for each in modules} - sys.stdlib_module_names - ours
    return names_of(known.get(root, [root])[0] for root in roots)


def test_what_is_imported_is_declared():
    project = tomllib.loads((TESTS.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    own = names_of(sum((extras[name] for name in extras if name != "dev"), project["dependencies"]))
    known = packages_distributions()
    assert used(ROOT, known) - own == set()
    assert used(TESTS, known) - own - names_of(extras["dev"]) == set()
