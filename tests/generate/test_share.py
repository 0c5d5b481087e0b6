"""Whose an image is, and whose a folder."""

import errno
import os
import signal
import time

import pytest
from filelock import FileLock

from steersman.errors import InputError
from steersman.lab.generate import Share
from steersman.lab.generate.store import locked, running


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize(("total", "size"), [(1, 4), (10, 4), (29, 1), (64, 16)])
def test_every_image_is_one_processs(count, total, size):
    dealt = [list(Share(rank=rank, count=count).of(total, size)) for rank in range(count)]
    assert sorted(place for places in dealt for place in places) == list(range(total))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= size


TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
OPEN_MPI = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
MPICH = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID")
PMI2 = ("PMI_RANK", "PMI_SIZE", "SLURM_LOCALID")
SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
BATCH = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8"}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No launcher around the tests themselves."""
    for name in {*TORCHRUN, *OPEN_MPI, *MPICH, *PMI2, *SRUN, *BATCH}:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def launched(monkeypatch):
    def by(names, values):
        for name, value in zip(names, values, strict=True):
            monkeypatch.setenv(name, value)

    return by


@pytest.mark.parametrize("names", [TORCHRUN, OPEN_MPI, MPICH, PMI2, SRUN])
def test_a_launcher_tells(names, launched):
    assert Share.from_environment() == Share()
    launched(names, "581")
    assert Share.from_environment() == Share(rank=5, count=8, local=1)
    assert Share.from_environment().device("cuda") == "cuda:1"
    assert Share.from_environment().device("cpu") == "cpu"
    assert Share().device("cuda:3") == "cuda:3"
    with pytest.raises(InputError, match="device must be cuda for 8 processes, .* got 'cuda:0'"):
        Share.from_environment().device("cuda:0")


@pytest.mark.parametrize(
    ("seen", "expected"), [(0, "cuda:3"), (1, "cuda:0"), (2, "cuda:1"), (4, "cuda:3"), (8, "cuda:3")]
)
@pytest.mark.parametrize("names", [TORCHRUN, SRUN])
def test_each_process_has_a_gpu_of_those_that_it_sees(names, seen, expected, launched, monkeypatch):
    launched(names, "383")
    monkeypatch.setattr("torch.cuda.device_count", lambda: seen)
    assert Share.from_environment().device("cuda") == expected


def test_a_local_rank_that_is_not_told_is_the_rank(launched, monkeypatch):
    launched(TORCHRUN[:2], "38")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert Share.from_environment().device("cuda") == "cuda:1"


def test_a_batch_script_is_one_process_whatever_its_job_may_start(launched):
    launched(BATCH, BATCH.values())
    assert Share.from_environment() == Share()


@pytest.mark.parametrize("inner", [TORCHRUN, OPEN_MPI, MPICH])
def test_a_launcher_inside_a_slurm_job_goes_before_it(inner, launched):
    launched(SRUN, "120")
    launched(inner, "581")
    assert Share.from_environment() == Share(rank=5, count=8, local=1)


@pytest.mark.parametrize(
    ("rank", "count", "message"),
    [
        ("first", "8", "RANK must be a whole number, 0 or more, got 'first'"),
        ("0", "-1", "WORLD_SIZE must be a whole number, 0 or more, got '-1'"),
        ("8", "8", "RANK must be below WORLD_SIZE, which is 8, got 8"),
        (None, "8", "RANK must be below WORLD_SIZE, which is 8, got nothing"),
    ],
)
def test_what_no_launcher_would_tell(rank, count, message, launched):
    launched(TORCHRUN[:2] if rank else TORCHRUN[1:2], [rank, count] if rank else [count])
    with pytest.raises(InputError, match=message):
        Share.from_environment()


def test_a_folder_is_one_runs_at_a_time(tmp_path):
    with locked(tmp_path, 0), locked(tmp_path, 1):
        assert running(tmp_path) == {0, 1}
        with pytest.raises(InputError, match="is being drawn into by another run"), locked(tmp_path, 1):
            pass
        assert running(tmp_path) == {0, 1}
    assert running(tmp_path) == set()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [NotImplementedError(), OSError(errno.ENOLCK, "No locks available")])
def test_a_look_at_a_lock_that_cannot_be_tried_leaves_its_file(tmp_path, monkeypatch, error):
    (tmp_path / ".running-1").touch()

    def acquire(*_, **__):
        raise error

    monkeypatch.setattr(FileLock, "acquire", acquire)
    assert running(tmp_path) == set()
    assert (tmp_path / ".running-1").exists()


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
