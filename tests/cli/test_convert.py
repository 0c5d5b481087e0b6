"""``steersman convert``: the folder is the same model, to diffusers and to us; what cannot be written is refused."""

import errno

import pytest
import torch
from diffusers import DDPMPipeline, DiTPipeline, UNet2DModel

from denoisers.adm_reference import Reference, apart
from steersman.errors import InputError
from steersman.models.denoisers import DiffusersDenoiser, EDMDenoiser, load_denoiser
from steersman.models.denoisers.folder import save_folder
from steersman.schedule import VP, Flow

CLOSE = 1e-5  # the same numbers, but for float32's rounding where tensors lie otherwise in memory


@pytest.mark.long
def test_a_bundled_denoiser(call, tmp_path):
    code, out, err = call("convert", "zoo:sportballs", tmp_path / "new" / "balls")
    assert (code, out, err) == (0, f"written to {tmp_path / 'new' / 'balls'}\n", "")
    original, again = load_denoiser("zoo:sportballs"), load_denoiser(str(tmp_path / "new" / "balls"))
    plain = DDPMPipeline.from_pretrained(tmp_path / "new" / "balls")
    x_t, level, label = torch.ones(1, 3, 64, 64), original.schedule.at_time(300), torch.tensor([1])
    with torch.no_grad():
        expected = original.network(x_t, 300, label).sample
        assert apart(plain.unet(x_t, 300, label).sample, expected) < CLOSE
        assert apart(again(x_t, level, label=label).x0_hat, original(x_t, level, label=label).x0_hat) < CLOSE
    assert again.classes == original.classes
    torch.testing.assert_close(plain.scheduler.alphas_cumprod.double(), original.schedule.alpha_bar, atol=1e-6, rtol=0)


def test_what_diffusers_cannot_say_is_said(call, tmp_path):
    reference = Reference(heads=4, attended=(0, 1))
    torch.save(reference.tensors, tmp_path / "mine.pt")
    spec = f"adm:{tmp_path / 'mine.pt'}?{reference.settings()}"
    code, out, _ = call("convert", spec, tmp_path / "out")
    assert code == 0
    assert "diffusers' configuration cannot say heads=4" in out
    x_t, time = torch.ones(1, 3, 8, 8), torch.tensor([5.0])
    plain = UNet2DModel.from_pretrained(tmp_path / "out" / "unet")
    again = load_denoiser(str(tmp_path / "out")).network
    expected = reference(x_t, time)
    assert apart(again(x_t, time).sample, expected) < CLOSE < 0.01 < apart(plain(x_t, time).sample, expected)


def test_a_pipeline_of_latents(dit_folder, dit, tmp_path):
    original = load_denoiser(str(dit_folder))
    assert save_folder(original, tmp_path / "out") == ()
    again, plain = load_denoiser(str(tmp_path / "out")), DiTPipeline.from_pretrained(tmp_path / "out")
    x_t, label = torch.ones(2, 4, 8, 8), torch.tensor([1, 3])
    level = original.schedule.at_time(300)
    assert apart(again(x_t, level, label=label).x0_hat, original(x_t, level, label=label).x0_hat) < CLOSE
    assert apart(again.decode(x_t), original.decode(x_t)) < CLOSE
    assert (again.classes, again.null, again.latent) == (original.classes, original.null, True)
    assert plain.get_label_ids(["volleyball"]) == [2]


def test_the_folder_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("steersman.models.denoisers.folder.write_json", full)
    denoiser = DiffusersDenoiser(unet(), schedule=VP.cosine())
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="out: .* cannot be written to .No space left on device.; give a new folder"):
        save_folder(denoiser, tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]


def unet():
    return UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        num_class_embeds=3,
    )


@pytest.mark.parametrize(
    ("schedule", "meant"),
    [
        (VP.linear(), "v_prediction"),
        (VP.cosine(), "epsilon"),
        (VP.linear(200, 0.001, 0.03), "sample"),
        (Flow(shift=3.0, count=500), "flow_prediction"),
    ],
)
def test_every_schedule_and_parameterization(schedule, meant, tmp_path):
    original = DiffusersDenoiser(unet(), schedule=schedule, parameterization=meant, classes=("a", "b"))
    save_folder(original, tmp_path / "out")
    again = load_denoiser(str(tmp_path / "out"))
    x_t, label = torch.ones(1, 3, 8, 8), torch.tensor([1])
    assert (again.parameterization, again.classes, again.null) == (meant, ("a", "b"), 2)
    for level, other in zip(schedule.levels(5), again.schedule.levels(5), strict=True):
        torch.testing.assert_close(tuple(other), tuple(level), rtol=1e-9, atol=1e-12)
    level = schedule.levels(5)[2]
    torch.testing.assert_close(again(x_t, level, label=label).x0_hat, original(x_t, level, label=label).x0_hat)


def test_what_cannot_be_written_is_refused(call, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    for out, message in (("full", "out must be a new folder, got "), ("full/file", "which is there")):
        code, _, err = call("convert", "zoo:sportballs", tmp_path / out)
        assert (code, err.count("\n")) == (2, 1) and message in err
    code, _, err = call("convert", "zoo:sportballs", tmp_path / "full" / "file" / "out")
    assert (code, err.count("\n")) == (2, 1) and "cannot be written to" in err
    code, _, err = call("convert", "nowhere", tmp_path / "out")
    assert (code, err.count("\n")) == (2, 1) and "FILE.safetensors?config=FOLDER, got 'nowhere'" in err
    with pytest.raises(
        InputError, match="denoiser must be one whose network diffusers has, .*, got one by EDMDenoiser"
    ):
        save_folder(EDMDenoiser(torch.nn.Identity(), shape=(3, 8, 8)), tmp_path / "out")
    with pytest.raises(InputError, match="schedule must be VP, .*, got Flow for epsilon"):
        save_folder(DiffusersDenoiser(unet(), schedule=Flow()), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert (tmp_path / "full" / "file").read_text() == "mine"
