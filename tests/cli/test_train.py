"""``steersman train``: every option reaches the training, and the first line comes before the imports."""

import importlib
import subprocess
import sys

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
    begun = f"training a {part} on sportballs, written to {tmp_path}\n"
    assert call("train", part, "--out", tmp_path, *words) == (0, begun, "")
    assert trained == [Training(**GIVEN | more)]


def test_the_first_line_comes_before_torch_is_imported():
    """Its import takes seconds; here it fails."""
    code = "import sys; sys.modules['torch'] = None; from steersman.cli import main; main()"
    words = [sys.executable, "-c", code, "train", "denoiser", "--data", "photos", "--out", "mine"]
    run = subprocess.run(words, capture_output=True, text=True)
    assert run.stdout == "training a denoiser on photos, written to mine\n"
    assert "torch" in run.stderr


def test_names_say_what_is_dropped_and_recomputed(call):
    for old in (["train", "denoiser", "--out", "mine", "--dropout", "0.2"], ["sample", "--checkpoint"]):
        code, _, err = call(*old)
        assert code == 2 and "No such option" in err
    assert "--label-dropout" in call("train", "denoiser", "--help")[1]
    assert "--recompute" in call("sample", "--help")[1]
