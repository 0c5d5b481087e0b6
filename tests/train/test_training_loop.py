"""A run that was killed and went on is the run that was not killed."""

import math
import os
import re
import signal
import time
import zipfile
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.utils.data import TensorDataset

from steersman.errors import InputError
from steersman.lab.data import load_data
from steersman.lab.stop import Stopped
from steersman.lab.train.loop import Batch, Training, fit, recalibrate, seconds_spent

QUIET = Console(quiet=True)


class Killed(Exception):
    pass


def network(width: int = 4) -> nn.Module:
    """Batch statistics and dropout: both must come back as they were."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(4 * width, 2),
    )


def data() -> TensorDataset:
    images = torch.rand(10, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return TensorDataset(images, torch.arange(10) % 2)


class Loss:
    """Cross entropy of images with noise; dies before a step. ``seen`` holds what it was shown."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.dies_at, self.step, self.seen = dies_at, 0, []

    def __call__(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        if self.step == self.dies_at:
            raise Killed
        self.step += 1
        self.seen.append(batch.images)
        noise = torch.randn(batch.images.shape, generator=batch.generator)
        return nn.functional.cross_entropy(module(batch.images + noise), batch.labels)


def training(**changes: float) -> Training:
    # 4 of 10 images a step: epochs end in the middle of a step
    settings = {"images": 28, "batch_size": 4, "warmup": 2, "learning_rate": 0.01, "average": 0.9, "save_seconds": 0.0}
    return Training(**{**settings, **changes})  # pyright: ignore[reportArgumentType]


def test_killed_run_goes_on_bit_for_bit(tmp_path: Path):
    whole, resumed = network(), network()
    fit(whole, data(), Loss(), training(), tmp_path / "whole", console=QUIET)
    for dies_at in (3, 2):  # killed twice: after step 3, and two steps further on
        with pytest.raises(Killed):
            fit(network(), data(), Loss(dies_at), training(), tmp_path / "killed", console=QUIET)
    last = Loss()
    fit(resumed, data(), last, training(), tmp_path / "killed", console=QUIET)
    assert last.step == 2
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    states = [torch.load(tmp_path / run / "checkpoint.pt", weights_only=True) for run in ("whole", "killed")]
    for state in states:
        assert state.pop("seconds") > 0
        assert state["step"] == 7
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_at_hand_and_the_training_goes_on(number: int, tmp_path: Path, capfd):
    class Interrupted(Loss):
        def __call__(self, module: nn.Module, batch: Batch) -> torch.Tensor:
            if self.step == 2:
                os.kill(os.getpid(), number)
            return super().__call__(module, batch)

    whole, resumed, rarely = network(), network(), training(save_seconds=1e9)
    fit(whole, data(), Loss(), rarely, tmp_path / "whole", console=QUIET)
    with pytest.raises(
        Stopped, match="stopped after step 3 of 7, which is saved in .*the same command goes"
    ) as stopped:
        fit(network(), data(), Interrupted(), rarely, tmp_path / "stopped", console=QUIET)
    assert stopped.value.code == 128 + number
    assert "stopping after this step" in capfd.readouterr().err
    last = Loss()
    fit(resumed, data(), last, rarely, tmp_path / "stopped", console=QUIET)
    assert last.step == 4
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_other_seeds_are_other_runs(tmp_path: Path):
    shown = []
    for seed in (0, 1):
        shown.append(Loss())
        fit(network(), data(), shown[-1], training(seed=seed), tmp_path / str(seed), console=QUIET)
    assert not torch.equal(torch.cat(shown[0].seen), torch.cat(shown[1].seen))


def test_every_image_is_shown_once_an_epoch(tmp_path: Path):
    loss, images = Loss(), data().tensors[0]
    fit(network(), data(), loss, training(), tmp_path, console=QUIET)
    shown = torch.cat(loss.seen)
    which = (shown[:, None] == images).flatten(2).all(2).long().argmax(1)
    assert sorted(which[:10].tolist()) == sorted(which[10:20].tolist()) == list(range(10))
    assert which[:10].tolist() != which[10:20].tolist()


def test_finished_run_is_not_trained_again(tmp_path: Path):
    fit(network(), data(), Loss(), training(), tmp_path, console=QUIET)
    spent = seconds_spent(tmp_path)
    again, loss = network(), Loss()
    fit(again, data(), loss, training(), tmp_path, console=QUIET)
    assert loss.step == 0 and seconds_spent(tmp_path) == spent


def test_average_is_what_the_preview_sees_and_training_goes_on_from_the_weights(tmp_path: Path):
    previews = []

    def preview(averaged: nn.Module, seen: int) -> None:
        previews.append((seen, averaged.training, [p.clone() for p in averaged.parameters()]))

    shown, plain = network(), network()
    fit(shown, data(), Loss(), training(), tmp_path / "a", preview=preview, preview_seconds=0.0, console=QUIET)
    fit(plain, data(), Loss(), training(), tmp_path / "b", console=QUIET)
    assert [seen for seen, *_ in previews] == [4, 8, 12, 16, 20, 24, 28, 28]
    assert not any(training for _, training, _ in previews)
    for last, p, q in zip(previews[-1][2], shown.parameters(), plain.parameters(), strict=True):
        assert torch.equal(last, p) and torch.equal(p, q)


def test_a_training_ends_when_its_minutes_are_over_and_goes_on(tmp_path):
    class Slow(Loss):
        def __call__(self, network, batch):
            time.sleep(0.2)
            return super().__call__(network, batch)

    limited = training(minutes=0.3 / 60)
    seen = fit(network(), data(), Slow(), limited, tmp_path, console=QUIET)
    assert seen == 2 * limited.batch_size < limited.images  # a second step, begun before the time was over
    rest, whole = network(), network()
    assert fit(rest, data(), Loss(), training(), tmp_path, console=QUIET) == limited.steps * limited.batch_size
    fit(whole, data(), Loss(), training(), tmp_path / "whole", console=QUIET)
    torch.testing.assert_close(rest.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path):
    fit(network(), data(), Loss(), training(images=4), tmp_path, console=QUIET)
    with pytest.raises(InputError, match="does not fit these settings"):
        fit(network(5), data(), Loss(), training(), tmp_path, console=QUIET)


def test_a_checkpoint_without_average_is_refused_where_one_is_asked_for(tmp_path: Path):
    fit(network(), data(), Loss(), training(images=4, average=0.0), tmp_path, console=QUIET)
    with pytest.raises(InputError, match="does not fit these settings.*average"):
        fit(network(), data(), Loss(), training(), tmp_path, console=QUIET)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path: Path, content: bytes):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(InputError, match="start in an empty folder") as caught:
        fit(network(), data(), Loss(), training(), tmp_path, console=QUIET)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "bad",
    [
        {"images": 0},
        {"batch_size": 0},
        {"precision": "float32"},
        {"seed": -1},
        {"decay": "step"},
        {"optimizer": "lion"},
    ],
)
def test_settings_that_cannot_be_used_are_refused(bad: dict):
    with pytest.raises(InputError, match="must be|known"):
        Training(**{"images": 4, **bad})


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_recalibrated_statistics_are_those_of_the_final_weights(average: float, tmp_path: Path):
    """Three steps at a momentum of 0.1 leave 73% of what the running averages began with, and older weights' beside."""
    shown: list[torch.Tensor] = []

    def noisy(batch: Batch) -> torch.Tensor:
        shown.append(batch.images + torch.randn(batch.images.shape, generator=batch.generator))
        return shown[-1]

    settings = training(images=12, average=average)
    trained = network()
    fit(trained, data(), Loss(), settings, tmp_path, console=QUIET)
    recalibrate(trained, data(), noisy, settings)
    assert not trained.training and len(shown) == 3
    convolution, normalisation = trained[0], trained[1]
    with torch.no_grad():
        outputs = [convolution(images).transpose(0, 1).flatten(1) for images in shown]
    for found, expected in (
        (normalisation.running_mean, torch.stack([each.mean(1) for each in outputs]).mean(0)),
        (normalisation.running_var, torch.stack([each.var(1) for each in outputs]).mean(0)),
    ):
        torch.testing.assert_close(found, expected)
    before = [each.clone() for each in normalisation.buffers()]
    torch.manual_seed(1)  # nothing but the seed of the training decides
    recalibrate(trained, data(), noisy, settings)
    assert all(map(torch.equal, before, normalisation.buffers()))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_refused_in_one_line_by_whichever_process_reads_it(workers: int, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "InputError: 0.png").write_text("no image")
    images, _ = load_data(str(tmp_path / "set"), resolution=4)
    with pytest.raises(InputError) as error:
        fit(network(), images, Loss(), training(workers=workers), tmp_path / "out", console=QUIET)
    assert re.fullmatch(r"data: '.*/[ab]/InputError: 0.png' cannot be used; it must be an image: .*", str(error.value))


def test_a_checkpoint_that_unpacks_to_more_than_it_is_is_refused(tmp_path: Path):
    fit(network(), data(), Loss(), training(), tmp_path, console=QUIET)
    with zipfile.ZipFile(tmp_path / "checkpoint.pt") as stored, zipfile.ZipFile(tmp_path / "x", "w", 8) as packed:
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    (tmp_path / "x").replace(tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="checkpoint.pt' cannot be read .*is compressed"):
        fit(network(), data(), Loss(), training(), tmp_path, console=QUIET)


class Broken(Loss):
    """The same loss, whose value is not a number in some steps."""

    def __init__(self, steps: range) -> None:
        super().__init__()
        self.steps = steps

    def __call__(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        broken = self.step in self.steps
        return super().__call__(module, batch) * (math.nan if broken else 1.0)


def test_a_step_without_a_finite_gradient_leaves_the_weights_as_they_are(tmp_path: Path, capsys):
    broken, whole = network(), network()
    fit(broken, data(), Broken(range(3, 5)), training(images=20, decay="none"), tmp_path / "broken")
    fit(whole, data(), Loss(), training(images=12, decay="none"), tmp_path / "whole", console=QUIET)
    states = [torch.load(tmp_path / run / "checkpoint.pt", weights_only=True)["network"] for run in ("broken", "whole")]
    for name, value in states[0].items():
        assert "running" in name or "batches" in name or torch.equal(value, states[1][name]), name
    assert "nan" not in capsys.readouterr().out


def test_a_training_that_has_lost_its_way_ends_with_the_last_good_weights(tmp_path: Path):
    with pytest.raises(InputError, match="the gradients of 50 steps in a row, up to step 53, were not finite; try a "):
        fit(network(), data(), Broken(range(3, 99)), training(images=400), tmp_path, console=QUIET)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 52
    assert all(value.isfinite().all() for value in state["network"].values())
