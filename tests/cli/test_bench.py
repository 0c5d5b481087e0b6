"""``steersman bench``: its table, its file, and what it refuses."""

import json

import pytest


@pytest.mark.long
def test_the_table_and_the_file_say_the_same(denoiser, tmp_path, call):
    given = ["--denoiser", denoiser, "--classifier", "zoo:sportballs-mobilenet", "--recipe", "nrcg", "--recompute"]
    given += ["--batch-size", 2, "--steps", 2, "--repeats", 1, "--out", tmp_path / "new" / "bench.json"]
    code, said, _ = call("bench", *given)
    assert code == 0
    found = json.loads((tmp_path / "new" / "bench.json").read_text())
    assert f"ratio {found['ratio']:.3f}" in said
    assert "at 400 steps" in said
    assert found["run"]["recompute"] is True
    assert found["evaluations"] == {"denoiser": 2, "classifier": 1}
    assert "an image needs 2 evaluations of the denoiser and 1 evaluations of the classifier" in said
    assert (found["steps"], found["calls"]) == (2, 3)  # the last step is not guided


@pytest.mark.parametrize("option", ["steps", "repeats"])
def test_counts_below_one_are_refused(option, call):
    code, _, err = call("bench", f"--{option}", 0)
    assert code == 2
    assert f"{option} must be at least 1, got 0" in err
