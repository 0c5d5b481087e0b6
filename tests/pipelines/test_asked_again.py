"""A pipeline's network is asked again: lookahead, recurrence and particles, as in our own sampling."""

import pytest
import torch

import steersman
from pipelines.families import FAMILIES, MILD, asked_again, draw, draws, make, unet2d, wide
from steersman.errors import InputError
from steersman.guidance import Lookahead, Mean, NoisePrediction, Sample
from steersman.models.denoisers import DiffusersDenoiser
from steersman.recipes import load_recipe
from steersman.sampling import DDIM, DDPM, Particles, Recurrence, sample
from steersman.schedule import VP

diffusers = pytest.importorskip("diffusers")

QUICK_TURNS = ["DDPM", "DiT", "SD ControlNet", "FluxCFG", "Z-Image", "CogVideoX"]


@pytest.mark.few(3)
@pytest.mark.parametrize("name", wide(FAMILIES, QUICK_TURNS))
def test_a_turn_of_the_loop_is_what_the_pipeline_computes_from_sample_and_time(name, guide, monkeypatch):
    assert asked_again(make(name), name, guide, monkeypatch) < 1e-5


def ours():
    config = diffusers.DDPMScheduler(**MILD).config
    return DiffusersDenoiser(unet2d(), schedule=VP.from_diffusers(config))


def noise(generators, count):
    return [torch.cat([torch.randn(1, 3, 16, 16, generator=each) for each in generators]) for _ in range(count)]


PIXELS = {"clip_sample": False, "timestep_spacing": "leading"}
PLAIN = {"target": [1, 2], "seeds": [0, 1], "steps": 4, "spacing": "leading", "clip": False}


@pytest.mark.few(2)
@pytest.mark.parametrize("wrt", ["x0_hat", "x_t"])
@pytest.mark.parametrize("evaluations", [1, 2])
def test_lookahead_is_our_own(evaluations, wrt, guide):
    pipe = make("DDIM", "DDIM", **PIXELS)
    steering = guide(wrt=wrt, input=Lookahead(evaluations=evaluations, until=0.1), injection=NoisePrediction())
    with steersman.steer(pipe, steering, target=[1, 2]):
        images = draw(pipe, "DDIM", 4, eta=0.0)
    expected = sample(ours(), DDIM(), guides=[steering], noise=noise(draws(), 1), **PLAIN)
    assert (expected.clamp(-1, 1) - images).abs().max() < 1e-5


def test_a_sample_is_moved_before_the_network_is_asked(guide):
    pipe = make("DDIM", "DDIM", **PIXELS)
    steering = [guide(injection=Sample(), wrt="x_t"), guide(injection=Mean())]
    with steersman.steer(pipe, steering, target=[1, 2]):
        images = draw(pipe, "DDIM", 4, eta=0.0)
    expected = sample(ours(), DDIM(), guides=steering, noise=noise(draws(), 1), **PLAIN)
    assert (expected.clamp(-1, 1) - images).abs().max() < 1e-5


@pytest.mark.parametrize("scheduler", ["DDIM", "DDPM"])
def test_recurrence_is_our_own(scheduler, guide):
    pipe = make("DDIM" if scheduler == "DDIM" else "DDPM", scheduler, **PIXELS)
    steering, recurrence = guide(wrt="x_t"), Recurrence(times=3, ratio_min=0.2)
    call = {"eta": 0.0} if scheduler == "DDIM" else {}
    with steersman.steer(pipe, steering, target=[1, 2], recurrence=recurrence):
        images = draw(pipe, "DDIM" if scheduler == "DDIM" else "DDPM", 4, **call)
    sampler = DDIM() if scheduler == "DDIM" else DDPM()
    drawn = noise(draws(), 20)
    expected = sample(ours(), sampler, guides=[steering], noise=iter(drawn), recurrence=recurrence, **PLAIN)
    assert (expected.clamp(-1, 1) - images).abs().max() < 1e-5
    plain = sample(ours(), sampler, guides=[steering], noise=iter(drawn), **PLAIN)
    assert (plain.clamp(-1, 1) - images).abs().max() > 0.05


@pytest.mark.parametrize("scale", [0.0, 0.5])
@pytest.mark.parametrize("ratio_min", [0.0, 0.5])
def test_particles_are_our_own(ratio_min, scale, guide):
    pipe, count = make("DDIM", "DDIM", **PIXELS), 3
    steering, particles = (
        guide(scale=scale),
        Particles(count=count, ratio_min=ratio_min, potential="max", temperature=0.05),
    )
    with steersman.steer(pipe, steering, target=[1, 2], particles=particles):
        images = draw(pipe, "DDIM", 4, eta=0.0)
    generators = draws()
    start = torch.stack(noise(generators, count), dim=1).flatten(0, 1)
    uniform = [torch.cat([torch.rand(1, generator=each, dtype=torch.float64) for each in generators]) for _ in range(5)]
    expected = sample(ours(), DDIM(), guides=[steering], noise=iter([start, *uniform]), particles=particles, **PLAIN)
    assert (expected.clamp(-1, 1) - images).abs().max() < 1e-5


@pytest.mark.parametrize("name", wide(["DiT", "SD", "Flux", "Z-Image", "CogVideoX"], ["DiT", "SD"]))
def test_particles_find_likelier_images_without_a_gradient(name, guide, likelihood):
    pipe = make(name, {"SD": "EulerAncestral"}.get(name))
    plain, particles = draw(pipe, name), Particles(count=6, temperature=0.01, potential="max")
    with steersman.steer(pipe, guide(scale=0.0), target=1, particles=particles):
        steered = draw(pipe, name)
    assert likelihood(steered, 1).mean() > likelihood(plain, 1).mean() + 0.01


def test_a_recipe_s_guides_bring_its_recurrence_and_particles(classifier):
    plain = load_recipe("fk-steering").bind_prepared(classifier)
    pipe = make("SD", "EulerAncestral")
    images = [draw(pipe, "SD")]
    with steersman.steer(pipe, plain, target=1):
        images.append(draw(pipe, "SD"))
    with steersman.steer(pipe, list(plain), target=1, particles=plain.particles, recurrence=plain.recurrence):
        images.append(draw(pipe, "SD"))
    assert torch.equal(images[1], images[2]) and not torch.equal(images[0], images[1])
    freedom = load_recipe("freedom").bind_prepared(classifier)
    assert freedom.recurrence == Recurrence(times=10, ratio_min=3.44, ratio_max=25.4) and freedom.particles.count == 1


@pytest.mark.long
def test_the_default_recipe_steers_a_pipeline(classifier, likelihood):
    """Lookahead, the gradient through both evaluations, recurrence and particles together."""
    changes = (
        "weight=constant",
        "scale=0.3",
        "stabilizer.by=norm",
        "particles.ratio_min=0.5",
        "recurrence.ratio_min=0.0",
    )
    guides = load_recipe("default", changes).bind_prepared(classifier)
    pipe = make("SD", "EulerAncestral")
    plain = draw(pipe, "SD")
    with steersman.steer(pipe, guides, target=1):
        steered = draw(pipe, "SD")
    assert (likelihood(steered, 1) > likelihood(plain, 1) + 0.01).all()


TWICE, THREE = {"recurrence": Recurrence(times=2)}, {"particles": Particles(count=3)}
REFUSED = {
    "recurrence with a history": ("SD", "DPMSolverMultistep", TWICE, "recurrence: DPMSolverMultistepScheduler keeps"),
    "particles with two stages": ("SD", "Heun", THREE, "particles: HeunDiscreteScheduler keeps"),
    "corrected": ("SD", "DDIM", {"particles": Particles(count=3, corrected=True)}, "corrected must be false"),
    "retries": (
        "SD",
        "DDIM",
        {"particles": Particles(count=3, retries=1)},
        "particles.retries must be 0 in a pipeline",
    ),
    "frames of an image": ("SD", "DDIM", {"frames": [0]}, "frames must be None"),
    "a frame beyond": ("Wan", "FlowMatchEuler", {"frames": [9]}, "frames must be -5 to 4, got 9"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_pipeline_cannot_do_is_refused(case, guide):
    name, scheduler, settings, message = REFUSED[case]
    pipe = make(name, scheduler)
    with pytest.raises(InputError, match=message), steersman.steer(pipe, guide(), target=1, **settings):
        draw(pipe, name)


def test_particles_of_a_call_that_ends_early_are_refused(guide):
    pipe = make("SD", "DDIM")

    def stop(pipe, index, time, given):
        pipe._interrupt = True
        return given

    message = "ended after 1 of 3 steps"
    with pytest.raises(InputError, match=message), steersman.steer(pipe, guide(), target=1, **THREE):
        draw(pipe, "SD", callback_on_step_end=stop)


def test_only_the_chosen_frames_are_seen(guide, classifier):
    from steersman.guidance import ClassProbability

    class Seeing(ClassProbability):
        def __call__(self, image, target, level):
            seen.append(image.detach())
            return super().__call__(image, target, level)

    pipe, seen = make("Wan", "FlowMatchEuler"), []
    steering = guide(objective=Seeing(classifier=classifier), scale=1e-30)
    with steersman.steer(pipe, steering, target=1, frames=[0, -1]):
        drawn = draw(pipe, "Wan")
    assert (seen[-1].unflatten(0, (2, 2)) - drawn[:, [0, -1]]).abs().max() < 1e-4


def test_a_block_in_which_no_step_was_guided_is_warned_of(guide, recwarn):
    pipe = make("DDPM")
    with pytest.warns(UserWarning, match="^steer: no step was guided"), steersman.steer(pipe, guide(scale=0.0), 1):
        draw(pipe, "DDPM")
    recwarn.clear()
    with steersman.steer(pipe, guide(), 1):
        draw(pipe, "DDPM")
    with steersman.steer(pipe, []):
        draw(pipe, "DDPM")
    assert not [each for each in recwarn if "steer" in str(each.message)]
