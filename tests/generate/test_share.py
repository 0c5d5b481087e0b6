"""Whose an image is, and whose a folder."""

import os
import signal
import time

import pytest

from steersman.errors import InputError
from steersman.generate import Share
from steersman.generate.lock import locked, running


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize(("total", "size"), [(1, 4), (10, 4), (29, 1), (64, 16)])
def test_every_image_is_one_processs(count, total, size):
    dealt = [list(Share(rank=rank, count=count).of(total, size)) for rank in range(count)]
    assert sorted(place for places in dealt for place in places) == list(range(total))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= size


@pytest.mark.parametrize("names", [("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID")])
def test_a_launcher_tells(names, monkeypatch):
    assert Share.told() == Share()
    for name, value in zip(names, "581", strict=True):
        monkeypatch.setenv(name, value)
    assert Share.told() == Share(rank=5, count=8, local=1)
    assert Share.told().device("cuda") == "cuda:1"
    assert Share.told().device("cpu") == "cpu"
    assert Share().device("cuda:3") == "cuda:3"
    with pytest.raises(InputError, match="device: 'cuda:0' given to 8 processes"):
        Share.told().device("cuda:0")


@pytest.mark.parametrize(
    ("rank", "count", "message"),
    [("first", "8", "RANK: 'first' given"), ("0", "-1", "WORLD_SIZE: '-1'"), ("8", "8", "rank: 8 given .* one of 8")],
)
def test_what_no_launcher_would_tell(rank, count, message, monkeypatch):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", count)
    with pytest.raises(InputError, match=message):
        Share.told()


def test_a_folder_is_one_runs_at_a_time(tmp_path):
    with locked(tmp_path, 0), locked(tmp_path, 1):
        assert running(tmp_path) == {0, 1}
        with pytest.raises(InputError, match="is being drawn into by another run"), locked(tmp_path, 1):
            pass
        assert running(tmp_path) == {0, 1}
    assert running(tmp_path) == set()
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_dead_process_holds_nothing(tmp_path):
    if not (process := os.fork()):
        with locked(tmp_path, 0):
            time.sleep(60)
        os._exit(0)
    until = time.monotonic() + 20
    while running(tmp_path) != {0} and time.monotonic() < until:
        time.sleep(0.01)
    assert running(tmp_path) == {0}
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    assert [path.name for path in tmp_path.iterdir()] == [".running-0"]
    assert running(tmp_path) == set()
    with locked(tmp_path, 0):
        assert running(tmp_path) == {0}
