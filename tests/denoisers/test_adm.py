"""ADM's checkpoints as denoisers, and as diffusers' folders: each is the network that is written out beside."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import save_file

from denoisers.adm_reference import Reference, apart
from steersman.denoise import eps_from_x0
from steersman.denoisers import load_denoiser
from steersman.denoisers.adm import DENOISERS
from steersman.denoisers.adm_layout import Attention, read_layout
from steersman.denoisers.save import save_folder
from steersman.errors import InputError
from steersman.schedule import VP

CLOSE = 1e-5  # float32's rounding through some ten layers, measured 3e-6
TIMES = torch.tensor([7.0, 500.0, 999.0])

NETWORKS = {
    "legacy, labels": {"heads": 4, "labels": 5},
    "new, heads by channels": {
        "multipliers": (1, 2, 2),
        "blocks": 2,
        "attended": (1, 2),
        "head_channels": 16,
        "new": True,
    },
    "heads at several widths": {"heads": 4, "attended": (0, 1)},
    "half a multiplier": {"width": 64, "multipliers": (0.5, 1, 1), "head_channels": 32, "labels": 3},
    "both": {"width": 64, "multipliers": (0.5, 1), "attended": (0, 1), "heads": 4, "new": True},
    "convolutions, added time, fixed variance": {
        "multipliers": (1, 1, 2),
        "attended": (2,),
        "heads": 2,
        "residual": False,
        "scale_shift": False,
        "outputs": 3,
    },
    "only the middle attends": {"attended": (), "head_channels": 8, "blocks": 3},
}
UNSAID = {
    "heads at several widths": ("heads=4",),
    "half a multiplier": ("time_channels=64",),
    "both": ("heads=4", "time_channels=64"),
}


@pytest.fixture(params=NETWORKS)
def case(request, tmp_path):
    """A network's name, what it is, its denoiser, and images and labels to show it."""
    reference = Reference(**NETWORKS[request.param])
    torch.save(reference.tensors, tmp_path / "mine.pt")
    size = reference.size
    x_t = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    label = torch.tensor([2, 0, 1]) if reference.labels else None
    spec = f"adm:{tmp_path / 'mine.pt'}?{reference.settings()}"
    return request.param, reference, load_denoiser(spec), x_t, label


def test_it_is_the_network(case, tmp_path):
    _, reference, denoiser, x_t, label = case
    expected = reference(x_t, TIMES, label)
    level = denoiser.schedule.at_time(TIMES)
    with torch.no_grad():
        found = denoiser(x_t, level, label=label)
    assert apart(eps_from_x0(x_t, found.x0_hat, level), expected[:, :3]) < CLOSE
    if reference.outputs == 6:
        assert apart(found.variance_fraction, (expected[:, 3:] + 1) / 2) < CLOSE
    else:
        assert found.variance_fraction is None
    assert denoiser.shape == (3, reference.size, reference.size)
    assert len(denoiser.classes) == reference.labels and denoiser.null is None
    assert not any(weight.requires_grad for weight in denoiser.network.parameters())
    for change in ({"attention": "legacy" if reference.new else "new"}, {"heads": 1, "head_channels": None}):
        other = load_denoiser(f"adm:{tmp_path / 'mine.pt'}?{reference.settings(**change)}")
        assert apart(other.network(x_t, TIMES, label).sample, expected) > 0.01


def test_its_folder_is_the_same_network(case, tmp_path):
    name, reference, denoiser, x_t, label = case
    assert save_folder(denoiser, tmp_path / "out") == UNSAID.get(name, ())
    with torch.no_grad():
        expected = denoiser.network(x_t, TIMES, label).sample
        again = load_denoiser(str(tmp_path / "out"))
        assert apart(again.network(x_t, TIMES, label).sample, expected) < CLOSE
        assert save_folder(again, tmp_path / "once more") == UNSAID.get(name, ())
        if name not in UNSAID:
            plain = UNet2DModel.from_pretrained(tmp_path / "out" / "unet")
            assert apart(plain(x_t, TIMES, label).sample, expected) < CLOSE
    assert torch.equal(again.schedule.alpha_bar, denoiser.schedule.alpha_bar)
    assert (again.classes, again.shape) == (denoiser.classes, denoiser.shape)
    scheduler = DDPMScheduler.from_pretrained(tmp_path / "out" / "scheduler")
    assert scheduler.config["variance_type"] == ("learned_range" if reference.outputs == 6 else "fixed_small")
    if name not in UNSAID:
        pipeline = DDPMPipeline.from_pretrained(tmp_path / "out")
        assert type(pipeline.unet) is UNet2DModel and type(pipeline.scheduler) is DDPMScheduler


def test_a_default_file(tmp_path):
    """Linear betas; half precision, and a file of safetensors."""
    reference = Reference(heads=4)
    save_file({name: tensor.half() for name, tensor in reference.tensors.items()}, tmp_path / "a.safetensors")
    denoiser = load_denoiser(f"adm:{tmp_path / 'a.safetensors'}?heads=4&attention=legacy&size=16")
    assert denoiser.shape == (3, 16, 16)
    assert torch.equal(denoiser.schedule.alpha_bar, VP.linear().alpha_bar)
    assert {weight.dtype for weight in denoiser.network.parameters()} == {torch.float32}
    x_t = torch.ones(1, 3, 16, 16)
    assert apart(denoiser.network(x_t, 5.0).sample, reference(x_t, torch.tensor([5.0]))) < 0.02


SIZES = {"64x64": 296, "128x128": 422, "256x256": 554, "512x512": 559}  # millions of weights, as the paper says
FLAGS = {
    "64x64_diffusion.pt": {"width": 192, "multipliers": (1, 2, 3, 4), "blocks": 3, "attended": (1, 2, 3)},
    "128x128_diffusion.pt": {"width": 256, "multipliers": (1, 1, 2, 3, 4), "blocks": 2, "attended": (2, 3, 4)},
    "256x256_diffusion.pt": {"width": 256, "multipliers": (1, 1, 2, 2, 4, 4), "blocks": 2, "attended": (3, 4, 5)},
    "512x512_diffusion.pt": {
        "width": 256,
        "multipliers": (0.5, 1, 1, 2, 2, 4, 4),
        "blocks": 2,
        "attended": (4, 5, 6),
    },
}


@pytest.mark.parametrize("name", FLAGS)
def test_released_files_are_known(name):
    """Their layout is what their shapes say; diffusers' network of it has as many weights as the paper says."""
    known, prefix = DENOISERS[name], name.split("_")[0]
    reference = Reference(**FLAGS[name], heads=4, labels=1000, size=known.size, device="meta")
    assert read_layout(reference.tensors) == known.layout
    assert known.size == int(prefix.split("x")[0])
    network = known.layout.network(known.attention, known.size)
    count = sum(weight.numel() for weight in network.parameters())
    assert count == sum(tensor.numel() for tensor in reference.tensors.values())
    assert round(count / 1e6) == SIZES[prefix]
    assert all(weight.is_meta for weight in network.parameters())


def test_what_no_shape_says_of_the_released_ones():
    attentions = {name: known.attention for name, known in DENOISERS.items()}
    assert attentions.pop("128x128_diffusion.pt").heads == 4
    assert {attention.head_channels for attention in attentions.values()} == {64}
    assert [name for name, attention in attentions.items() if attention.order == "new"] == ["64x64_diffusion.pt"]
    assert [name for name, known in DENOISERS.items() if known.schedule == "cosine"] == ["64x64_diffusion.pt"]
    unconditional = [name for name, known in DENOISERS.items() if not known.layout.labels]
    assert unconditional == ["256x256_diffusion_uncond.pt", *(name for name in DENOISERS if name.startswith("lsun"))]


def test_a_released_file_needs_nothing_more(tmp_path, monkeypatch):
    reference = Reference(labels=1000, head_channels=32)
    torch.save(reference.tensors, tmp_path / "64x64_diffusion.pt")
    made = load_denoiser(f"adm:{tmp_path / '64x64_diffusion.pt'}?head_channels=32&attention=legacy&size=16")
    assert made.classes[:2] == ("0", "1")
    attention = Attention(head_channels=32, order="legacy")
    known = replace(DENOISERS["64x64_diffusion.pt"], layout=read_layout(reference.tensors), attention=attention)
    monkeypatch.setitem(DENOISERS, "64x64_diffusion.pt", known)
    denoiser = load_denoiser(f"adm:{tmp_path / '64x64_diffusion.pt'}")
    assert denoiser.classes.index("baseball") == 429
    assert torch.equal(denoiser.schedule.alpha_bar, VP.cosine().alpha_bar)
    save_folder(denoiser, tmp_path / "out")
    again = load_denoiser(str(tmp_path / "out"))
    assert again.classes == denoiser.classes
    assert torch.equal(again.schedule.alpha_bar, VP.cosine().alpha_bar)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("adm") / "mine.pt"
    torch.save(Reference(heads=4, attended=(0, 1)).tensors, path)
    return path


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("", r"is not a released file, whose heads are known; tell them: .*heads=4&attention=legacy"),
        ("?heads=4", "tell them"),
        ("?attention=new", "tell them"),
        ("?heads=4&head_channels=8&attention=new", "tell them"),
        ("?heads=4&attention=old", "unknown attention 'old'; .*known: legacy, new"),
        ("?heads=4&attention=new&schedule=square", "unknown schedule 'square'"),
        ("?heads=0&attention=new", "heads=0 given; allowed: 1 and more"),
        ("?heads=-2&attention=new", "heads=-2 given; allowed: 1 and more"),
        ("?heads=x&attention=new", "heads=x given; allowed: 1 and more"),
        ("?heads=3&attention=new&size=8", "heads: 3 given; allowed: a divisor of (32|64)"),
        ("?head_channels=48&attention=new&size=8", "head_channels: 48 given; allowed: a divisor of (32|64)"),
        ("?head=4&attention=new", "unknown setting of adm 'head'; did you mean 'heads'"),
        ("?heads=4&attention=new", "size: none given; allowed: size=N, .* a multiple of 2"),
        ("?heads=4&attention=new&size=15", "size: 15 given; allowed: size=N, .* a multiple of 2"),
        ("?heads=4&attention=new&blocks=3", "blocks: 3 given, residual ones of a level; allowed: 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(asked, message, file):
    with pytest.raises(InputError, match=message) as error:
        load_denoiser(f"adm:{file}{asked}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "256x256_diffusion.pt",
            "fetch https://openaipublic.blob.core.windows.net/diffusion/jul-2021/256x256_diffusion",
        ),
        ("mine.pt", "known at https://openaipublic.*: 64x64_diffusion.pt, 128"),
        ("", "there is no file"),
    ],
)
def test_a_missing_file_says_what_to_fetch(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        load_denoiser(f"adm:{name}")
    assert "\n" not in str(error.value)


def edited(**changes):
    """A network's tensors with some removed (None), added, or made otherwise."""
    tensors = dict(Reference(heads=4).tensors)
    for name, change in changes.items():
        found = next((key for key in tensors if key.replace(".", "_") == name), name)
        value = tensors.pop(found, None)
        if change is not None:
            tensors[found] = change(value)
    return tensors


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (lambda: {"a": torch.ones(2)}, "cannot be used; it lacks input_blocks.0.0.weight"),
        (lambda: edited(middle_block_1_qkv_weight=None), "has none for mid_block.attentions.0.to_q.weight"),
        (lambda: edited(input_blocks_1_0_in_layers_2_weight=None), "it lacks input_blocks.1.0.in_layers.2.weight"),
        (lambda: edited(more=lambda _: torch.ones(2)), "it has 'more', which no such network has"),
        (lambda: edited(out_2_bias=lambda value: value[:5]), r"has \(5,\) for conv_out.bias; allowed: \(6,\)"),
        (lambda: edited(time_embed_0_weight=lambda value: value[0]), "its tensors have other dimensions"),
        (lambda: edited() | {"label_emb.weight": torch.ones(3, 9)}, r"has \(3, 9\) for class_embedding.weight"),
        (lambda: Reference(heads=4, pool="attention", outputs=9).tensors, "it is a classifier; allowed: a denoiser"),
        (lambda: Reference(heads=4, inputs=6).tensors, "it maps 6 channels to 6, as an upsampler"),
        (lambda: Reference(heads=4, outputs=4).tensors, "it maps 3 channels to 4"),
    ],
)
def test_other_networks_are_refused(tensors, message, tmp_path):
    torch.save(tensors(), tmp_path / "mine.pt")
    with pytest.raises(InputError, match=message) as error:
        load_denoiser(f"adm:{tmp_path / 'mine.pt'}?heads=4&attention=legacy&size=8")
    assert "\n" not in str(error.value) and "mine.pt" in str(error.value)


def test_another_network_by_a_released_name_is_refused(tmp_path):
    torch.save(Reference(heads=4).tensors, tmp_path / "64x64_diffusion.pt")
    with pytest.raises(InputError, match="not what is released by that name, with width 32; allowed: 192, or"):
        load_denoiser(f"adm:{tmp_path / '64x64_diffusion.pt'}")


def test_a_truncated_file_is_refused(file, tmp_path):
    content = file.read_bytes()
    (tmp_path / "64x64_diffusion.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cannot be read \(damaged"):
        load_denoiser(f"adm:{tmp_path / '64x64_diffusion.pt'}")
