"""The table of pipelines in docs/models.md, each row of which is tried here.

``STEERSMAN_WRITE_DOCS=1 pytest -n 0 -m "long or not long" tests/pipelines/test_table.py`` writes it anew.
"""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

import steersman
from pipelines.families import FAMILIES, PAIRS, asked_again, draw, make, reaching, unet2d, vae, wide
from steersman.errors import InputError
from steersman.guidance import Mean, NoisePrediction
from steersman.models.denoisers.folder import PIPELINES
from steersman.pipelines.steered import MEMORYLESS
from steersman.sampling import Particles, Recurrence

diffusers = pytest.importorskip("diffusers")

WRITES = bool(os.environ.get("STEERSMAN_WRITE_DOCS"))
DOCS = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- pipelines: written by tests/pipelines/test_table.py -->\n", "<!-- pipelines end -->\n"
HEAD = (
    "pipeline",
    "scheduler",
    "gradient to `x0_hat`",
    "gradient to `x_t`",
    "prompt batch",
    "asked again",
    "`sample --denoiser`",
    "result",
)
TITLES = {
    "DDPM": "DDPM (ADM's networks, pixels)",
    "DDIM": "DDIM (pixels)",
    "LDM": "LDM (unconditional, `vqvae`)",
    "SD": "Stable Diffusion 1.5",
    "SD img2img": "Stable Diffusion 1.5, image to image",
    "SD inpaint": "Stable Diffusion 1.5, inpainting, network of nine channels",
    "SD ControlNet": "Stable Diffusion 1.5, ControlNet",
    "SDXL img2img": "SDXL, image to image",
    "SDXL inpaint": "SDXL, inpainting, network of four channels",
    "SD3": "Stable Diffusion 3",
    "SD3.5": "Stable Diffusion 3.5",
    "Flux": "FLUX.1, distilled guidance",
    "FluxCFG": "FLUX.1, true classifier-free guidance",
    "Flux img2img": "FLUX.1, image to image",
    "PixArt": "PixArt-Σ",
    "Wan": "Wan 2.1 (video)",
    "LTX": "LTX-Video",
    "CogVideoX": "CogVideoX (video)",
}
NOT_OF_TEXTS = ("DDPMPipeline", "DDIMPipeline", "LDMPipeline", "DiTPipeline")


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


def kind_of(scheduler):
    ends = ("Scheduler", "DiscreteScheduler", "MultistepScheduler")
    return next(each for each in dir(diffusers) if each in {scheduler + end for end in ends})


def measured(name, scheduler, guide, likelihood, monkeypatch):
    """Returns a row of the table, each cell of what was tried here: two images, or prompts, a call."""
    pipe, kind = make(name, scheduler), kind_of(scheduler)
    plain = draw(pipe, name)

    def steers(**settings):
        with steersman.steer(pipe, guide(**reaching(name, **settings)), target=1):
            steered = draw(pipe, name)
        gained = likelihood(steered, 1) - likelihood(plain, 1)
        return steered.isfinite().all() and len(gained) == 2 and (gained > FAMILIES[name].margin).all()

    direct, through = steers(injection=Mean()), steers(wrt="x_t", injection=NoisePrediction())
    error = asked_again(pipe, name, guide, monkeypatch)
    again = ["lookahead"] if error < 1e-5 else []
    for more, setting in (("recurrence", Recurrence(times=2)), ("particles", Particles(count=2))):
        try:
            with steersman.steer(pipe, guide(**reaching(name)), target=1, **{more: setting}):
                again += [more] if draw(pipe, name).isfinite().all() else []
        except InputError:
            assert kind not in MEMORYLESS or FAMILIES[name].begins
    loads = type(pipe).__name__ in (*PIPELINES, *NOT_OF_TEXTS)
    cells = ["yes" if each else "no" for each in (direct, through, direct and through)]
    checked = ", checked to 1e-5" if error < 1e-5 else ""
    return TITLES.get(name, name), kind, *cells, ", ".join(again), "yes" if loads else "no", f"steered{checked}"


def table():
    """Returns the table's rows by pipeline and scheduler, as they stand in the docs."""
    text = DOCS.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    lines = [tuple(each.strip() for each in line.strip(" |").split("|")) for line in text.splitlines()[2:]]
    return {line[:2]: line for line in lines}


def order():
    """Returns what the rows begin with, in their order."""
    return [(TITLES.get(name, name), kind_of(scheduler)) for name, scheduler in PAIRS] + [
        (name, scheduler) for name, (_, scheduler, _) in REFUSED.items()
    ]


def write(**changed):
    """Writes the table anew, with changed rows."""
    rows = table() | {row[:2]: row for row in changed.values()}
    lines = [HEAD, ("---",) * len(HEAD), *(rows[key] for key in order() if key in rows)]
    before, _, after = DOCS.read_text(encoding="utf-8").partition(BEGIN)
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    DOCS.write_text(f"{before}{BEGIN}{text}{END}{after.partition(END)[2]}", encoding="utf-8")


@pytest.mark.few(2)
@pytest.mark.parametrize(("name", "scheduler"), wide(PAIRS, [("DDIM", "DDIM"), ("SDXL Turbo", "EulerAncestral")]))
def test_a_row_of_the_table_is_what_was_tried(name, scheduler, guide, likelihood, monkeypatch):
    row = measured(name, scheduler, guide, likelihood, monkeypatch)
    if WRITES:
        write(row=row)
    assert table()[row[:2]] == row, "run this test with STEERSMAN_WRITE_DOCS=1"


def test_the_table_names_what_is_tried_and_what_is_refused():
    refused = {
        (name, scheduler): (name, scheduler, *["no"] * 4, "no", f"refused: {message}")
        for name, (_, scheduler, message) in REFUSED.items()
    }
    if WRITES:
        write(**{" ".join(key): row for key, row in refused.items()})
    assert list(table()) == order()
    assert {key: row for key, row in table().items() if key in refused} == refused
