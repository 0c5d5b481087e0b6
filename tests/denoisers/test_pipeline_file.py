"""Text pipelines in one file of the original layout, tiny, with random weights: as a denoiser, steered, and refused."""

import re
import shutil
from functools import partial

import pytest
import torch

pytest.importorskip("transformers")

import diffusers
from safetensors.torch import load_file, save_file

import steersman
from denoisers.texts import make
from steersman.errors import InputError
from steersman.guidance import ClassProbability, Constant, Denoised, Guide, Rms
from steersman.models.denoisers import load_denoiser
from steersman.models.denoisers.load import is_pipeline

BLOCK = {  # of a residual block of the U-Net
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_name(name, layers=1):
    """The original name of a weight of a U-Net whose blocks have so many layers."""
    for ours, theirs in OUTSIDE.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs, 1)
    side, block, kind, index, rest = re.fullmatch(
        r"(down_blocks|mid_block|up_blocks)\.(?:(\d)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", name
    ).groups()
    index = int(index)
    if kind == "resnets":
        part, end = rest.split(".", 1)
        rest = f"{BLOCK[part]}.{end}"
    if side == "mid_block":
        return f"middle_block.{1 if kind == 'attentions' else 2 * index}.{rest}"
    count = layers + (side == "up_blocks")
    start = int(block) * (layers + 1) + (side == "down_blocks")
    if kind == "downsamplers":
        return f"input_blocks.{start + count}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":  # after the attention, where there is one
        return f"output_blocks.{start + layers}.{2 if block == '0' else 1}.{rest}"
    place = f"{'input_blocks' if side == 'down_blocks' else 'output_blocks'}.{start + index}"
    return f"{place}.{1 if kind == 'attentions' else 0}.{rest}"


def vae_name(name, blocks=2):
    """The original name of a weight of a VAE of so many blocks."""
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    if "mid_block.attentions.0" in name:
        for ours, theirs in ATTENTION.items():
            name = name.replace(f"mid_block.attentions.0.{ours}.", f"mid.attn_1.{theirs}.")
    name = re.sub(r"up_blocks\.(\d)", lambda found: f"up.{blocks - 1 - int(found[1])}", name)
    name = re.sub(r"down_blocks\.(\d)", r"down.\1", name)
    name = re.sub(r"resnets\.(\d)", r"block.\1", name)
    name = name.replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")
    return name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")


def original(pipe):
    """The weights of a Stable Diffusion pipeline under the names that its authors' files have."""
    found = {f"model.diffusion_model.{unet_name(key)}": each for key, each in pipe.unet.state_dict().items()}
    for key, each in pipe.vae.state_dict().items():
        name = vae_name(key)
        linear = "attn_1" in name and each.ndim == 2
        found[f"first_stage_model.{name}"] = each[:, :, None, None] if linear else each
    for key, each in pipe.text_encoder.state_dict().items():
        found[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = each
    return {key: each.contiguous() for key, each in found.items()}


@pytest.fixture(scope="module")
def pipe():
    return make("SD")


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("SD")
    pipe.save_pretrained(path)
    return path


@pytest.fixture
def config(folder, tmp_path):
    """The pipeline's folder without weights."""
    return shutil.copytree(folder, tmp_path / "config", ignore=shutil.ignore_patterns("*.safetensors"))


@pytest.fixture
def write(tmp_path):
    def written(tensors, name="model.safetensors"):
        save_file(tensors, tmp_path / name)
        return tmp_path / name

    return written


@pytest.fixture
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))


def told(denoiser, prompt="a ball"):
    x_t = torch.randn(1, *denoiser.shape, generator=torch.Generator().manual_seed(0))
    prediction = denoiser(x_t, denoiser.schedule.levels(3)[1], prompt=prompt, cfg_scale=2.0)
    return denoiser.decode(prediction.x0_hat)


@pytest.mark.long
def test_a_file_is_the_pipeline_that_it_was_made_of(pipe, folder, config, write):
    spec = f"{write(original(pipe))}?config={config}"
    assert is_pipeline(spec)
    found, expected = load_denoiser(spec), load_denoiser(str(folder))
    assert torch.equal(told(found), told(expected))
    assert found.schedule == expected.schedule or torch.equal(found.schedule.alpha_bar, expected.schedule.alpha_bar)
    assert load_denoiser(f"{spec}&height=32&width=24").shape == (4, 16, 12)


def test_parts_that_the_file_lacks_come_from_the_folder(pipe, folder, write):
    other = make("SD")
    for weight in other.unet.parameters():
        weight.data.mul_(0.9)
    tensors = {key: each for key, each in original(other).items() if key.startswith("model.")}
    found = load_denoiser(f"{write(tensors)}?config={folder}")
    for key, each in pipe.vae.state_dict().items():
        assert torch.equal(found.pipe.vae.state_dict()[key], each)
    for key, each in other.unet.state_dict().items():
        assert torch.equal(found.pipe.unet.state_dict()[key], each)


def test_a_transformer_s_file_with_the_other_parts_in_the_folder(tmp_path, write):
    flux = make("Flux")
    flux.save_pretrained(tmp_path / "flux")
    path = write(dict(flux.transformer.state_dict()), "flux.safetensors")
    found = load_denoiser(f"{path}?config={tmp_path / 'flux'}&height=16&width=24")
    expected = load_denoiser(f"{tmp_path / 'flux'}?height=16&width=24")
    assert torch.equal(told(found), told(expected))


def test_a_pipeline_of_one_file_is_steered(pipe, config, write):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 2))
    objective = ClassProbability(classifier=lambda image, level: network(image))
    settings = {"input": Denoised(clip=False), "stabilizer": Rms(), "weight": Constant(), "scale": 0.3}
    load = diffusers.StableDiffusionPipeline.from_single_file
    settings["objective"] = objective
    one = load(str(write(original(pipe))), config=str(config), local_files_only=True, safety_checker=None)
    images = []
    for each in (pipe, one):
        each.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
        each.set_progress_bar_config(disable=True)
        for wrt in ("x0_hat", "x_t"):
            with steersman.steer(each, Guide(**settings, wrt=wrt), target=1):
                call = partial(each, "a ball", num_inference_steps=2, output_type="pt", height=16, width=16)
                images.append(call(generator=torch.Generator().manual_seed(0)).images)
    assert torch.equal(images[0], images[2]) and torch.equal(images[1], images[3])
    assert not torch.equal(images[0], images[1])


def damaged(change):
    def build(tensors):
        change(tensors)
        return tensors

    return build


REFUSED = {
    "a weight is missing": (
        lambda tensors: tensors.pop("model.diffusion_model.input_blocks.1.0.in_layers.2.weight"),
        "cannot be (used|read)",
    ),
    "of another shape": (
        lambda tensors: tensors.update({"model.diffusion_model.out.2.weight": torch.zeros(4, 3, 3, 3)}),
        "cannot be (used|read)",
    ),
    "not finite": (lambda tensors: tensors["model.diffusion_model.out.2.bias"].fill_(torch.nan), "is not finite"),
    "no text encoder": (
        lambda tensors: [tensors.pop(key) for key in list(tensors) if key.startswith("cond_")],
        "has no text_encoder, and .* has no weights",
    ),
    "no vae": (
        lambda tensors: [tensors.pop(key) for key in list(tensors) if key.startswith("first_")],
        "has no vae, and .* has no weights",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_is_not_whole_is_refused_in_a_line(case, pipe, config, write):
    change, message = REFUSED[case]
    tensors = {key: each.clone() for key, each in original(pipe).items()}
    change(tensors)
    path = write(tensors)
    with pytest.raises(InputError, match=message) as said:
        load_denoiser(f"{path}?config={config}")
    assert "\n" not in str(said.value) and str(path) in str(said.value)


def test_without_a_network_one_line_says_what_to_give(pipe, config, write, offline):
    path = write(original(pipe))
    with pytest.raises(InputError, match=r"give .*\?config=FOLDER, .*: hf download \S+/\S+ ") as said:
        load_denoiser(str(path))
    assert "\n" not in str(said.value)


def test_what_is_no_such_file_or_folder_is_refused_in_a_line(config, tmp_path, write):
    cases = {
        f"{tmp_path / 'none.safetensors'}?config={config}": "must be a file of a pipeline's weights",
        f"{write({'a': torch.zeros(1)})}?config={tmp_path}": "config must be a folder with the model_index.json",
        f"{write({'a': torch.zeros(1)})}?config={config}": "has no text_encoder|has no vae",
        f"{write({'a': torch.zeros(1)})}?config={config}&variant=fp16": "has no variant",
        f"{write({'a': torch.zeros(1)})}?config={config}&height=16": "must be given together",
        f"{write({'a': torch.zeros(1)})}?settings={config}": "unknown option of a pipeline",
    }
    (tmp_path / "text.safetensors").write_text("no weights")
    cases[f"{tmp_path / 'text.safetensors'}?config={config}"] = "cannot be (used|read)"
    for spec, message in cases.items():
        with pytest.raises(InputError, match=message) as said:
            load_denoiser(spec)
        assert "\n" not in str(said.value)


def test_weights_in_half_precision_run_in_what_is_asked_for(pipe, config, write):
    path = write({key: each.half() for key, each in original(pipe).items()})
    assert load_file(path)["model.diffusion_model.out.2.bias"].dtype == torch.float16
    denoiser = load_denoiser(f"{path}?config={config}", dtype=torch.bfloat16)
    assert denoiser.network.dtype == torch.bfloat16
    assert told(denoiser).isfinite().all()
