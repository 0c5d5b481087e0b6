"""What a classifier is shown, what is written of it, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from steersman.errors import InputError, Notice
from steersman.lab.data.images import write_folder
from steersman.lab.data.sportballs import SportBalls
from steersman.lab.train.classifier import ClassificationLoss, augmentation, noisy, train_classifier
from steersman.lab.train.loop import Batch, Training
from steersman.models.zoo import read_network
from steersman.schedule import VP

QUIET = Console(quiet=True)
TINY = {"architecture": "resnet10_narrow", "resolution": 32, "num": 40, "held_out": 12, "console": QUIET}


class Seen(nn.Module):
    """Keeps what it is shown, and says nothing."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.images = images
        return torch.zeros(len(images), 2)


def batch(images: torch.Tensor, seed: int = 0) -> Batch:
    return Batch(images, torch.zeros(len(images), dtype=torch.int64), torch.Generator().manual_seed(seed))


def test_plain_loss_shows_the_image_as_it_is():
    images, network = torch.rand(5, 3, 4, 4), Seen()
    loss = ClassificationLoss()(network, batch(images))
    assert torch.equal(network.images, images)
    assert loss.item() == pytest.approx(torch.tensor(2.0).log().item())


def test_robust_loss_noises_at_the_schedules_level():
    """With one time only, x_t - alpha x_0 has standard deviation sigma."""
    schedule, network = VP(alpha_bar=torch.tensor([0.36], dtype=torch.float64)), Seen()
    x0 = torch.linspace(-1, 1, 16)[:, None, None, None].expand(16, 3, 32, 32)
    ClassificationLoss(schedule=schedule)(network, batch(x0))
    noise = network.images - 0.6 * x0
    # n normal values: the mean is off by sigma / sqrt(n), the deviation by sigma / sqrt(2 n); four times that
    n = noise.numel()
    assert abs(noise.mean()) < 4 * 0.8 / n**0.5
    assert abs(noise.std() - 0.8) < 4 * 0.8 / (2 * n) ** 0.5


def test_robust_loss_takes_all_times_alike():
    """Levels far apart: each image's own noise tells its time."""
    schedule, network = VP(alpha_bar=torch.tensor([0.9999, 0.75, 1e-4], dtype=torch.float64)), Seen()
    count = 600
    ClassificationLoss(schedule=schedule)(network, batch(torch.zeros(count, 3, 8, 8)))
    sigma = network.images.flatten(1).std(1)
    times = torch.bucketize(sigma, torch.tensor([0.25, 0.75])).bincount(minlength=3)
    # four standard deviations of a binomial count
    assert (times - count / 3).abs().max() < 4 * (count * 2 / 9) ** 0.5


def test_robust_loss_follows_the_batchs_generator_alone():
    loss, images, shown = ClassificationLoss(schedule=VP.cosine()), torch.zeros(2, 3, 4, 4), []
    for seed in (0, 0, 1):
        torch.rand(1)  # moves the global generator
        network = Seen()
        loss(network, batch(images, seed))
        shown.append(network.images)
    assert torch.equal(shown[0], shown[1])
    assert not torch.equal(shown[0], shown[2])


def test_augmented_images_stay_near_the_range_and_their_original():
    images, _ = SportBalls(num=40, resolution=64).batch(range(40))
    torch.manual_seed(0)
    change = augmentation(64)
    changed = torch.stack([change(image) for image in images])
    assert changed.shape == images.shape
    # rounding of the normalisations
    assert changed.min() >= -1 - 1e-6 and changed.max() <= 1 + 1e-6
    differs = (changed - images).abs().flatten(1).mean(1)
    assert differs.min() > 0 and differs.max() < 0.6
    # each image on its own: the same image twice becomes two
    assert not torch.equal(change(images[0]), change(images[0]))


def test_writes_weights_and_card_that_read_back(tmp_path: Path):
    training = Training(images=16, batch_size=8, learning_rate=0.01, warmup=1)
    network, card = train_classifier(tmp_path, training, robust=True, half=True, command="as typed", **TINY)
    stored = load_file(tmp_path / "model.safetensors")
    learned = dict(network.named_parameters())
    assert {value.dtype for name, value in stored.items() if name in learned} == {torch.float16}
    assert {value.dtype for name, value in stored.items() if "running" in name} == {torch.float32}
    read, facts = read_network(tmp_path / "model.safetensors", tmp_path / "card.json")
    assert facts == card == json.loads((tmp_path / "card.json").read_text())
    images, _ = SportBalls(num=4, resolution=32).batch(range(4))
    assert not read.training
    torch.testing.assert_close(read(images), network(images), rtol=0, atol=0)
    assert facts["classes"] == list(SportBalls.classes)
    assert facts["robust"] and facts["images_seen"] == 16 and facts["command"] == "as typed" and facts["hours"] >= 0
    assert facts["accuracy"]["held_out"] == 12
    assert list(facts["accuracy"]["noisy"]) == ["100", "250", "500", "750", "900"]


def test_image_folder_is_measured_on_images_that_it_does_not_train_on(tmp_path: Path):
    list(write_folder(SportBalls(num=60, resolution=32), tmp_path / "data"))
    training = Training(images=8, batch_size=8, warmup=1)
    settings = {**TINY, "data": str(tmp_path / "data")}
    _, card = train_classifier(tmp_path / "out", training, **settings)
    assert card["accuracy"]["held_out"] == 6
    assert card["classes"] == sorted(SportBalls.classes)


@pytest.mark.parametrize(
    ("settings", "training", "told"),
    [
        ({"architecture": "resnet10"}, {}, "unknown architecture 'resnet10'; did you mean"),
        ({"data": "sportsballs"}, {}, "sportballs"),
        ({"held_out": 0}, {}, "held_out"),
        ({"data_seed": 5, "held_out_seed": 5}, {}, "seed of the data, got 5 for both"),
    ],
)
def test_refuses_before_anything_is_written(tmp_path: Path, settings: dict, training: dict, told: str):
    with pytest.raises(InputError, match=told):
        train_classifier(tmp_path / "out", Training(images=8, **training), **{**TINY, **settings})
    assert not (tmp_path / "out").exists()


@pytest.mark.few(9)
@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_short_training_is_measured_with_statistics_of_its_own_weights(average: float, tmp_path: Path):
    """Of noisy images too, what was written answers as it does with the statistics of a large batch."""
    training = Training(images=96, batch_size=16, learning_rate=0.01, warmup=1, average=average)
    network, _ = train_classifier(tmp_path, training, robust=True, **TINY | {"num": 96})
    images, _ = SportBalls(num=96, resolution=32).batch(range(96))
    generator = torch.Generator().manual_seed(1)
    x_t = noisy(images, torch.randint(1000, (96,), generator=generator), VP.cosine(), generator)
    with torch.no_grad():
        found, expected = network(x_t), network.train()(x_t)
    # Statistics of other noise, taken 16 images at a time, move the logits by a tenth of their spread, as measured.
    assert (found - expected).norm() < 0.3 * (expected - expected.mean(0)).norm()


def test_warns_where_one_class_takes_all_predictions(tmp_path: Path):
    """Black images in two classes: nothing tells them apart."""
    for place in range(40):
        folder = tmp_path / "data" / "ab"[place % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32)).save(folder / f"{place}.png")
    settings = {**TINY, "data": str(tmp_path / "data"), "held_out_seed": 1}
    with pytest.warns(Notice, match="predicts '[ab]' for each of the 4 held-out images: it is of no use yet"):
        train_classifier(tmp_path / "out", Training(images=8, batch_size=8, warmup=1), **settings)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    from steersman.cli import main

    monkeypatch.setattr("sys.argv", ["/usr/bin/steersman", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_command_writes_itself_into_the_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    arguments = "train classifier --out my.run --architecture resnet10_narrow --resolution 32 --images 8 --batch-size 8"
    arguments += " --num 8 --held-out 8 --augment --half"
    assert run(monkeypatch, *arguments.split()) == 0
    card = json.loads((tmp_path / "my.run" / "card.json").read_text())
    assert card["command"] == f"steersman {arguments}"
    assert card["augmented"] and not card["robust"]
    *_, accuracy, last = capsys.readouterr().out.splitlines()
    assert accuracy.startswith(f"accuracy on 8 held-out images: {card['accuracy']['clean']:.1%}; with noise: ")
    drawing = "steersman sample --denoiser zoo:sportballs --classifier my.run --judge none --target baseball"
    assert last == f"draw with it: {drawing}"


def test_images_without_classes_train_no_classifier(tmp_path: Path):
    for path in write_folder(SportBalls(num=3, resolution=32), tmp_path / "data"):
        path.rename(tmp_path / "data" / path.name)
    for name in SportBalls.classes:
        (tmp_path / "data" / name).rmdir()
    with pytest.raises(InputError, match="data must have images of at least 2 classes, a folder each, .* has 0"):
        train_classifier(tmp_path / "out", Training(images=8), data=str(tmp_path / "data"), console=QUIET)


def test_command_refuses_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    assert run(monkeypatch, "train", "classifier", "--out", str(tmp_path), "--architecture", "resnet") == 2
    told = capsys.readouterr().err
    assert told.startswith("steersman: unknown architecture 'resnet'") and told.count("\n") == 1


def test_images_of_one_channel_are_trained_on_and_the_test_images_measured(tmp_path: Path, mnist: str):
    training = Training(images=40, batch_size=8, warmup=1, optimizer="sgd", decay="linear", learning_rate=0.1)
    network, card = train_classifier(
        tmp_path / "out", training, data=mnist, architecture="lenet", shift=2, smoothing=0.1, half=True, console=QUIET
    )
    assert card["channels"] == 1 and card["resolution"] == 28 and card["accuracy"]["held_out"] == 8
    read, _ = read_network(tmp_path / "out" / "model.safetensors", tmp_path / "out" / "card.json")
    images = torch.rand(3, 1, 28, 28) * 2 - 1
    torch.testing.assert_close(read(images), network(images), rtol=0, atol=0)


def test_test_images_are_never_trained_on(tmp_path: Path, mnist: str):
    with pytest.raises(InputError, match="leave out the split"):
        train_classifier(tmp_path / "out", Training(images=8), data=f"{mnist}?split=test", architecture="lenet")
    assert not (tmp_path / "out").exists()


def test_smoothed_labels_flips_and_shifts_are_the_losss():
    images, network = torch.rand(64, 3, 8, 8), Seen()
    loss = ClassificationLoss(flip=True, shift=1, smoothing=0.2)(network, batch(images))
    assert loss.item() == pytest.approx(torch.tensor(2.0).log().item())  # equal logits, whatever the labels
    assert network.images.shape == images.shape and not torch.equal(network.images, images)
    sure = nn.Linear(1, 2)
    with torch.no_grad():
        sure.weight.zero_(), sure.bias.copy_(torch.tensor([3.0, 0.0]))
    value = ClassificationLoss(smoothing=0.2)(nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), sure), batch(images))
    wrong, right = torch.tensor([3.0, 0.0]).log_softmax(0).flip(0)
    assert value.item() == pytest.approx(-(0.9 * right + 0.1 * wrong).item())


@pytest.mark.parametrize("wrong", [{"shift": -1}, {"smoothing": 1.0}, {"smoothing": -0.1}])
def test_losses_that_make_no_sense_are_refused(wrong: dict):
    with pytest.raises(InputError, match="must be"):
        ClassificationLoss(**wrong)
