"""LDM's folders: a U-Net of latents, and the VQ-VAE that decodes them."""

import json

import diffusers
import pytest
import torch

from steersman import steer
from steersman.errors import InputError
from steersman.guidance import Constant, Denoised, Guide, Rms
from steersman.lab.train.denoiser import unet
from steersman.models.denoisers import load_denoiser
from steersman.models.denoisers.folder import save_folder
from steersman.sampling import DDIM, DiffusersSampler, sample

F64 = torch.float64


@pytest.fixture(scope="module")
def pipe():
    """Latents of 3 x 8 x 8, images of 16 x 16; a codebook that is as spread as latents are."""
    torch.manual_seed(0)
    vqvae = diffusers.VQModel(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        num_vq_embeddings=32,
        scaling_factor=0.5,
    )
    torch.nn.init.normal_(vqvae.quantize.embedding.weight)
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)
    pipe = diffusers.LDMPipeline(vqvae, unet(8, 0, widths=(8, 16)), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("ldm")
    pipe.save_pretrained(path)
    return path


class Bright:
    def __call__(self, image, target, level):
        return image.mean((1, 2, 3))


GUIDE = Guide(objective=Bright(), input=Denoised(), stabilizer=Rms(), weight=Constant(), scale=3.0)


def test_an_unguided_walk_is_the_pipelines_own(pipe, folder):
    denoiser = load_denoiser(str(folder))
    assert (denoiser.shape, denoiser.latent, denoiser.classes) == ((3, 8, 8), True, ())
    wanted = pipe(batch_size=3, num_inference_steps=5, output_type="np", generator=torch.Generator().manual_seed(2))
    latents = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    found = sample(denoiser, DiffusersSampler(pipe.scheduler), seeds=range(3), steps=5, noise=[latents])
    images = denoiser.decode(found).clamp(-1, 1) / 2 + 0.5
    # float32's rounding, through five steps; a place that falls to another entry of the codebook would show
    torch.testing.assert_close(images, torch.from_numpy(wanted.images).permute(0, 3, 1, 2), atol=1e-5, rtol=0)


def test_the_gradient_passes_the_codebook_as_it_is(folder, draw):
    """Through the decoder at the nearest entries, and from there to the latent unchanged."""
    denoiser = load_denoiser(str(folder), dtype=F64)
    vqvae, x0 = denoiser.vae, draw(2, 3, 8, 8).requires_grad_()
    (g,) = torch.autograd.grad(denoiser.decode(x0).square().sum(), x0)
    z = x0.detach() / 0.5
    places = z.permute(0, 2, 3, 1).reshape(-1, 3)
    nearest = vqvae.quantize.embedding.weight[torch.cdist(places, vqvae.quantize.embedding.weight).argmin(1)]
    entries = nearest.reshape(2, 8, 8, 3).permute(0, 3, 1, 2).detach().requires_grad_()
    image = vqvae.decode(entries, force_not_quantize=True).sample
    torch.testing.assert_close(denoiser.decode(x0), image)
    (expected,) = torch.autograd.grad(image.square().sum(), entries)
    torch.testing.assert_close(g, expected / 0.5)
    assert g.abs().max() > 1e-3


def test_guides_steer_it(folder):
    denoiser = load_denoiser(str(folder))
    walk = {"seeds": range(2), "steps": 6}
    plain, steered = (
        denoiser.decode(sample(denoiser, DDIM(), guides=guides, target=0, **walk)) for guides in ([], [GUIDE])
    )
    assert (Bright()(steered, None, None) > Bright()(plain, None, None)).all()


def test_the_pipeline_itself_is_steered(pipe):
    def images():
        drawn = pipe(num_inference_steps=5, output_type="np", generator=torch.Generator().manual_seed(2)).images
        return torch.from_numpy(drawn)

    plain = images()
    with steer(pipe, GUIDE, 0):
        steered = images()
    assert float(steered.mean() - plain.mean()) > 0.005


def test_it_encodes_what_it_decodes(folder, draw):
    denoiser = load_denoiser(str(folder), dtype=F64)
    images = draw(2, 3, 16, 16)
    torch.testing.assert_close(denoiser.encode(images), denoiser.vae.encode(images).latents * 0.5)


def test_its_folder_is_the_same_again(folder, tmp_path, draw):
    denoiser = load_denoiser(str(folder), dtype=F64)
    assert save_folder(denoiser, tmp_path / "out") == ()
    again = load_denoiser(str(tmp_path / "out"), dtype=F64)
    x_t, level = draw(2, 3, 8, 8), denoiser.schedule.at_time(300)
    torch.testing.assert_close(again(x_t, level).x0_hat, denoiser(x_t, level).x0_hat)
    torch.testing.assert_close(again.decode(x_t), denoiser.decode(x_t))
    assert type(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")) is diffusers.LDMPipeline


@pytest.mark.long
def test_it_is_drawn_on_the_command_line(call, folder, tmp_path):
    walk = ["--steps", 2, "--num", 1, "--judge", "none", "--target", "baseball"]
    code, _, said = call("sample", "--denoiser", folder, *walk, "--out", tmp_path / "out")
    assert code == 0, said
    assert (tmp_path / "out" / "000000.png").is_file()


def test_one_that_enlarges_images_is_refused(pipe, tmp_path):
    network = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=6,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    diffusers.LDMSuperResolutionPipeline(pipe.vqvae, network, pipe.scheduler).save_pretrained(tmp_path / "larger")
    with pytest.raises(InputError, match=r"got \(3, 8, 8\) for \(6, 8, 8\).*super-resolution") as said:
        load_denoiser(str(tmp_path / "larger"))
    assert "\n" not in str(said.value)


def test_a_decoder_of_other_latents_is_refused(folder, tmp_path):
    diffusers.DiffusionPipeline.from_pretrained(folder).save_pretrained(tmp_path / "other")
    config = tmp_path / "other" / "vqvae"
    diffusers.VQModel(block_out_channels=(8,), latent_channels=4, norm_num_groups=4).save_pretrained(config)
    assert json.loads((config / "config.json").read_text())["latent_channels"] == 4
    with pytest.raises(InputError, match="vae must be one of 3 channels, as the network is, got 4"):
        load_denoiser(str(tmp_path / "other"))
