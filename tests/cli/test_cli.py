"""The command line: what it refuses, in one line, with exit code 2 and nothing written; and what it prints."""

import re
import subprocess
import sys

import pytest
from typer.main import get_command

from steersman.cli import app
from steersman.recipes.axes import AXES, meanings_of, settings_of

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
    (["--prompt", "a ball", "--prompt", "a cat"], "--prompt must be given once, got it 2 times"),
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


EARLY = [
    ("sample", "target must be given"),
    ("sample --target 1 --blend a=1", "target and blend must not be given together"),
    ("sample --target 1 --recipe defualt", "unknown recipe 'defualt'; did you mean 'default'"),
    ("sample --target 1 --recipe nrcg/adamm", "unknown variant of nrcg 'adamm'; did you mean 'adam'"),
    ("sample --target 1 --recipe nowhere.yaml", "recipe: 'nowhere.yaml' cannot be read (No such file or directory)"),
    ("sample --target 1 --device toaster", "device must be cpu, cuda, cuda:0, … or mps, got 'toaster'"),
    ("sample --target 1 --device cuda:", "device must be cpu, cuda, cuda:0, … or mps, got 'cuda:'"),
    ("sample --target 1 --dtype float8", "unknown dtype 'float8'"),
    ("sample --target 1 --format gif", "unknown format 'gif'"),
    ("sample --target 1 --num 2 --num 3", "--num must be given once, got it 2 times"),
    ("sweep nrgc --vary scale=1 --reference . --out o --target 1", "unknown recipe 'nrgc'; did you mean 'nrcg'"),
    ("tune --out o", "target must be given"),
    ("evaluate . --device toaster", "device must be cpu"),
    ("--version", None),
]


def test_a_slip_is_refused_without_importing_torch():
    """Its import takes seconds; here it fails."""
    code = (
        "import contextlib, io, sys\n"
        "sys.modules['torch'] = None\n"
        "from steersman.cli import main\n"
        "for words in sys.argv[1:]:\n"
        "    sys.argv[1:] = words.split()\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        main()\n"
    )
    arguments = [sys.executable, "-c", code, *(words for words, _ in EARLY)]
    run = subprocess.run(arguments, capture_output=True, text=True, check=True)
    said = run.stderr.splitlines()
    assert len(said) == len(EARLY) - 1
    for line, (_, message) in zip(said, EARLY, strict=False):
        assert message in line
    assert re.fullmatch(r"steersman \d+\.\d+\.\d+\n", run.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="asks for Linux's drivers")
def test_a_gpu_is_missed_without_importing_torch(monkeypatch):
    from steersman.lab import choices

    monkeypatch.setitem(sys.modules, "torch", None)  # cannot be imported
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(choices, "_driver", lambda: False)
    with pytest.raises(choices.InputError, match=r"device must be one that this machine has \(cpu\), got 'cuda'"):
        choices.check_device("cuda")
    assert "torch" not in sys.modules


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("sample --recipe elucd-di", ["elucd-dit"]),
        ("sample --denoiser zoo:s", ["zoo:sportballs"]),
        ("sample --judge n", ["none"]),
        ("sweep --classifier zoo:mnist", ["zoo:mnist-judge", "zoo:mnist-lenet"]),
        ("recipes show nrcg/e", ["nrcg/ema90", "nrcg/ema99"]),
        ("analyze accuracy --device c", ["cpu", "cuda"]),
        ("sample --negative-p", ["--negative-prompt"]),
    ],
)
def test_the_shell_completes(words, offered, call, monkeypatch):
    monkeypatch.setenv("_STEERSMAN_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"steersman {words}")
    monkeypatch.setenv("COMP_CWORD", str(len(words.split())))
    _, out, _ = call()
    assert out.split() == offered


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


def test_every_setting_of_an_axis_is_explained():
    options = [option for kinds in AXES.values() for option in kinds.values()]
    for option in options:
        assert settings_of(option).keys() <= meanings_of(option).keys()
    assert sum(len(settings_of(option)) for option in options) > 50


@pytest.mark.usefixtures("unchecked")
def test_an_axis_is_explained_alone(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = call("recipes", "axes", "particles")
    assert code == 0
    assert re.search(r"particles\.temperature=1\.0 +1 / lambda, above 0; at a low temperature only the likeliest", out)
    assert "weight" not in out.replace("weighted", "").replace("weights", "")
    code, _, err = call("recipes", "axes", "particle")
    assert (code, err.count("\n")) == (2, 1)
    assert "unknown axis 'particle'; did you mean 'particles'" in err


def test_the_classes_of_a_classifier_are_listed_and_searched(call, clip):
    _, out, _ = call("classes", "--classifier", "zoo:sportballs-mobilenet")
    assert [line.strip() for line in out.splitlines()] == [
        "index  class",
        "0      baseball",
        "1      basketball",
        "2      volleyball",
        "3      soccer ball",
    ]
    _, out, _ = call("classes", "retriever")
    assert re.search(r"^207 +golden retriever *$", out, re.MULTILINE)
    assert re.search(r"^retriever +5 +205-209 *$", out, re.MULTILINE)
    code, _, err = call("classes", "retreiver")
    assert code == 2 and "unknown class 'retreiver'; did you mean" in err and "'golden retriever'" in err
    _, out, _ = call("classes", "--classifier", f"clip:{clip}")
    assert out == f"any text is a target of clip:{clip}\n"


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


def test_a_sweep_takes_its_recipes_once(call, tmp_path):
    rest = ["--target", "baseball", "--reference", "sportballs", "--out", tmp_path / "out"]
    code, _, said = call("sweep", "nrcg", "dps", "--vary", "recipe=mpgd,dps", *rest)
    assert code == 2 and "recipe must be given once, as arguments or by --vary, got nrcg, dps and --vary" in said
    code, _, said = call("sweep", "nrcg", *rest)
    assert code == 2 and "vary must be given at least once" in said
    code, _, said = call("sweep", "nrcg", "nrgc", *rest)
    assert code == 2 and "unknown recipe 'nrgc'" in said
