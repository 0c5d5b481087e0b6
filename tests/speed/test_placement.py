"""How networks are placed: images that stay as they were, and what a measurement chooses."""

from dataclasses import replace

import pytest
import torch
import yaml

from steersman.errors import InputError
from steersman.lab import placement
from steersman.lab.profiling import peak_memory
from steersman.lab.run import Placement, Run, read_run
from steersman.lab.session import load_session
from steersman.recipes import load_recipe

GUIDE = "zoo:sportballs-mobilenet"
PLACED = {
    "denoiser": Placement(dtype="bfloat16", layout="channels_last", block=8),
    "classifier": Placement(layout="channels_last", block=4),
}


def run(denoiser, **settings):
    given = {"targets": ("baseball",), "num": 2, "denoiser": denoiser, "classifiers": (GUIDE,), "judge": None}
    return Run(**{**given, "recipe": load_recipe("nrcg", ["sampling.steps=3", "scale=5"]), **settings})


def drawn(run, seeds=range(3)):
    session = load_session(run)
    return session.draw([(session.targets[0], seed) for seed in seeds])


@pytest.mark.long
def test_checkpointing_leaves_images_as_they_are_to_the_bit_and_takes_less_memory(denoiser):
    kept, again = (load_session(run(denoiser, checkpoint=each)) for each in (False, True))
    draw = {each: lambda each=each: each.draw([(each.targets[0], seed) for seed in range(4)]) for each in (kept, again)}
    assert (draw[kept]() == draw[again]()).all()
    assert peak_memory(draw[again]) < 0.9 * peak_memory(draw[kept])


@pytest.mark.long
def test_the_layout_changes_rounding_alone(denoiser):
    placed = {part: Placement(layout="channels_last", block=4) for part in PLACED}
    session = load_session(run(denoiser, dtype="auto", placed=placed))
    assert session.denoiser.network.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(drawn(run(denoiser)), drawn(session.run), atol=1e-4, rtol=0)


@pytest.mark.few(2)
@pytest.mark.parametrize("count", [1, 5])
def test_in_bfloat16_an_image_is_the_same_to_the_bit_whatever_its_batch(denoiser, count):
    settings = {"dtype": "auto", "placed": PLACED}
    whole = drawn(run(denoiser, **settings), range(8))
    assert (drawn(run(denoiser, **settings), range(count)) == whole[:count]).all()


@pytest.mark.long  # minutes where a processor has no bfloat16
@pytest.mark.parametrize("count", [1, 5])
def test_in_bfloat16_so_does_one_of_the_bundled_denoiser(count):
    settings = {"dtype": "auto", "placed": {part: Placement(dtype="bfloat16", block=8) for part in PLACED}}
    whole = drawn(run("zoo:sportballs", **settings), range(8))
    assert (drawn(run("zoo:sportballs", **settings), range(count)) == whole[:count]).all()


def test_a_compiled_network_is_listened_to_and_draws_the_same(denoiser, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda forward: compiled.append(forward) or forward)
    assert (drawn(run(denoiser, compile=True)) == drawn(run(denoiser))).all()
    assert len(compiled) == 2


def test_the_fastest_is_chosen_and_what_is_usual_stays_unless_it_pays():
    usual, other = (Placement(layout=each, block=4) for each in ("contiguous", "channels_last"))
    assert placement._fastest({usual: 1.0, other: 0.9}) == other
    assert placement._fastest({usual: 1.0, other: 0.97}) == usual


@pytest.mark.parametrize("recipe, back", [("nrcg", True), ("elucd-ddpm", False)])
def test_the_denoiser_is_measured_with_a_gradient_on_the_route_through_alone(denoiser, recipe, back):
    settings = load_recipe(recipe, ["sampling.steps=3", "smoothing=none"])
    session = load_session(run(denoiser, recipe=settings))
    seen = []
    session.denoiser.network.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    for _, _, ask in placement._parts(session):
        ask(4)()
    assert seen == [back]


@pytest.mark.long
def test_what_was_chosen_is_recorded_and_taken_again(denoiser, tmp_path, monkeypatch):
    monkeypatch.setattr(placement, "BLOCKS", (4,))
    asked = run(denoiser, dtype="auto")
    assert placement.choose_placement(asked).placed.keys() == PLACED.keys()
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump(asked.record() | {"placed": run(denoiser, dtype="auto", placed=PLACED).record()["placed"]})
    )
    assert placement.recorded_placement(asked, tmp_path).placed == PLACED
    assert read_run(tmp_path / "run.yaml").placement("classifier") == PLACED["classifier"]
    assert read_run(tmp_path / "run.yaml").at_once == 4
    assert placement.recorded_placement(asked, tmp_path / "empty") == asked


@pytest.mark.few(2)
@pytest.mark.parametrize(("dtype", "types"), [("auto", {"float32", "bfloat16"}), ("auto-float32", {"float32"})])
def test_types_are_measured_as_asked(dtype, types, denoiser, monkeypatch):
    monkeypatch.setattr(placement, "BLOCKS", (4,))
    monkeypatch.setattr(placement, "_seconds", lambda ask, device, best: 1.0)
    tried, measure = {}, placement._measure
    monkeypatch.setattr(
        placement, "_measure", lambda session, times, until: tried.update(times) or measure(session, times, until)
    )
    session = load_session(placement.choose_placement(run(denoiser, dtype=dtype)))
    assert {part: {each.dtype for each in some} for part, some in tried.items()} == dict.fromkeys(PLACED, types)
    assert all({each.layout for each in some} == {"contiguous", "channels_last"} for some in tried.values())
    assert session.run.placement("denoiser") == Placement(block=4)
    assert next(session.denoiser.network.parameters()).dtype == torch.float32


@pytest.mark.long
def test_an_unguided_run_needs_no_measured_classifier(denoiser, monkeypatch):
    monkeypatch.setattr(placement, "BLOCKS", (4,))
    session = load_session(placement.choose_placement(run(denoiser, dtype="auto", guided=False)))
    assert session.run.placed.keys() == {"denoiser"}
    assert session.run.placement("classifier") == Placement(block=4)


def test_the_first_process_is_not_awaited_for_ever(denoiser, tmp_path, monkeypatch):
    monkeypatch.setattr(placement, "PATIENCE", 0.3)
    with pytest.raises(InputError, match="run.yaml from the process of rank 0, which has written none for 0.3 s"):
        placement.recorded_placement(run(denoiser, dtype="auto"), tmp_path, wait=True)


def test_what_is_chosen_for_many_runs_is_chosen_once(denoiser, tmp_path, monkeypatch):
    asked, measured = run(denoiser, dtype="auto"), []
    monkeypatch.setattr(placement, "choose_placement", lambda run: measured.append(run) or replace(run, placed=PLACED))
    assert placement.shared_placement(run(denoiser), tmp_path / "sweep.yaml") == {}
    assert placement.shared_placement(asked, tmp_path / "sweep.yaml") == PLACED
    shared = {"placed": replace(asked, placed=PLACED).record()["placed"]}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"shared": shared}))
    assert placement.shared_placement(asked, tmp_path / "sweep.yaml") == PLACED
    assert len(measured) == 1
    (tmp_path / "sweep.yaml").write_text("[]")
    with pytest.raises(InputError, match="out: .*sweep.yaml' cannot be used; it must hold a mapping"):
        placement.shared_placement(asked, tmp_path / "sweep.yaml")


def test_what_cannot_be_is_one_line(denoiser):
    with pytest.raises(InputError, match="placed can only be given with dtype auto.*, got dtype float32"):
        run(denoiser, placed=PLACED)
    with pytest.raises(InputError, match="layout"):
        Placement(layout="chanels_last", block=4)
    with pytest.raises(InputError, match="block must be at least 1, got 0"):
        Placement(block=0)
