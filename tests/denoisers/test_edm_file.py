"""EDM's networks from pickles of their layout, against a plain network of the same mathematics, written here."""

import math
import pickle
import random
import sys
import types
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from diffusers import ConsistencyModelPipeline, EDMDPMSolverMultistepScheduler, EDMEulerScheduler, UNet2DModel
from torch import nn
from torch.nn import functional as F  # noqa: N812

from steersman.errors import InputError
from steersman.models.denoisers import EDMDenoiser, load_denoiser
from steersman.models.denoisers.folder import save_folder
from steersman.sampling import DDIM, sample
from steersman.schedule import EDM


def rebuild(meta):
    raise AssertionError("the file was run")


rebuild.__module__, rebuild.__qualname__ = "torch_utils.persistence", "_reconstruct_persistent_obj"


def persistence():
    """While it lasts, what is pickled names the function that NVIDIA's code names."""
    module = types.ModuleType("torch_utils.persistence")
    module._reconstruct_persistent_obj = rebuild
    return patch.dict(sys.modules, {"torch_utils": types.ModuleType("torch_utils"), "torch_utils.persistence": module})


class Persistent(nn.Module):
    """A module that is pickled as a record: its class's name, its state, and code."""

    def __init__(self, **attributes):
        super().__init__()
        self.__dict__.update(attributes)

    def __reduce_ex__(self, protocol):
        state = dict(self.__dict__)
        meta = {"type": "class", "version": 6, "module_src": "raise SystemExit", "state": state}
        return rebuild, (meta | {"class_name": type(self).__name__},)


class Linear(Persistent):
    def __init__(self, into, out, bias=True):
        super().__init__(in_features=into, out_features=out)
        self.weight = nn.Parameter(torch.randn(out, into) / math.sqrt(into))
        self.bias = nn.Parameter(torch.randn(out) / 5) if bias else None

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


class Conv2d(Persistent):
    def __init__(self, into, out, kernel, up=False, down=False):
        super().__init__(in_channels=into, out_channels=out, up=up, down=down)
        self.weight = (
            nn.Parameter(torch.randn(out, into, kernel, kernel) / (kernel or 1) / math.sqrt(into)) if kernel else None
        )
        self.bias = nn.Parameter(torch.randn(out) / 5) if kernel else None
        self.register_buffer("resample_filter", torch.full((1, 1, 2, 2), 0.25) if up or down else None)

    def forward(self, x):
        if self.up:
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        if self.down:
            x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        return x if self.weight is None else F.conv2d(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2)


class GroupNorm(Persistent):
    def __init__(self, channels):
        super().__init__(num_groups=min(32, channels // 4), eps=1e-5)
        self.weight, self.bias = nn.Parameter(1 + torch.randn(channels) / 5), nn.Parameter(torch.randn(channels) / 5)

    def forward(self, x):
        each = x.reshape(len(x), self.num_groups, -1)
        each = (each - each.mean(2, True)) / (each.var(2, unbiased=False, keepdim=True) + self.eps).sqrt()
        return each.reshape(x.shape) * self.weight[:, None, None] + self.bias[:, None, None]


class PositionalEmbedding(Persistent):
    def __init__(self, channels):
        super().__init__(num_channels=channels, max_positions=10000, endpoint=False)

    def forward(self, noise):
        half = self.num_channels // 2
        angles = [noise * 10000 ** (-place / half) for place in range(half)]
        return torch.stack([each.cos() for each in angles] + [each.sin() for each in angles], 1)


class UNetBlock(Persistent):
    def __init__(self, into, out, embedding, attention=False, up=False, down=False):
        heads = out // 64 if attention else 0
        super().__init__(in_channels=into, out_channels=out, num_heads=heads, skip_scale=1, adaptive_scale=True)
        self.norm0, self.conv0 = GroupNorm(into), Conv2d(into, out, 3, up=up, down=down)
        self.affine = Linear(embedding, 2 * out)
        self.norm1, self.conv1 = GroupNorm(out), Conv2d(out, out, 3)
        self.skip = Conv2d(into, out, int(into != out), up=up, down=down) if into != out or up or down else None
        if heads:
            self.norm2, self.qkv, self.proj = GroupNorm(out), Conv2d(out, 3 * out, 1), Conv2d(out, out, 1)

    def forward(self, x, told):
        scale, shift = self.affine(told)[:, :, None, None].chunk(2, dim=1)
        inner = self.norm1(self.conv0(F.silu(self.norm0(x)))) * (1 + scale) + shift
        x = self.conv1(F.silu(inner)) + (x if self.skip is None else self.skip(x))
        if self.num_heads:
            made = self.qkv(self.norm2(x)).flatten(2)
            q, k, v = (made[:, place::3] for place in range(3))
            wide = x.shape[1] // self.num_heads
            heads = []
            for number in range(self.num_heads):
                one = slice(number * wide, (number + 1) * wide)
                weights = (q[:, one].transpose(1, 2) @ k[:, one] / math.sqrt(wide)).softmax(2)
                heads.append(v[:, one] @ weights.transpose(1, 2))
            x = x + self.proj(torch.cat(heads, 1).reshape(x.shape))
        return x


class DhariwalUNet(Persistent):
    def __init__(self, size, channels, labels, *, width, mult, blocks, attended, wider=4, dropout=0.0, augment=0):
        super().__init__(label_dropout=dropout)
        embedding = width * wider
        self.map_noise = PositionalEmbedding(width)
        self.map_augment = Linear(augment, width, bias=False) if augment else None
        self.map_layer0, self.map_layer1 = Linear(width, embedding), Linear(embedding, embedding)
        self.map_label = Linear(labels, embedding, bias=False) if labels else None
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        sizes, skips = [size >> level for level in range(len(mult))], []

        def add(part, name, into, out, **more):
            part[name] = UNetBlock(into, out, embedding, **more)
            return out

        now = width * mult[0]
        self.enc[f"{size}x{size}_conv"] = Conv2d(channels, now, 3)
        skips.append(now)
        for level, at in enumerate(sizes):
            if level:
                skips.append(add(self.enc, f"{at}x{at}_down", now, now, down=True))
            for number in range(blocks):
                now = add(self.enc, f"{at}x{at}_block{number}", now, width * mult[level], attention=at in attended)
                skips.append(now)
        add(self.dec, f"{at}x{at}_in0", now, now, attention=True)
        add(self.dec, f"{at}x{at}_in1", now, now)
        for level, at in reversed(list(enumerate(sizes))):
            if level < len(sizes) - 1:
                add(self.dec, f"{at}x{at}_up", now, now, up=True)
            for number in range(blocks + 1):
                into, out = now + skips.pop(), width * mult[level]
                now = add(self.dec, f"{at}x{at}_block{number}", into, out, attention=at in attended)
        self.out_norm, self.out_conv = GroupNorm(now), Conv2d(now, channels, 3)

    def forward(self, x, noise, labels):
        told = self.map_layer1(F.silu(self.map_layer0(self.map_noise(noise))))
        told = F.silu(told if labels is None else told + self.map_label(labels))
        kept = []
        for name, part in self.enc.items():
            x = part(x) if name.endswith("_conv") else part(x, told)
            kept.append(x)
        for name, part in self.dec.items():
            x = part(torch.cat([x, kept.pop()], 1) if "_block" in name else x, told)
        return self.out_conv(F.silu(self.out_norm(x)))


class SongUNet(DhariwalUNet):
    pass


class EDMPrecond(Persistent):
    def __init__(
        self, size, channels, labels, *, kind=DhariwalUNet, data=0.5, ratio_min=0.0, ratio_max=math.inf, **settings
    ):
        super().__init__(img_resolution=size, img_channels=channels, label_dim=labels, use_fp16=True)
        self.sigma_min, self.sigma_max, self.sigma_data = ratio_min, ratio_max, data
        self.model = kind(size, channels, labels, **settings)
        self._init_kwargs = {"model_type": kind.__name__, **settings}

    def forward(self, x, sigma, labels):
        """``x0_hat`` of one sigma."""
        total = math.hypot(sigma, self.sigma_data)
        output = self.model(x / total, torch.full((len(x),), math.log(sigma) / 4), labels)
        return (self.sigma_data / total) ** 2 * x + sigma * self.sigma_data / total * output


class VPPrecond(EDMPrecond):
    pass


TINY = {"width": 8, "mult": [1], "blocks": 1, "attended": []}


def saved(network, path, **more):
    with persistence():
        path.write_bytes(pickle.dumps({"ema": network, "loss_fn": None, **more}, 4))
    return f"edm:{path}"


@pytest.fixture
def tiny(tmp_path):
    """Saves the smallest network after a change to it, and tells its spec."""
    torch.manual_seed(0)
    network = EDMPrecond(4, 1, 2, **TINY).requires_grad_(False)

    def save(change=lambda network: None):
        change(network)
        return saved(network, tmp_path / "tiny.pkl")

    return save


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("labels", "settings"),
    [
        (5, {"width": 64, "mult": [1, 2], "blocks": 1, "attended": [4]}),
        (0, {"width": 32, "mult": [1, 2], "blocks": 2, "attended": [8, 4]}),
        (3, {"width": 48, "mult": [2, 4], "blocks": 1, "attended": [8, 4], "wider": 2, "dropout": 0.1, "data": 0.3}),
        (2, {**TINY, "augment": 9, "ratio_min": 0.01, "ratio_max": 50.0}),
        (4, {"width": 128, "mult": [1, 1], "blocks": 1, "attended": [4]}),
        (0, {"width": 32, "mult": [5], "blocks": 1, "attended": [8]}),
    ],
)
def test_the_network_within_its_preconditioner(labels, settings, tmp_path):
    torch.manual_seed(0)
    network = EDMPrecond(8, 3, labels, **settings).requires_grad_(False)
    denoiser = load_denoiser(saved(network, tmp_path / "a.pkl", augment_pipe=None))
    assert isinstance(denoiser, EDMDenoiser)
    assert denoiser.shape == (3, 8, 8) and denoiser.classes == tuple(map(str, range(labels)))
    assert denoiser.unconditional is ("dropout" in settings)
    assert denoiser.sigma_data == settings.get("data", 0.5)
    assert denoiser.schedule == EDM(
        ratio_min=settings.get("ratio_min", 0.002), ratio_max=settings.get("ratio_max", 80.0)
    )
    label = torch.tensor([1, 0])
    with torch.no_grad():
        for sigma in (80.0, 1.0, 0.05):
            x_t, level = sigma * torch.randn(2, 3, 8, 8), EDM().at_ratio(sigma)
            wanted = network(x_t, sigma, F.one_hot(label, labels).float() if labels else None)
            found = denoiser(x_t, level, **({"label": label} if labels else {})).x0_hat
            # digits of float32 in some forty layers; a wrong layer is off by tenths
            assert (found - wanted).abs().max() < 1e-5 * (wanted - x_t).abs().max().clamp(min=1)
            if denoiser.unconditional:
                found = denoiser(x_t, level).x0_hat
                assert (found - network(x_t, sigma, torch.zeros(2, labels))).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("settings", "unsaid"),
    [
        ({"width": 128, "mult": [1, 1], "blocks": 1, "attended": [4], "ratio_min": 0.01, "ratio_max": 50.0}, ()),
        ({"width": 128, "mult": [1], "blocks": 1, "attended": [], "dropout": 0.1, "data": 0.3}, ()),
        ({"width": 160, "mult": [1], "blocks": 1, "attended": [8]}, ("head_channels=64",)),
        ({"width": 64, "mult": [2], "blocks": 1, "attended": []}, ("time_channels=64",)),
        ({"width": 64, "mult": [1, 2], "blocks": 1, "attended": [4]}, ("group_channels=4",)),
        ({"width": 48, "mult": [2], "attended": [8], "blocks": 1}, ("head_channels=64", "group_channels=4", "t")),
    ],
)
def test_its_folder_is_the_same_model(settings, unsaid, tmp_path):
    torch.manual_seed(0)
    network = EDMPrecond(8, 3, 2, **settings).requires_grad_(False)
    denoiser = load_denoiser(saved(network, tmp_path / "a.pkl"))
    denoiser.classes = ("a cat", "a dog")
    said = save_folder(denoiser, tmp_path / "out")
    assert len(said) == len(unsaid) and all(map(str.startswith, said, unsaid))
    again = load_denoiser(str(tmp_path / "out"))
    assert isinstance(again, EDMDenoiser)
    same = ("shape", "classes", "unconditional", "sigma_data", "schedule")
    assert [getattr(again, each) for each in same] == [getattr(denoiser, each) for each in same]
    x_t, level, label = 3 * torch.randn(2, 3, 8, 8), EDM().at_ratio(3.0), torch.tensor([1, 0])
    expected = denoiser(x_t, level, label=label).x0_hat
    assert torch.equal(again(x_t, level, label=label).x0_hat, expected)
    assert denoiser.unconditional is ("dropout" in settings)
    if denoiser.unconditional:
        assert torch.equal(again(x_t, level).x0_hat, denoiser(x_t, level).x0_hat)
    assert save_folder(again, tmp_path / "once more") == said
    if not unsaid:
        unet = UNet2DModel.from_pretrained(tmp_path / "out" / "unet")
        scheduler = EDMEulerScheduler.from_pretrained(tmp_path / "out" / "scheduler")
        sigma = torch.tensor(3.0)
        for labels, one_hot in ((label, F.one_hot(label, 2).float()), (torch.tensor([2, 2]), torch.zeros(2, 2))):
            shown, time = scheduler.precondition_inputs(x_t, sigma), scheduler.precondition_noise(sigma)
            with torch.no_grad():
                output = unet(shown, time, class_labels=labels).sample
            found, wanted = scheduler.precondition_outputs(x_t, output, sigma), network(x_t, 3.0, one_hot)
            assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_diffusers_pipeline_samples_its_folder(tmp_path):
    torch.manual_seed(0)
    network = EDMPrecond(8, 3, 2, **{**TINY, "width": 128}).requires_grad_(False)
    denoiser = load_denoiser(saved(network, tmp_path / "a.pkl"))
    save_folder(denoiser, tmp_path / "out")
    pipeline = ConsistencyModelPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    z = torch.randn(2, 3, 8, 8)
    found = pipeline(2, class_labels=[1, 0], num_inference_steps=4, latents=z, output_type="pt").images
    begin = math.hypot(80, 1) / 80  # diffusers starts from data of unit variance, EDM from none
    walk = {"steps": 4, "spacing": "karras", "clip": False, "condition": {"label": torch.tensor([1, 0])}}
    wanted = sample(denoiser, DDIM(), seeds=[0, 1], noise=[begin * z], **walk)
    assert (found - (wanted / 2 + 0.5).clamp(0, 1)).abs().max() < 1e-5 and found.std() > 0.05


def test_folders_of_edms_schedulers(tmp_path):
    """Those of others: without a card a label more is a class, and what is trained otherwise is refused."""
    torch.manual_seed(0)
    network = EDMPrecond(8, 3, 2, **{**TINY, "width": 128}).requires_grad_(False)
    save_folder(load_denoiser(saved(network, tmp_path / "a.pkl")), tmp_path / "out")
    (tmp_path / "out" / "card.json").unlink()
    EDMDPMSolverMultistepScheduler(sigma_max=9.0, sigma_data=1.0).save_pretrained(tmp_path / "out" / "scheduler")
    denoiser = load_denoiser(str(tmp_path / "out"))
    assert (denoiser.classes, denoiser.unconditional) == (("0", "1", "2"), False)
    assert (denoiser.sigma_data, denoiser.schedule) == (1.0, EDM(ratio_max=9.0))
    (tmp_path / "out" / "card.json").write_text('{"classes": ["a"]}')
    with pytest.raises(InputError, match="classes must name the 3 labels of the network, got 1 names"):
        load_denoiser(str(tmp_path / "out"))
    EDMEulerScheduler(prediction_type="v_prediction").save_pretrained(tmp_path / "out" / "scheduler")
    with pytest.raises(
        InputError, match="prediction_type must be epsilon with EDM's preconditioning, got v_prediction"
    ):
        load_denoiser(str(tmp_path / "out"))


def test_a_missing_file_says_what_to_fetch(tmp_path):
    with pytest.raises(InputError, match=r"no file '.*none.pkl'; give .*edm-imagenet-64x64-cond-adm.pkl to there"):
        load_denoiser(f"edm:{tmp_path / 'none.pkl'}")


def test_other_networks_are_refused_by_name(tmp_path):
    torch.manual_seed(0)
    for network, said in (
        (EDMPrecond(4, 1, 2, kind=SongUNet, **TINY), "unknown architecture 'SongUNet'; .*known: DhariwalUNet"),
        (VPPrecond(4, 1, 2, **TINY), "unknown preconditioning 'VPPrecond'; .*known: EDMPrecond"),
        ([1], "it holds no network named ema"),
    ):
        with pytest.raises(InputError, match=said):
            load_denoiser(saved(network, tmp_path / "a.pkl"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda n: n.__dict__.update(label_dim=3), "label_dim must be 2, as its network has, got 3"),
        (lambda n: n.__dict__.update(img_resolution=8), "enc must be 8x8_conv and .*, got 4x4_conv"),
        (lambda n: n.__dict__.update(img_channels=3), r"the shape of conv_(in|out).weight must be"),
        (lambda n: n.__dict__.update(sigma_data=-1.0), "sigma_data must be above 0 and finite, got -1.0"),
        (lambda n: n.__dict__.update(sigma_data="x"), "damaged"),
        (lambda n: n.model.dec["4x4_in1"].__dict__.update(skip_scale=0.5), "4x4_in1: skip_scale"),
        (lambda n: n.model.dec["4x4_in1"].__dict__.update(num_heads=3), "4x4_in1 must have .* heads, .*, got 3"),
        (lambda n: n.model.dec["4x4_in1"].conv0.__dict__.update(up=True), "it must resample between"),
        (lambda n: n.model.out_norm.__dict__.update(num_groups=3), "GroupNorm must have .*, got 3 groups"),
        (
            lambda n: n.model.map_noise.__dict__.update(endpoint=True),
            "map_noise must be a PositionalEmbedding .*, got another",
        ),
        (lambda n: n.model.dec.add_module("more", Linear(2, 2)), "another network, or damaged; give edm:FILE"),
        (lambda n: n.model.enc.add_module("4x4_more", Linear(2, 2)), "damaged"),
        (lambda n: n.model.dec.add_module("self", n.model), "hold each other"),
        (lambda n: n.model.map_layer0.bias.fill_(math.nan), "map_layer0.bias is not finite"),
        (lambda n: n.model.map_layer0.__dict__.update(_parameters={"weight": 1}), "another network, or damaged"),
    ],
)
def test_what_would_compute_something_else_is_refused(change, said, tiny):
    with pytest.raises(InputError, match=said) as error:
        load_denoiser(tiny(change))
    assert "\n" not in str(error.value)


def test_the_filter_of_resampling(tmp_path):
    torch.manual_seed(0)
    network = EDMPrecond(4, 1, 0, **{**TINY, "mult": [1, 1]}).requires_grad_(False)
    network.model.enc["2x2_down"].conv0.resample_filter[..., 0] = 0.5
    with pytest.raises(InputError, match=r"enc.2x2_down: resample_filter must be \[1, 1\], got another"):
        load_denoiser(saved(network, tmp_path / "a.pkl"))


@pytest.mark.long
def test_damaged_files_end_in_one_line(tiny):
    """Mostly where the structure is: most bytes are weights, of which any are a network."""
    spec = tiny()
    path = Path(spec.removeprefix("edm:"))
    whole = path.read_bytes()
    chance = random.Random(0)
    refused = 0
    for number in range(12):
        damaged, at = bytearray(whole), chance.randrange(len(whole) if number % 3 else 4000)
        if number % 2:
            damaged[at] ^= 1 << chance.randrange(8)
        else:
            del damaged[at : at + chance.randrange(1, len(whole))]
        path.write_bytes(damaged)
        try:
            load_denoiser(spec)
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 600
            refused += 1
    assert refused > 4
