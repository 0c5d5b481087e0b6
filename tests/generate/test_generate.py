"""Runs: what they write, that they repeat, and that no image depends on its neighbours."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch.nn.modules.module import register_module_forward_pre_hook

from steersman.errors import InputError
from steersman.guidance import Step, Update
from steersman.lab.choices import check_device
from steersman.lab.generate import generate, open_session
from steersman.lab.generate.summary import advice
from steersman.lab.run import Run, read_run
from steersman.lab.session import Networks, load_session
from steersman.lab.train.denoiser import unet
from steersman.recipes import load_recipe, recipe_names
from steersman.sampling import Report
from steersman.sampling.loop import Recurrence
from steersman.sampling.watch import Watch
from steersman.schedule import CLEAN

GUIDE, JUDGE = "zoo:sportballs-mobilenet", "zoo:sportballs-judge"
NRCG = Run(targets=("baseball",), recipe=load_recipe("nrcg"))
CLASSES = ["baseball", "basketball", "volleyball", "soccer ball"]


def run(denoiser, **settings):
    changes = ["sampling.steps=3", "particles=1", "recurrence.times=1", "weight=deviation", "smoothing=none"]
    changes += ["preprocess.size=null"]
    recipe = load_recipe("default", changes)
    given = {"targets": ("baseball",), "num": 2, "denoiser": denoiser, "classifiers": (GUIDE,), "judge": JUDGE}
    return Run(**{**given, "recipe": recipe, **settings})


def pixels(folder):
    return {file.name: np.asarray(Image.open(file)).astype(int) for file in sorted(folder.glob("0*.png"))}


def test_a_run_writes_images_grid_settings_and_metrics(denoiser, tmp_path):
    summary = generate(open_session(run(denoiser, num=4, seed=7)), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        *("000007.png", "000008.png", "000009.png", "000010.png", "grid.png", "metrics.json", "run.yaml")
    ]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics == summary.metrics
    assert set(metrics["accuracy"]) == set(metrics["probability"]) == {"guide", "judge"}
    # three steps, two of them guided
    assert metrics["network_evaluations"] == {"denoiser": 3, "classifier": 2}
    assert metrics["nonfinite_gradients"] == 0
    assert metrics["lost"] == []


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_a_session_of_networks_that_are_loaded_computes_nothing(denoiser, dtype):
    networks, asked = Networks(), []
    load_session(run(denoiser, dtype=dtype), networks)
    hook = register_module_forward_pre_hook(lambda module, _: asked.append(module))
    try:
        session = load_session(run(denoiser, dtype=dtype), networks)
        assert [target.name for target in session.targets] == ["baseball"]
        assert asked == []
        session.draw([(session.targets[0], 0)])
    finally:
        hook.remove()
    assert session.denoiser.network in asked


@pytest.mark.long
def test_a_recorded_run_repeats_to_the_pixel(denoiser, tmp_path):
    generate(open_session(run(denoiser, targets=("soccer ball",))), tmp_path / "a")
    again = read_run(tmp_path / "a" / "run.yaml")
    generate(open_session(again), tmp_path / "b")
    first, second = pixels(tmp_path / "a"), pixels(tmp_path / "b")
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)
    assert again.record() == read_run(tmp_path / "b" / "run.yaml").record()


@pytest.mark.long
def test_a_session_counts_each_of_its_runs_by_itself(denoiser, tmp_path):
    session = open_session(run(denoiser))
    first, second = (generate(session, tmp_path / name).metrics["network_evaluations"] for name in ("a", "b"))
    assert first == second


@pytest.mark.few(9)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_images_do_not_depend_on_the_batch(denoiser, tmp_path, batch_size):
    generate(open_session(run(denoiser, num=5)), tmp_path / "whole")
    generate(open_session(run(denoiser, num=5, batch_size=batch_size)), tmp_path / "parts")
    whole, parts = pixels(tmp_path / "whole"), pixels(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert max(abs(whole[name] - parts[name]).max() for name in whole) <= 1


@pytest.mark.long
def test_a_guided_image_is_the_same_to_the_bit_whatever_its_batch():
    """With the bundled networks; over all of the default's steps, a difference in the last digit becomes visible."""
    recipe = load_recipe(
        "default", ["sampling.steps=3", "particles.count=2", "particles.ratio_max=100", "weight=deviation"]
    )
    session = open_session(Run(targets=("baseball",), num=5, recipe=recipe, judge=None))
    jobs = [(session.targets[0], seed) for seed in range(5)]
    assert torch.equal(session.draw(jobs[:1])[0], session.draw(jobs)[0])


@pytest.mark.long
def test_several_targets_get_a_folder_each_and_mix_in_a_batch(denoiser, tmp_path):
    summary = generate(open_session(run(denoiser, targets=("all",), num=1)), tmp_path)
    assert [folder.name for folder in sorted(tmp_path.iterdir()) if folder.is_dir()] == sorted(CLASSES)
    assert list(summary.metrics["targets"]) == CLASSES
    generate(open_session(run(denoiser, targets=("volleyball",), num=1)), tmp_path / "alone")
    alone, mixed = pixels(tmp_path / "alone"), pixels(tmp_path / "volleyball")
    assert abs(alone["000000.png"] - mixed["000000.png"]).max() <= 1


def test_unguided_images_are_the_same_for_every_target(denoiser, tmp_path):
    for target in ("baseball", "volleyball"):
        session = open_session(run(denoiser, targets=(target,), guided=False))
        assert generate(session, tmp_path / target).metrics["network_evaluations"]["classifier"] == 0
    first, second = pixels(tmp_path / "baseball"), pixels(tmp_path / "volleyball")
    assert all((first[name] == second[name]).all() for name in first)


@pytest.mark.few(10)
@pytest.mark.parametrize("name", recipe_names(variants=False))
def test_every_recipe_draws(denoiser, tmp_path, name):
    recipe = load_recipe(name, ["sampling.steps=3", "preprocess.size=64"])
    told = {"label": "baseball", "cfg_scale": 1.5} if name == "elucd-dit" else {}
    metrics = generate(open_session(run(denoiser, num=1, recipe=recipe, **told)), tmp_path).metrics
    assert metrics["lost"] == []
    assert metrics["nonfinite_gradients"] == 0
    assert metrics["network_evaluations"]["classifier"] > 0


@pytest.mark.long
def test_a_blend_steers_to_several_classes_at_once(denoiser, tmp_path):
    blend = {"baseball": 1.0, "soccer ball": -0.5}
    session = open_session(run(denoiser, targets=(), blend=blend))
    assert [target.name for target in session.targets] == ["baseball"]
    generate(session, tmp_path / "blend")
    assert read_run(tmp_path / "blend" / "run.yaml").blend == blend
    generate(open_session(run(denoiser, targets=(), blend={"baseball": 1.0})), tmp_path / "one")
    generate(open_session(run(denoiser)), tmp_path / "plain")
    blended, one, plain = (pixels(tmp_path / name)["000000.png"] for name in ("blend", "one", "plain"))
    assert (one == plain).all()
    assert abs(blended - plain).max() > 1


@pytest.mark.long
def test_several_classifiers_steer_together_each_in_its_own_words(denoiser, tmp_path):
    both = (GUIDE, "zoo:sportballs-mobilenet-robust")
    twice = {"classifiers": (GUIDE, GUIDE), "recipe": run(denoiser).recipe.changed({"ensemble.weights": (1.0, 0.0)})}
    handed = {"classifiers": both, "recipe": run(denoiser).recipe.changed({"ensemble": {"kind": "switch", "at": 0.0}})}
    for name, settings in {"alone": {}, "twice": twice, "both": {"classifiers": both}, "handed": handed}.items():
        generate(open_session(run(denoiser, **settings)), tmp_path / name)
    alone, twice, both, handed = (
        pixels(tmp_path / name)["000000.png"] for name in ("alone", "twice", "both", "handed")
    )
    assert (alone == twice).all()
    assert (alone == handed).all()
    assert abs(alone - both).max() > 1
    session = open_session(run(denoiser, classifiers=("imagenet:efficientnet-lite0", GUIDE)))
    _, (_, second) = session.guides[0].objective.terms
    assert ([target.guide for target in session.targets], second.classes) == ([(429,)], {429: (0,)})
    with pytest.raises(InputError, match="ensemble: switch must have two classifiers, --classifier twice, got 1"):
        open_session(run(denoiser, recipe=handed_over(denoiser)))


def handed_over(denoiser):
    return run(denoiser).recipe.changed({"ensemble": "switch"})


def test_a_judge_without_the_class_says_nothing(denoiser, tmp_path):
    session = open_session(
        run(denoiser, targets=("goldfish",), classifiers=("imagenet:efficientnet-lite0",), guided=False)
    )
    metrics = generate(session, tmp_path).metrics
    assert metrics["accuracy"]["judge"] is None
    assert metrics["probability"]["judge"] is None
    assert metrics["accuracy"]["guide"] is not None


@pytest.mark.long
def test_an_image_that_becomes_nan_is_named_and_leaves_the_others_alone(denoiser, tmp_path, monkeypatch):
    generate(open_session(run(denoiser, num=3)), tmp_path / "sound")
    session = open_session(run(denoiser, num=3))
    forward, spoilt = session.denoiser.network.forward, []

    def spoil(x, *args, **kwargs):
        out = forward(x, *args, **kwargs)
        if not spoilt:
            spoilt.append(True)
            out.sample = out.sample + torch.tensor([0, float("nan"), 0, 0])[:, None, None, None]
        return out

    monkeypatch.setattr(session.denoiser.network, "forward", spoil)
    summary = generate(session, tmp_path / "spoilt")
    assert summary.lost == ["baseball 1"]
    assert summary.metrics["nonfinite_gradients"] > 0
    sound, others = pixels(tmp_path / "sound"), pixels(tmp_path / "spoilt")
    assert sorted(others) == ["000000.png", "000002.png"]
    assert all((sound[name] == others[name]).all() for name in others)


@pytest.mark.long
def test_a_folder_with_another_run_is_left_alone(denoiser, tmp_path):
    generate(open_session(run(denoiser)), tmp_path)
    before = pixels(tmp_path)
    with pytest.raises(InputError, match="holds a run with other settings"):
        generate(open_session(run(denoiser, seed=5)), tmp_path)
    assert pixels(tmp_path).keys() == before.keys()


REFUSED = [
    ({"weight": "difference"}, {}, "weight difference needs the prediction without the label too"),
    (
        {"weight": ["difference", {"kind": "interval", "ratio_max": 0.1}]},
        {"label": "baseball"},
        "weight difference needs the prediction without the label too",
    ),
    ({"injection": "spherical", "sampler": "dpmpp"}, {}, "injection must not be spherical"),
    ({"particles": {"count": 2, "corrected": True}, "sampler": "ddim"}, {}, "particles.corrected must be false"),
    (
        {"injection": "spherical", "sampling": {"steps": 3}, "sampler": {"kind": "diffusers", "scheduler": "DDIM"}},
        {},
        "injection must not be spherical",
    ),
    (
        {"recurrence": 2, "sampling": {"steps": 8}, "sampler": {"kind": "diffusers", "scheduler": "PNDM"}},
        {},
        "recurrence must be off with PNDMScheduler",
    ),
]


@pytest.mark.few(2)
@pytest.mark.parametrize(("changes", "settings", "message"), REFUSED)
def test_what_does_not_go_together_is_refused_before_anything_is_written(denoiser, changes, settings, message):
    recipe = run(denoiser).recipe.changed({"wrt": "x0_hat", "input": "denoised", **changes})
    with pytest.raises(InputError, match=message):
        open_session(run(denoiser, recipe=recipe, **settings))


@pytest.mark.long
def test_the_label_target_is_each_images_own(denoiser, tmp_path):
    """Of several targets in a batch."""
    other, targets = {"judge": None, "guided": False, "num": 1}, ("soccer ball", "baseball")
    generate(open_session(run(denoiser, **other, targets=targets, label="target")), tmp_path / "both")
    for label in targets:
        generate(open_session(run(denoiser, **other, label=label)), tmp_path / label)
    both = [pixels(tmp_path / "both" / target) for target in targets]
    each = [pixels(tmp_path / label) for label in targets]
    same = [[(x["000000.png"] == y["000000.png"]).all() for y in each] for x in both]
    assert same == [[True, False], [False, True]]


def test_a_target_that_the_denoiser_lacks_is_no_label(denoiser):
    with pytest.raises(InputError, match="unknown label 'tench'"):
        open_session(run(denoiser, classifiers=("imagenet:efficientnet-lite0",), targets=("tench",), label="target"))


@pytest.mark.parametrize("label", [None, "baseball"])
def test_a_model_that_knows_no_images_without_labels_is_told_of_before_anything_is_written(label, tmp_path):
    torch.manual_seed(0)
    network = unet(16, 0, widths=(8, 16))
    type(network)(**{**network.config, "num_class_embeds": 4}).save_pretrained(tmp_path / "unet")
    DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    (tmp_path / "card.json").write_text(json.dumps({"classes": CLASSES}))
    told = {"label": label, "cfg_scale": 2.0} if label else {}
    with pytest.raises(InputError, match="the denoiser has no unconditional model"):
        open_session(run(str(tmp_path), guided=False, **told))


@pytest.mark.parametrize("channels", [2, 4])
def test_samples_that_are_no_images_are_refused_before_anything_is_drawn(channels, tmp_path):
    unet(16, 0, widths=(8, 16), channels=channels).save_pretrained(tmp_path / "unet")
    DDPMScheduler().save_pretrained(tmp_path / "scheduler")
    with pytest.raises(InputError, match=rf"must have 1 or 3 channels, got images of shape \({channels}, 16, 16\)"):
        open_session(run(str(tmp_path), guided=False))


def test_a_device_beyond_the_last_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device("cuda:1")
    with pytest.raises(InputError, match=r"device must be one that this machine has \(.*\), got 'cuda:2'"):
        check_device("cuda:2")


def test_how_far_images_were_moved_counts_the_last_steps_repeats():
    """The root mean square of the sum of what each update moved, (1 + 2) + (3 + 4), one number an image."""
    seen = []
    watch = Watch(seen.append, Recurrence(times=2))
    for index, repeat, size in ((0, 0, 1.0), (0, 1, 2.0), (1, 0, 3.0), (1, 1, 4.0)):
        x = torch.full((2, 3, 4, 4), size)
        step = Step(index, 2, repeat, 0, CLEAN, CLEAN, torch.zeros(()), torch.zeros(()), (CLEAN,) * 3)
        watch(Report(step, x, x, (Update(7 * x, x, x, x[:, 0, 0, 0], torch.tensor([True, False]), x), None)))
    assert watch.moved(2) == [10.0, 10.0]
    assert watch.drops(2) == [0, 4]
    assert seen == [0.25] * 4  # of an image, so that repeated steps do not change the time left


def test_a_gradient_is_not_blamed_where_there_was_none():
    """An unguided run, whose guide sees more of its target than the judge does."""
    metrics = {"accuracy": {"guide": 0.9, "judge": 0.6}}
    assert advice(metrics, [], NRCG) == []
    assert "fooled by its own gradient" in advice(metrics, [1.0], NRCG)[0]


@pytest.mark.long
def test_half_precision_does_not_depend_on_the_number_of_images(denoiser, tmp_path):
    for num in (1, 3):
        generate(open_session(run(denoiser, num=num, batch_size=4, dtype="bfloat16")), tmp_path / str(num))
    one, three = pixels(tmp_path / "1"), pixels(tmp_path / "3")
    assert abs(one["000000.png"] - three["000000.png"]).max() <= 1
