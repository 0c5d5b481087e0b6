"""What a run tells its user to try: with numbers, and never what is set already."""

import pytest

from steersman.lab.generate.summary import advice
from steersman.lab.run import Run
from steersman.recipes import load_recipe


def run(name="nrcg", *changes, **settings):
    return Run(**{"targets": ("baseball",), "recipe": load_recipe(name, changes), **settings})


def metrics(guide, judge, **others):
    return {"accuracy": {"guide": guide, "judge": judge}, **others}


def test_guidance_that_moves_nothing_is_told_by_how_much_and_which_scale_to_try():
    (line,) = advice(
        metrics(0.2, 0.2),
        [0.002, 0.006],
        run(),
    )
    assert "by 0.004 where they span 2" in line
    assert "--scale 380 (now 15)" in line  # 25 times: to a change of 0.1
    assert "--set weight=constant" in line


def test_a_gradient_of_zero_asks_for_a_bounded_scale():
    assert "--scale 450 (now 15)" in advice(metrics(0.2, 0.2), [0.0], run())[0]


def test_what_is_set_is_not_suggested():
    line = advice(metrics(0.2, 0.2), [0.0], run("nrcg", "weight=constant"))[0]
    assert "weight=constant" not in line
    fooled = advice(metrics(0.9, 0.3), [1.0], run("nrcg", "wrt=x_t", "input=lookahead"))[0]
    assert "--set" not in fooled
    assert "--scale 5" in fooled


@pytest.mark.parametrize(("error", "scale"), [(0.5, "--scale 5"), (1.6, "--scale 1.5")])
def test_burnt_images_ask_for_a_smaller_scale_and_for_nothing_larger(error, scale):
    found = {"median": error, "unguided": 0.2, "broken": ["baseball 0", "baseball 1"]}
    (line,) = advice(metrics(0.3, 0.3, noise_error=found), [1.0], run())
    assert line.startswith("2 of the images look burnt or are noise")
    assert f"is {error:g}" in line
    assert scale in line


def test_a_denoiser_that_draws_noise_by_itself_is_not_blamed_on_the_scale():
    found = {"median": 1.0, "unguided": 1.0, "broken": ["baseball 0"]}
    (line,) = advice(metrics(0.9, 0.9, noise_error=found), [1.0], run())
    assert "without guidance too" in line
    assert "--scale" not in line


def test_a_judge_that_does_not_know_the_target_is_named():
    (line,) = advice(metrics(0.9, None), [1.0], run())
    assert "The judge zoo:sportballs-judge does not know the target" in line
    assert advice(metrics(0.9, None), [1.0], run(judge=None)) == []


def test_of_several_targets_those_are_named_that_the_judge_does_not_know():
    seen = {"baseball": (0.9, 0.8), "tench": (0.7, None), "mine": (None, None)}
    targets = {name: {"accuracy": {"guide": guide, "judge": judge}} for name, (guide, judge) in seen.items()}
    (line,) = advice(metrics(0.8, 0.8, targets=targets), [1.0], run())
    assert "The judge zoo:sportballs-judge does not know tench, so only the guide" in line


def test_a_target_that_nobody_sees():
    (line,) = advice(metrics(0.1, 0.2), [0.2], run())
    assert line.startswith("Neither guide nor judge sees the target")
    assert "--scale 45" in line
    assert "--steps 800" in line
    near = {"median": 0.4, "unguided": 0.35, "broken": []}
    (line,) = advice(metrics(0.1, 0.2, noise_error=near), [0.2], run())
    assert "--scale" not in line and "--steps 800" in line  # the next larger scale burns


def test_a_target_that_no_network_can_tell_from_another():
    (line,) = advice(metrics(None, None), [1.0], run(judge=None))
    assert line.startswith("Neither guide nor judge can say whether the target is there")
