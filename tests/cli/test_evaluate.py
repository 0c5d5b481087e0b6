"""``steersman evaluate``: its table and file, statistics as a reference, and what it refuses in one line."""

import json

import numpy as np
import pytest

from metrics.written import write

SMALL = ("--resamples", 4, "--batch-size", 8)
BALLS = "sportballs:baseball?num=8&seed=98"


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


def test_figures_and_statistics(call, tmp_path):
    code, out, _ = call("evaluate", "sportballs?num=32&seed=99", "--save-statistics", "real.npz", "--judge", "none")
    assert (code, out.strip()) == (0, "statistics in real.npz")
    figures = []
    for reference in ("real.npz", "sportballs?num=32&seed=99"):
        code, out, _ = call("evaluate", BALLS, "--reference", reference, "--target", "baseball", *SMALL)
        assert code == 0
        assert "cFID (sportballs-judge) ↓" in out
        assert "figures in evaluation.json" in out
        figures.append(json.loads((tmp_path / "evaluation.json").read_text())["figures"])
    assert figures[0] == figures[1]
    assert figures[0]["cfid"]["value"] < figures[0]["fid"]["value"]
    assert figures[0]["accuracy/judge"]["value"] == 1
    assert figures[0]["accuracy/guide"]["value"] is None


BAD = [
    (["nowhere", "--reference", BALLS], "got 'nowhere'"),
    (["empty", "--reference", BALLS], "'empty' must hold at least 1 image"),
    (["set", "--reference", "nowhere.npz"], "got 'nowhere.npz'"),
    (["set", "--judge", "none"], "reference, guide, judge or save-statistics must be given"),
    (["set", "--figures", "fid"], "reference must be given for fid"),
    (["set", "--figures", "fdi"], "unknown figure 'fdi'; did you mean 'fid'"),
    (["set", "--figures", ""], "unknown figure ''"),
    (["set", "--reference", "set", "--features", "inceptoin"], "unknown features 'inceptoin'"),
    (["set", "--reference", BALLS], "must have the size of the samples, 8 by 8 pixels, got 64 by 64"),
    (["set", "--resamples", "-1"], "resamples must be at least 0, got -1"),
    (["set", "--device", "cuda:99"], "device must be one that this machine has (cpu), got 'cuda:99'"),
    (["set", "--figures", "clip_score"], "clip_score cannot be given: neither guide nor judge compares"),
    (["set", "--figures", "accuracy/guide,accuracy/judge"], "accuracy/guide cannot be given: there is no guide; acc"),
    (["set"], "there is no figure to give; accuracy/guide: not given, there is no guide; accuracy/judge: not given"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_line(arguments, message, call, tmp_path):
    write(tmp_path / "set", np.zeros((9, 8, 8, 3), np.uint8))
    (tmp_path / "empty").mkdir()
    code, _, err = call("evaluate", *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not list(tmp_path.rglob("evaluation.json"))


def test_what_is_left_out_is_said(call, tmp_path):
    write(tmp_path / "set" / "soccer_ball", np.zeros((3, 8, 8, 3), np.uint8))
    write(tmp_path / "set" / "zebra", np.zeros((2, 8, 8, 3), np.uint8))
    code, out, _ = call("evaluate", "set", *SMALL)
    assert code == 0
    assert "accuracy/judge: of 3 of 5 samples: the judge knows no class 'zebra'\n" in out
    assert "fid, cfid, kid, precision, recall, density, coverage, diversity: not given, there is no reference\n" in out
    held = json.loads((tmp_path / "set" / "evaluation.json").read_text())["figures"]
    assert held["fid"] == {"value": None, "low": None, "high": None, "note": "there is no reference"}
