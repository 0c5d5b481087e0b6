"""DiT's tensors by their authors' names, against a plain network of the same mathematics, written here."""

import argparse
import math

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from steersman.denoise import eps_from_x0
from steersman.errors import InputError, Notice
from steersman.models.denoisers import DiffusersDenoiser, load_denoiser
from steersman.models.denoisers.folder import save_folder
from steersman.schedule import VP

WIDTH, HEADS, PATCH, GRID, DEPTH, LABELS = 24, 3, 2, 4, 2, 5


def frequencies(places, wide):
    """Sine and then cosine of each place, at ``10000^(-2 i / wide)``."""
    angles = places[:, None] * 10000 ** (-torch.arange(wide // 2, dtype=torch.float64) * 2 / wide)
    return torch.cat([angles.sin(), angles.cos()], 1)


def random_tensors(width=WIDTH, channels=4, outputs=8):
    torch.manual_seed(0)

    def linear(name, out, into):
        return {f"{name}.weight": torch.randn(out, into) / math.sqrt(into), f"{name}.bias": torch.randn(out) / 5}

    place = torch.arange(GRID, dtype=torch.float64)
    rows, columns = (frequencies(each.flatten(), width // 2) for each in torch.meshgrid(place, place, indexing="ij"))
    tensors = {
        "pos_embed": torch.cat([columns, rows], 1)[None].float(),
        "x_embedder.proj.weight": torch.randn(width, channels, PATCH, PATCH) / 4,
        "x_embedder.proj.bias": torch.randn(width) / 5,
        "y_embedder.embedding_table.weight": torch.randn(LABELS + 1, width),
        **linear("t_embedder.mlp.0", width, 256),
        **linear("t_embedder.mlp.2", width, width),
        **linear("final_layer.adaLN_modulation.1", 2 * width, width),
        **linear("final_layer.linear", PATCH**2 * outputs, width),
    }
    for number in range(DEPTH):
        tensors |= linear(f"blocks.{number}.attn.qkv", 3 * width, width)
        tensors |= linear(f"blocks.{number}.attn.proj", width, width)
        tensors |= linear(f"blocks.{number}.mlp.fc1", 4 * width, width)
        tensors |= linear(f"blocks.{number}.mlp.fc2", width, 4 * width)
        tensors |= linear(f"blocks.{number}.adaLN_modulation.1", 6 * width, width)
    return tensors


def original(tensors, x, time, label):
    """The network's output, as the paper's figure 3 has it."""

    def linear(name, value):
        return F.linear(value, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def normal(value):
        return (value - value.mean(-1, True)) / (value.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    angles = time[:, None] * 10000 ** (-torch.arange(128) / 128)
    told = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], 1))))
    told = F.silu(told + tensors["y_embedder.embedding_table.weight"][label])
    x = F.conv2d(x, tensors["x_embedder.proj.weight"], tensors["x_embedder.proj.bias"], stride=PATCH)
    x = x.flatten(2).transpose(1, 2) + tensors["pos_embed"]
    for block in (f"blocks.{number}" for number in range(DEPTH)):
        parts = linear(f"{block}.adaLN_modulation.1", told)[:, None].chunk(6, dim=2)
        shift, scale, gate, shift2, scale2, gate2 = parts
        made = linear(f"{block}.attn.qkv", normal(x) * (1 + scale) + shift).unflatten(2, (3, HEADS, -1))
        q, k, v = made.permute(2, 0, 3, 1, 4)
        heads = (q @ k.transpose(2, 3) / math.sqrt(WIDTH / HEADS)).softmax(3) @ v
        x = x + gate * linear(f"{block}.attn.proj", heads.transpose(1, 2).flatten(2))
        inner = F.gelu(linear(f"{block}.mlp.fc1", normal(x) * (1 + scale2) + shift2), approximate="tanh")
        x = x + gate2 * linear(f"{block}.mlp.fc2", inner)
    shift, scale = linear("final_layer.adaLN_modulation.1", told)[:, None].chunk(2, dim=2)
    x = linear("final_layer.linear", normal(x) * (1 + scale) + shift)
    outputs = x.shape[2] // PATCH**2
    return x.reshape(-1, GRID, GRID, PATCH, PATCH, outputs).permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


@pytest.fixture(scope="module")
def vae(dit, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    dit.vae.save_pretrained(folder)
    return folder


@pytest.fixture
def save(tmp_path, vae):
    """Saves tensors, and tells their spec."""

    def save(tensors, options=f"&heads={HEADS}", name="mine.pt"):
        torch.save(tensors, tmp_path / name)
        return f"dit:{tmp_path / name}?vae={vae}{options}"

    return save


@pytest.mark.parametrize("outputs", [4, 8])
def test_the_network_is_the_authors(outputs, save, tmp_path):
    tensors = random_tensors(outputs=outputs)
    denoiser = load_denoiser(save({"ema": tensors}))
    assert isinstance(denoiser, DiffusersDenoiser)
    assert (denoiser.shape, denoiser.latent, denoiser.parameterization) == ((4, 8, 8), True, "epsilon")
    assert (denoiser.classes, denoiser.null) == (("0", "1", "2", "3", "4"), 5)
    torch.testing.assert_close(denoiser.schedule.alpha_bar, VP.linear().alpha_bar)
    save_folder(denoiser, tmp_path / "folder")
    again = load_denoiser(str(tmp_path / "folder"))
    x, label = torch.randn(3, 4, 8, 8), torch.tensor([1, 0, LABELS])
    with torch.no_grad():
        for time in (999.0, 371.0, 20.0, 0.0):
            times = torch.full((3,), time)
            wanted = original(tensors, x, times, label)
            for each in (denoiser, again):
                found = each.network(x, times, class_labels=label).sample
                # float32's digits; with diffusers' own shift of the time it is a hundredth and more at most times
                assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_heads_of_the_published_widths_are_known(save):
    denoiser = load_denoiser(save(random_tensors(width=384), ""))
    assert denoiser.network.config["num_attention_heads"] == 6
    with pytest.raises(InputError, match="a width of 24 does not tell its heads, .*; state them: heads=4"):
        load_denoiser(save(random_tensors(), ""))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("&heads=5", "heads must be a divisor of 24, got 5"),
        ("&heads=0", "heads must be greater than or equal to 1, got '0'"),
        ("&heads=x", "heads must be a valid integer, got 'x'"),
        ("&head=3", "unknown setting of dit 'head'; did you mean 'heads'"),
    ],
)
def test_options(options, said, save):
    with pytest.raises(InputError, match=said):
        load_denoiser(save(random_tensors(), options))


WRONG = {
    "learn_sigma=False": "learn_sigma must be True, by the file's tensors, got False",
    "image_size=32": "size must be 16, by the file's tensors, got 32",
    "num_classes=7": "num_classes must be 5, or 6 without a null label, as its embedding has 6 rows, got 7",
    "diffusion_steps=0": "diffusion_steps must be greater than or equal to 1, got '0'",
}


@pytest.mark.parametrize("stated", WRONG)
def test_what_is_stated_is_held_against_the_tensors(stated, save):
    with pytest.raises(InputError, match=WRONG[stated]):
        load_denoiser(save(random_tensors(), f"&heads={HEADS}&{stated}"))


@pytest.mark.parametrize(("xstart", "rescaled"), [(False, False), (True, True)])
def test_one_of_another_training_is_asked_as_it_was_trained(xstart, rescaled, save, recwarn):
    tensors = random_tensors()
    stated = f"diffusion_steps=4000&noise_schedule=squaredcos_cap_v2&predict_xstart={xstart}"
    options = f"&num_heads={HEADS}&{stated}&rescale_timesteps={rescaled}&learn_sigma=True&image_size=16&num_classes=5"
    denoiser = load_denoiser(save(tensors, options))
    assert not [each for each in recwarn if issubclass(each.category, Notice)]
    assert torch.equal(denoiser.schedule.alpha_bar, VP.cosine(4000).alpha_bar)
    x, label = torch.randn(3, 4, 8, 8), torch.tensor([1, 0, 3])
    level = denoiser.schedule.at_time(1234.0)
    wanted = original(tensors, x, torch.full((3,), 308.5 if rescaled else 1234.0), label)[:, :4]
    found = denoiser(x, level, label=label).x0_hat
    output = found if xstart else eps_from_x0(x, found, level)
    assert (output - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_what_is_left_open_is_taken_with_a_notice(save, recwarn):
    load_denoiser(save(random_tensors(), f"&heads={HEADS}&schedule=linear", name="DiT-XL-2-256x256.pt"))
    (said,) = (str(each.message) for each in recwarn if issubclass(each.category, Notice))
    assert "diffusion_steps=1000, predict_xstart=False, rescale_timesteps=False taken" in said


def test_one_without_a_null_label_has_none(save):
    denoiser = load_denoiser(save(random_tensors(), f"&heads={HEADS}&num_classes=6"))
    assert (denoiser.classes, denoiser.null) == (tuple("012345"), None)
    with pytest.raises(InputError, match="no unconditional model"):
        denoiser(torch.zeros(1, 4, 8, 8), denoiser.schedule.at_time(5.0))


def test_the_file_and_the_vae_are_asked_for(save, tmp_path):
    with pytest.raises(InputError, match="no file '.*DiT-XL-2-512x512.pt'; fetch https.*DiT-XL-2-512x512.pt to there"):
        load_denoiser(f"dit:{tmp_path}/DiT-XL-2-512x512.pt")
    spec = save(random_tensors())
    with pytest.raises(InputError, match=r"must be given with its VAE, dit:.*\?vae=FOLDER"):
        load_denoiser(spec.partition("?")[0])
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match="vae: .* cannot be read") as error:
            load_denoiser(f"{spec.partition('?')[0]}?vae={folder}&heads={HEADS}")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("pos_embed"), "not named or shaped as DiT's"),
        (lambda t: t.pop("blocks.1.mlp.fc1.bias"), "transformer_blocks.1.ff.net.0.proj.bias must be .*, got none"),
        (lambda t: t.update({"blocks.7.attn.qkv.weight": torch.zeros(72, 24)}), "it has 'blocks.7.attn.qkv.weight'"),
        (lambda t: t.update({"blocks.0.t_embedder.mlp.0.bias": torch.zeros(24)}), "it has 'blocks.0.t_embedder"),
        (lambda t: t.update(more=torch.zeros(2)), "it has 'more', which no such network has"),
        (lambda t: t.update(pos_embed=torch.zeros(1, 15, WIDTH)), "square patches"),
        (
            lambda t: t.update(pos_embed=torch.zeros(1, 16, 8)),
            r"the shape of pos_embed must be \(1, 16, 24\), got \(1, 16, 8\)",
        ),
        (lambda t: t.update({"x_embedder.proj.weight": torch.zeros(WIDTH, 4)}), "not named or shaped as DiT's"),
        (lambda t: t.update({"blocks.0.mlp.fc1.weight": torch.zeros(3, 3)}), r"must be .*, got \(3, 3\)"),
    ],
)
def test_other_networks_are_refused(change, said, save):
    tensors = random_tensors()
    change(tensors)
    with pytest.raises(InputError, match=said) as error:
        load_denoiser(save(tensors))
    assert "\n" not in str(error.value)


def test_of_a_training_state_the_averaged_weights_are_read_or_the_others(save):
    """As DiT's own training leaves it, its settings in a namespace beside them."""
    averaged = random_tensors()
    raw = {name: tensor + 1 if name == "final_layer.linear.bias" else tensor for name, tensor in averaged.items()}
    told = argparse.Namespace(model="DiT-S/2", image_size=32)
    spec = save({"model": raw, "ema": averaged, "opt": {"state": {0: {"step": torch.ones(1)}}}, "args": told})
    with pytest.warns(Notice, match="ema is read, unless weights=model"):
        first = load_denoiser(spec)
    second = load_denoiser(f"{spec}&weights=model")
    biases = [each.network.state_dict()["proj_out_2.bias"] for each in (first, second)]
    torch.testing.assert_close(biases[1], biases[0] + 1)
