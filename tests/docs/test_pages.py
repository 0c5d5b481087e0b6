"""Every code block of README and docs runs as it stands there, page by page from top to bottom, in one folder.

What a block does is kept short from outside: sampling takes two steps without recurrence, a run draws few images of a
target, rendered data sets and trainings have few images, an analysis visits few images and noise levels, a search of
settings has few trials. Nothing in a block is changed but the stand-ins below, for what would have to be downloaded,
for a GPU, for launchers of several processes, and for tables of all recipes and networks, of which one row is made. Two
steps make no image that is worth a look; where a command says so by its exit code, it has run.
"""

import runpy
import shutil
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.distributed.run import get_args_parser

from docs.blocks import PAGES, ROOT, blocks, commands
from steersman.lab.data import pictures
from steersman.recipes import load_recipe

ONE_OF_ALL = {"benchmarks/recipes.py": ["nrcg/denoised"], "benchmarks/footprint.py": ["DiT-XL/2 256"]}
LAZY = (400, 2**62)  # data sets of which few images are rendered, by their numbers
INSTALLS = {"python3", ".venv/bin/pip", ".venv/bin/python"}  # of the installation and the tests, as in `.ci/run`


@pytest.fixture
def short(monkeypatch):
    """Keeps runs, data and trainings small, whatever a command asks for."""
    import steersman.cli.analyze
    import steersman.lab.analysis.parts
    import steersman.lab.choices
    import steersman.lab.data.images
    import steersman.lab.data.sportballs
    import steersman.lab.metrics.evaluate
    import steersman.lab.run
    import steersman.lab.train.denoiser
    import steersman.lab.train.loop
    import steersman.lab.tune.tuning
    from steersman.recipes import Recipe

    walk, made, balls = (
        Recipe.sampling,
        steersman.lab.run.Run.__post_init__,
        steersman.lab.data.sportballs.SportBalls.preset,
    )
    trained, drawn = steersman.lab.train.loop.Training.__post_init__, steersman.lab.data.images._rendered
    counted, previewed = steersman.lab.analysis.parts.Parts.__init__, steersman.lab.train.denoiser.sample
    tuned, visited = steersman.lab.tune.tuning.Tuning.work, steersman.cli.analyze.Scope.places

    def walked(self):
        settings = walk(self)
        return settings | {"steps": min(settings["steps"], 2), "recurrence": None}

    def run(self):
        count = 2 if "all" in self.targets else 4  # of which a distance can be taken
        object.__setattr__(self, "num", min(self.num, count))
        object.__setattr__(self, "device", "cpu")  # stands in for a GPU
        object.__setattr__(self, "dtype", "float32")  # nothing is measured
        made(self)

    def training(self):
        object.__setattr__(self, "batch_size", min(self.batch_size, 4))
        object.__setattr__(self, "images", min(self.images, self.batch_size))
        object.__setattr__(self, "precision", "no")  # others are slow on a CPU
        trained(self)

    def tuning(self, trials, **settings):
        return tuned(self, min(trials, 4), **settings)

    def places(self, levels):
        count = self.count and min(self.count, len(levels))
        found = visited(replace(self, count=count), levels)
        return found[:: -(-len(found) // 4)]

    def preview(*args, steps, **settings):
        return previewed(*args, steps=min(steps, 2), **settings)

    def parts(self, out, settings, count):
        counted(self, out, settings, min(count, 16))

    def rendered(spec, kind, num=24, **settings):
        return drawn(spec, kind, min(num, 24), **settings)

    def preset(name, *, num, **settings):
        return balls(name, num=num if num in LAZY else min(num, 24), **settings)

    monkeypatch.setattr(Recipe, "sampling", walked)
    monkeypatch.setattr(steersman.lab.choices, "_counts", lambda: {"cpu": 1, "cuda": 8, "mps": 0})
    monkeypatch.setattr(steersman.lab.data.images, "_rendered", rendered)
    monkeypatch.setattr(steersman.lab.run.Run, "__post_init__", run)
    monkeypatch.setattr(steersman.lab.analysis.parts.Parts, "__init__", parts)
    monkeypatch.setattr(steersman.cli.analyze.Scope, "places", places)
    monkeypatch.setattr(steersman.lab.train.denoiser, "sample", preview)
    monkeypatch.setattr(steersman.lab.tune.tuning.Tuning, "work", tuning)
    monkeypatch.setattr(steersman.lab.train.loop.Training, "__post_init__", training)
    monkeypatch.setattr(steersman.lab.data.sportballs.SportBalls, "preset", preset)


@pytest.fixture
def downloads(monkeypatch, tmp_path):
    """Random images in the place of the data sets that are downloaded, with digests of their own."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name, source in pictures.SOURCES.items():
        pixels = np.random.default_rng(0).integers(0, 256, (200, *source.shape), dtype=np.uint8)
        labels = (np.arange(len(pixels)) % len(source.classes)).astype(np.uint8)
        made = replace(
            source,
            digests=dict.fromkeys(pictures.SPLITS, [pictures._digest(pixels, labels)]),
            read=lambda folder, split, held=(pixels, labels): held,
            download=lambda folder: folder.mkdir(parents=True, exist_ok=True),
        )
        monkeypatch.setitem(pictures.SOURCES, name, made)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory, clip_folder):
    """What takes the place of each thing that would be downloaded: tiny, random, in the same format."""
    from torchvision.models import resnet18

    from denoisers import texts
    from denoisers.adm_reference import Reference

    folder = tmp_path_factory.mktemp("stand-ins")
    torch.save(Reference(heads=4, attended=(0, 1)).tensors, folder / "adm.pt")
    torch.save(resnet18(num_classes=1000).state_dict(), folder / "resnet18.pt")
    texts.make("SD").save_pretrained(folder / "sd")
    return {
        "adm:256x256_diffusion_uncond.pt": f"adm:{folder}/adm.pt?heads=4&attention=legacy&size=16",
        "torchvision:resnet101": f"torchvision:resnet18?checkpoint={folder}/resnet18.pt&preprocess=imagenet",
        "clip:openai/clip-vit-base-patch32": f"clip:{clip_folder(length=32)}",
        "stable-diffusion-v1-5/stable-diffusion-v1-5": str(folder / "sd"),
    }


@pytest.fixture
def pipe():
    """The pipeline that a page's Python has already: Stable Diffusion, tiny."""
    from diffusers import DDIMScheduler

    from denoisers import texts

    class Short(DDIMScheduler):
        def set_timesteps(self, num_inference_steps, *args, **kwargs):
            super().set_timesteps(min(num_inference_steps, 2), *args, **kwargs)

    made = texts.make("SD")
    made.scheduler = Short.from_config(made.scheduler.config)
    made.set_progress_bar_config(disable=True)
    return made


def launched(words):
    """Returns the command that a launcher starts on each process; its own options must be known to it."""
    launcher, *rest = words
    if launcher == "torchrun":
        given = get_args_parser().parse_args(rest)
    else:
        from accelerate.commands.launch import launch_command_parser

        assert rest.pop(0) == "launch"
        given = launch_command_parser().parse_args(rest)
    command = rest[rest.index("--") + 1 :]
    assert given.module and [given.training_script, *given.training_script_args] == command
    assert command[0] == "steersman"
    return command


@pytest.mark.long
@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs(page, call, unchecked, short, downloads, stand_ins, request, monkeypatch, tmp_path):
    (tmp_path / "docs").mkdir()
    for folder in ("examples", "benchmarks"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / page, tmp_path / page)
    (mine,) = (block.text for block in blocks("docs/extending.md") if block.text.startswith("class Brightness"))
    (tmp_path / "mine.py").write_text(f"import torch\n\n\n{mine}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names = {"__name__": "__main__"}
    for block in blocks(page):
        match block.language:
            case "python":
                if "pipe(" in block.text and "pipe" not in names:
                    names["pipe"] = request.getfixturevalue("pipe")
                exec(compile(block.text, f"{page}:{block.line}", "exec"), names)  # noqa: S102
            case "yaml":
                (tmp_path / "recipe.yaml").write_text(block.text)
                assert load_recipe("recipe.yaml").check().resolved() and yaml.safe_load(block.text)["title"]
            case "bash":
                for words in commands(block.text):
                    where = f"{page}, {' '.join(words)}"
                    assert "…" not in where, f"{where}: is cut short, so nobody can run it"
                    words = [stand_ins.get(each, each) for each in words]
                    if words[0] in INSTALLS:
                        continue
                    if words[0] in ("torchrun", "accelerate"):
                        words = launched(words)
                    if words[0].endswith("steersman"):
                        code, said, error = call(*words[1:])
                        poor = code == 1 and "is worth a look" in " ".join(said.split())
                        assert code == 0 or poor, f"{where}: {error or said}"
                    else:
                        assert words[0] == "python", where
                        options = next((place for place, each in enumerate(words) if each[:2] == "--"), len(words))
                        words[options:options] = ONE_OF_ALL.get(words[1], [])
                        monkeypatch.setattr(sys, "argv", words[1:])
                        monkeypatch.syspath_prepend(Path(words[1]).parent)
                        with suppress(SystemExit):
                            runpy.run_path(words[1], run_name="__main__")
            case language:
                assert language in ("text", ""), f"{page}:{block.line}: {language} blocks are not run"


def test_the_installation_of_the_readme_is_the_one_of_ci():
    """What is left out above is run there."""
    tests = [words for block in blocks("README.md") if block.language == "bash" for words in commands(block.text)]
    script = (ROOT / ".ci" / "run").read_text()
    installs = [words for words in tests if words[0] in INSTALLS]
    assert len(installs) == 5
    assert "-m venv" in script and ".[dev]" in script and "-m pytest" in script


def test_commands_of_a_shell_block():
    text = 'a --b "c d" \\\n    e  # f\ng "h\ni" && j\n'
    assert commands(text) == [["a", "--b", "c d", "e"], ["g", "h\ni"], ["j"]]
