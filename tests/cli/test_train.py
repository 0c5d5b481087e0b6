"""``steersman train``: every option reaches the training."""

import importlib

import pytest

from steersman.lab.train.loop import Training

GIVEN = {
    "images": 640,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "warmup": 7,
    "decay": "linear",
    "weight_decay": 0.1,
    "average": 0.5,
    "precision": "bf16",
    "channels_last": True,
    "workers": 1,
    "seed": 5,
}


@pytest.mark.parametrize(("part", "more"), [("denoiser", {}), ("classifier", {"optimizer": "sgd"})])
def test_every_option_of_the_training_reaches_it(part, more, call, monkeypatch, tmp_path):
    trained = []
    module = importlib.import_module(f"steersman.lab.train.{part}")
    monkeypatch.setattr(module, f"train_{part}", lambda out, training, **settings: trained.append(training))
    words = [
        word
        for name, value in (GIVEN | more).items()
        for word in ([f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)]))
    ]
    assert call("train", part, "--out", tmp_path, *words) == (0, "", "")
    assert trained == [Training(**GIVEN | more)]
