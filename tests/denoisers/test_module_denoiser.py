"""One's own network, saved by one's own code, as a denoiser by the name of a function."""

import importlib
import sys

import pytest
import torch

from steersman.denoise import Prediction, eps_from_x0, output_for
from steersman.errors import InputError
from steersman.models.denoisers import NetworkDenoiser, load_denoiser
from steersman.sampling import DDIM, sample
from steersman.schedule import EDM, VP

OWN = '''
import torch
from steersman.models.denoisers import NetworkDenoiser
from steersman.schedule import VP

class Course(torch.nn.Module):
    """As a course's notebook has it: the noise of images at whole times."""

    def __init__(self):
        super().__init__()
        self.times = torch.nn.Embedding(200, 8)
        self.first, self.last = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x, t):
        return self.last(torch.relu(self.first(x) + self.times(t)[:, :, None, None]))

class Diffusion(torch.nn.Module):
    """As the well-known package has it: the network within, and the noise as buffers."""

    def __init__(self, model, objective="pred_v"):
        super().__init__()
        self.model, self.channels, self.image_size, self.objective = model, 3, (16, 16), objective
        betas = torch.linspace(1e-4, 0.06, 200, dtype=torch.float64)
        self.register_buffer("betas", betas.float())
        self.register_buffer("alphas_cumprod", (1 - betas).cumprod(0).float())

def saved():
    torch.manual_seed(0)
    torch.save({"model": Diffusion(Course()).state_dict(), "step": 5}, "mine.pt")

def make():
    diffusion = Diffusion(Course())
    diffusion.load_state_dict(torch.load("mine.pt", weights_only=True)["model"])
    kinds = {"pred_noise": "epsilon", "pred_x0": "sample", "pred_v": "v_prediction"}
    return NetworkDenoiser(
        diffusion.model,
        schedule=VP.from_betas(diffusion.betas),
        parameterization=kinds[diffusion.objective],
        shape=(diffusion.channels, *diffusion.image_size),
        time_dtype=torch.int64,
    )

def network():
    return Course()

def half():
    class Half:
        schedule, shape, classes = VP.linear(), (3, 16, 16), ()
        def __call__(self, x_t, level):
            return x_t
    return Half()

def changed(**changes):
    made = make()
    for key, value in changes.items():
        setattr(made, key, value)
    return made

def shapeless(): return changed(shape=16)
def negative(): return changed(shape=(3, -16, 16))
def nameless(): return changed(classes=["a"])
def unscheduled(): return changed(schedule=torch.linspace(1e-4, 0.02, 1000))
def other(): return changed(shape=(4, 16, 16))
def larger(): return changed(_evaluate=lambda x, t, label: torch.cat([x, x], 2))
def raw(): return changed(decode=lambda x: x.numpy().tolist())

class Bare(NetworkDenoiser):
    def __call__(self, x_t, level, **condition):
        return x_t

def bare():
    return Bare(Course(), schedule=VP.linear(), shape=(3, 16, 16))

def fails():
    raise RuntimeError("first line\\nsecond line")
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The module and its weights, in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_course.py").write_text(OWN)
    sys.path.append(str(tmp_path))
    try:
        own_course = importlib.import_module("own_course")
        own_course.saved()
        yield own_course
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("own_course", None)


def test_it_is_the_network_as_its_own_code_would_ask_it(own):
    denoiser = load_denoiser("module:own_course:make", dtype=torch.float64)
    assert (denoiser.shape, denoiser.classes, denoiser.latent) == ((3, 16, 16), (), False)
    diffusion = own.Diffusion(own.Course()).double()
    diffusion.load_state_dict(torch.load("mine.pt", weights_only=True)["model"])
    x_t = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    for t in (0, 77, 199):
        level = denoiser.schedule.at_time(float(t))
        alpha_bar = diffusion.alphas_cumprod[t].double()
        v = diffusion.model(x_t, torch.full((2,), t))
        expected = alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * v
        # the buffers are float32, 2^-24 of alpha_bar
        torch.testing.assert_close(denoiser(x_t, level).x0_hat, expected, rtol=0, atol=1e-6)
    assert sample(denoiser, DDIM(), seeds=range(2), steps=5, spacing="karras").isfinite().all()


@pytest.mark.long
def test_it_is_drawn_and_guided_on_the_command_line(own, call, tmp_path):
    walk = ["--steps", 3, "--num", 1, "--judge", "none", "--target", "baseball", "--recipe", "nrcg"]
    code, _, said = call("sample", "--denoiser", "module:own_course:make", *walk, "--out", "out")
    assert code == 0, said
    code, _, said = call("sample", "--from", "out/run.yaml", "--out", "again")
    refused = code == 2 and "module:own_course:make" in said
    if refused:
        trusted = ["--trust", "module:own_course:make"]
        code, _, said = call("sample", "--from", "out/run.yaml", "--out", "again", *trusted)
    assert code == 0, said
    first, again = (tmp_path / folder / "000000.png" for folder in ("out", "again"))
    from PIL import Image, ImageChops

    assert ImageChops.difference(Image.open(first), Image.open(again)).getbbox() is None


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nothing", "unknown function of module 'own_course' 'nothing'"),
        ("fails", r"denoiser: own_course.fails\(\) failed .RuntimeError: first line"),
        (
            "network",
            r"network\(\) must return a Denoiser, got Course without network, schedule, shape, classes, decode;",
        ),
        ("half", "got Half without network, decode, to; wrap a network as NetworkDenoiser"),
        ("shapeless", "the shape of .* must be that of one sample, such as .3, 64, 64., got 16"),
        ("negative", r"the shape of .* got \(3, -16, 16\)"),
        ("nameless", "the classes of .* must be a tuple of names"),
        ("unscheduled", "the schedule of .* must be VP, EDM, Flow or one with their methods, got Tensor"),
        ("other", "fails when it is asked .RuntimeError: "),
        ("larger", r"must return the shape of its input, \(1, 3, 16, 16\), .* got \(1, 3, 32, 16\)"),
        ("raw", "and decode it into an image"),
        ("bare", "must make a Prediction of x0_hat of .* got Tensor"),
    ],
)
def test_what_does_not_meet_the_contract_is_refused_in_a_line(function, message, own):
    with pytest.raises(InputError, match=message) as refused:
        load_denoiser(f"module:own_course:{function}")
    assert "\n" not in str(refused.value)


class Told(torch.nn.Module):
    """Puts out what a perfect network would of an image, and remembers what it was told."""

    def __init__(self, kind, x0, eps, level):
        super().__init__()
        self.output, self.told = output_for(kind, x0, eps, level), []

    def forward(self, x, time, *label):
        self.told.append((time, *label))
        return (self.output.to(x).expand(len(x), *self.output.shape[1:]), "more")


@pytest.mark.parametrize("shape", [(5,), (2, 7), (1, 4, 4), (4, 4, 4), (3, 2, 4, 4)])
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction", "flow_prediction"])
def test_samples_of_any_shape_and_prediction(kind, shape, draw):
    x0, eps, level = draw(1, *shape), draw(1, *shape), VP.linear().at_time(300.0)
    network = Told(kind, x0, eps, level)
    denoiser = NetworkDenoiser(network, schedule=VP.linear(), shape=shape, parameterization=kind, time_scale=0.001)
    x_t = level.alpha * x0 + level.sigma * eps
    found = denoiser(x_t, level)
    torch.testing.assert_close(found.x0_hat, x0)
    torch.testing.assert_close(eps_from_x0(x_t, found.x0_hat, level), eps)
    torch.testing.assert_close(network.told[0][0], torch.tensor([0.3]))


def test_labels_and_their_null(draw):
    x0, eps, level = draw(1, 1, 4, 4), draw(1, 1, 4, 4), EDM().at_ratio(2.0)
    network = Told("epsilon", x0, eps, level)
    denoiser = NetworkDenoiser(network, schedule=EDM(), shape=(1, 4, 4), classes=["a", "b"], null=7)
    x_t, label = (x0 + 2 * eps).expand(2, -1, -1, -1), torch.tensor([1, 0])
    assert isinstance(denoiser(x_t, level, label=label, cfg_scale=3.0), Prediction)
    denoiser(x_t, level)
    assert [told[1].tolist() for told in network.told] == [[1, 0, 7, 7], [7, 7]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"parameterization": "eps"}, "unknown parameterization 'eps'"),
        ({"shape": ()}, r"shape must be that of one sample, such as \(3, 64, 64\), got \(\)"),
        ({"shape": (3, 0)}, "shape must be"),
        ({"time_scale": 0.0}, "time_scale must be above 0 and finite, got 0.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, message, unchecked):
    with pytest.raises(InputError, match=message):
        NetworkDenoiser(torch.nn.Identity(), **{"schedule": VP.linear(), "shape": (3, 4, 4), **wrong})
