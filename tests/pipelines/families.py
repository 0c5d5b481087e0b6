"""Pipelines of every family in their own format, tiny, with random weights; what they are called with."""

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import nn

import steersman
from steersman.guidance import Interval, Lookahead
from steersman.pipelines.trajectory import PipelineTrajectory

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

# Networks with random weights are no denoisers: where alpha nears 0, what they make of x_t is beyond any image.
MILD = {"beta_start": 1e-4, "beta_end": 2e-3}


@dataclass
class Family:
    """A pipeline in its own format, with what it is called with.

    Attributes:
        build: Makes it, with random weights.
        call: The arguments of a call for two images of three steps.
        schedulers: Which of its schedulers are tried, the first its own.
        flow: Whether it is trained by flow matching.
        margin: What steering gains at least, in log-likelihood.
    """

    build: object
    call: object
    schedulers: tuple
    flow: bool = False
    margin: float = 0.01

    @property
    def begins(self):
        """Whether it begins from images."""
        return "strength" in self.call()


def seeded(build):
    torch.manual_seed(0)
    return build()


@cache
def unet2d(channels=3):
    return seeded(
        lambda: diffusers.UNet2DModel(
            sample_size=16,
            out_channels=channels,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=8,
        )
    ).eval()


def vae(channels=4, **config):
    return seeded(
        lambda: diffusers.AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=channels,
            norm_num_groups=4,
            sample_size=32,
            **config,
        )
    ).eval()


def text_config(size=32, **config):
    return transformers.CLIPTextConfig(
        hidden_size=size,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=20,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        **config,
    )


def tokenizer():
    letters = [letter + end for letter in "abdel" for end in ("", "</w>")]
    vocab = {token: place for place, token in enumerate(["<|startoftext|>", "<|endoftext|>", *letters])}
    return transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def draws():
    return [torch.Generator().manual_seed(seed) for seed in (0, 1)]


def embeds(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def ddpm():
    return diffusers.DDPMPipeline(unet2d(), diffusers.DDPMScheduler(**MILD))


def ddim():
    return diffusers.DDIMPipeline(unet2d(), diffusers.DDIMScheduler(**MILD))


def ldm():
    unet = seeded(
        lambda: diffusers.UNet2DModel.from_config(unet2d().config, sample_size=8, in_channels=4, out_channels=4)
    )
    latent = seeded(
        lambda: diffusers.VQModel(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            num_vq_embeddings=512,
            lookup_from_codebook=False,
        )
    )
    nn.init.normal_(latent.quantize.embedding.weight)
    return diffusers.LDMPipeline(latent.eval(), unet.eval(), diffusers.DDIMScheduler(**MILD))


def dit():
    transformer = seeded(
        lambda: diffusers.DiTTransformer2DModel(
            sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=2, out_channels=8
        )
    ).eval()
    return diffusers.DiTPipeline(transformer, vae(), diffusers.DDIMScheduler(**MILD))


def conditional(**config):
    return seeded(
        lambda: diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            **config,
        )
    ).eval()


def stable_diffusion(channels=4):
    unet = conditional(cross_attention_dim=32, attention_head_dim=8, in_channels=channels)
    encoder = seeded(lambda: transformers.CLIPTextModel(text_config())).eval()
    scheduler = diffusers.PNDMScheduler(skip_prk_steps=True, beta_schedule="scaled_linear", steps_offset=1, **MILD)
    return diffusers.StableDiffusionPipeline(
        vae(), encoder, tokenizer(), unet, scheduler, None, None, requires_safety_checker=False
    )


def stable_diffusion_xl():
    unet = conditional(
        cross_attention_dim=64,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=80,
    )
    scheduler = diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", **MILD)
    return diffusers.StableDiffusionXLPipeline(
        vae(scaling_factor=0.13, latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 1.1, 1.2, 1.3]),
        *[None] * 4,
        unet,
        scheduler,
        add_watermarker=False,
    )


def stable_diffusion_xl_turbo():
    pipe = stable_diffusion_xl()
    settings = {"timestep_spacing": "trailing"}
    pipe.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config, **settings)
    return pipe


def stable_diffusion_3(**config):
    transformer = seeded(
        lambda: diffusers.SD3Transformer2DModel(
            sample_size=8,
            patch_size=1,
            in_channels=16,
            out_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pooled_projection_dim=64,
            **config,
        )
    ).eval()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    latent = vae(16, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.5, shift_factor=0.06)
    return diffusers.StableDiffusion3Pipeline(transformer, scheduler, latent, *[None] * 6)


def flux():
    transformer = seeded(
        lambda: diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        )
    ).eval()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    latent = vae(4, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.36, shift_factor=0.12)
    return diffusers.FluxPipeline(scheduler, latent, None, None, None, None, transformer)


def pixart():
    transformer = seeded(
        lambda: diffusers.PixArtTransformer2DModel(
            sample_size=8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=32,
            cross_attention_dim=16,
            out_channels=8,
            use_additional_conditions=False,
        )
    ).eval()
    return diffusers.PixArtSigmaPipeline(None, None, vae(), transformer, diffusers.DPMSolverMultistepScheduler(**MILD))


def sana():
    transformer = seeded(
        lambda: diffusers.SanaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=4,
            num_cross_attention_heads=2,
            cross_attention_head_dim=4,
            cross_attention_dim=8,
            caption_channels=32,
            sample_size=8,
        )
    ).eval()
    latent = seeded(
        lambda: diffusers.AutoencoderDC(
            in_channels=3,
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            scaling_factor=0.41,
        )
    ).eval()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return diffusers.SanaPipeline(None, None, latent, transformer, scheduler)


def chroma():
    transformer = seeded(
        lambda: diffusers.ChromaTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 4, 8),
            approximator_num_channels=16,
            approximator_hidden_dim=32,
            approximator_layers=1,
        )
    ).eval()
    latent = vae(4, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.36, shift_factor=0.12)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return diffusers.ChromaPipeline(scheduler, latent, None, None, transformer)


def flux2():
    transformer = seeded(
        lambda: diffusers.Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
        )
    ).eval()
    latent = seeded(
        lambda: diffusers.AutoencoderKLFlux2(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
        )
    ).eval()
    latent.bn.running_mean.copy_(torch.linspace(-0.5, 0.5, 16))
    latent.bn.running_var.copy_(torch.linspace(0.5, 2.0, 16))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return diffusers.Flux2Pipeline(scheduler, latent, None, None, transformer)


def qwen_image():
    transformer = seeded(
        lambda: diffusers.QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 6, 6),
        )
    ).eval()
    latent = seeded(
        lambda: diffusers.AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.1, 0.2, 0.3, 0.4],
            latents_std=[1.0, 1.1, 1.2, 1.3],
        )
    ).eval()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return diffusers.QwenImagePipeline(scheduler, latent, None, None, transformer)


def z_image():
    transformer = seeded(
        lambda: diffusers.ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=32,
            axes_dims=[4, 6, 6],
            axes_lens=[64, 32, 32],
        )
    ).eval()
    for padding in (transformer.x_pad_token, transformer.cap_pad_token):  # which it leaves as memory was
        nn.init.normal_(padding, std=0.02)
    latent = vae(4, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.36, shift_factor=0.12)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return diffusers.ZImagePipeline(scheduler, latent, None, None, transformer)


def kandinsky():
    unet = seeded(
        lambda: diffusers.UNet2DConditionModel(
            in_channels=4,
            out_channels=8,
            addition_embed_type="image",
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            block_out_channels=(32, 64),
            layers_per_block=1,
            norm_num_groups=8,
            encoder_hid_dim=32,
            encoder_hid_dim_type="image_proj",
            cross_attention_dim=16,
            attention_head_dim=4,
            resnet_time_scale_shift="scale_shift",
        )
    ).eval()
    movq = seeded(
        lambda: diffusers.VQModel(
            block_out_channels=(32, 64),
            down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
            up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
            latent_channels=4,
            norm_num_groups=8,
            norm_type="spatial",
            num_vq_embeddings=12,
            vq_embed_dim=4,
        )
    ).eval()
    return diffusers.KandinskyV22Pipeline(unet, diffusers.DDIMScheduler(clip_sample=False, **MILD), movq)


def wan():
    transformer = seeded(
        lambda: diffusers.WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=32,
            freq_dim=16,
            ffn_dim=32,
            num_layers=1,
            rope_max_seq_len=32,
        )
    ).eval()
    latent = seeded(
        lambda: diffusers.AutoencoderKLWan(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.1, 0.2, 0.3, 0.4],
            latents_std=[1.0, 1.1, 1.2, 1.3],
        )
    ).eval()
    scheduler = diffusers.UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    return diffusers.WanPipeline(None, None, latent, scheduler, transformer)


def ltx():
    transformer = seeded(
        lambda: diffusers.LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            num_layers=1,
            caption_channels=32,
        )
    ).eval()
    latent = seeded(
        lambda: diffusers.AutoencoderKLLTXVideo(
            latent_channels=8,
            block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            down_block_types=("LTXVideoDownBlock3D",) * 2,
            layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            spatio_temporal_scaling=(True, False),
            decoder_spatio_temporal_scaling=(True, False),
            decoder_inject_noise=(False, False, False),
            upsample_residual=(False, False),
            upsample_factor=(1, 1),
            patch_size=1,
            encoder_causal=True,
            decoder_causal=False,
        )
    ).eval()
    latent.latents_mean.copy_(torch.linspace(-0.2, 0.2, 8))
    latent.latents_std.copy_(torch.linspace(0.8, 1.2, 8))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1)
    return diffusers.LTXPipeline(scheduler, latent, None, None, transformer)


def cogvideox():
    transformer = seeded(
        lambda: diffusers.CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=8,
            text_embed_dim=32,
            num_layers=1,
            sample_width=2,
            sample_height=2,
            sample_frames=9,
            max_text_seq_length=7,
        )
    ).eval()
    latent = seeded(
        lambda: diffusers.AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(4, 4, 4, 4),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            scaling_factor=0.7,
        )
    ).eval()
    scheduler = diffusers.CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    return diffusers.CogVideoXPipeline(None, None, latent, transformer, scheduler)


def beside(build, kind, scheduler=None, **more):
    """A pipeline of another task with the parts of one, under noise that another scheduler steps through."""
    pipe = build()
    if scheduler is not None:
        pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config, clip_sample=False)
    checked = {"requires_safety_checker": False} if "safety_checker" in pipe.components else {}
    return getattr(diffusers, kind)(**pipe.components, **more, **checked)


def controlnet():
    unet = stable_diffusion().unet
    net = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16)).eval()
    for each in (*net.controlnet_down_blocks, net.controlnet_mid_block):  # which are 0 before training
        nn.init.normal_(each.weight, std=0.1)
    return beside(stable_diffusion, "StableDiffusionControlNetPipeline", "DDIMScheduler", controlnet=net)


def pictures(size=16, channels=3):
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(6))


def begun(call, strength=0.7):
    """A call that begins from images: two of three steps are made."""
    return lambda: {**call(), "image": pictures(), "strength": strength}


def masked(call, **more):
    """A call that draws the right half of images."""
    mask = torch.ones(2, 1, 16, 16)
    mask[..., :8] = 0
    return lambda: {**call(), "image": pictures(), "mask_image": mask, **more}


def prompted(size=7, negative="negative_prompt_embeds", **more):
    return {"prompt_embeds": embeds(2, size, 32), negative: embeds(2, size, 32) * 0, **more}


COMMON = ("DDIM", "Euler", "EulerAncestral", "DPMSolverMultistep", "UniPC")


def texts():
    return {"prompt": ["a ball", "a dab"], "height": 16, "width": 16}


def of_xl():
    return {
        "prompt_embeds": embeds(2, 7, 64),
        "negative_prompt_embeds": embeds(2, 7, 64) * 0,
        "pooled_prompt_embeds": embeds(2, 32),
        "negative_pooled_prompt_embeds": embeds(2, 32) * 0,
        "height": 16,
        "width": 16,
    }


def of_3():
    return {
        "prompt_embeds": embeds(2, 7, 32),
        "negative_prompt_embeds": embeds(2, 7, 32) * 0,
        "pooled_prompt_embeds": embeds(2, 64),
        "negative_pooled_prompt_embeds": embeds(2, 64) * 0,
        "height": 16,
        "width": 16,
    }


def of_flux(width=24):
    return {"prompt_embeds": embeds(2, 7, 32), "pooled_prompt_embeds": embeds(2, 32), "height": 16, "width": width}


def without(call, *keys):
    return lambda: {key: each for key, each in call().items() if key not in keys}


FAMILIES = {
    "DDPM": Family(ddpm, lambda: {"batch_size": 2}, ("DDPM", "DDIM", "DPMSolverMultistep")),
    "DDIM": Family(ddim, lambda: {"batch_size": 2, "eta": 0.5}, ("DDIM",)),
    "LDM": Family(ldm, lambda: {"batch_size": 2}, ("DDIM", "DPMSolverMultistep")),
    "DiT": Family(dit, lambda: {"class_labels": [1, 2]}, ("DDIM", "DDPM", "DPMSolverMultistep", "UniPC")),
    "SD": Family(
        stable_diffusion,
        texts,
        (
            "PNDM",
            "DDPM",
            *COMMON,
            "Heun",
            "LMS",
            "KDPM2",
            "KDPM2Ancestral",
            "DEIS",
            "DPMSolverSinglestep",
            "LCM",
        ),
    ),
    "SD img2img": Family(
        lambda: beside(stable_diffusion, "StableDiffusionImg2ImgPipeline", "DDIMScheduler"),
        begun(without(texts, "height", "width")),
        ("DDIM", "Heun"),
    ),
    "SD inpaint": Family(
        lambda: beside(lambda: stable_diffusion(9), "StableDiffusionInpaintPipeline", "DDIMScheduler"),
        masked(texts),
        ("DDIM",),
    ),
    "SD ControlNet": Family(controlnet, lambda: {**texts(), "image": pictures()}, ("DDIM",)),
    "SDXL": Family(stable_diffusion_xl, of_xl, ("Euler", *COMMON[:1], *COMMON[2:])),
    "SDXL Turbo": Family(
        stable_diffusion_xl_turbo,
        lambda: without(of_xl, "negative_prompt_embeds", "negative_pooled_prompt_embeds")() | {"guidance_scale": 0.0},
        ("EulerAncestral",),
    ),
    "SDXL img2img": Family(
        lambda: beside(stable_diffusion_xl, "StableDiffusionXLImg2ImgPipeline"),
        begun(without(of_xl, "height", "width")),
        ("Euler",),
    ),
    "SDXL inpaint": Family(
        lambda: beside(stable_diffusion_xl, "StableDiffusionXLInpaintPipeline", "DDIMScheduler"),
        masked(of_xl, strength=1.0),
        ("DDIM",),
    ),
    "SD3": Family(stable_diffusion_3, of_3, ("FlowMatchEuler", "FlowMatchHeun"), flow=True),
    "SD3.5": Family(
        lambda: stable_diffusion_3(qk_norm="rms_norm", dual_attention_layers=(0,)),
        of_3,
        ("FlowMatchEuler",),
        flow=True,
    ),
    "Flux": Family(flux, of_flux, ("FlowMatchEuler",), flow=True),
    "FluxCFG": Family(
        flux,
        lambda: {
            "prompt_embeds": embeds(2, 7, 32),
            "pooled_prompt_embeds": embeds(2, 32),
            "negative_prompt_embeds": embeds(2, 7, 32) * 0,
            "negative_pooled_prompt_embeds": embeds(2, 32) * 0,
            "true_cfg_scale": 3.0,
            "height": 16,
            "width": 24,
        },
        ("FlowMatchEuler",),
        flow=True,
    ),
    "Flux img2img": Family(
        lambda: beside(flux, "FluxImg2ImgPipeline"), begun(lambda: of_flux(16), 0.5), ("FlowMatchEuler",), flow=True
    ),
    "PixArt": Family(
        pixart,
        lambda: {
            "prompt_embeds": embeds(2, 7, 32),
            "prompt_attention_mask": torch.ones(2, 7),
            "negative_prompt": None,
            "negative_prompt_embeds": embeds(2, 7, 32) * 0,
            "negative_prompt_attention_mask": torch.ones(2, 7),
            "height": 16,
            "width": 16,
            "use_resolution_binning": False,
        },
        ("DPMSolverMultistep", *COMMON[:3], *COMMON[4:]),
    ),
    "Sana": Family(
        sana,
        lambda: {
            "prompt_embeds": embeds(2, 7, 32),
            "prompt_attention_mask": torch.ones(2, 7),
            "negative_prompt": None,
            "negative_prompt_embeds": embeds(2, 7, 32) * 0,
            "negative_prompt_attention_mask": torch.ones(2, 7),
            "height": 32,
            "width": 32,
            "use_resolution_binning": False,
        },
        ("FlowMatchEuler", "DPMSolverMultistep"),
        flow=True,
    ),
    "Chroma": Family(
        chroma,
        lambda: prompted(
            prompt_attention_mask=torch.ones(2, 7),
            negative_prompt_attention_mask=torch.ones(2, 7),
            height=16,
            width=24,
        ),
        ("FlowMatchEuler",),
        flow=True,
    ),
    "FLUX.2": Family(
        flux2,
        lambda: {"prompt_embeds": embeds(2, 7, 32), "height": 16, "width": 24},
        ("FlowMatchEuler",),
        flow=True,
    ),
    "Qwen-Image": Family(
        qwen_image,
        lambda: prompted(
            prompt_embeds_mask=torch.ones(2, 7, dtype=torch.int64),
            negative_prompt_embeds_mask=torch.ones(2, 7, dtype=torch.int64),
            height=16,
            width=24,
        ),
        ("FlowMatchEuler",),
        flow=True,
    ),
    "Z-Image": Family(
        z_image,
        lambda: {
            "prompt_embeds": list(embeds(2, 7, 32)),
            "negative_prompt_embeds": list(embeds(2, 7, 32) * 0),
            "height": 16,
            "width": 32,
        },
        ("FlowMatchEuler",),
        flow=True,
    ),
    "Z-Image Turbo": Family(
        z_image,
        lambda: {"prompt_embeds": list(embeds(2, 7, 32)), "guidance_scale": 0.0, "height": 16, "width": 32},
        ("FlowMatchEuler",),
        flow=True,
    ),
    "Kandinsky 2.2": Family(
        kandinsky,
        lambda: {
            "image_embeds": embeds(2, 32),
            "negative_image_embeds": embeds(2, 32) * 0,
            "height": 64,
            "width": 64,
        },
        ("DDIM", "DDPM"),
    ),
    "Wan": Family(
        wan,
        lambda: prompted(height=16, width=16, num_frames=5),
        ("UniPC", "FlowMatchEuler"),
        flow=True,
        margin=0.001,  # its decoder makes little of its latents
    ),
    "LTX": Family(
        ltx,
        lambda: prompted(
            prompt_attention_mask=torch.ones(2, 7),
            negative_prompt_attention_mask=torch.ones(2, 7),
            height=32,
            width=32,
            num_frames=9,
        ),
        ("FlowMatchEuler",),
        flow=True,
    ),
    "CogVideoX": Family(
        cogvideox,
        lambda: prompted(height=16, width=16, num_frames=9),
        ("CogVideoXDDIM", "CogVideoXDPM"),
    ),
}


PAIRS = [(name, scheduler) for name, family in FAMILIES.items() for scheduler in family.schedulers]
QUICK = [  # one of each way to hold samples, and of each way to read a scheduler's levels
    ("DDPM", "DDPM"),
    ("DiT", "DDIM"),
    ("SD", "PNDM"),
    ("SD", "Euler"),
    ("SD", "Heun"),
    ("SD", "UniPC"),
    ("Flux", "FlowMatchEuler"),
    ("Wan", "FlowMatchEuler"),
]


def reaching(name, **settings):
    """Settings of a guide that moves a family's images far enough to be seen."""
    if FAMILIES[name].flow:  # where alpha nears 0, what moves the noise moves the image by sigma^2 / alpha as far
        return {"weight": Interval(ratio_max=50.0), **settings}
    return settings


def with_scheduler(pipe, name, **settings):
    """The pipeline with another scheduler of the same noise; flow matching stays flow matching."""
    if name == "LMS":
        pytest.importorskip("scipy", reason="diffusers integrates its coefficients with it")
    if name.startswith("DPMSolver") and type(pipe.scheduler).__name__.startswith("Flow"):
        settings |= {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
    kind = next(
        getattr(diffusers, name + end)
        for end in ("Scheduler", "DiscreteScheduler", "MultistepScheduler")
        if hasattr(diffusers, name + end)
    )
    if type(pipe.scheduler) is not kind or settings:
        pipe.scheduler = kind.from_config(pipe.scheduler.config, **settings)
    return pipe


def make(name, scheduler=None, **settings):
    """A family's pipeline; skips the test where this version of diffusers has none of the kind."""
    try:
        pipe = FAMILIES[name].build()
    except AttributeError as error:
        if not str(error).startswith("module diffusers has no attribute"):
            raise
        pytest.skip(f"diffusers {diffusers.__version__} cannot make it: {error}")
    pipe.set_progress_bar_config(disable=True)
    return with_scheduler(pipe, scheduler or FAMILIES[name].schedulers[0], **settings)


def wide(cases, quick):
    """All cases, of which only the quick ones are no long tests."""
    return [
        each if each in quick else pytest.param(*(each if isinstance(each, tuple) else (each,)), marks=pytest.mark.long)
        for each in cases
    ]


def draw(pipe, name, steps=3, **more):
    """Two images in [-1, 1], or the frames (2, T, 3, H, W) of two videos, from the same noise every time."""
    settings = {"num_inference_steps": steps, "generator": draws(), "output_type": "pt"}
    if name == "DiT":
        settings["generator"] = torch.Generator().manual_seed(0)
    call = {**FAMILIES[name].call(), **settings, **more}
    torch.manual_seed(1)  # for the schedulers that a pipeline gives no generator
    images = pipe(**call)
    images = images.frames if hasattr(images, "frames") else images.images
    if not isinstance(images, torch.Tensor):  # a pipeline that knows no "pt"
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
    if name == "Kandinsky 2.2" and call["output_type"] == "pt":  # its own are in [-1, 1]
        return images.clamp(-1, 1)
    return images * 2 - 1


def asked_again(pipe, name, guide, monkeypatch):
    """How far a pipeline's network, asked again, is from what the pipeline made of it: relative to the largest value.

    Asked for the sample and time of its own step, and, by the step before's conditions, for those of the next one.
    """
    turns, errors, make_step = [], [], PipelineTrajectory.step

    def compared(self, own, call, turn):
        given = call.arguments
        self.shown = self.positions[self.calls].scale
        for each in (*turns[-1:], turn):
            again = each(given["sample"], given["timestep"] if each is not turn else None)
            errors.append((again - given["model_output"]).abs().max() / given["model_output"].abs().max())
        turns.append(turn)
        return make_step(self, own, call, turn)

    with monkeypatch.context() as patch:
        patch.setattr(PipelineTrajectory, "step", compared)
        with steersman.steer(pipe, guide(input=Lookahead(clip=False), scale=1e-30), target=1):
            draw(pipe, name)
    assert len(errors) >= 3
    return float(max(errors))
