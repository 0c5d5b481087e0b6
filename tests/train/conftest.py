"""A stand-in for MNIST: a few random images in its layout, whose digests take the published ones' place."""

from dataclasses import replace

import numpy as np
import pytest

from steersman.data import pictures


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """The spec of 20 training images and 8 test images, 28 by 28 pixels of one channel."""
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
