"""The table of pipelines in docs/models.md, which follows from what the other tests of this folder try.

``STEERSMAN_WRITE_DOCS=1 pytest tests/pipelines/test_table.py`` writes it anew.
"""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

import steersman
from pipelines.families import FAMILIES, unet2d, vae
from pipelines.test_asked_again import ONCE
from steersman.errors import InputError
from steersman.pipelines.walk import MEMORYLESS

diffusers = pytest.importorskip("diffusers")

DOCS = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- pipelines: written by tests/pipelines/test_table.py -->\n", "<!-- pipelines end -->\n"
HEAD = ("pipeline", "scheduler", "gradient to `x0_hat`", "gradient to `x_t`", "prompt batch", "asked again", "result")
TITLES = {
    "DDPM": "DDPM (ADM's networks, pixels)",
    "DDIM": "DDIM (pixels)",
    "LDM": "LDM (unconditional, `vqvae`)",
    "SD": "Stable Diffusion 1.5, image to image too",
    "SD3": "Stable Diffusion 3, 3.5",
    "Flux": "FLUX.1, distilled guidance",
    "FluxCFG": "FLUX.1, true classifier-free guidance",
    "PixArt": "PixArt-Σ",
    "Wan": "Wan 2.1 (video)",
    "LTX": "LTX-Video",
    "CogVideoX": "CogVideoX (video)",
}


class Tokens(nn.Module):
    def forward(self, hidden_states, timestep):
        return hidden_states


class Packing:
    """A pipeline that packs its latents in a way of its own."""

    def __init__(self, **parts):
        vars(self).update(parts)

    def _unpack_latents(self, latents):
        return latents


def parts(kind=SimpleNamespace, scheduler="DDIMScheduler", **more):
    return kind(scheduler=getattr(diffusers, scheduler)(), **{"unet": unet2d(), **more})


def temporal():
    return diffusers.AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",), block_out_channels=(32,), layers_per_block=1
    )


REFUSED = {
    "SANA-Sprint": (lambda: parts(scheduler="SCMScheduler"), "SCMScheduler", "unknown scheduler"),
    "Stable Cascade": (
        lambda: parts(scheduler="DDPMWuerstchenScheduler"),
        "DDPMWuerstchenScheduler",
        "unknown scheduler",
    ),
    "consistency models": (
        lambda: parts(scheduler="CMStochasticIterativeScheduler"),
        "CMStochasticIterativeScheduler",
        "unknown scheduler",
    ),
    "Stable Video Diffusion": (lambda: parts(vae=temporal()), "any", "must decode by the latents alone"),
    "AudioLDM 2, LTX-2 with sound": (lambda: parts(vocoder=nn.Identity()), "any", "makes sounds"),
    "latents packed in another way": (
        lambda: parts(Packing, vae=vae(), unet=Tokens()),
        "any",
        "packs its latents in a way that is not known here",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_table_calls_refused_is_refused_before_the_first_step(name, guide):
    build, _, message = REFUSED[name]
    with pytest.raises(InputError, match=message) as said, steersman.steer(build(), guide(), target=1):
        pass
    assert "\n" not in str(said.value)


def rows():
    """Each pair of pipeline and scheduler is tried by `test_steer`, both gradients and two prompts a call."""
    for name, family in FAMILIES.items():
        asked = ONCE.get(name, family.schedulers[0])
        for scheduler in family.schedulers:
            kind = next(each for each in vars(diffusers) | dict.fromkeys(dir(diffusers)) if is_kind(each, scheduler))
            again = "lookahead" + (", recurrence, particles" if kind in MEMORYLESS else "")
            title = TITLES.get(name, name)
            yield (
                title,
                kind,
                "yes",
                "yes",
                "yes",
                again,
                "steered" + (", checked to 1e-5" if asked == scheduler else ""),
            )
    for name, (_, scheduler, message) in REFUSED.items():
        yield name, scheduler, "no", "no", "no", "no", f"refused: {message}"


def is_kind(each, scheduler):
    return each in {scheduler + end for end in ("Scheduler", "DiscreteScheduler", "MultistepScheduler")}


def test_the_table_in_the_docs_is_that_of_the_tests():
    lines = [HEAD, ("---",) * len(HEAD), *rows()]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    text = DOCS.read_text(encoding="utf-8")
    before, found, after = text.partition(BEGIN)
    _, ends, after = after.partition(END)
    assert found and ends
    expected = before + BEGIN + table + END + after
    if os.environ.get("STEERSMAN_WRITE_DOCS"):
        DOCS.write_text(expected, encoding="utf-8")
    assert text == expected, "run this test with STEERSMAN_WRITE_DOCS=1"
