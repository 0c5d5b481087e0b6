"""Runs that are shared, stopped, disturbed and started again: no image is missing, and none is drawn twice."""

import errno
import json
import math
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from steersman.errors import InputError, Notice
from steersman.lab.data.images import read_images
from steersman.lab.generate import Share, Store, Unfinished, generate, status
from steersman.lab.generate.store import locked
from steersman.lab.run import read_run

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_images_are_decoded_and_checked_in_ieee_arithmetic_too(session, tmp_path, monkeypatch):
    drawing, seen = session(num=2), []
    decode, network = drawing.denoiser.decode, drawing.denoiser.network
    noted = lambda *_: seen.append(torch.backends.cudnn.deterministic)  # noqa: E731
    monkeypatch.setattr(drawing.denoiser, "decode", lambda x0: (noted(), decode(x0))[1])
    handle = network.register_forward_pre_hook(noted)
    generate(drawing, tmp_path)
    handle.remove()
    assert seen
    assert all(seen)
    assert not torch.backends.cudnn.deterministic


def times(folder):
    """Returns when each image was drawn, by what its record says."""
    store = Store.read(folder)
    return {place: record.seconds for place, record in store.records(range(len(store))).items()}


def kept(folder):
    """Returns the records of all images, in the order of the run."""
    store = Store.read(folder)
    return list(store.records(range(len(store))).values())


def shown(folder):
    """Returns the pixels of all images, in the order of the run."""
    store = Store.read(folder)
    return np.stack([*store.pixels(range(len(store))).values()])


def same(first, second):
    return first.keys() == second.keys() and max(abs(first[name] - second[name]).max() for name in first) <= 1


def shared(session, out, count):
    """Draws a run by so many processes, one after the other, the first of them last."""
    for rank in range(1, count):
        with pytest.raises(Unfinished):
            generate(session, out, share=Share(rank=rank, count=count))
    return generate(session, out, share=Share(count=count))


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.long)])
def test_processes_batches_and_restarts_give_the_same_images(dtype, session, pixels, tmp_path):
    given = {"num": 5, "dtype": dtype}
    generate(session(**given, batch_size=4), tmp_path / "4")
    for size in (1, 32):
        generate(session(**given, batch_size=size), tmp_path / str(size))
    shared(session(**given), tmp_path / "two", 2)
    with pytest.raises(Unfinished) as found:
        generate(session(**given), tmp_path / "again", share=Share(rank=1, count=3))
    assert (found.value.done, found.value.total) == (2, 5)
    shared(session(**given), tmp_path / "again", 2)
    expected = pixels(tmp_path / "4")
    assert len(expected) == 5
    assert all(same(pixels(tmp_path / name), expected) for name in ("1", "32", "two", "again"))


@pytest.mark.long
def test_whoever_ends_last_writes_the_figures(session, tmp_path):
    with pytest.raises(Unfinished):
        generate(session(), tmp_path, share=Share(rank=0, count=2))
    assert not (tmp_path / "metrics.json").exists()
    summary = generate(session(), tmp_path, share=Share(rank=1, count=2))
    assert summary.metrics == json.loads((tmp_path / "metrics.json").read_text())
    before = (tmp_path / "metrics.json").read_bytes()
    generate(session(), tmp_path)
    assert (tmp_path / "metrics.json").read_bytes() == before


@pytest.mark.few(9)
@pytest.mark.parametrize("format", ["png", "npz", "webdataset"])
def test_a_stopped_run_goes_on_in_every_format(format, session, pixels, tmp_path):
    with pytest.raises(Unfinished):
        generate(session(format=format), tmp_path / "a", stop=lambda: any((tmp_path / "a").rglob("0*.png")))
    before = times(tmp_path / "a")
    assert 0 < len(before) < 6
    found = status(tmp_path / "a")
    assert (found.done, found.lost, found.processes) == ({"baseball": len(before)}, {"baseball": 0}, 0)
    assert found.missing("baseball") == 6 - len(before)
    generate(session(format=format), tmp_path / "a")
    after = times(tmp_path / "a")
    assert len(after) == 6 and all(after[place] == time for place, time in before.items())
    generate(session(), tmp_path / "b")
    drawn = read_images(tmp_path / "a")
    assert drawn.labels == ("baseball",) * 6
    expected = np.stack([*pixels(tmp_path / "b").values()])
    assert abs(drawn.read(range(6)).permute(0, 2, 3, 1).numpy().astype(int) - expected).max() <= 1


@pytest.mark.long
def test_only_what_is_damaged_is_drawn_again_whatever_the_clock_says(session, pixels, tmp_path):
    generate(session(), tmp_path)
    drawn, before = pixels(tmp_path), times(tmp_path)
    for number, date in enumerate((0, 2**33, 1, 2**32, 5, 6)):
        os.utime(tmp_path / f"{number:06d}.png", (date, date))
    os.utime(tmp_path / "run.yaml", (2**33, 2**33))
    cut = tmp_path / "000001.png"
    cut.write_bytes(cut.read_bytes()[:-7])
    (tmp_path / "000004.png").write_bytes(b"")
    (tmp_path / ".000002.png.abcdef12.part").write_bytes(b"half")
    generate(session(), tmp_path)
    assert [place for place, time in times(tmp_path).items() if time != before[place]] == [1, 4]
    assert same(pixels(tmp_path), drawn)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.long
def test_images_of_other_settings_are_not_taken_for_ones_own(session, tmp_path):
    generate(session(num=2), tmp_path)
    before = times(tmp_path)
    (tmp_path / "run.yaml").unlink()
    generate(session(num=2), tmp_path)
    assert times(tmp_path) == before
    (tmp_path / "run.yaml").unlink()
    recipe = session().run.recipe.changed({"scale": 0.5})
    generate(session(num=2, recipe=recipe), tmp_path)
    assert not set(times(tmp_path).values()) & set(before.values())


def test_changed_settings_are_named(session, run, tmp_path):
    generate(session(num=2), tmp_path)
    recipe = run().recipe.changed({"scale": 0.5, "sampling.steps": 4})
    with pytest.raises(InputError) as error:
        generate(session(num=3, recipe=recipe), tmp_path)
    assert "num: was 2, is 3; recipe.settings." in str(error.value)
    assert "sampling.steps: was 3, is 4" in str(error.value)
    assert str(error.value).endswith("give another --out, or --overwrite to draw it anew")
    assert read_run(tmp_path / "run.yaml").num == 2


@pytest.mark.few(9)
@pytest.mark.parametrize("format", ["png", "npz", "webdataset"])
@pytest.mark.parametrize("targets", [("baseball",), pytest.param(("baseball", "volleyball"), marks=pytest.mark.long)])
def test_a_run_grows(format, targets, session, tmp_path):
    """Its images are kept, also where the file that they are packed in is another one afterwards."""
    settings = {"format": format, "targets": targets}
    generate(session(num=2, **settings), tmp_path / "a")
    before = {(record.target, record.seed): record for record in kept(tmp_path / "a")}
    summary = generate(session(num=5, **settings), tmp_path / "a")
    after = {(record.target, record.seed): record for record in kept(tmp_path / "a")}
    assert len(before) == 2 * len(targets) and len(after) == 5 * len(targets)
    assert {name: after[name] for name in before} == before
    assert read_run(tmp_path / "a" / "run.yaml").num == 5
    assert summary.metrics["images"] == 5 * len(targets)
    generate(session(num=5, **settings), tmp_path / "b")
    assert np.array_equal(*(shown(tmp_path / name) for name in "ab"))
    assert {path.name for path in (tmp_path / "a").iterdir()} == {path.name for path in (tmp_path / "b").iterdir()}
    with pytest.raises(InputError, match=r"holds a run with other settings \(num: was 5, is 2\)"):
        generate(session(num=2, **settings), tmp_path / "a")


@pytest.mark.few(9)
@pytest.mark.parametrize("format", ["npz", pytest.param("webdataset", marks=pytest.mark.long)])
@pytest.mark.parametrize("step", ["unpack", "replacing", "unlink"])
def test_a_run_that_is_killed_while_it_grows_loses_nothing(step, format, session, tmp_path, monkeypatch):
    generate(session(num=3, format=format), tmp_path)
    before = {record.seed: record for record in kept(tmp_path)}
    drawing = session(num=5, format=format)

    class Killed(BaseException):
        pass

    def killed(*_, **__):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        if step == "unpack":  # in the midst of it
            write = Store.write
            patch.setattr(Store, "write", lambda store, place, *of: write(store, place, *of) if place < 2 else killed())
        elif step == "replacing":
            patch.setattr("steersman.lab.generate.store.yaml.safe_dump", killed)
        else:
            patch.setattr(Path, "unlink", lambda path, **_: killed() if path.name == "metrics.json" else None)
        generate(drawing, tmp_path)
    generate(drawing, tmp_path)
    after = {record.seed: record for record in kept(tmp_path)}
    assert len(after) == 5 and {seed: after[seed] for seed in before} == before


@pytest.mark.long
def test_a_run_is_drawn_anew_where_that_is_asked_for(session, run, tmp_path):
    generate(session(num=4), tmp_path)
    (tmp_path / "own.txt").write_text("mine")
    before = times(tmp_path)
    recipe = run().recipe.changed({"scale": 0.5})
    generate(session(num=3, recipe=recipe), tmp_path, overwrite=True)
    assert len(times(tmp_path)) == 3 and not set(times(tmp_path).values()) & set(before.values())
    assert len(list(tmp_path.glob("0*.png"))) == 3 and (tmp_path / "own.txt").exists()
    with pytest.raises(InputError, match="overwrite must be given to one process, got 2"):
        generate(session(num=3), tmp_path, overwrite=True, share=Share(count=2))


@pytest.mark.long
def test_an_image_that_goes_away_while_others_are_drawn_is_drawn_again(session, pixels, tmp_path):
    generate(session(), tmp_path / "whole")
    out = tmp_path / "out"
    removed = []

    def remove(count):
        if not removed and (out / "000000.png").exists():
            (out / "000000.png").unlink()
            removed.append(count)

    generate(session(), out, on_images=remove)
    assert removed and same(pixels(out), pixels(tmp_path / "whole"))


@pytest.mark.long
def test_a_runs_file_and_folder_that_go_away_while_it_is_drawn_are_written_again(
    session, pixels, tmp_path, monkeypatch
):
    generate(session(num=2), tmp_path / "whole")
    write, written = Store.write, []

    def followed(self, place, *content):
        write(self, place, *content)
        if not written:
            shutil.rmtree(tmp_path / "run")
        written.append(place)

    monkeypatch.setattr(Store, "write", followed)
    generate(session(num=2), tmp_path / "run")
    assert same(pixels(tmp_path / "run"), pixels(tmp_path / "whole"))
    assert len(written) == 3
    assert read_run(tmp_path / "run" / "run.yaml") == read_run(tmp_path / "whole" / "run.yaml")


@pytest.mark.long
def test_images_that_go_away_again_and_again_are_told_of(session, tmp_path, monkeypatch):
    monkeypatch.setattr(Store, "present", lambda store: set())
    monkeypatch.setattr(Store, "write", lambda *_: None)
    with pytest.raises(Unfinished) as found:
        generate(session(), tmp_path)
    assert (found.value.done, found.value.total, found.value.gone) == (0, 6, 6)


def test_two_runs_in_a_folder_are_refused(session, tmp_path):
    with locked(tmp_path, 0):
        with pytest.raises(InputError, match="is being drawn into by another run"):
            generate(session(), tmp_path)
        assert not list(tmp_path.glob("*.png"))


@pytest.mark.long
@pytest.mark.parametrize(("number", "said"), [(errno.ENOSPC, "No space left"), (errno.EROFS, "Read-only file system")])
def test_a_folder_that_takes_no_more_is_told_of_and_gone_on_with(number, said, session, tmp_path, monkeypatch):
    from steersman.lab.generate import formats

    save, saved = formats.Image.Image.save, []

    def full(image, file, **settings):
        saved.append(file)
        if len(saved) > 3:
            Path(file).write_bytes(b"half")
            raise OSError(number, os.strerror(number))
        save(image, file, **settings)

    with monkeypatch.context() as patch, pytest.raises(InputError) as error:
        patch.setattr(formats.Image.Image, "save", full)
        generate(session(), tmp_path)
    assert f"cannot be written to ({said}" in str(error.value)
    assert "3 of 6 images are complete; make room, and the same command draws the others" in str(error.value)
    before = times(tmp_path)
    assert len(before) == 3
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    generate(session(), tmp_path)
    assert {place: time for place, time in times(tmp_path).items() if place in before} == before


def test_a_folder_that_cannot_be_written_to_is_refused_at_once(session):
    with pytest.raises(InputError, match="out: '/proc/nowhere' cannot be written to"):
        generate(session(), Path("/proc/nowhere"))


def planted(session, monkeypatch, where, value):
    """Puts a value into the second image, in what a part of the first batch returns."""
    network = session.guide.network if where == "classifier" else session.denoiser.network
    forward, done = network.forward, []

    def spoil(x, *args, **kwargs):
        out = forward(x, *args, **kwargs)
        if done or (where != "denoiser" and not torch.is_grad_enabled()):
            return out
        done.append(True)
        held = out.sample if where != "classifier" else out
        mark = torch.zeros(len(held), *[1] * (held.ndim - 1))
        mark[1] = 1
        if where == "gradient":
            held.register_hook(lambda g: torch.where(mark.bool(), value, g))
            return out
        bad = held + torch.where(mark.bool(), value, 0)
        if where == "classifier":
            return bad
        out.sample = bad
        return out

    monkeypatch.setattr(network, "forward", spoil)


@pytest.mark.few(3)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["gradient", "classifier", "denoiser"])
def test_a_value_that_is_not_finite_concerns_its_image_alone(where, value, session, pixels, tmp_path, monkeypatch):
    recipe = session().run.recipe.changed({"wrt": "x_t"})
    drawing = session(num=4, batch_size=4, recipe=recipe)
    generate(drawing, tmp_path / "sound")
    with monkeypatch.context() as patch:
        planted(drawing, patch, where, value)
        summary = generate(drawing, tmp_path / "spoilt")
    metrics = summary.metrics
    assert set(metrics["nonfinite_gradients_of"]) == {"baseball 1"}
    assert metrics["nonfinite_gradients"] == sum(metrics["nonfinite_gradients_of"].values()) > 0
    lost = where == "denoiser" and math.isnan(value)  # an infinite x0_hat is clipped, and the image goes on
    assert summary.lost == (["baseball 1"] if lost else [])
    sound, spoilt = pixels(tmp_path / "sound"), pixels(tmp_path / "spoilt")
    assert all((sound[f"00000{seed}.png"] == spoilt[f"00000{seed}.png"]).all() for seed in (0, 2, 3))


def test_a_lost_image_is_not_drawn_again(session, tmp_path, monkeypatch):
    drawing = session(num=4, batch_size=4, format="npz")
    with monkeypatch.context() as patch:
        planted(drawing, patch, "denoiser", float("nan"))
        assert generate(drawing, tmp_path).lost == ["baseball 1"]
    before = times(tmp_path)
    summary = generate(drawing, tmp_path)
    assert (summary.lost, times(tmp_path)) == (["baseball 1"], before)
    assert status(tmp_path).lost == {"baseball": 1}
    assert len(read_images(tmp_path)) == 3


@pytest.mark.long
def test_a_batch_that_the_memory_does_not_hold_is_halved(session, pixels, tmp_path, monkeypatch):
    generate(session(), tmp_path / "whole")
    drawing = session(batch_size=4)
    forward = drawing.denoiser.network.forward

    def small(x, *args, **kwargs):
        if len(x) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(x, *args, **kwargs)

    monkeypatch.setattr(drawing.denoiser.network, "forward", small)
    room = 1
    with pytest.warns(Notice, match="does not hold 4 images at a time: 1 are taken") as told:
        generate(drawing, tmp_path / "halved")
    assert len(told) == 1
    assert same(pixels(tmp_path / "halved"), pixels(tmp_path / "whole"))
    room = 0
    with pytest.raises(InputError, match="the memory of cpu does not hold one image"):
        generate(session(batch_size=4), tmp_path / "none")


@pytest.mark.long
def test_sessions_on_the_same_networks_count_once(session, tmp_path):
    first = session()
    hooks = len(first.denoiser.network._forward_pre_hooks)
    evaluations = [
        generate(each, tmp_path / str(place)).metrics["network_evaluations"]
        for place, each in enumerate((first, session(), session()))
    ]
    assert len(first.denoiser.network._forward_pre_hooks) == hooks
    assert evaluations[0] == evaluations[1] == evaluations[2]


def test_an_error_of_one_batch_ends_the_others(session, tmp_path, monkeypatch):
    """Any other error is not caught."""
    drawing = session()
    monkeypatch.setattr(drawing.denoiser.network, "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate(drawing, tmp_path)
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.long
@pytest.mark.parametrize("kills", [2, 100])
def test_kills_at_random_moments(kills, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    sys.modules.pop("kills", None)
    import kills as benchmark

    found = benchmark.kill(tmp_path, kills=kills, num=8)
    assert found["kills"] == kills
    assert found["missing, damaged"] == found["again"] == found["other"] == found["left behind"] == 0
