"""Newer text pipelines as denoisers, by stand-ins for their encoders, which are language models: theirs is ours."""

import copy

import pytest
import torch

pytest.importorskip("transformers")

from denoisers import texts
from denoisers.test_pipeline import Theirs, theirs, walked
from pipelines import families
from steersman.errors import InputError
from steersman.models.denoisers.folder import PIPELINES
from steersman.models.denoisers.pipeline import PipelineDenoiser
from steersman.sampling import sample


def told(prompt):
    """Embeds a text, the longer the more tokens."""
    text = prompt if isinstance(prompt, str) else prompt[0]
    return torch.randn(1, 3 + len(text), 32, generator=torch.Generator().manual_seed(len(text)))


def make(name):
    pipe = families.make(name)
    for weight in pipe.transformer.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.5 / weight[0].numel() ** 0.5)

    def encoded(prompt, num_images_per_prompt=1, **_):
        made = told(prompt).repeat(num_images_per_prompt, 1, 1)
        if name == "FLUX.2":
            return made, pipe._prepare_text_ids(made)
        return made, torch.ones(made.shape[:2], dtype=torch.int64)

    if name == "Chroma":
        pipe.register_modules(**dict(zip(("text_encoder", "tokenizer"), texts.t5(), strict=True)))
    else:
        pipe.encode_prompt = encoded
    return pipe


@pytest.mark.parametrize(("name", "scale"), [("Chroma", 1.0), ("Chroma", 2.5), ("FLUX.2", 1.0), ("Qwen-Image", 1.0)])
def test_an_unguided_walk_is_the_pipelines_own(name, scale):
    pipe = make(name)
    assert type(pipe).__name__ in PIPELINES
    ours = PipelineDenoiser(copy.copy(pipe), size=(16, 24))
    latents = torch.randn(2, *ours.shape, generator=torch.Generator().manual_seed(0))
    if name == "FLUX.2":  # which begins from patches that are in place
        held = torch.nn.functional.pixel_unshuffle(latents, 2)
        settings = {"num_inference_steps": 3, "output_type": "pt", "height": 16, "width": 24}
        wanted = pipe(prompt="a ball", latents=held, num_images_per_prompt=2, **settings).images * 2 - 1
    else:
        wanted = theirs(pipe, ours, latents, scale=scale)
    condition = {"prompt": "a ball", "cfg_scale": scale}
    own = Theirs(own=walked(pipe, ours.schedule))
    found = sample(ours, own, seeds=[0, 1], steps=3, noise=[latents], condition=condition)
    assert (ours.decode(found).clamp(-1, 1) - wanted).abs().max() < 1e-5
    assert (wanted[0] - wanted[1]).abs().max() > 0.01


def test_texts_of_two_lengths_are_told_one_after_the_other():
    ours = PipelineDenoiser(make("Qwen-Image"), size=(16, 24))
    x_t, level = torch.randn(2, *ours.shape), ours.schedule.levels(3)[1]
    both = ours(x_t, level, prompt="a ball", negative_prompt="a", cfg_scale=2.0)
    one, other = (ours(x_t, level, prompt=each).x0_hat for each in ("a ball", "a"))
    assert (both.x0_hat - other - 2 * (one - other)).abs().max() < 1e-5
    assert (one - other).abs().max() > 1e-3


def test_a_distilled_scale_is_no_classifier_free_one():
    pipe = make("FLUX.2")
    ours = PipelineDenoiser(pipe, size=(16, 24))
    (given,) = {float(each.values["guidance"][0]) for each in ours.cache.values()}
    assert given == 4.0  # the pipeline's own default
    with pytest.raises(InputError, match="as Flux2Pipeline has no unconditional model"):
        ours(torch.randn(1, *ours.shape), ours.schedule.levels(3)[1], prompt="a ball", cfg_scale=2.0)
