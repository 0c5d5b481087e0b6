"""A run that is soon drawn, with networks that are loaded once."""

import numpy as np
import pytest
from PIL import Image

from steersman.lab.generate import open_session
from steersman.lab.run import Run
from steersman.lab.session import Networks
from steersman.recipes import load_recipe

CHANGES = ["sampling.steps=3", "particles=1", "recurrence.times=1", "weight=deviation", "smoothing=none"]


@pytest.fixture(scope="session")
def networks():
    return Networks()


@pytest.fixture(scope="session")
def run(denoiser):
    """Returns a run; settings are those of `Run`."""
    recipe = load_recipe("default", [*CHANGES, "preprocess.size=null"])
    given = {"targets": ("baseball",), "denoiser": denoiser, "classifiers": ("zoo:sportballs-mobilenet",)}
    return lambda **settings: Run(**{**given, "num": 6, "batch_size": 2, "judge": None, "recipe": recipe, **settings})


@pytest.fixture(scope="session")
def session(run, networks):
    """Returns a session of such a run."""
    return lambda **settings: open_session(run(**settings), networks, rehearse=False)


@pytest.fixture(scope="session")
def pixels():
    """Returns the images of a folder by their names."""

    def read(folder):
        return {file.name: np.asarray(Image.open(file)).astype(int) for file in sorted(folder.rglob("0*.png"))}

    return read
