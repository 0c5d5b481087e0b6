"""What an image costs: counted calls and passes back, by measured times."""

import pytest

from steersman.lab.generate import generate
from steersman.lab.run import Run
from steersman.lab.session import Networks, load_session
from steersman.lab.tune.cost import Prices
from steersman.recipes import load_recipe

STEPS = 6
PLAIN = ("sampling.steps=6", "preprocess.size=null")


@pytest.fixture(scope="module")
def networks():
    return Networks()


@pytest.fixture
def counted(denoiser, networks, tmp_path):
    def count(name, *changes, **settings):
        settings = {"targets": ("baseball",), "denoiser": denoiser, "judge": None} | settings
        settings = {"classifiers": ("zoo:sportballs-mobilenet",)} | settings
        run = Run(recipe=load_recipe(name, (*PLAIN, *changes)), **settings)
        return Prices(tmp_path / "prices.json").of(load_session(run, networks))

    return count


@pytest.mark.few(5)
@pytest.mark.parametrize(
    ("recipe", "evaluations", "passes"),
    [
        (("nrcg", "weight=constant"), (STEPS, STEPS), (STEPS, STEPS)),
        (("nrcg", "weight=constant", "wrt=x0_hat"), (STEPS, STEPS), (0, STEPS)),
        (("nrcg", "weight=[constant, {kind: every, k: 3}]"), (STEPS, 2), (2, 2)),
        (("freedom", "recurrence=2"), (2 * STEPS, 2 * STEPS), (2 * STEPS, 2 * STEPS)),
        (
            ("nrcg", "weight=constant", "particles={count: 3, ratio_min: 0}", "scale=0"),
            (3 * STEPS, 3 * STEPS + 3),
            (0, 0),
        ),
    ],
    ids=["x_t", "x0_hat", "every third", "repeated", "candidates"],
)
def test_calls_and_passes_back_are_those_of_the_recipe(counted, recipe, evaluations, passes):
    cost = counted(*recipe)
    assert (cost.evaluations["denoiser"], cost.passes["denoiser"]) == (evaluations[0], passes[0])
    assert (cost.evaluations["classifier"], cost.passes["classifier"]) == (evaluations[1], passes[1])


@pytest.mark.long
@pytest.mark.parametrize(("num", "changes"), [(5, ()), (1, ("particles={count: 3, ratio_min: 0}",))])
def test_the_cost_is_the_same_wherever_it_is_reported(networks, denoiser, tmp_path, num, changes):
    """In ``metrics.json`` and so in a sweep, and in a tune; whatever the batch, and what fills it up."""
    recipe = load_recipe("nrcg", ("sampling.steps=2", "weight=constant", "preprocess.size=null", *changes))
    settings = {"denoiser": denoiser, "classifiers": ("zoo:sportballs-mobilenet",), "judge": None}
    run = Run(targets=("baseball",), num=num, recipe=recipe, label="baseball", cfg_scale=1.5, **settings)
    session = load_session(run, networks)
    found = generate(session, tmp_path / "run").metrics["network_evaluations"]
    count = 3 if changes else 1
    assert found == {"denoiser": 2 * count * 2, "classifier": 2 * count + (3 if changes else 0)}
    assert Prices(tmp_path / "prices.json").of(session).evaluations == found


def test_unguided_an_image_costs_the_denoisers_evaluations(counted):
    cost = counted("nrcg", guided=False)
    assert cost.value == STEPS and cost.passes == {"denoiser": 0, "classifier": 0}


@pytest.mark.long
def test_times_are_measured_once_and_weigh_the_counts(counted, tmp_path):
    first = counted("nrcg", "weight=constant")
    held = Prices(tmp_path / "prices.json").known
    denoiser, denoiser_back, guide, guide_back = (held[name] for name in sorted(held))
    assert denoiser == 1 < denoiser_back and 0 < guide < guide_back
    assert first.value == pytest.approx(STEPS * (denoiser_back + guide_back), abs=0.006)
    assert counted("nrcg", "weight=constant").value == first.value
    assert counted("nrcg", "weight=constant", "wrt=x0_hat").value < first.value
    assert Prices(tmp_path / "prices.json").known == held
    counted("nrcg", "weight=constant", "preprocess.size=64")
    assert len(Prices(tmp_path / "prices.json").known) == 6


@pytest.mark.long
def test_a_latent_models_decoder_costs_too(counted, dit_folder):
    cost = counted("nrcg", "weight=constant", denoiser=str(dit_folder))
    assert cost.evaluations == {"denoiser": STEPS, "decoder": STEPS + 1, "classifier": STEPS}
    assert cost.passes == {"denoiser": STEPS, "decoder": STEPS, "classifier": STEPS}
