"""The README's Python, run as it stands."""

import re
from pathlib import Path

import pytest

from steersman.guidance import Guide
from steersman.recipes import load_recipe

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.long
def test_the_python_in_the_readme_runs():
    """But what needs a pipeline, which `docs/test_pages.py` gives it."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    own = [block for block in blocks if "pipe(" not in block]
    assert (len(own), len(blocks)) == (3, 4)
    names = {}
    for block in own:
        exec(compile(block, str(README), "exec"), names)  # noqa: S102
        assert names["result"].tensor.shape == (2, 3, 64, 64)
    assert isinstance(names["guide"], Guide)


@pytest.mark.long
def test_the_page_on_extending_runs(tmp_path):
    page = (README.parent / "docs" / "extending.md").read_text()
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(compile(block, "extending.md", "exec"), names)  # noqa: S102
    recipe, several = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "own.yaml").write_text(recipe)
    (tmp_path / "several.yaml").write_text(several)
    own = load_recipe(str(tmp_path / "own.yaml"))
    changed = load_recipe(str(tmp_path / "several.yaml"), ["extra_guides.0.scale=0.2"])
    assert changed.resolved()["extra_guides"][0]["scale"] == {"value": 0.2}
    assert own.changed(own.variants["early"]).check().resolved()["weight"][1]["ratio_min"] == 1


def test_the_commands_in_the_readme_are_known():
    from steersman.cli import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    known |= {group.name for group in app.registered_groups}
    used = set(
        re.findall(r"steersman (\w+)", " ".join(re.findall(r"```bash\n(.*?)```", README.read_text(), re.DOTALL)))
    )
    assert used <= known
