"""The denoising losses, what the network is shown, told and asked for; what a training writes, and goes on from."""

import json
import shlex
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from steersman.errors import InputError
from steersman.lab.data import SportBalls, load_data
from steersman.lab.data.images import write_folder
from steersman.lab.train.denoiser import Architecture, DenoisingLoss, EDMLoss, train_denoiser, unet
from steersman.lab.train.loop import Batch, Training
from steersman.models.denoisers import load_denoiser
from steersman.sampling import DDIM, DDPM, Heun, sample
from steersman.schedule import VP

COUNT = 4096
SCHEDULE = VP.cosine()


class Spy(nn.Module):
    """Puts out zeros, and remembers what it was asked."""

    def forward(self, x_t, times, class_labels):
        self.x_t, self.times, self.labels = x_t, times, class_labels
        return SimpleNamespace(sample=torch.zeros_like(x_t))


def shown(kind=DenoisingLoss, **settings):
    """The spy after one batch of half-grey images with label 2, and the loss."""
    spy, generator = Spy(), torch.Generator().manual_seed(0)
    images, labels = torch.full((COUNT, 3, 4, 4), 0.5), torch.full((COUNT,), 2)
    settings |= {"schedule": SCHEDULE} if kind is DenoisingLoss else {}
    loss = kind(null=4, **settings)(spy, Batch(images, labels, generator))
    return spy, float(loss)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_times_follow_the_shifted_law(shift):
    """P(t / T < q) = q / (k - (k - 1) q), from ``t / T = k u / (1 + (k - 1) u)`` with u uniform."""
    spy, _ = shown(shift=shift)
    for q in (0.25, 0.5, 0.9):
        expected = q / (shift - (shift - 1) * q)
        share = float((spy.times < 1000 * q).double().mean())
        assert abs(share - expected) < 4 * (expected * (1 - expected) / COUNT) ** 0.5
    assert 0 <= int(spy.times.min()) and int(spy.times.max()) <= 999


def test_images_are_noised_to_the_level_of_their_time_and_the_loss_is_that_of_v():
    spy, loss = shown()
    level = SCHEDULE.at_time(spy.times)
    eps = (spy.x_t.double() - 0.5 * level.alpha.reshape(-1, 1, 1, 1)) / level.sigma.reshape(-1, 1, 1, 1)
    assert abs(float(eps.mean())) < 0.02 and abs(float(eps.std()) - 1) < 0.02
    v = level.alpha.reshape(-1, 1, 1, 1) * eps - 0.5 * level.sigma.reshape(-1, 1, 1, 1)
    assert loss == pytest.approx(float(v.square().mean()), rel=1e-3)


@pytest.mark.parametrize("kind", [DenoisingLoss, EDMLoss])
@pytest.mark.parametrize("dropout", [0.0, 0.15, 1.0])
def test_a_share_of_the_labels_becomes_the_null_label(kind, dropout):
    spy, _ = shown(kind, label_dropout=dropout)
    assert set(spy.labels.tolist()) <= {2, 4}
    assert float((spy.labels == 4).double().mean()) == pytest.approx(dropout, abs=0.03)


@pytest.mark.parametrize("wrong", [{"label_dropout": 1.5}, {"shift": 0.0}, {"shift": float("nan")}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match="must be"):
        DenoisingLoss(schedule=SCHEDULE, **wrong)


@pytest.mark.parametrize("wrong", [{"label_dropout": -0.1}, {"sigma_data": 0.0}, {"sigma_data": float("inf")}])
def test_settings_of_edms_loss_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match="must be"):
        EDMLoss(**wrong)


@pytest.mark.parametrize("sigma_data", [0.5, 0.25])
def test_edms_noise_is_log_normal_around_the_deviation_of_the_data(sigma_data):
    """c_noise = ln(sigma) / 4 with ln sigma ~ N(-1.2 + ln(2 s), 1.2^2)."""
    spy, _ = shown(EDMLoss, sigma_data=sigma_data)
    log_sigma = 4 * spy.times.double()
    centre = -1.2 + torch.tensor(2 * sigma_data).log().item()
    # the mean is off by sigma / sqrt(n), the deviation by sigma / sqrt(2 n); four times that
    assert abs(float(log_sigma.mean()) - centre) < 4 * 1.2 / COUNT**0.5
    assert abs(float(log_sigma.std()) - 1.2) < 4 * 1.2 / (2 * COUNT) ** 0.5


def test_edms_network_sees_unit_variance_and_its_loss_at_zero_is_one():
    """x_0 = 0.5 and s = 0.5: c_in x_t has mean square 1, and so has (x_0 - c_skip x_t) / c_out."""
    spy, loss = shown(EDMLoss, sigma_data=0.5)
    sigma = (4 * spy.times.double()).exp()[:, None, None, None]
    eps = (spy.x_t.double() * (sigma**2 + 0.25).sqrt() - 0.5) / sigma
    # c_in x_t is rounded to float32 before it is divided by a small sigma
    assert abs(float(eps.mean())) < 0.02 and abs(float(eps.std()) - 1) < 0.02
    assert loss == pytest.approx(1, abs=0.02)


def test_edms_loss_is_the_weighted_error_of_the_denoised_image():
    """mean (1 / c_out^2) (x0_hat - x_0)^2, with x0_hat as the denoiser makes it of the same network."""
    torch.manual_seed(0)
    network, images = unet(8, 3, (8, 8)), torch.rand(16, 3, 8, 8) * 2 - 1
    labels, seen = torch.arange(16) % 3, {}
    listener = network.register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(x=args[0], c_noise=args[1], y=kwargs["class_labels"]), with_kwargs=True
    )
    loss = EDMLoss(sigma_data=0.6, null=3)(network, Batch(images, labels, torch.Generator().manual_seed(1)))
    listener.remove()
    from steersman.models.denoisers import EDMDenoiser
    from steersman.schedule import EDM

    denoiser = EDMDenoiser(network, shape=(3, 8, 8), classes=("a", "b", "c"), unconditional=True, sigma_data=0.6)
    sigma = (4 * seen["c_noise"].double()).exp()
    level, total = EDM().at_ratio(sigma), (sigma**2 + 0.36).sqrt()
    x_t = seen["x"].double() * total[:, None, None, None]
    x0_hat = denoiser(x_t.float(), level, label=seen["y"]).x0_hat.double()
    weight = (total / (0.6 * sigma)) ** 2
    # float32, with weights of up to thousands
    assert float(loss) == pytest.approx(float((weight[:, None, None, None] * (x0_hat - images) ** 2).mean()), rel=1e-3)


@pytest.mark.parametrize("kind", [DenoisingLoss, EDMLoss])
def test_half_of_the_images_are_mirrored_on_request(kind):
    spy, generator = Spy(), torch.Generator().manual_seed(0)
    ramp = torch.linspace(-1, 1, 16).expand(256, 3, 16, 16)
    settings = {"schedule": SCHEDULE} if kind is DenoisingLoss else {}
    kind(flip=True, **settings)(spy, Batch(ramp, torch.zeros(256, dtype=torch.long), generator))
    slopes = (spy.x_t * ramp).mean((1, 2, 3))
    assert 0.3 < float((slopes > 0).double().mean()) < 0.7


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_network_of_patches_sees_squares_as_channels(channels):
    """It is the U-Net of the unshuffled image, which has a quarter of the positions."""
    torch.manual_seed(0)
    network = unet(16, 3, (8, 16), channels=channels, patch=2).eval()
    x, times, labels = torch.randn(2, channels, 16, 16), torch.zeros(2), torch.tensor([0, 3])
    seen = []
    network.conv_in.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        output = network(x, times, class_labels=labels).sample
    assert seen[0].shape == (2, 4 * channels, 8, 8) and output.shape == x.shape
    assert torch.equal(seen[0], nn.functional.pixel_unshuffle(x, 2))
    (alone,) = network(x, times, class_labels=labels, return_dict=False)
    assert torch.equal(alone, output)


def quick(**changes):
    return Training(**{"images": 8, "batch_size": 4, "warmup": 1, "decay": "none"} | changes)


TINY = Architecture(widths=(8, 8), patch=2)


@pytest.mark.few(9)
@pytest.mark.parametrize("noise", ["edm", "cosine"])
@pytest.mark.parametrize("half", [False, True])
def test_what_a_training_writes_is_loaded_and_sampled(tmp_path, mnist, noise, half):
    trained = train_denoiser(tmp_path / "out", quick(), data=mnist, noise=noise, architecture=TINY, half=half)
    loaded = load_denoiser(str(tmp_path / "out"))
    assert loaded.shape == trained.shape == (1, 28, 28)
    assert loaded.classes == trained.classes and loaded.classes[3] == "3 - three"
    assert type(loaded) is type(trained) and loaded.schedule.levels(3)[0] == trained.schedule.levels(3)[0]
    for sampler in (Heun(), DDIM(eta=1.0), DDPM()):
        for condition in ({}, {"label": torch.tensor([3]), "cfg_scale": 2.0}):
            images = [sample(each, sampler, steps=3, condition=condition) for each in (trained, loaded)]
            assert images[0].shape == (1, 1, 28, 28) and images[0].isfinite().all()
            # float16 has 11 bits
            torch.testing.assert_close(*images, rtol=0, atol=0.05 if half else 0)
    assert len(list((tmp_path / "out").glob("samples-*.png"))) == 1


@pytest.mark.long
def test_the_deviation_of_the_data_is_measured_and_written(tmp_path, mnist):
    trained = train_denoiser(tmp_path / "out", quick(), data=mnist, noise="edm", architecture=TINY)
    images, _ = load_data(mnist)
    values = torch.stack([images[index][0] for index in range(20)])
    assert trained.sigma_data == pytest.approx(float(values.square().mean().sqrt()), rel=5e-3)
    assert load_denoiser(str(tmp_path / "out")).sigma_data == trained.sigma_data


@pytest.mark.long
def test_a_new_network_begins_with_the_loss_of_zeros(tmp_path, mnist):
    trained = train_denoiser(
        tmp_path / "out", quick(learning_rate=0.0), data=mnist, noise="edm", architecture=Architecture(widths=(8, 16))
    )
    x = torch.randn(2, 1, 28, 28)
    assert not trained.network(x, torch.zeros(2), class_labels=torch.tensor([0, 10])).sample.any()


@pytest.mark.long
@pytest.mark.parametrize("noise", ["edm", "cosine"])
def test_a_training_goes_on_from_another_ones_folder(tmp_path, mnist, noise):
    first = train_denoiser(tmp_path / "first", quick(), data=mnist, noise=noise, architecture=TINY)
    second = train_denoiser(tmp_path / "second", quick(learning_rate=0.0), data=mnist, init=str(tmp_path / "first"))
    assert type(second) is type(first)
    for (name, value), other in zip(
        first.network.state_dict().items(), second.network.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(value, other, rtol=1e-6, atol=1e-7, msg=name)
    third = train_denoiser(tmp_path / "third", quick(), data=mnist, init=str(tmp_path / "first"))
    assert not torch.equal(third.network.conv_out.weight, first.network.conv_out.weight)


@pytest.mark.few(9)
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"architecture": Architecture(widths=(8, 8, 8), patch=2)}, "resolution must be a multiple of 8"),
        ({"noise": "linear"}, "unknown noise 'linear'"),
        ({"noise": "edm", "architecture": TINY, "shift": 3.0}, "with EDM's noise it must be 1"),
        ({"init": "{first}", "architecture": TINY}, "not both"),
        ({"init": "{first}", "noise": "cosine"}, "must be that of init, edm"),
        ({"init": "{first}", "data": "sportballs", "num": 4}, "must be of the data's images and labels"),
        ({"init": "nowhere"}, "nowhere"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, mnist, settings, said):
    train_denoiser(tmp_path / "first", quick(), data=mnist, noise="edm", architecture=TINY)
    if "init" in settings:
        settings = settings | {"init": settings["init"].format(first=tmp_path / "first")}
    with pytest.raises(InputError, match=said):
        train_denoiser(tmp_path / "out", quick(), **{"data": mnist} | settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "wrong", [{"widths": ()}, {"widths": (12,)}, {"attention": 9}, {"layers": 0}, {"patch": 0}, {"widths": (0, 8)}]
)
def test_networks_that_cannot_be_built_are_refused(wrong):
    with pytest.raises(InputError, match="must be"):
        Architecture(**wrong)


@pytest.mark.long
def test_command_trains_what_it_is_told(tmp_path, mnist, call):
    options = "--noise edm --widths 8,8 --patch 2 --attention 0 --images 4 --batch-size 4 --flip --decay none --half"
    code, _, said = call("train", "denoiser", "--out", tmp_path / "out", "--data", mnist, *options.split())
    assert code == 0, said
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    config = json.loads((tmp_path / "out" / "unet" / "config.json").read_text())
    assert card["resolution"] == 28 and "--flip" in card["command"]
    assert config["patch"] == 2 and config["block_out_channels"] == [8, 8] and config["in_channels"] == 1
    code, _, said = call("train", "denoiser", "--out", tmp_path / "no", "--data", mnist, "--widths", "8,x")
    assert code == 2 and "widths must be whole numbers" in said


@pytest.mark.long
def test_image_folders_train_too(tmp_path):
    list(write_folder(SportBalls(num=20, resolution=16), tmp_path / "data"))
    trained = train_denoiser(tmp_path / "out", quick(), data=str(tmp_path / "data"), noise="edm", architecture=TINY)
    assert trained.shape == (3, 16, 16) and trained.classes == tuple(sorted(SportBalls.classes))


@pytest.mark.parametrize("noise", ["cosine", "edm"])
def test_a_folder_of_images_alone_trains_a_denoiser_without_labels(noise, call, tmp_path):
    """In the size of its images; the last line that is printed draws with it."""
    for path in write_folder(SportBalls(num=6, resolution=16), tmp_path / "data"):
        path.rename(tmp_path / "data" / path.name)
    for name in SportBalls.classes:
        (tmp_path / "data" / name).rmdir()
    options = f"--noise {noise} --widths 8,8 --images 4 --batch-size 4".split()
    code, out, said = call("train", "denoiser", "--data", tmp_path / "data", "--out", tmp_path / "mine", *options)
    assert code == 0, said
    first, planned, *_, last = out.splitlines()
    assert first == f"training a denoiser on {tmp_path / 'data'}, written to {tmp_path / 'mine'}"
    assert planned.startswith("6 images of 16 by 16 pixels, no classes; a network of ")
    steersman, *words = shlex.split(last.removeprefix("draw with it: "))
    assert steersman == "steersman"
    guide = ["--classifier", "zoo:mnist-lenet"]  # which loads sooner than the default
    code, _, said = call(*words, *guide, "--steps", 2, "--num", 1, "--out", tmp_path / "drawn")
    assert (code, said) == (0, "")
    assert (tmp_path / "drawn" / "000000.png").is_file()


@pytest.mark.few(4)
@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("resolution", [8, 16, 20, 28, 30, 32, 48, 50, 64, 96, 100, 128])
def test_the_default_network_is_of_any_side_that_can_be_halved_far_enough(resolution, patch):
    network = unet(resolution, 3, channels=1, patch=patch)
    with torch.no_grad():
        shape = network(torch.zeros(1, 1, resolution, resolution), 5.0, class_labels=torch.tensor([3])).sample.shape
    assert shape == (1, 1, resolution, resolution)
    assert network.config["sample_size"] == resolution


@pytest.mark.parametrize(
    ("resolution", "near"), [(33, "32, 34"), (101, "100, 104"), (66, "64, 68"), (999, "992, 1008")]
)
def test_another_side_is_refused_with_those_nearby(resolution, near):
    with pytest.raises(InputError, match=f"halved to 32 pixels or fewer, such as {near}, got {resolution}"):
        unet(resolution, 3)
    for each in near.split(", "):
        assert Architecture().of(int(each)).widths


def test_a_side_that_is_none_or_that_the_widths_do_not_halve_is_refused():
    for wrong in ({"resolution": 0}, {"resolution": -4}, {"resolution": 15, "patch": 2}):
        with pytest.raises(InputError, match="resolution must be a multiple of"):
            unet(**{"classes": 3, **wrong})
    with pytest.raises(InputError, match="multiple of 16, for patches of 1 and 5 widths, got 28; give fewer widths"):
        unet(28, 3, (8, 8, 8, 8, 8))
    with pytest.raises(InputError, match="attention must be 0 to 2, the number of widths, got 3"):
        unet(30, 3, attention=3)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no more"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_batch_that_memory_does_not_hold_is_one_line(call, mnist, tmp_path, monkeypatch, error):
    def full(*_):
        raise error

    monkeypatch.setattr(Accelerator, "backward", full)
    options = "--widths 8,8 --images 8 --batch-size 4 --resolution 16".split()
    code, _, said = call("train", "denoiser", "--out", tmp_path / "out", "--data", mnist, *options)
    assert code == 2 and "Traceback" not in said
    assert "does not hold the batch" in (last := said.splitlines()[-1]) and "use a smaller --batch-size" in last
