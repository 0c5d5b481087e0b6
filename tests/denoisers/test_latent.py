"""A pipeline of latents from a folder: what is read, what the label and the VAE do, what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from steersman.denoise import eps_from_x0
from steersman.errors import InputError
from steersman.guidance import ClassProbability, Guide, Noisy
from steersman.lab.generate import generate, open_session
from steersman.lab.report import Frames
from steersman.lab.run import Run
from steersman.latent import scaled, unscaled
from steersman.models.denoisers import DiffusersDenoiser, load_denoiser
from steersman.recipes import load_recipe
from steersman.sampling import DDIM, DDPM, sample
from steersman.schedule import VP

F64 = torch.float64
LABEL = torch.tensor([2, 0, 3])
FOLDERS = r"a folder with unet/ and scheduler/, .*or transformer/, vae/ and scheduler/"


@pytest.fixture(scope="module")
def denoiser(dit_folder):
    return load_denoiser(str(dit_folder), dtype=F64)


@pytest.fixture(scope="module")
def classifier():
    """A classifier of two classes, of images of any range."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 14**2, 2)).to(F64)
    return lambda image, level=None: network(image.to(F64)).to(image)


def outputs(denoiser, x_t, level, label):
    """What the network says itself: noise and learned fraction."""
    time = level.time.expand(len(x_t))
    return denoiser.network(x_t, time, class_labels=label).sample.chunk(2, dim=1)


def test_what_the_folder_holds(denoiser):
    assert denoiser.shape == (4, 8, 8)
    assert denoiser.latent
    assert denoiser.classes == ("baseball", "basketball", "volleyball", "soccer ball")
    assert (denoiser.null, denoiser.parameterization) == (4, "epsilon")
    torch.testing.assert_close(denoiser.schedule.alpha_bar, VP.linear().alpha_bar)
    assert not any(weight.requires_grad for part in (denoiser.network, denoiser.vae) for weight in part.parameters())


def test_a_card_names_the_labels_before_the_pipeline_does(dit_folder, tmp_path):
    copy = shutil.copytree(dit_folder, tmp_path / "copy")
    (copy / "card.json").write_text(json.dumps({"classes": ["a", "b", "c", "d"]}))
    assert load_denoiser(str(copy)).classes == ("a", "b", "c", "d")
    (copy / "card.json").write_text(json.dumps({"classes": ["a", "b"]}))
    with pytest.raises(InputError, match="classes must name the 5 labels of the network, got 2 names"):
        load_denoiser(str(copy))


def test_without_names_the_labels_are_numbers(dit):
    assert DiffusersDenoiser(dit.transformer, schedule=VP.linear()).classes == ("0", "1", "2", "3")


@pytest.mark.parametrize("channels", [None, 3])
def test_classifier_free_guidance(denoiser, draw, channels):
    x_t, level, w = draw(3, 4, 8, 8), denoiser.schedule.at_time(700), 1.5
    eps, learned = outputs(denoiser, x_t, level, LABEL)
    null, _ = outputs(denoiser, x_t, level, torch.full((3,), 4))
    wanted = null + w * (eps - null)
    if channels:
        wanted[:, channels:] = eps[:, channels:]
    found = denoiser(x_t, level, label=LABEL, cfg_scale=w, cfg_channels=channels)
    torch.testing.assert_close(eps_from_x0(x_t, found.x0_hat, level), wanted)
    torch.testing.assert_close(eps_from_x0(x_t, found.unconditional, level), null)
    torch.testing.assert_close(found.variance_fraction, (learned + 1) / 2)
    assert (eps - null).abs().max() > 0.1
    plain = denoiser(x_t, level, label=LABEL)
    torch.testing.assert_close(eps_from_x0(x_t, plain.x0_hat, level), eps)
    assert plain.unconditional is None
    torch.testing.assert_close(denoiser(x_t, level).x0_hat, found.unconditional)


@pytest.mark.parametrize("channels", [0, 5])
def test_channels_that_there_are_not_are_refused(denoiser, draw, channels):
    with pytest.raises(InputError, match=f"cfg_channels must be between 1 and 4, or None for all, got {channels}"):
        denoiser(draw(3, 4, 8, 8), denoiser.schedule.at_time(9), label=LABEL, cfg_scale=2.0, cfg_channels=channels)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"cfg_scale": 2.0}, "cfg_scale must be 1 without a label, got 2.0"),
        ({"lable": LABEL}, "unknown condition 'lable'; did you mean 'label'"),
    ],
)
def test_a_condition_that_changes_nothing_is_refused(denoiser, draw, condition, message):
    with pytest.raises(InputError, match=message):
        denoiser(draw(3, 4, 8, 8), denoiser.schedule.at_time(9), **condition)


def test_the_network_is_told_the_time_in_a_type_that_every_accelerator_knows(denoiser, draw, monkeypatch):
    told, forward = [], denoiser.network.forward

    def listen(x, time, label):
        told.append(time)
        return forward(x, time, label)

    monkeypatch.setattr(denoiser.network, "forward", listen)
    denoiser(draw(3, 4, 8, 8), denoiser.schedule.at_time(9.25))
    assert told[0].tolist() == [9.25] * 3 and told[0].dtype == torch.float32


def test_an_unguided_walk_is_the_pipelines_own(dit, denoiser):
    """DiTPipeline with DDIM, at its own levels; its images are in [0, 1]."""
    dit.set_progress_bar_config(disable=True)
    latents = torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)])
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    wanted = dit(LABEL.tolist(), guidance_scale=1.0, num_inference_steps=4, generator=generators, output_type="np")
    found = sample(
        denoiser,
        DDIM(),
        seeds=range(3),
        steps=4,
        spacing="leading",
        noise=[latents],
        condition={"label": LABEL},
        dtype=F64,
    )
    images = denoiser.decode(found).clamp(-1, 1) / 2 + 0.5
    # the pipeline computes in float32
    torch.testing.assert_close(images.float(), torch.from_numpy(wanted.images).permute(0, 3, 1, 2), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "settings", [{}, {"shift_factor": 0.3}, {"latents_mean": [1.0, 2, 3, 4], "latents_std": [2.0, 3, 4, 5]}]
)
def test_the_image_is_that_of_the_unscaled_latent(denoiser, draw, settings, monkeypatch):
    x0 = draw(2, 4, 8, 8)
    z = x0 / 0.18215 + settings.get("shift_factor", 0)
    if settings.get("latents_mean"):
        z = z * torch.tensor([2.0, 3, 4, 5]).reshape(4, 1, 1) + torch.tensor([1.0, 2, 3, 4]).reshape(4, 1, 1)
    monkeypatch.setattr(denoiser.vae, "_internal_dict", {**denoiser.vae.config, **settings})
    torch.testing.assert_close(denoiser.decode(x0), denoiser.vae.decode(z).sample)
    torch.testing.assert_close(scaled(denoiser.vae.config, z), x0)
    images = draw(2, 3, 16, 16)
    likeliest = denoiser.vae.encode(images).latent_dist.mean
    torch.testing.assert_close(unscaled(denoiser.vae.config, denoiser.encode(images)), likeliest)


def test_gradients_flow_through_the_decoder_one_image_at_a_time(denoiser, draw):
    """Whatever the batch; the blocks are recomputed, which changes nothing."""
    x0, weights = draw(3, 4, 8, 8).requires_grad_(), draw(3, 3, 16, 16)
    seen = []
    handle = denoiser.vae.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    (g,) = torch.autograd.grad((weights * denoiser.decode(x0)).sum(), x0)
    handle.remove()
    assert seen == [1, 1, 1]
    assert g.isfinite().all()
    assert (g.abs() > 0).all()
    (one,) = torch.autograd.grad((weights[1:2] * denoiser.decode(x0[1:2])).sum(), x0)
    assert torch.equal(g[1], one[1])
    assert denoiser.vae.is_gradient_checkpointing
    step, direction = 1e-5, draw(3, 4, 8, 8)
    ahead, behind = (denoiser.decode(x0.detach() + sign * step * direction) for sign in (1, -1))
    slope = (weights * (ahead - behind)).sum() / (2 * step)
    torch.testing.assert_close((g * direction).sum(), slope, rtol=1e-6, atol=0)


def test_what_is_clipped_is_the_image_never_the_latent(denoiser, classifier, draw):
    """Latents lie beyond 1 and stay there; a view that clips shows the classifier a clipped image."""
    seen = []

    def watching(image, level=None):
        seen.append(float(image.detach().abs().max()))
        return classifier(image)

    guide = Guide(objective=ClassProbability(classifier=watching))
    loud = [20 * draw(2, 4, 8, 8) for _ in range(3)]
    found = sample(denoiser, DDPM(), guides=[guide], target=1, seeds=[0, 1], steps=3, noise=loud, dtype=F64)
    assert found.abs().max() > 1
    assert max(seen) == 1
    assert denoiser.decode(found).abs().max() > 1
    seen.clear()
    noisy = Guide(objective=ClassProbability(classifier=watching), input=Noisy())
    sample(denoiser, DDPM(), guides=[noisy], target=1, seeds=[0, 1], steps=3, noise=loud, dtype=F64)
    assert max(seen) > 1


@pytest.mark.parametrize("lacking", ["vae", "transformer", "scheduler"])
def test_a_folder_without_a_part_is_refused(dit_folder, tmp_path, lacking):
    copy = shutil.copytree(dit_folder, tmp_path / "copy")
    shutil.rmtree(copy / lacking)
    with pytest.raises(InputError, match=FOLDERS):
        load_denoiser(str(copy))


def test_a_pipeline_with_more_parts_is_refused(dit_folder, tmp_path):
    copy = shutil.copytree(dit_folder, tmp_path / "copy")
    index = json.loads((copy / "model_index.json").read_text())
    index |= {"_class_name": "Pipeline", "text_encoder": ["transformers", "CLIP"], "safety_checker": [None, None]}
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=f"is a Pipeline with text_encoder as well; use {FOLDERS}"):
        load_denoiser(str(copy))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("vae/config.json", '{"_class_name": "VQModel"}', "unknown vae 'VQModel'; .*known: AutoencoderKL"),
        ("transformer/config.json", '{"_class_name": "Flux"}', "unknown transformer 'Flux'; known: DiTTransformer2D"),
        ("vae/diffusion_pytorch_model.safetensors", "none", r"cannot be read \("),
        ("model_index.json", "{", r"cannot be read \("),
        ("scheduler/scheduler_config.json", "{", r"cannot be read \("),
    ],
)
def test_parts_that_cannot_be_used_are_refused_in_one_line(dit_folder, tmp_path, file, content, message):
    copy = shutil.copytree(dit_folder, tmp_path / "copy")
    (copy / file).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        load_denoiser(str(copy))
    assert "\n" not in str(caught.value)


def test_a_vae_of_other_latents_is_refused(dit_folder, tmp_path):
    from diffusers import AutoencoderKL

    copy = shutil.copytree(dit_folder, tmp_path / "copy")
    shutil.rmtree(copy / "vae")
    AutoencoderKL(block_out_channels=(8,), latent_channels=3, norm_num_groups=4).save_pretrained(copy / "vae")
    with pytest.raises(InputError, match="vae must be one of 4 channels, as the network is, got 3"):
        load_denoiser(str(copy))


@pytest.mark.long
def test_a_run_draws_images_that_do_not_depend_on_the_batch(dit_folder, tmp_path):
    """As ``steersman sample --denoiser FOLDER --recipe elucd-dit --label NAME --cfg-scale 1.5 --gif``."""
    settings: dict = {"denoiser": str(dit_folder), "targets": ("baseball",), "num": 3, "judge": None, "cfg_scale": 1.5}
    settings |= {"classifiers": ("zoo:sportballs-mobilenet",), "label": "volleyball"}
    recipe = load_recipe("elucd-dit", ["sampling.steps=3"])
    pixels = []
    for size in (1, 3):
        session = open_session(Run(**settings, recipe=recipe, batch_size=size))
        frames = Frames(count=2, decode=session.denoiser.decode)
        metrics = generate(session, tmp_path / str(size), callbacks=[frames]).metrics
        assert metrics["lost"] == []
        files = sorted((tmp_path / str(size)).glob("0*.png"))
        pixels.append(np.stack([np.asarray(Image.open(file)).astype(int) for file in files]))
    assert pixels[0].shape == (3, 16, 16, 3)
    assert abs(pixels[0] - pixels[1]).max() <= 1
    assert [image.shape for image in frames.images] == [(2, 3, 16, 16)] * 3
    assert [gradient.shape for gradient in frames.gradients] == [(2, 4, 8, 8)] * 3
    frames.write(tmp_path / "animation.gif")
