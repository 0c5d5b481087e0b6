"""What the tests share: a mixture of which everything is known, draws, tiny networks, and how to run a command."""

import json
import math
import os
import sys
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch

from accelerator import Accelerator
from steersman.cli import main
from steersman.lab import session
from steersman.lab.data import pictures
from steersman.mixture import Mixture
from steersman.models import zoo
from steersman.models.classifiers import libraries
from steersman.models.denoisers import load
from steersman.recipes.axes import AXES

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start, xdist's workers among them
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that share out a sum do not spin on a busy machine


def pytest_addoption(parser):
    parser.addoption("--typed", action="store_true", help="check the types of each call in every case of every test")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks as long what `few` leaves out, before pytest chooses by marks."""
    counts = Counter()
    for item in items:
        mark = item.get_closest_marker("few")
        if mark is not None:
            test = item.nodeid.partition("[")[0]
            if counts[test] % mark.args[0]:
                item.add_marker("long")
            counts[test] += 1


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Checks the types of each call in the first case of a test alone: they take more time than what is tested."""
    case = getattr(item, "callspec", None)
    first = case is None or not any(case.indices.values())
    jaxtyping.config.update("jaxtyping_disable", not (first or item.config.getoption("typed")))


def spread(first, second, angle):
    """A covariance with these variances along axes turned by an angle."""
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    return turn @ torch.diag(torch.tensor([first, second], dtype=torch.float64)) @ turn.T


@pytest.fixture(autouse=True)
def registry():
    """Forgets the options that a test registered."""
    before = {axis: dict(options) for axis, options in AXES.items()}
    yield
    for axis, options in before.items():
        if AXES[axis] != options:
            AXES[axis].clear()
            AXES[axis].update(options)


@pytest.fixture(scope="session")
def once():
    """Has what a function returns for some arguments computed once; whoever asks for it gets a copy of its own."""
    with pytest.MonkeyPatch.context() as patch:

        def keep(module, name, asked=lambda *_: True):
            function, kept = getattr(module, name), {}

            def copied(*given):
                if not asked(*given):
                    return function(*given)
                if given not in kept:
                    kept[given] = function(*given)
                return deepcopy(kept[given])

            patch.setattr(module, name, copied)

        yield keep


@pytest.fixture(scope="session", autouse=True)
def bundled(once):
    """Reads each network of the package once; the tests of how they are read call the readers themselves."""
    once(load, "load_folder", lambda path: path.parent == Path(zoo.__file__).parent)
    once(zoo, "load_network")
    once(libraries, "read_efficientnet_lite0")


@pytest.fixture(scope="session", autouse=True)
def few_unguided():
    """Compares the images of a run with two unguided ones, not with eight."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "UNGUIDED", 2)
        yield


@pytest.fixture(scope="session")
def mixture():
    """Three overlapping classes in the plane, within [-1, 1] but for the tails."""
    return Mixture(
        weights=torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
        means=torch.tensor([[-0.4, -0.2], [0.4, -0.2], [0.0, 0.4]], dtype=torch.float64),
        covariances=torch.stack([spread(0.06, 0.03, 0.4), spread(0.05, 0.03, -0.6), spread(0.06, 0.04, 1.0)]),
    )


@pytest.fixture(scope="session")
def posterior(mixture):
    """The exact noise-aware classifier; its logits are normalised log-probabilities."""

    def logits(image, level=None):
        return mixture.log_posterior(image, level)

    return logits


@pytest.fixture
def draw():
    """Reproducible standard normal draws in float64: ``draw(4, 2, 1, 1)``."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def accelerator():
    """A pretend ``cuda:0``, there while the test runs: it refuses what CUDA would, and writes down each wait for it."""
    with Accelerator() as made:
        yield made


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """Saves a tiny CLIP of random weights as transformers does: words of letters, images of 16 by 16 pixels."""
    transformers = pytest.importorskip("transformers")

    def save(image_size=16, length=16):
        folder = tmp_path_factory.mktemp("clip")
        letters = "abcdefghijklmnopqrstuvwxyz0123456789,"
        words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
        (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
        (folder / "merges.txt").write_text("#version: 0.2\n")
        last = len(words) - 1
        tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        text = {"vocab_size": len(words), "max_position_embeddings": length, "bos_token_id": last - 1}
        text |= {"eos_token_id": last, "pad_token_id": last}
        torch.manual_seed(0)
        config = transformers.CLIPConfig(
            projection_dim=8, text_config=tower | text, vision_config=tower | {"image_size": 16, "patch_size": 8}
        )
        transformers.CLIPModel(config).save_pretrained(folder)
        images = transformers.CLIPImageProcessor(
            size={"shortest_edge": image_size}, crop_size={"height": 16, "width": 16}
        )
        transformers.CLIPProcessor(images, transformers.CLIPTokenizer.from_pretrained(folder)).save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def clip(clip_folder):
    """The folder of such a CLIP."""
    return clip_folder()


@pytest.fixture(scope="session")
def dit():
    """A tiny DiT pipeline of random weights: latents of 4 x 8 x 8, images of 16 x 16, four labels, learned variance."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        scaling_factor=0.18215,
    )
    for weight in transformer.parameters():  # of the size that they have after training, so that labels matter
        torch.nn.init.normal_(weight, std=0.2)
    return DiTPipeline(transformer.eval(), vae.eval(), DDIMScheduler(clip_sample=False))  # else labels are dropped


@pytest.fixture(scope="session")
def dit_folder(dit, tmp_path_factory):
    """It as diffusers saves it, with the names of its labels as DiT's published pipeline has them."""
    folder, names = tmp_path_factory.mktemp("dit"), ("baseball", "basketball", "volleyball", "soccer ball")
    dit.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["id2label"] = {str(number): name for number, name in reversed(list(enumerate(names)))}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs ``steersman`` with arguments; returns its exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["steersman", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            main()
        said = capsys.readouterr()
        return exit.value.code or 0, said.out, said.err

    return run


@pytest.fixture
def unchecked(monkeypatch):
    """Without the checks of types at run time, as for a user: what reaches our own messages."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="session")
def denoiser(once, tmp_path_factory):
    """A folder with a small U-Net of random weights, 16x16, with the bundled one's labels; it is read once."""
    from diffusers import DDPMScheduler

    from steersman.lab.train.denoiser import unet

    folder = tmp_path_factory.mktemp("denoiser")
    torch.manual_seed(0)
    unet(16, 4, widths=(8, 16)).save_pretrained(folder / "unet")
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    scheduler.save_pretrained(folder / "scheduler")
    classes = ["baseball", "basketball", "volleyball", "soccer ball"]
    (folder / "card.json").write_text(json.dumps({"classes": classes}))
    once(load, "load_folder", lambda path: path == folder)
    return str(folder)


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """A stand-in for MNIST, with digests of its own in the published ones' place.

    It is the spec of 20 training images and 8 test images, 28 by 28 pixels of one channel.
    """
    random, digests, folder = np.random.default_rng(0), {}, tmp_path / "mnist-data"
    folder.mkdir()
    for split, prefix, count in (("train", "train", 20), ("test", "t10k", 8)):
        pixels = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (folder / f"{prefix}-{kind}-ubyte").write_bytes(header + array.tobytes())
        digests[split] = [pictures._digest(pixels[..., None], labels)]
    monkeypatch.setitem(pictures.SOURCES, "mnist", replace(pictures.SOURCES["mnist"], digests=digests))
    return f"mnist:{folder}"
