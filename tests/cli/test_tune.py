"""``steersman tune``: what it refuses in one line, and that its recipe is one that ``steersman sample`` takes."""

import pytest

BAD = [
    (["--target", "baseball", "--trials", "0"], "trials must be at least 1, got 0"),
    (["--target", "baseball", "--accuracy", "2"], "accuracy must be above 0 and at most 1, got 2.0"),
    (
        ["nrcg", "dps", "--target", "baseball", "--search", "scale=1..9"],
        "with --search, give one recipe, or several as --search recipe=A,B; got 2",
    ),
    (["--target", "baseball", "--search", "scale=9..1"], "search: a range must be LOW..HIGH with LOW < HIGH, got 9..1"),
    (["--target", "baseball", "--search", "sacle=1..9"], "unknown setting to vary 'sacle'; did you mean 'scale'"),
    (["--target", "baseball", "--denoiser", "mine"], "reference must be given: images of the targets"),
    (["--target", "baseball", "--judge", "none", "--search", "scale=1..9"], "judge must be given: a network"),
    (["freedmo", "--target", "baseball"], "unknown recipe 'freedmo'; did you mean 'freedom'"),
    ([], "target must be given"),
]


@pytest.mark.few(3)
@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments) or "none" for arguments, _ in BAD])
def test_bad_input_is_one_line_and_nothing_is_written(arguments, message, call, tmp_path):
    code, _, err = call("tune", "--out", tmp_path / "out", *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_a_tune_prints_its_front_and_goes_on_with_other_bounds(denoiser, call, tmp_path):
    out = tmp_path / "out"
    tune = (
        "tune",
        "nrcg",
        "--search",
        "scale=0.5..50.0",
        "--search",
        "sampling.steps=2..3",
        "--set",
        "preprocess.size=null",
    )
    tune += ("--classifier", "zoo:sportballs-mobilenet", "--denoiser", denoiser, "--target", "baseball", "--num", 2)
    tune += ("--reference", "sportballs?num=40&resolution=16", "--out", out)
    code, said, _ = call(*tune, "--trials", 2)
    assert code == 0
    assert "trial 1: judge " in said and "no other is better in all three" in said and "taken: trial " in said
    drawn = sorted(path.stat().st_mtime_ns for path in (out / "trials").glob("*/0*.png"))
    code, said, _ = call(*tune, "--trials", 2, "--distance", 0.1)
    assert code == 1
    assert "no recipe is written: no trial keeps to distance 0.1" in said
    assert sorted(path.stat().st_mtime_ns for path in (out / "trials").glob("*/0*.png")) == drawn
    sample = ("sample", "--recipe", out / "recipe.yaml", "--denoiser", denoiser, "--target", "baseball", "--num", 1)
    sample += ("--classifier", "zoo:sportballs-mobilenet", "--out", tmp_path / "images")
    code, _, _ = call(*sample)
    assert code == 0 and (tmp_path / "images" / "000000.png").is_file()
