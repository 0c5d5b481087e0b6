"""Sampling on an accelerator: as on a CPU, and after the first step the host waits for nothing."""

import copy
import json

import pytest
import torch
from torch import nn

from accelerator import Accelerator, Steps
from recipes.test_recipes import FORMATS, TOLD, classifier, pixels
from sample.test_diffusers import CASES, SETTINGS, made
from steersman.denoise import Prediction, to_x0
from steersman.errors import InputError
from steersman.guidance import ClassProbability, Constant, DenoisedImage, Ema, Guide, Sum, TargetLogit, Translated
from steersman.lab.evaluation import evaluate_images
from steersman.models.classifiers import RAW, TextClassifier
from steersman.recipes import load_recipe, recipe_names
from steersman.sampling import DDIM, DDPM, DiffusersSampler, DPMpp, Heun, Particles, Recurrence, sample
from steersman.schedule import EDM, VP, from_diffusers, times

FLOAT32 = {"rtol": 2e-4, "atol": 2e-4}
"""Three steps of a tiny network in float32, of which the pretend device composes some operations otherwise."""


class Tiny(nn.Module):
    """A denoiser of one convolution, which learns a variance too, told the time as a network is."""

    classes = ()
    shape = (3, 4, 4)

    def __init__(self, schedule, kind="epsilon", learned=True):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.kind, self.learned = nn.Conv2d(3, 6, 3, padding=1).requires_grad_(False), kind, learned
        self.schedule = schedule

    def forward(self, x_t, level, **condition):
        time = times(level, len(x_t), x_t.device, x_t.dtype)
        output, fraction = (self.layer(x_t) * (1 + 1e-3 * time[:, None, None, None]).tanh()).chunk(2, 1)
        x0_hat = to_x0(self.kind, x_t, output, level).tanh()
        return Prediction(x0_hat, fraction.sigmoid() if self.learned else None)

    def decode(self, x0):
        return x0


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    built = {}

    def of(build):
        if build not in built:
            built[build] = build(tmp_path_factory.mktemp(build.__name__))
        return copy.deepcopy(built[build])

    return of


@pytest.fixture
def compare(accelerator):
    """Draws on both devices with what a function makes for each: the same, waiting for nothing after a step."""

    def both(make):
        found = []
        for device in (torch.device("cpu"), accelerator.device):
            denoiser, sampler, given = make(device)
            steps = Steps(accelerator)
            settings = {"target": [1, 0], "seeds": [5, 6], "steps": 3, "device": device, "callbacks": [steps]}
            found.append(sample(denoiser, sampler, **{**settings, **given}))
            assert steps.waits == []
        assert found[1].device == accelerator.device and accelerator.doubles == []
        assert found[0].isfinite().all()
        torch.testing.assert_close(found[1].cpu(), found[0], **FLOAT32)

    return both


def ours(device, **choices):
    """A guide whose push is a good part of a step."""
    objective = ClassProbability(classifier=classifier().to(device))
    settings = {"objective": objective, "scale": 0.3, "weight": Constant(), "stabilizer": Ema(beta=0.5)}
    return Guide(**{**settings, **choices})


STRUCTURES = {}
for each in recipe_names():
    kinds = json.dumps(load_recipe(each).resolved(), default=str, sort_keys=True).split('"kind": ')[1:]
    STRUCTURES.setdefault(tuple(kind.partition(",")[0].partition("}")[0] for kind in kinds), each)


@pytest.mark.few(12)
@pytest.mark.parametrize("name", list(STRUCTURES.values()))
def test_every_recipe(name, model, compare):
    """Of recipes that choose the same on every axis, the first."""
    build, condition = FORMATS.get(name.split("/")[0], (pixels, {}))
    mild = {"polyak": ["scale=1e-6"]}  # its weight, 1 / |g|^2 of a network that knows nothing, is beyond any image
    recipe = load_recipe(name, ["sampling.steps=3", *mild.get(name.split("/")[0], [])])
    binary = recipe.resolved()["objective"]["kind"] == "binary"
    beta = recipe.classifier_settings()["softplus"]

    def make(device):
        guide = classifier(binary=binary, noise_aware=name.split("/")[0] in TOLD, beta=beta).to(device)
        told = {key: value.to(device) if torch.is_tensor(value) else value for key, value in condition.items()}
        given = {"guides": recipe.bind_prepared(guide), "condition": told, **recipe.sampling()}
        return model(build).to(device), recipe.sampler(), given

    compare(make)


@pytest.mark.few(3)
@pytest.mark.parametrize("learned", [False, True], ids=["fixed", "learned"])
@pytest.mark.parametrize(
    "sampler",
    [DDPM(), DDPM(fixed="large"), DDPM(fixed="clipped"), DDIM(), DDIM(eta=0.5), Heun(churn=1.0), DPMpp()],
    ids=str,
)
def test_every_sampler_with_recurrence(sampler, learned, compare):
    def make(device):
        given = {"guides": [ours(device)], "recurrence": Recurrence(times=2)}
        return Tiny(VP.cosine(), learned=learned).to(device), sampler, given

    compare(make)


@pytest.mark.few(7)
@pytest.mark.parametrize("name", CASES)
def test_every_scheduler_of_diffusers(name, compare):
    kind, configs, _ = CASES[name]
    scheduler = made(kind, configs[0])
    schedule = EDM() if name.startswith("EDM") else from_diffusers(scheduler.config)
    means = scheduler.config.get("prediction_type", "flow_prediction")

    def make(device):
        given = {"guides": [ours(device)], "steps": 6}
        denoiser = Tiny(schedule, "sample" if name.startswith("EDM") else means, learned=False)
        return denoiser.to(device), DiffusersSampler(scheduler, **SETTINGS.get(kind, {})), given

    compare(make)


@pytest.mark.few(3)
@pytest.mark.parametrize("potential", ["sum", "difference", "max"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"fraction": 0.5, "choice": "draw"}, {"ratio_min": 0.5}, {"corrected": True, "every": 2}, {"ratio_max": 0.0}],
    ids=str,
)
def test_particles(potential, settings, compare):
    def make(device):
        particles = Particles(count=3, potential=potential, temperature=0.5, **settings)
        return Tiny(VP.cosine()).to(device), DDPM(), {"guides": [ours(device)], "particles": particles, "steps": 4}

    compare(make)


def test_classifiers_with_vocabularies_of_their_own(compare):
    def make(device):
        exact = TargetLogit(classifier=classifier().to(device))
        blend = Sum([(1.0, exact), (0.5, Translated(objective=exact, classes={0: 2, 1: 0}))])
        given = {"guides": [ours(device, objective=blend)], "particles": Particles(count=2)}
        return Tiny(VP.cosine()).to(device), DDPM(), given

    compare(make)


def test_several_ascents_of_a_text(compare):
    def make(device):
        torch.manual_seed(3)
        network, words = nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), torch.randn(2, 5)
        texts = TextClassifier(
            network, encode=lambda text: words[len(text) % 2], sharpness=3.0, preprocess=RAW, names=("a", "of")
        ).to(device)
        guide = ours(device, objective=TargetLogit(classifier=texts), injection=DenoisedImage(), ascents=2)
        return Tiny(VP.cosine()).to(device), DDIM(), {"guides": [guide]}

    compare(make)


def test_metal_without_float64(model):
    """On the pretend ``mps``, which refuses float64, a guided run is drawn and judged as on a CPU."""
    recipe = load_recipe("fk-steering", ["sampling.steps=3"])
    settings = {"target": [1, 0], "seeds": [5, 6], **recipe.sampling()}
    guide = classifier()
    expected = sample(model(pixels), recipe.sampler(), guides=recipe.bind_prepared(guide), **settings)
    said = evaluate_images(guide, expected, [1, 0])
    with Accelerator("mps") as metal:
        there = copy.deepcopy(guide).to(metal.device)
        denoiser = model(pixels).to(metal.device)
        found = sample(denoiser, recipe.sampler(), guides=recipe.bind_prepared(there), device=metal.device, **settings)
        assert [row.accuracy for row in evaluate_images(there, found, [1, 0])] == [row.accuracy for row in said]
        torch.testing.assert_close(found.cpu(), expected, **FLOAT32)
        with pytest.raises(InputError, match=r"dtype must be torch.float32 on mps"):
            sample(denoiser, recipe.sampler(), seeds=[1], steps=2, device=metal.device, dtype=torch.float64)
