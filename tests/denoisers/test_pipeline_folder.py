"""Text pipelines and bare networks from folders and from the hub's cache, on the command line too; what is refused."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

pytest.importorskip("transformers")

from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image
from safetensors.torch import load_file, save_file

from denoisers.texts import make
from steersman.errors import InputError
from steersman.lab.run import Run, read_run
from steersman.lab.session import load_session
from steersman.models.denoisers import load_denoiser
from steersman.models.denoisers.pipeline import PipelineDenoiser
from steersman.recipes import load_recipe

COMMIT = "0123456789" * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("SD")
    make("SD").save_pretrained(path)
    return path


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture
def bare(tmp_path):
    """A network and its scheduler in one folder, as the first ones of the hub lie."""
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    network.save_pretrained(tmp_path / "bare")
    DDPMScheduler(prediction_type="v_prediction").save_pretrained(tmp_path / "bare")
    return tmp_path / "bare"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A stand-in for the hub's cache, offline: ``cache("org/name", folder)`` puts a folder there."""

    def asked(*_, **__):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", asked)

    def put(name, source):
        place = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text(COMMIT)
        shutil.copytree(source, place / "snapshots" / COMMIT)

    return put


def changed(folder, **entries):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | entries))


def test_from_the_hubs_cache(cache, folder, draw, capfd):
    cache("someone/tiny", folder)
    found, plain = load_denoiser("someone/tiny"), load_denoiser(str(folder))
    x_t, level = draw(1, *plain.shape), plain.schedule.at_time(500)
    assert isinstance(found, PipelineDenoiser)
    assert torch.equal(found(x_t, level, prompt="a ball").x0_hat, plain(x_t, level, prompt="a ball").x0_hat)
    assert capfd.readouterr() == ("", "")


def test_a_model_of_labels_from_the_hubs_cache(cache, dit_folder):
    cache("someone/dit", dit_folder)
    assert load_denoiser("someone/dit").classes == ("baseball", "basketball", "volleyball", "soccer ball")


@pytest.mark.parametrize("lacking", ["all", "unet"])
def test_what_is_not_in_the_cache_is_one_line(lacking, cache, copy):
    if lacking != "all":
        shutil.rmtree(copy / lacking)
        cache("someone/tiny", copy)
    said = (
        "'someone/tiny' is neither a folder nor in the hub's cache.*, run hf download someone/tiny --local-dir FOLDER"
    )
    with pytest.raises(InputError, match=said) as refused:
        load_denoiser("someone/tiny")
    assert "\n" not in str(refused.value)


def test_code_of_the_hub_is_refused_by_name(cache, copy):
    changed(copy, _class_name=["pipeline", "Mine"])
    (copy / "pipeline.py").write_text("raise SystemExit('run')")
    cache("someone/code", copy)
    with pytest.raises(InputError, match="a pipeline by code of its own, pipeline, Mine, which is never run"):
        load_denoiser("someone/code")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"_class_name": ["pipeline", "Mine"]}, "code of its own, pipeline, Mine, which is never run"),
        ({"_class_name": "Mine"}, "is a Mine with .*text_encoder.* as well; use .*StableDiffusionXLPipeline"),
        ({"unet": ["mine", "Network"]}, "has a unet by code of its own, mine.Network, which is never run"),
        ({"unet": ["diffusers", "Network"]}, "has a unet that is no class of diffusers, 'Network'"),
        ({"text_encoder": ["transformers", "AutoModel"]}, "text_encoder that is no class of transformers, 'AutoModel'"),
        ({"unet": ["diffusers", "UNet2DModel"]}, "cannot be"),
    ],
)
def test_indices_that_are_refused(entries, message, copy):
    changed(copy, **entries)
    with pytest.raises(InputError, match=message) as refused:
        load_denoiser(str(copy))
    assert "\n" not in str(refused.value)


def test_pickled_weights_are_refused(copy):
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    file.unlink()
    torch.save({}, file.with_suffix(".bin"))
    with pytest.raises(InputError, match="cannot be read") as refused:
        load_denoiser(str(copy))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_part_that_lacks_weights_is_refused(part, copy):
    (file,) = (copy / part).glob("*.safetensors")
    weights = load_file(file)
    lacking = sorted(weights)[0]
    weights.pop(lacking)
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"copy.*{part}: it lacks the weights .*{lacking.split('.')[-1]}"):
        load_denoiser(str(copy))


def test_what_judges_images_is_not_loaded(copy):
    changed(copy, safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"], requires_safety_checker=True)
    assert load_denoiser(str(copy)).pipe.safety_checker is None


def test_a_size_is_an_option(folder):
    assert load_denoiser(str(folder)).shape == (4, 8, 8)
    assert load_denoiser(f"{folder}?height=16&width=32").shape == (4, 8, 16)
    for given, message in (
        ("height=16", "height and width must be given together, got height alone"),
        ("height=x&width=16", "height must be a valid integer, got 'x'"),
        ("height=17&width=16", "cannot be conditioned on"),
        ("size=16", "unknown option of a pipeline 'size'"),
        ("variant=fp16", "cannot be read"),
    ):
        with pytest.raises(InputError, match=message):
            load_denoiser(f"{folder}?{given}")


def test_a_network_with_its_scheduler_beside_it(bare, draw):
    denoiser = load_denoiser(str(bare))
    assert (denoiser.shape, denoiser.parameterization) == ((3, 8, 8), "v_prediction")
    with pytest.raises(InputError, match="without such options"):
        load_denoiser(f"{bare}?height=8&width=8")
    (bare / "scheduler_config.json").unlink()
    with pytest.raises(InputError, match=r"denoiser must be a folder with unet/ and scheduler/"):
        load_denoiser(str(bare))


@pytest.fixture
def call(call, monkeypatch, tmp_path):
    """Runs a command, and returns exit code and standard error."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: call(*arguments)[::2]


STEERED = ("--target", "baseball", "--classifier", "zoo:sportballs-mobilenet", "--judge", "none", "--num", 1)
SHORT = ("--recipe", "elucd-dit", "--steps", 2)


@pytest.mark.long
def test_a_prompt_on_the_command_line(call, folder, tmp_path):
    given = ("sample", "--denoiser", folder, *STEERED, *SHORT, "--cfg-scale", 2, "--prompt", "a ball")
    assert call(*given, "--negative-prompt", "a dab", "--out", "a") == (0, "")
    run = read_run(tmp_path / "a" / "run.yaml")
    assert (run.prompt, run.negative_prompt, run.cfg_scale) == ("a ball", "a dab", 2.0)
    assert call("sample", "--from", "a/run.yaml", "--out", "b") == (0, "")
    first, again = (Image.open(tmp_path / each / "000000.png").tobytes() for each in "ab")
    assert first == again


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "prompt must be given, as the denoiser draws images of a text"),
        (
            ("--prompt", "a", "--label", "x"),
            "label must not be given, as the denoiser has no labels, got 'x'; give a prompt",
        ),
        (("--prompt", "a", "--negative-prompt", "b"), "cfg-scale must not be 1 with a negative-prompt"),
        (("--denoiser", "zoo:sportballs", "--prompt", "a"), "prompt must not be given, as the denoiser takes no text"),
        (
            ("--denoiser", "zoo:sportballs", "--negative-prompt", "a"),
            "negative-prompt must not be given, as the denoiser",
        ),
        (("--denoiser", "zoo:sportballs", "--label", "1000"), "label index must be 0 to 3, got 1000"),
    ],
)
def test_texts_and_labels_that_do_not_fit_are_one_line(given, message, call, folder):
    denoiser = () if "--denoiser" in given else ("--denoiser", folder)
    code, said = call("sample", *denoiser, *STEERED, *given)
    assert (code, said.count("\n")) == (2, 1) and message in said


@pytest.mark.few(9)
@pytest.mark.parametrize(("label", "number"), [("2", 2), ("Football", 2), ("soccer ball, football", 2), ("cube", 0)])
def test_a_label_by_its_number_or_any_of_its_names(label, number, dit_folder, tmp_path):
    copy = shutil.copytree(dit_folder, tmp_path / "copy")
    names = ["cube", "baseball", "soccer ball, football", "cubes"]
    (copy / "card.json").write_text(json.dumps({"classes": names}))
    settings = {"denoiser": str(copy), "targets": ("0",), "classifiers": ("zoo:sportballs-mobilenet",), "judge": None}
    run = Run(**settings, label=label, cfg_scale=2.0, recipe=load_recipe("elucd-dit", ["sampling.steps=2"]))
    assert load_session(run).condition["label"] == {(0,): number}
    with pytest.raises(InputError, match="unknown label 'footbal'; did you mean 'football'"):
        load_session(replace(run, label="footbal"))


@pytest.mark.parametrize("spec", ["folder", "someone/tiny"])
def test_there_is_nothing_to_convert(spec, call, folder):
    code, said = call("convert", folder if spec == "folder" else spec, "out")
    assert (code, said.count("\n")) == (2, 1) and "which diffusers loads as it is" in said


@pytest.mark.long
def test_a_recipe_that_compares_with_no_prompt_asks_for_it_at_a_scale_of_1_too(folder, tmp_path, call):
    """The prediction is the prompt's alone, as without the recipe."""
    settings = ["--target", "baseball", "--recipe", "elucd-dit", "--classifier", "zoo:sportballs-mobilenet"]
    shared = ["--prompt", "a ball", "--num", 1, "--steps", 2, "--judge", "none", "--dtype", "float32"]
    code, error = call("sample", "--denoiser", folder, *settings, *shared, "--out", tmp_path / "out")
    assert code in (0, 1), error  # two steps of random weights make no image that is worth a look
    assert (tmp_path / "out" / "metrics.json").is_file()
    denoiser = load_denoiser(str(folder))
    x_t, level = torch.randn(1, *denoiser.shape), denoiser.schedule.levels(3)[1]
    plain = denoiser(x_t, level, prompt="a ball")
    both = denoiser(x_t, level, prompt="a ball", unconditional=True)
    assert plain.unconditional is None and (both.x0_hat - plain.x0_hat).abs().max() < 1e-5
    assert (both.unconditional - both.x0_hat).abs().max() > 1e-3
