"""The command line: what it refuses, in one line, with exit code 2 and nothing written; and what it prints."""

import re

import pytest
from typer.main import get_command

from steersman.cli import app

BAD = [
    (["--target", "basebal"], "unknown class 'basebal'; did you mean 'baseball'"),
    (["--target", "1000"], "class index must be 0 to 999, got 1000"),
    ([], "target must be given"),
    (["--target", "baseball", "--recipe", "defualt"], "unknown recipe 'defualt'; did you mean 'default'"),
    (["--target", "baseball", "--set", "input.speed=1"], "unknown setting of input"),
    (["--target", "baseball", "--set", "sampling.steps=many"], "sampling.steps must be a valid integer, got 'many'"),
    (["--target", "baseball", "--num", "-1"], "num must be 1 to 10000000, got -1"),
    (["--target", "baseball", "--seed", "-1"], "seed must be 0 to 1073741808, got -1"),
    (
        ["--target", "baseball", "--steps", "2000"],
        "steps must be between 1 and 1000, the number of times that the model was trained on, got 2000",
    ),
    (["--target", "baseball", "--device", "cuda"], "device must be one that this machine has (cpu), got 'cuda'"),
    (["--target", "baseball", "--device", "toaster"], "device must be cpu, cuda, cuda:0, … or mps, got 'toaster'"),
    (["--target", "baseball", "--dtype", "float8"], "unknown dtype 'float8'"),
    (["--target", "baseball", "--denoiser", "nowhere"], "FILE.safetensors?config=FOLDER, got 'nowhere'"),
    (["--target", "baseball", "--denoiser", "zoo:basketballs"], "unknown bundled denoiser 'basketballs'"),
    (["--target", "baseball", "--classifier", "imagenet:resnet"], "unknown ImageNet classifier 'resnet'"),
    (["--target", "baseball", "--blend", "baseball=1"], "target and blend must not be given together"),
    (["--blend", "baseball"], "with each class once, got 'baseball'"),
    (
        ["--blend", "baseball=much"],
        "blend must be CLASS=WEIGHT, as in baseball=1, with each class once, got 'baseball=much'",
    ),
    (
        ["--target", "baseball", "--classifier", "efficientnet"],
        "there is no folder 'efficientnet'; use a folder, or one of",
    ),
    (
        ["--target", "baseball", "--judge", "imagenet:efficientnet-lite0"],
        "judge must be another network than the guide, or none, got the guide",
    ),
    (["--target", "baseball", "--label", "cube"], "unknown label 'cube'"),
    (["--target", "baseball", "--cfg-scale", "2"], "cfg-scale must be 1 without a label, got 2.0"),
    (["--from", "nowhere.yaml"], "run: 'nowhere.yaml' cannot be read (No such file or directory)"),
    (
        ["--from", "run.yaml", "--num", "4"],
        "--num must not be given with --from, whose file holds all settings; beside it give only",
    ),
    (["--from", "run.yaml", "--set", "scale=1"], "--set must not be given with --from"),
    (["--num", "few"], "Invalid value for '--num'"),
    (["--nmu", "3"], "No such option"),
]


@pytest.mark.few(5)
@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments) or "none" for arguments, _ in BAD])
def test_bad_input_is_one_line_and_nothing_is_written(arguments, message, call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, _, err = call("sample", "--out", tmp_path / "out", *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_option_is_named(call):
    code, _, err = call("sample", "--nmu", "3")
    assert code == 2
    assert re.search("No such option:? '?--nmu", err)  # versions of typer differ in the signs between


@pytest.mark.long
def test_a_folder_that_cannot_be_made_is_refused_before_the_loop(call, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = call("sample", "--target", "baseball", "--out", tmp_path / "file" / "out")
    assert (code, err.count("\n")) == (2, 1)
    assert "cannot be written to (Not a directory)" in err


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_weight_file_is_refused(damage, call, tmp_path):
    import shutil

    from steersman.models.zoo import folder

    copy = tmp_path / "denoiser"
    shutil.copytree(folder("sportballs"), copy)
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    if damage == "missing":
        weights.unlink()
    else:
        weights.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"\xff" * 64 + content[64:])
    arguments = ("--target", "baseball", "--denoiser", copy, "--out", tmp_path / "out")
    code, _, err = call("sample", *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert f"denoiser: {str(copy)!r} cannot be " in err
    assert not (tmp_path / "out").exists()


def test_the_help_fits_on_a_screen_and_has_an_example(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    code, out, _ = call("sample", "--help")
    assert code == 0
    assert "Example: steersman sample --target baseball" in out
    assert len(out.splitlines()) <= 46


def test_every_option_has_a_help_text():
    commands = [get_command(app)]
    for command in commands:
        commands += getattr(command, "commands", {}).values()
        assert command.help, command.name
        for parameter in command.params:
            assert parameter.help and parameter.help.endswith("."), f"{command.name} {parameter.name}"
    assert len(commands) > 20


def test_data_are_drawn_as_an_image_folder(call, tmp_path):
    code, _, _ = call("data", "sportballs", "--num", 9, "--resolution", 16, "--out", tmp_path)
    assert code == 0
    files = sorted(tmp_path.glob("*/*.png"))
    assert sorted(file.stem for file in files) == [f"{index:06d}" for index in range(9)]
    assert {file.parent.name for file in files} <= {"baseball", "basketball", "volleyball", "soccer ball"}


@pytest.mark.parametrize("arguments", [[], ["axes"], ["show", "nrcg/adam"]], ids=["list", "axes", "show"])
@pytest.mark.usefixtures("unchecked")  # the context that typer passes is not the class that it has one annotate
def test_recipes_explain_themselves(arguments, call):
    code, out, _ = call("recipes", *arguments)
    assert code == 0
    assert {0: "elucd-ddpm", 1: "stabilizer.beta=0.99", 2: "Vaeth"}[len(arguments)] in out


@pytest.mark.usefixtures("unchecked")
def test_what_stands_in_square_brackets_is_shown(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    _, out, _ = call("recipes", "axes")
    assert "w_i = rms(x_t) [max((N+1-i) / (N+1), floor)" in out
