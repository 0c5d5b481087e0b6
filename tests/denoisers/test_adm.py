"""ADM's checkpoints as denoisers, and as diffusers' folders: each is the network that is written out beside."""

import math
from dataclasses import replace

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import save_file

from denoisers.adm_reference import Reference, apart
from steersman.denoise import eps_from_x0
from steersman.errors import InputError, Notice
from steersman.models.denoisers import load_denoiser
from steersman.models.denoisers.adm import DENOISERS, IMPROVED, read_layout
from steersman.models.denoisers.folder import save_folder
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
    "other heads on the way up": {"heads": 4, "heads_upsample": 2},
    "other heads on the way up, new": {"heads": 2, "heads_upsample": 4, "attended": (0, 1), "new": True},
    "one channel, fixed variance": {"heads": 4, "inputs": 1, "outputs": 1},
}
UNSAID = {
    "heads at several widths": ("heads=4",),
    "half a multiplier": ("time_channels=64",),
    "both": ("heads=4", "time_channels=64"),
    "other heads on the way up": ("up_heads=2",),
    "other heads on the way up, new": ("heads=2", "up_heads=4"),
}


@pytest.fixture(params=NETWORKS)
def case(request, tmp_path):
    """A network's name, what it is, its denoiser, and images and labels to show it."""
    reference = Reference(**NETWORKS[request.param])
    torch.save(reference.tensors, tmp_path / "mine.pt")
    size = reference.size
    x_t = torch.randn(3, reference.inputs, size, size, generator=torch.Generator().manual_seed(1))
    label = torch.tensor([2, 0, 1]) if reference.labels else None
    spec = f"adm:{tmp_path / 'mine.pt'}?{reference.settings()}"
    return request.param, reference, load_denoiser(spec), x_t, label


@pytest.mark.few(4)
def test_it_is_the_network(case, tmp_path):
    _, reference, denoiser, x_t, label = case
    expected = reference(x_t, TIMES, label)
    level = denoiser.schedule.at_time(TIMES)
    with torch.no_grad():
        found = denoiser(x_t, level, label=label)
    assert apart(eps_from_x0(x_t, found.x0_hat, level), expected[:, : reference.inputs]) < CLOSE
    if reference.outputs == 6:
        assert apart(found.variance_fraction, (expected[:, 3:] + 1) / 2) < CLOSE
    else:
        assert found.variance_fraction is None
    assert denoiser.shape == (reference.inputs, reference.size, reference.size)
    assert len(denoiser.classes) == reference.labels and denoiser.null is None
    assert not any(weight.requires_grad for weight in denoiser.network.parameters())
    others = {"attention": "legacy" if reference.new else "new"}, {"heads": 1, "head_channels": None}
    for change in (*others, {"heads_upsample": None}) if reference.heads_upsample else others:
        other = load_denoiser(f"adm:{tmp_path / 'mine.pt'}?{reference.settings(**change)}")
        assert apart(other.network(x_t, TIMES, label).sample, expected) > 0.01


@pytest.mark.few(5)
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


@pytest.mark.few(2)
@pytest.mark.parametrize("name", FLAGS)
def test_released_files_are_known(name):
    """Their layout is what their shapes say; diffusers' network of it has as many weights as the paper says."""
    known, prefix = DENOISERS[name], name.split("_")[0]
    reference = Reference(**FLAGS[name], heads=4, labels=1000, size=known.size, device="meta")
    assert known.other_than(read_layout(reference.tensors)) is None
    assert known.size == int(prefix.split("x")[0])
    network = known.unet()
    count = sum(weight.numel() for weight in network.parameters())
    assert count == sum(tensor.numel() for tensor in reference.tensors.values())
    assert round(count / 1e6) == SIZES[prefix]
    assert all(weight.is_meta for weight in network.parameters())


FLAGS_IMPROVED = {
    "cifar10_uncond_50M_500K.pt": {"multipliers": (1, 2, 2, 2), "attended": (1, 2), "size": 32},
    "imagenet64_uncond_100M_1500K.pt": {"multipliers": (1, 2, 3, 4), "attended": (2, 3), "size": 64},
    "imagenet64_cond_270M_250K.pt": {
        "width": 192,
        "multipliers": (1, 2, 3, 4),
        "attended": (2, 3),
        "size": 64,
        "labels": 1000,
    },
    "lsun_uncond_100M_2400K_bs64.pt": {
        "multipliers": (1, 1, 2, 2, 4, 4),
        "blocks": 2,
        "attended": (4,),
        "size": 256,
        "scale_shift": False,
    },
}


@pytest.mark.parametrize("name", FLAGS_IMPROVED)
def test_released_files_of_improved_diffusion_are_known(name):
    settings = {"width": 128, "blocks": 3, "residual": False, "heads": 4} | FLAGS_IMPROVED[name]
    reference, known = Reference(**settings, device="meta"), DENOISERS[name]
    assert known.other_than(read_layout(reference.tensors)) is None
    assert known.size == reference.size
    assert (known.heads, known.head_channels, known.attention) == (1 if "lsun" in name else 4, None, "legacy")
    millions = int(name.partition("00")[0].split("_")[-1].rstrip("M") + "00") if "100M" in name else None
    count = sum(tensor.numel() for tensor in reference.tensors.values()) / 1e6
    assert millions is None or 0.8 * millions < count < 1.25 * millions


def test_what_no_shape_says_of_the_released_ones():
    adm = {name: known for name, known in DENOISERS.items() if name not in IMPROVED}
    assert [name for name, known in adm.items() if known.heads] == ["128x128_diffusion.pt"]
    assert adm["128x128_diffusion.pt"].heads == 4
    assert {known.head_channels for known in adm.values() if not known.heads} == {64}
    assert [name for name, known in adm.items() if known.attention == "new"] == ["64x64_diffusion.pt"]
    cosine = {name for name, known in DENOISERS.items() if known.schedule == "cosine"}
    assert cosine == {"64x64_diffusion.pt", *(name for name in IMPROVED if "lsun" not in name)}
    assert {known.diffusion_steps for known in adm.values()} == {1000}
    long = {name for name, known in IMPROVED.items() if known.diffusion_steps == 4000}
    assert long == {name for name in IMPROVED if "lsun" not in name}
    rescaled = {name for name, known in DENOISERS.items() if known.rescale_timesteps}
    assert rescaled == long - {"imagenet64_cond_270M_250K.pt"}
    assert not any(known.predict_xstart for known in DENOISERS.values())
    unconditional = [name for name, known in adm.items() if not known.class_cond]
    assert unconditional == ["256x256_diffusion_uncond.pt", *(name for name in adm if name.startswith("lsun"))]


SMALL = {"num_channels": 32, "channel_mult": (1, 2), "blocks": 1, "attended": (1,), "head_channels": 32}
SMALL |= {"attention": "legacy"}


def test_a_released_file_needs_nothing_more(tmp_path, monkeypatch):
    reference = Reference(labels=1000, head_channels=32)
    torch.save(reference.tensors, tmp_path / "64x64_diffusion.pt")
    made = load_denoiser(f"adm:{tmp_path / '64x64_diffusion.pt'}?head_channels=32&attention=legacy&size=16")
    assert made.classes[:2] == ("0", "1")
    known = replace(DENOISERS["64x64_diffusion.pt"], **SMALL)
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
        ("", r"is not a released file, whose heads are known; state them: .*heads=4&attention=legacy"),
        ("?heads=4", "state them"),
        ("?attention=new", "state them"),
        ("?heads=4&head_channels=8&attention=new", "state them"),
        ("?heads=-1&attention=new", "state them"),
        ("?heads=4&attention=old", "attention must be 'legacy' or 'new', got 'old'"),
        (
            "?heads=4&attention=new&schedule=square",
            "schedule must be 'linear', 'cosine' or 'squaredcos_cap_v2', got 'square'",
        ),
        ("?heads=0&attention=new", "heads must be greater than or equal to 1, got '0'"),
        ("?heads=-2&attention=new", "heads must be greater than or equal to 1, got '-2'"),
        ("?num_heads=x&attention=new", "num_heads must be a valid integer, got 'x'"),
        (
            "?heads=4&attention=new&diffusion_steps=",
            "diffusion_steps must be a valid integer, got ''",
        ),
        ("?heads=4&attention=new&diffusion_steps=9999999", "diffusion_steps must be less than or equal to 1000000"),
        ("?heads=4&num_heads=4&attention=new", "heads is stated twice, once as num_heads"),
        ("?heads=4&attention=new&predict_xstart=maybe", "predict_xstart must be a valid boolean, got 'maybe'"),
        ("?heads=4&attention=new&channel_mult=1,,2", "channel_mult.1 must be a valid number, got ''"),
        ("?heads=4&attention=new&size=8&diffusion_steps=10", "alpha_bar, the running product of 1 - beta, must fall"),
        ("?heads=4&attention=new&timestep_respacing=50", "unknown setting of adm 'timestep_respacing'"),
        ("?heads=3&attention=new&size=8", "heads must be a divisor of (32|64), .*got 3"),
        ("?head_channels=48&attention=new&size=8", "head_channels must be a divisor of (32|64), .*got 48"),
        ("?head=4&attention=new", "unknown setting of adm 'head'; did you mean 'heads'"),
        ("?heads=4&attention=new", "size=N must be .* a multiple of 2, got none"),
        ("?heads=4&attention=new&size=15", "size=N must be .* a multiple of 2, got 15"),
        ("?heads=4&attention=new&blocks=3", "blocks must be 1, the residual blocks in each level, got 3"),
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


WRONG = {
    "learn_sigma=False": "learn_sigma must be True, by the file's tensors, got False",
    "class_cond=True": "class_cond must be False, by the file's tensors, got True",
    "num_classes=10": "num_classes must be 0, by the file's tensors, got 10",
    "num_channels=64": "num_channels must be 32, by the file's tensors, got 64",
    "channel_mult=1,3": "channel_mult must be 1,2, by the file's tensors, got 1,3",
    "attention_resolutions=8": "attention_resolutions must be 8,4, by the file's tensors and images of 8 pixels, got 8",
    "use_scale_shift_norm=False": "use_scale_shift_norm must be True",
    "resblock_updown=False": "resblock_updown must be True",
    "num_res_blocks=2": "blocks must be 1, the residual blocks in each level, got 2",
}


@pytest.mark.parametrize("stated", WRONG)
def test_what_the_tensors_tell_is_held_against_what_is_stated(stated, file):
    with pytest.raises(InputError, match=WRONG[stated]) as error:
        load_denoiser(f"adm:{file}?heads=4&attention=legacy&size=8&{stated}")
    assert "\n" not in str(error.value)


def test_all_flags_of_a_training_script_can_be_stated(file, recwarn):
    """As guided-diffusion's README has them on its command lines."""
    network = "image_size=8&num_channels=32&channel_mult=1,2&num_res_blocks=1&attention_resolutions=8,4&num_heads=4"
    network += "&num_head_channels=-1&num_heads_upsample=-1&use_new_attention_order=False&learn_sigma=True"
    network += "&class_cond=False&use_scale_shift_norm=True&resblock_updown=True&dropout=0.1&use_fp16=True"
    trained = "diffusion_steps=4000&noise_schedule=cosine&predict_xstart=False&rescale_timesteps=False&use_kl=True"
    denoiser = load_denoiser(f"adm:{file}?{network}&{trained}&rescale_learned_sigmas=True&use_checkpoint=False")
    assert not [each for each in recwarn if issubclass(each.category, Notice)]
    short = load_denoiser(f"adm:{file}?heads=4&attention=legacy&size=8&diffusion_steps=4000&schedule=cosine")
    assert torch.equal(denoiser.schedule.alpha_bar, short.schedule.alpha_bar)
    x_t = torch.ones(1, 3, 8, 8)
    assert torch.equal(denoiser.network(x_t, 5.0).sample, short.network(x_t, 5.0).sample)


def betas(steps, schedule):
    """guided-diffusion's, in its own words: ``1000 / T`` times 1e-4 to 0.02, or of the squared cosine."""
    if schedule == "linear":
        return torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64)
    squared = lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
    return torch.tensor([min(1 - squared((t + 1) / steps) / squared(t / steps), 0.999) for t in range(steps)])


TRAINED = [
    (steps, schedule, xstart, rescaled)
    for steps in (100, 1000, 2000, 4000)
    for schedule in ("linear", "cosine")
    for xstart, rescaled in ((False, False), (True, True))
]


@pytest.mark.few(4)
@pytest.mark.parametrize(("steps", "schedule", "xstart", "rescaled"), TRAINED)
def test_it_is_asked_as_it_was_trained(steps, schedule, xstart, rescaled, tmp_path):
    reference = Reference(heads=4)
    torch.save(reference.tensors, tmp_path / "ema_0.9999_050000.pt")
    spec = f"adm:{tmp_path / 'ema_0.9999_050000.pt'}?{reference.settings()}&diffusion_steps={steps}"
    denoiser = load_denoiser(f"{spec}&noise_schedule={schedule}&predict_xstart={xstart}&rescale_timesteps={rescaled}")
    told = []
    denoiser.network.register_forward_pre_hook(lambda module, inputs: told.append(inputs[1]))
    alpha_bar = (1 - betas(steps, schedule)).cumprod(0)
    # float64's rounding in a product of as many factors, each from a cosine or a line
    torch.testing.assert_close(denoiser.schedule.alpha_bar, alpha_bar.double(), rtol=steps * 1e-6, atol=1e-12)
    x_t = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for t in (steps - 1, steps // 2, 3):
        level = denoiser.schedule.at_time(float(t))
        found = denoiser(x_t, level)
        time = torch.tensor([t * 1000 / steps if rescaled else float(t)])
        torch.testing.assert_close(told[-1], time.expand(1), rtol=1e-6, atol=0)
        expected = reference(x_t.float(), time)[:, :3]
        output = found.x0_hat if xstart else eps_from_x0(x_t, found.x0_hat, level)
        # in float32; where there is little signal, the division by alpha and back is rounded
        assert apart(output, expected) < CLOSE
    assert float(denoiser.schedule.levels(10)[0].time) == steps - 1
    save_folder(denoiser, tmp_path / "out")
    again = load_denoiser(str(tmp_path / "out"))
    level = denoiser.schedule.at_time(float(steps // 2))
    assert apart(again(x_t, level).x0_hat, denoiser(x_t, level).x0_hat) < CLOSE


@pytest.mark.long
def test_a_folder_says_how_its_network_is_told_the_time(file, tmp_path):
    denoiser = load_denoiser(f"adm:{file}?heads=4&attention=legacy&size=8&diffusion_steps=4000&rescale_timesteps=True")
    assert "time_scale=0.25" in save_folder(denoiser, tmp_path / "out")
    assert load_denoiser(str(tmp_path / "out")).time_scale == 0.25
    card = tmp_path / "out" / "card.json"
    for wrong in ("0", "-1", "NaN", '"x"', "[1]"):
        card.write_text(f'{{"time_scale": {wrong}}}')
        with pytest.raises(InputError) as error:
            load_denoiser(str(tmp_path / "out"))
        assert "\n" not in str(error.value)


def test_what_is_left_open_is_taken_with_a_notice(file, recwarn):
    load_denoiser(f"adm:{file}?heads=4&attention=legacy&size=8&diffusion_steps=2000")
    (said,) = (str(each.message) for each in recwarn if issubclass(each.category, Notice))
    assert "does not say how it was trained; schedule=linear, predict_xstart=False, rescale_timesteps=False" in said
    assert "diffusion_steps=2000" not in said and "\n" not in said


def test_a_released_file_may_be_of_another_training(tmp_path, monkeypatch, recwarn):
    """A checkpoint that was trained on, with more times: the rest is as it was released."""
    reference = Reference(head_channels=32)
    torch.save(reference.tensors, tmp_path / "lsun_cat.pt")
    known = replace(DENOISERS["lsun_cat.pt"], size=8, **SMALL)
    monkeypatch.setitem(DENOISERS, "lsun_cat.pt", known)
    denoiser = load_denoiser(f"adm:{tmp_path / 'lsun_cat.pt'}?diffusion_steps=4000")
    assert len(denoiser.schedule.alpha_bar) == 4000
    assert not [each for each in recwarn if issubclass(each.category, Notice)]
    x_t = torch.ones(1, 3, 8, 8)
    assert apart(denoiser.network(x_t, 5.0).sample, reference(x_t, torch.tensor([5.0]))) < CLOSE


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
        (
            lambda: edited(middle_block_1_qkv_weight=None),
            r"mid_block.attentions.0.to_q.weight must be \(64, 64\), got none",
        ),
        (lambda: edited(input_blocks_1_0_in_layers_2_weight=None), "it lacks input_blocks.1.0.in_layers.2.weight"),
        (lambda: edited(more=lambda _: torch.ones(2)), "it has 'more', which no such network has"),
        (lambda: edited(out_2_bias=lambda value: value[:5]), r"the shape of conv_out.bias must be \(6,\), got \(5,\)"),
        (lambda: edited(time_embed_0_weight=lambda value: value[0]), "its tensors have other dimensions"),
        (
            lambda: edited() | {"label_emb.weight": torch.ones(3, 9)},
            r"the shape of class_embedding.weight must be .*, got \(3, 9\)",
        ),
        (lambda: Reference(heads=4, pool="attention", outputs=9).tensors, "it must be a denoiser, got a classifier"),
        (
            lambda: Reference(heads=4, inputs=6).tensors,
            "it must be a denoiser, got one of 6 channels to 6, as upsamplers",
        ),
        (lambda: Reference(heads=4, outputs=4).tensors, "it must be a denoiser, got one of 3 channels to 4"),
    ],
)
def test_other_networks_are_refused(tensors, message, tmp_path):
    torch.save(tensors(), tmp_path / "mine.pt")
    with pytest.raises(InputError, match=message) as error:
        load_denoiser(f"adm:{tmp_path / 'mine.pt'}?heads=4&attention=legacy&size=8")
    assert "\n" not in str(error.value) and "mine.pt" in str(error.value)


def test_another_network_by_a_released_name_is_refused(tmp_path):
    torch.save(Reference(heads=4).tensors, tmp_path / "64x64_diffusion.pt")
    with pytest.raises(InputError, match="not what is released by that name: num_channels must be 192, got 32; give"):
        load_denoiser(f"adm:{tmp_path / '64x64_diffusion.pt'}")


def test_a_truncated_file_is_refused(file, tmp_path):
    content = file.read_bytes()
    (tmp_path / "64x64_diffusion.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cannot be read \(damaged"):
        load_denoiser(f"adm:{tmp_path / '64x64_diffusion.pt'}")
