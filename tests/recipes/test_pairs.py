"""Any choice on one axis works with any choice on the others, or is refused in one line that says why.

Combinations are drawn so that every pair of choices on two axes stands in at least one of them. Each walks three steps
on the mixture and on a small U-Net: finite, of the right shape, and each image as it would be alone. Networks see one
image at a time, so that nothing but the walk itself could tell a batch from an image alone.
"""

import random
from itertools import combinations

import pytest
import torch
from torch import nn

from steersman.errors import InputError
from steersman.lab.train.denoiser import unet
from steersman.models.classifiers import RAW, Classifier
from steersman.models.classifiers.smoothing import soften
from steersman.models.denoisers import DiffusersDenoiser
from steersman.recipes import Recipe
from steersman.recipes.axes import AXES
from steersman.recipes.schema import PAIRS
from steersman.sampling import sample
from steersman.schedule import VP

SEEDS, TARGETS = [4, 0, 9], [1, 0, 1]
THEIR_OWN = {"steps": 3, "clip": False}  # the walk of samplers that bring their levels

MOVED = {"kind": "denoised", "keeps": "sample"}  # where a guide may ascend more than once
MORE = {
    "objective": [{"kind": "class", "marginal": 0.5}],
    "smoothing": [["softplus", "montecarlo"]],
    "input": [{"kind": "denoised", "clip": False, "guided": True}],
    "wrt": [{"kind": "x0_hat", "ascents": 2}],
    "stabilizer": [["rms", "ema"]],
    "weight": [["deviation", {"kind": "interval", "ratio_min": 0.1, "ratio_max": 5.0}]],
    "injection": [MOVED],
    "sampler": [
        {"kind": "ddpm", "fixed": "large"},
        {"kind": "ddim", "eta": 0.5},
        {"kind": "heun", "churn": 1.0},
        {"kind": "diffusers", "scheduler": "EulerAncestralDiscrete"},
    ],
    "sampling": [
        *({"steps": 3, "spacing": each, "clip": False} for each in ("trailing", "karras")),
        {"steps": 3, "spacing": "logsnr", "ratio_min": 0.05, "ratio_max": 50.0},
        {"steps": 3, "keeps": "noise"},
    ],
    "recurrence": [{"times": 2, "ratio_max": 100.0}],
    "weighs": [{"particles": False}],
    "particles": [
        {"count": 3, "ratio_max": 0.0},
        {"count": 2, "potential": "difference", "fraction": 0.5, "choice": "draw"},
        {"count": 2, "potential": "max", "ratio_min": 0.5, "every": 2, "retries": 1, "retry_below": -0.5},
        {"count": 2, "potential": "difference", "choice": "draw", "corrected": True},
    ],
}
CHOICES = {
    axis: [*({"kind": kind} if len(kinds) > 1 else {} for kind in kinds), *MORE.get(axis, [])]
    for axis, kinds in AXES.items()
    if axis not in ("preprocess", "scale")
} | {
    "sampling": MORE["sampling"],
    "extra_guides": [
        [],
        [{"wrt": {"kind": "x0_hat", "ascents": 2}, "input": "denoised", "injection": MOVED, "scale": 0.05}],
        [{"input": {"kind": "denoised", "guided": True}}, {"loss": "root", "stabilizer": "adam", "scale": -0.05}],
    ],
}


def drawn():
    """Combinations, each a choice of every axis, that hold every pair."""
    chance = random.Random(0)
    pairs = {
        ((a, i), (b, j))
        for a, b in combinations(CHOICES, 2)
        for i in range(len(CHOICES[a]))
        for j in range(len(CHOICES[b]))
    }
    while pairs:
        picked = dict(chance.choice(sorted(pairs)))
        for axis in chance.sample(sorted(CHOICES), len(CHOICES)):
            if axis not in picked:
                picked[axis] = max(
                    range(len(CHOICES[axis])),
                    key=lambda place, axis=axis: (
                        sum(tuple(sorted([(axis, place), each], key=ORDER)) in pairs for each in picked.items()),
                        chance.random(),
                    ),
                )
        pairs -= {tuple(sorted(pair, key=ORDER)) for pair in combinations(picked.items(), 2)}
        yield {axis: CHOICES[axis][place] for axis, place in sorted(picked.items())}


def ORDER(choice):  # noqa: N802
    return list(CHOICES).index(choice[0])


COMBINATIONS = list(drawn())


def kinds(section):
    return [
        each.get("kind", "") if isinstance(each, dict) else each
        for each in ([section] if isinstance(section, dict) else section)
    ]


def refused(settings):
    """Why a combination cannot be, as its message begins."""
    if settings["ensemble"]["kind"] == "verifier" and settings["particles"].get("count", 1) == 1:
        return "ensemble: verifier must have particles to weigh, particles.count of 2 or more, got 1"
    noiseless = {"heun", "dpmpp"} | ({"ddim"} if not settings["sampler"].get("eta") else set())
    ascends = settings["wrt"].get("ascents", 1) > 1
    if ascends and (settings["injection"]["kind"] != "denoised" or settings["input"]["kind"] in ("noisy", "rescaled")):
        return "wrt.ascents must be 1 unless wrt is x0_hat"
    noiseless |= {"diffusers"} if "scheduler" not in settings["sampler"] else set()
    sampler, injection = settings["sampler"]["kind"], settings["injection"]["kind"]
    if sampler == "diffusers" and "spacing" in settings["sampling"]:
        return "sampling.spacing, sampling.ratio_min and sampling.ratio_max"
    corrected = settings["particles"].get("corrected", False)
    unweighed = settings["particles"].get("count", 1) > 1 and not settings["weighs"].get("particles", True)
    if unweighed and not (injection == "spherical" and sampler in noiseless - {"diffusers"}):
        return "particles.count must be 1 without a guide that weighs them"
    lacks_noise = []
    if sampler in noiseless:
        lacks_noise += ["injection must not be spherical with a sampler whose steps end without noise"] * (
            injection == "spherical"
        )
        lacks_noise += ["particles.corrected must be false with a sampler whose steps end without noise"] * corrected
    if lacks_noise and sampler != "diffusers":
        return lacks_noise[0]
    if corrected and injection in ("sample", "spherical"):
        return "particles.corrected must be false with a guidance update of the "
    return lacks_noise[0] if lacks_noise else None


class Network(nn.Module):
    """A small classifier with ReLUs; one logit, or three."""

    def __init__(self, count):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(16), nn.ReLU6(), nn.Linear(16, count)
        )

    def forward(self, x):
        return self.layers(x)


@pytest.fixture(scope="module")
def denoiser():
    torch.manual_seed(0)
    denoiser = DiffusersDenoiser(unet(8, 2, widths=(8, 16)), schedule=VP.cosine(), classes=("0", "1"))
    denoiser.block = 1
    return denoiser


@pytest.fixture(scope="module")
def classifiers():
    torch.manual_seed(1)
    made = {}
    for count in (1, 3):
        network = Network(count)
        network(torch.zeros(1, 3, 8, 8))
        for soft in (False, True):
            names = ("yes", "no") if count == 1 else ("a", "b", "c")
            used = soften(network, 4.0)[0] if soft else network
            made[count, soft] = Classifier(used, preprocess=RAW, names=names, binary=count == 1)
            made[count, soft].block = 1
    return made


def walk(settings, denoiser, classifier, seeds, targets, **given):
    recipe = Recipe(name="pair", title="", settings={**settings, "scale": 0.1}).check()
    others = [(classifier, {0: 1, 1: 0})] if settings["ensemble"]["kind"] in PAIRS else []
    guides = recipe.bind_prepared(classifier, *others)
    if "difference" in kinds(settings["weight"]):
        given["condition"] = {"label": torch.tensor(targets), "cfg_scale": 1.5}
    return sample(denoiser, recipe.sampler(), guides=guides, target=targets, seeds=seeds, **recipe.sampling(), **given)


def check(settings, denoiser, classifier, tolerance, **given):
    reason = refused(settings)
    if reason is not None:
        with pytest.raises(InputError, match=reason):
            walk(settings, denoiser, classifier, SEEDS, TARGETS, **given)
        if reason.startswith("wrt"):
            check(
                settings | {"injection": MOVED, "input": {"kind": "denoised"}}, denoiser, classifier, tolerance, **given
            )
        if reason.startswith("sampling"):
            check(settings | {"sampling": THEIR_OWN}, denoiser, classifier, tolerance, **given)
        return
    together = walk(settings, denoiser, classifier, SEEDS, TARGETS, **given)
    assert together.shape == (3, *denoiser.shape)
    assert together.isfinite().all()
    for row, (seed, target) in enumerate(zip(SEEDS, TARGETS, strict=True)):
        alone = walk(settings, denoiser, classifier, [seed], [target], **given)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=tolerance, atol=tolerance)


@pytest.mark.few(12)
@pytest.mark.parametrize("settings", COMBINATIONS, ids=range(len(COMBINATIONS)))
def test_on_the_mixture(settings, mixture):
    def classifier(image, level=None):
        logits = mixture.log_posterior(image, level)
        return logits[:, :1] if settings["objective"]["kind"] == "binary" else logits

    check(settings, mixture, classifier, 1e-6, dtype=torch.float64)


@pytest.mark.few(36)
@pytest.mark.parametrize("settings", COMBINATIONS, ids=range(len(COMBINATIONS)))
def test_on_a_network(settings, denoiser, classifiers):
    count = 1 if settings["objective"]["kind"] == "binary" else 3
    check(settings, denoiser, classifiers[count, "softplus" in kinds(settings["smoothing"])], 0.0)


def test_every_pair_is_among_them():
    assert len(COMBINATIONS) < 150
    for axis, other in combinations(CHOICES, 2):
        found = {(str(each[axis]), str(each[other])) for each in COMBINATIONS}
        assert len(found) == len(CHOICES[axis]) * len(CHOICES[other])
