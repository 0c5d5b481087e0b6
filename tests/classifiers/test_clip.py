"""CLIP as a classifier of texts, on a tiny random model in transformers' format."""

import json

import pytest
import torch
from PIL import Image

from steersman.errors import InputError
from steersman.guidance import ClassProbability, TargetLogit
from steersman.models.classifiers import load_classifier
from steersman.schedule import CLEAN

transformers = pytest.importorskip("transformers")

TEXTS = ["a photo of a ball", "blur", "a red cat"]


def photo(height, width):
    """An 8-bit picture within the middle of the range, so that bicubic resizing overshoots neither end."""
    draws = torch.rand(3, height, width, generator=torch.Generator().manual_seed(height))
    return (64 + 128 * draws).to(torch.uint8).permute(1, 2, 0).numpy()


def in_range(pixels):
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1


def reference(folder, pixels, texts):
    """What transformers' own processor and model say."""
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.CLIPProcessor.from_pretrained(folder)
    inputs = processor(text=texts, images=Image.fromarray(pixels), padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs), inputs["pixel_values"]


@pytest.fixture
def classifier(clip):
    return load_classifier(f"clip:{clip}")


def test_without_a_resize_the_logits_are_transformers_own(clip, classifier):
    pixels = photo(16, 16)
    expected, _ = reference(clip, pixels, TEXTS)
    assert [classifier.resolve(text) for text in TEXTS] == [0, 1, 2]
    logits = classifier(in_range(pixels))
    torch.testing.assert_close(logits, expected.logits_per_image, rtol=1e-6, atol=1e-6)
    cosines = expected.logits_per_image / classifier.sharpness
    torch.testing.assert_close(classifier.similarity(in_range(pixels)), cosines, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("side", [12, 40, 64])
def test_a_resize_differs_by_the_processors_rounding(clip, classifier, side):
    """The processor resizes in 8 bits, in two passes: each rounds to half of a 255th, which a kernel's negative lobes
    enlarge to less than one; 2 / 255 of the range, over a deviation of .26."""
    pixels = photo(side, side)
    expected, inputs = reference(clip, pixels, TEXTS)
    assert (classifier.preprocess(in_range(pixels)) - inputs).abs().max() < 2 / 255 / 0.26
    for text in TEXTS:
        classifier.resolve(text)
    torch.testing.assert_close(classifier(in_range(pixels)), expected.logits_per_image, rtol=0, atol=0.05)


def test_a_picture_that_is_not_square_is_seen_at_its_centre(classifier):
    classifier.resolve("ball")
    wide = in_range(photo(16, 32))
    assert torch.equal(classifier(wide), classifier(wide[..., 8:24]))


def test_a_processor_that_crops(clip_folder):
    """A processor that resizes to 20 and keeps 16 shows the middle four fifths."""
    folder = clip_folder(image_size=20)
    classifier = load_classifier(f"clip:{folder}")
    pixels = photo(20, 20)
    _, inputs = reference(folder, pixels, TEXTS)
    torch.testing.assert_close(classifier.preprocess(in_range(pixels)), inputs, rtol=1e-6, atol=1e-6)


def test_the_gradient_is_that_of_the_cosine_times_the_logit_scale(classifier):
    image = in_range(photo(16, 16)).double().requires_grad_()
    classifier.double()
    target = torch.tensor([classifier.resolve("ball")])
    classifier.resolve("blur")

    def gradient(value):
        return torch.autograd.grad(value.sum(), image)[0]

    g = gradient(TargetLogit(classifier=classifier)(image, target, CLEAN))
    assert g.isfinite().all() and g.abs().max() > 1e-6
    cosine = gradient(classifier.similarity(image)[:, 0])
    torch.testing.assert_close(g, classifier.sharpness * cosine, rtol=1e-12, atol=1e-15)
    step = 1e-4 * g / g.norm()
    change = classifier(image + step)[0, 0] - classifier(image - step)[0, 0]
    torch.testing.assert_close(change, 2e-4 * g.norm(), rtol=1e-5, atol=0)
    assert all(not weight.requires_grad for weight in classifier.parameters())


def test_a_text_is_encoded_once_as_it_would_be_anew(clip, classifier, monkeypatch):
    asked, encode = [], classifier.encode
    monkeypatch.setattr(classifier, "encode", lambda text: asked.append(text) or encode(text))
    assert [classifier.resolve(text) for text in ("A ball", "blur", " a  BALL ", "blur")] == [0, 1, 0, 1]
    assert asked == list(classifier.names) == ["A ball", "blur"]
    fresh = load_classifier(f"clip:{clip}", dtype=torch.bfloat16)
    fresh.resolve("a ball")
    assert torch.equal(fresh.embeddings[0], classifier.embeddings[0])
    assert fresh.embeddings[0].dtype == torch.float32


def test_texts_are_classes_of_their_own_with_commas_and_digits(classifier):
    assert [classifier.resolve(each) for each in ("a cat, red", "a cat", "0")] == [0, 1, 2]
    assert [classifier.title(index) for index in range(3)] == ["a cat, red", "a cat", "0"]
    assert classifier.resolve(1) == 1
    with pytest.raises(InputError, match="class index must be 0 to 2, got 3"):
        classifier.resolve(3)


def test_the_logits_of_a_text_do_not_depend_on_the_others_nor_on_the_batch(classifier):
    images = torch.cat([in_range(photo(side, side)[:16, :16]) for side in (16, 17, 18)])
    classifier.block = 2
    classifier.resolve("ball")
    alone = classifier(images[:1])
    classifier.resolve("blur")
    assert torch.equal(classifier(images)[:1, :1], alone)


def test_half_precision_keeps_the_cosine_in_float32(classifier):
    classifier.resolve("ball")
    image = in_range(photo(16, 16))
    exact = classifier(image)
    half = classifier.to(torch.bfloat16)(image)
    assert half.dtype == torch.float32
    # bfloat16 has 8 bits; the cosine is of order 1
    torch.testing.assert_close(half, exact, rtol=0, atol=0.03 * classifier.sharpness)


def test_another_size_is_seen_with_interpolated_places(clip):
    classifier = load_classifier(f"clip:{clip}", preprocess="raw")
    classifier.resolve("ball")
    assert classifier(in_range(photo(24, 24))).isfinite().all()
    with pytest.raises(InputError, match="preprocess.size must be at least 8, a patch of CLIP, got 4"):
        classifier(in_range(photo(4, 4)))


def test_one_text_alone_is_no_class(classifier):
    target, image = torch.tensor([classifier.resolve("ball")]), in_range(photo(16, 16))
    with pytest.raises(InputError, match="objective class needs two classes or more, got one"):
        ClassProbability(classifier=classifier)(image, target, CLEAN)
    assert ClassProbability(classifier=classifier, marginal=0.0)(image, target, CLEAN) == classifier(image)
    classifier.resolve("blur")
    assert ClassProbability(classifier=classifier)(image, target, CLEAN) < 0


def test_refuses_what_is_no_text(classifier):
    with pytest.raises(InputError, match="target must be given to a classifier of texts, .*got none"):
        classifier(in_range(photo(16, 16)))
    with pytest.raises(InputError, match="target must not be an empty text"):
        classifier.resolve("  ")
    with pytest.raises(InputError, match="target must have at most 16 tokens, with start and end, got 20"):
        classifier.resolve(" ".join(18 * "a"))
    with pytest.raises(InputError, match="a classifier of texts has no ReLU for softplus 3 to replace"):
        classifier.smooth(3.0)


def damaged(kind, folder):
    if kind == "no weights":
        (folder / "model.safetensors").unlink()
    elif kind == "truncated":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    elif kind == "pickled":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif kind == "no processor":
        (folder / "processor_config.json").unlink()
    elif kind == "another model":
        (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    elif kind == "padded":
        content = json.loads((folder / "processor_config.json").read_text())
        content["image_processor"]["crop_size"] = {"height": 32, "width": 32}
        (folder / "processor_config.json").write_text(json.dumps(content))
    elif kind == "half":
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        kept = {name: weight for name, weight in weights.items() if not name.startswith("text")}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no weights", "cannot be read"),
        ("truncated", "cannot be read"),
        ("pickled", "cannot be read"),
        ("no processor", "cannot be read"),
        ("another model", "must be of the type clip, got bert"),
        ("padded", "or pads its images"),
        ("half", "lacks the weights text"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_line(kind, message, clip_folder, capfd):
    folder = clip_folder()
    damaged(kind, folder)
    capfd.readouterr()
    with pytest.raises(InputError, match=message) as refused:
        load_classifier(f"clip:{folder}")
    assert "\n" not in str(refused.value)
    assert capfd.readouterr() == ("", "")


def test_no_folder_and_no_network_say_what_to_fetch(monkeypatch, capfd):
    import huggingface_hub

    def offline(*_, **__):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", offline)
    with pytest.raises(InputError, match=r"hf download nobody/clip --local-dir FOLDER") as refused:
        load_classifier("clip:nobody/clip")
    assert "\n" not in str(refused.value)
    with pytest.raises(
        InputError, match=r"must be clip:FOLDER of a folder that exists, .*got 'clip:\./nobody/clip/here'"
    ):
        load_classifier("clip:./nobody/clip/here")
    assert capfd.readouterr() == ("", "")


def test_loading_leaves_transformers_as_talkative_as_it_was(clip):
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_classifier(f"clip:{clip}")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_reads_the_processor_of_the_first_released_models(clip_folder, classifier):
    """Theirs is another file, whose sizes are plain numbers."""
    folder = clip_folder()
    (folder / "processor_config.json").unlink()
    old = {"crop_size": 16, "size": 16, "resample": 3, "feature_extractor_type": "CLIPFeatureExtractor"}
    old |= {f"do_{each}": True for each in ("center_crop", "normalize", "resize")}
    old |= {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    (folder / "preprocessor_config.json").write_text(json.dumps(old))
    assert load_classifier(f"clip:{folder}").preprocess == classifier.preprocess
