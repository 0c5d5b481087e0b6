"""All figures together: against torch-fidelity end to end, and on what is known of small sets."""

import numpy as np
import pytest
import torch

from metrics.written import write
from steersman.errors import InputError
from steersman.lab.data.images import read_images
from steersman.lab.metrics import frechet_distance, wilson
from steersman.lab.metrics.evaluate import FIGURES, evaluate
from steersman.lab.metrics.features import Extractor, read_reference, statistics_of
from steersman.lab.metrics.intervals import Figure
from steersman.models.classifiers import RAW, Classifier, load_classifier


class Brightness(torch.nn.Module):
    """Dark below the middle grey, light above."""

    def forward(self, images):
        mean = images.mean((1, 2, 3))
        return torch.stack([-mean, mean], 1)


def lights(*names):
    return Classifier(Brightness(), preprocess=RAW, names=names or ("dark", "light"))


@pytest.fixture
def lit(pixels, tmp_path):
    """Six dark images and four light ones, as two folders and in one."""
    dark, light = pixels(6), pixels(4, bright=55) // 2 + 128
    write(tmp_path / "lit" / "dark", dark)
    write(tmp_path / "lit" / "light", light)
    write(write(tmp_path / "one", dark), light, first=6)
    return tmp_path


def only(found):
    return {name for name, figure in found.items() if figure.value is not None}


@pytest.mark.long
def test_agrees_with_torch_fidelity_end_to_end(pixels, tmp_path):
    """The same images and the same network, of random weights: theirs reads the folders and computes by itself."""
    from torch_fidelity import calculate_metrics, register_feature_extractor
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.ReLU(), torch.nn.AvgPool2d(6), torch.nn.Flatten())

    class Random(FeatureExtractorBase):
        def __init__(self, name, features_list, **kwargs):
            super().__init__(name, features_list)
            self.network = network

        def forward(self, images):
            return (self.network(images / 127.5 - 1),)

        @staticmethod
        def get_provided_features_list():
            return ("6",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "6"

        @staticmethod
        def can_be_compiled():
            return False

    register_feature_extractor("random-6", Random)
    samples, reference = write(tmp_path / "a", pixels(20, bright=20)), write(tmp_path / "b", pixels(20, seed=1))
    try:
        theirs = calculate_metrics(
            input1=str(samples),
            input2=str(reference),
            feature_extractor="random-6",
            cuda=False,
            cache=False,
            fid=True,
            kid=True,
            kid_subsets=1,
            kid_subset_size=20,
            prc=True,
            verbose=False,
        )
    finally:
        del FEATURE_EXTRACTORS_REGISTRY["random-6"]
    ours = evaluate(
        read_images(samples),
        read_images(reference),
        features=Extractor(name="random-6", embed=network),
        resamples=0,
    )
    assert ours["fid"].value == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)  # theirs: float32 means
    assert ours["kid"].value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4, abs=1e-6)
    assert ours["precision"].value == pytest.approx(theirs["precision"])
    assert ours["recall"].value == pytest.approx(theirs["recall"])
    assert 0 < ours["precision"].value < 1


def test_accuracy_by_labels_and_by_a_target(lit, quarters):
    samples = read_images(lit / "lit")
    found = evaluate(samples, None, features=quarters, guide=lights(), judge=lights("light", "dark"))
    assert found["accuracy/guide"] == Figure(1.0, *wilson(10, 10))
    assert found["accuracy/judge"] == Figure(0.0, *wilson(0, 10))
    found = evaluate(samples, None, features=quarters, target="light", judge=lights())
    assert found["accuracy/judge"] == Figure(1.0, *wilson(4, 4))
    found = evaluate(read_images(lit / "one"), None, features=quarters, target="light", judge=lights())
    assert found["accuracy/judge"] == Figure(0.4, *wilson(4, 10))
    assert set(found) == set(FIGURES)
    assert only(found) == {"accuracy/judge"}


def test_a_network_that_no_figure_needs_sees_no_image(lit, quarters, monkeypatch):
    samples, guide, judge = read_images(lit / "lit"), lights(), lights()
    monkeypatch.setattr(guide.network, "forward", lambda *inputs: pytest.fail("the guide was asked"))
    found = evaluate(samples, None, features=quarters, guide=guide, judge=judge, figures=("accuracy/judge", "fid"))
    assert only(found) == {"accuracy/judge"}


def test_a_number_is_the_guides_and_the_judge_is_told_the_name(lit, quarters):
    settings = {"features": quarters, "guide": lights("dark, black", "light"), "judge": lights("light", "dark")}
    found = evaluate(read_images(lit / "one"), None, target="0", **settings)
    assert (found["accuracy/guide"].value, found["accuracy/judge"].value) == (0.6, 0.4)


def test_no_judge_for_a_target_means_none(lit, quarters):
    found = evaluate(read_images(lit / "lit"), None, features=quarters, judge=lights("ball", "cube"))
    assert found["accuracy/judge"] == Figure()
    assert found["accuracy/judge"].note == "the judge knows no class 'dark', 'light'"


def test_samples_whose_class_a_network_does_not_know_leave_the_others_their_accuracy(lit, quarters):
    found = evaluate(read_images(lit / "lit"), None, features=quarters, judge=lights("cube", "Light"))
    assert found["accuracy/judge"] == Figure(1.0, *wilson(4, 4))
    assert found["accuracy/judge"].note == "of 4 of 10 samples: the judge knows no class 'dark'"


NAMED = {"baseball": ("n02799071", "Baseball"), "soccer ball": ("n04254680", "Soccer_Ball")}


@pytest.mark.parametrize("way", [0, 1])
def test_classes_have_one_name_by_wordnet_and_with_underscores(way, pixels, quarters, tmp_path):
    for place, (name, others) in enumerate(NAMED.items()):
        write(tmp_path / "samples" / name, pixels(5, bright=9 * place))
        write(tmp_path / "real" / others[way], pixels(6, bright=9 * place, seed=1))
    samples, real = read_images(tmp_path / "samples"), read_images(tmp_path / "real")
    found = evaluate(samples, real, features=quarters, judge=lights(*NAMED), figures=("cfid",), resamples=0)
    each = [
        frechet_distance(*(statistics_of(held.of(name), quarters).features for held in (samples, real)))
        for name in NAMED
    ]
    assert found["cfid"].value == pytest.approx(sum(each) / 2)
    assert only(evaluate(real, None, features=quarters, judge=lights(*NAMED))) == {"accuracy/judge"}


@pytest.mark.parametrize(
    ("figure", "given", "reason"),
    [
        ("cfid", {"reference": "cubes"}, r"has no images of 'dark', its classes are cube"),
        ("cfid", {"reference": "one"}, "has no labels"),
        ("cfid", {"samples": "one", "reference": "lit"}, "the samples have no labels and no target is given"),
        ("diversity", {"reference": "cubes"}, r"has no images of 'dark', its classes are cube"),
        ("kid", {"reference": "moments.npz"}, "holds no features of single images"),
        ("fid", {}, "there is no reference"),
        ("accuracy/guide", {}, "there is no guide"),
        ("accuracy/judge", {"judge": lights("ball", "cube")}, "the judge knows no class 'dark', 'light'"),
        ("accuracy/judge", {"samples": "one", "judge": lights()}, "the samples have no labels and no target is given"),
        ("clip_score", {"judge": lights()}, "neither guide nor judge compares images with texts"),
    ],
)
def test_a_figure_that_is_asked_for_and_cannot_be_given_is_refused_before_any_network_is_asked(
    figure, given, reason, lit, pixels, quarters
):
    write(lit / "cubes" / "cube", pixels(6))
    np.savez(lit / "moments.npz", mu=np.zeros(12), sigma=np.eye(12), extractor="quarters")
    given = {"samples": "lit", "reference": None, **given}
    samples, reference = (None if given[key] is None else lit / given.pop(key) for key in ("samples", "reference"))
    given.pop("reference", None)
    sets = read_images(samples), None if reference is None else read_reference(reference)
    never = Extractor(name="quarters", embed=lambda images: pytest.fail("a network was asked"))
    with pytest.raises(InputError, match=f"^{figure} cannot be given: .*{reason}"):
        evaluate(*sets, features=never, figures=(figure,), strict=True, **given)
    found = evaluate(*sets, features=quarters, figures=(figure,), **given)
    assert found[figure] == Figure() and reason in found[figure].note


def test_cfid_is_of_the_target_alone(lit, pixels, quarters):
    samples, reference = read_images(write(lit / "samples", pixels(9, seed=4))), read_images(lit / "lit")
    rows = {name: statistics_of(each, quarters).features for name, each in (("x", samples), ("y", reference))}
    dark = statistics_of(reference.of("dark"), quarters).features
    found = evaluate(samples, reference, features=quarters, target="dark", resamples=0, figures=("fid", "cfid"))
    assert found["fid"].value == pytest.approx(frechet_distance(rows["x"], rows["y"]))
    assert found["cfid"].value == pytest.approx(frechet_distance(rows["x"], dark))
    assert found["cfid"].value < found["fid"].value


def test_cfid_of_several_targets_is_the_mean(lit, pixels, quarters):
    write(lit / "samples" / "dark", pixels(5, seed=4))
    write(lit / "samples" / "light", pixels(5, bright=55, seed=4))
    samples, reference = read_images(lit / "samples"), read_images(lit / "lit")
    found = evaluate(samples, reference, features=quarters, resamples=4, figures=("cfid",))["cfid"]
    each = [
        evaluate(samples, reference, features=quarters, target=name, resamples=4, figures=("cfid",))["cfid"]
        for name in ("dark", "light")
    ]
    assert found.value == pytest.approx(sum(one.value for one in each) / 2)
    assert found.low < found.value < found.high


def test_diversity_is_the_mean_over_targets_of_how_widely_images_are_spread(lit, pixels, quarters):
    write(lit / "samples" / "dark", pixels(5, seed=4))
    write(lit / "samples" / "light", pixels(5, bright=55, seed=4))
    samples, reference = read_images(lit / "samples"), read_images(lit / "lit")
    found = evaluate(samples, reference, features=quarters, resamples=4, figures=("diversity",))["diversity"]
    rows = [
        [torch.pdist(statistics_of(each.of(name), quarters).features.double()) for each in (samples, reference)]
        for name in ("dark", "light")
    ]
    expected = sum((x.square().mean() / y.square().mean()).sqrt() for x, y in rows) / 2
    assert found.value == pytest.approx(float(expected))
    assert found.low < found.value < found.high
    itself = evaluate(reference, reference, features=quarters, resamples=0, figures=("diversity",))
    assert itself["diversity"].value == pytest.approx(1)


def test_labels_that_the_reference_lacks_leave_cfid_out(lit, pixels, quarters):
    write(lit / "samples" / "cube", pixels(6, seed=4))
    samples, reference = read_images(lit / "samples"), read_images(lit / "lit")
    found = evaluate(samples, reference, features=quarters, resamples=0)
    assert only(found) == {"fid", "kid", "precision", "recall", "density", "coverage"}
    with pytest.raises(InputError, match="unknown class of .*'cube'"):
        evaluate(samples, reference, features=quarters, target="cube", resamples=0)


class Pooled:
    """A CLIP whose features are tensors, as torchmetrics expects."""

    def __init__(self, model):
        self.model, self.config = model, model.config

    def to(self, device):
        return self

    def get_image_features(self, pixels):
        return self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output)

    def get_text_features(self, tokens, mask):
        return self.model.text_projection(self.model.text_model(input_ids=tokens, attention_mask=mask).pooler_output)


def test_clip_score_is_torchmetrics(clip, pixels, quarters, tmp_path):
    """Of images that the small CLIP need not resize, and a text that is near to all."""
    import transformers
    from torchmetrics.functional.multimodal import clip_score

    content, judge = pixels(6, side=16), load_classifier(f"clip:{clip}")
    samples = read_images(write(tmp_path, content))
    shown = list(torch.from_numpy(content).permute(0, 3, 1, 2))
    model = Pooled(transformers.CLIPModel.from_pretrained(clip).eval())
    source = (model, transformers.CLIPProcessor.from_pretrained(clip))
    values = []
    for text in ("a ball", "dog", "xyz", "b 3"):
        found = evaluate(samples, None, features=quarters, target=text, judge=judge, resamples=20)["clip_score"]
        # One by one, since theirs cuts off the mean at 0.
        theirs = sum(clip_score(image, text, lambda: source).item() for image in shown) / 6
        assert found.value == pytest.approx(theirs, rel=1e-4, abs=1e-4)
        assert found.low <= found.value <= found.high
        values.append(found.value)
    assert max(values) > 1
    each = evaluate(samples, None, features=quarters, target="dog", judge=load_classifier(f"clip:{clip}"))
    assert each["accuracy/judge"] == Figure()  # among one text there is nothing to choose


@pytest.mark.parametrize(
    ("samples", "reference", "figure", "message"),
    [
        (1, 5, "fid", "fid needs at least 2 samples, got 1; give more, or"),
        (3, 9, "recall", "recall needs at least 4 samples, got 3"),
        (9, 3, "precision", "precision needs at least 4 images of the reference, got 3"),
        (9, 5, "coverage", "coverage needs at least 6 images of the reference, got 5"),
        (9, 1, "kid", "kid needs at least 2 images of the reference, got 1"),
    ],
)
def test_too_few_images(samples, reference, figure, message, pixels, quarters, tmp_path):
    sets = [read_images(write(tmp_path / str(place), pixels(n))) for place, n in enumerate((samples, reference))]
    with pytest.raises(InputError, match=message):
        evaluate(*sets, features=quarters, figures=(figure,))


def test_what_cannot_be_compared(lit, pixels, quarters):
    samples = read_images(lit / "one")
    other = statistics_of(samples, Extractor(name="other", embed=quarters.embed))
    with pytest.raises(InputError, match="samples' are 'quarters' .12 columns. and those of .* are 'other'"):
        evaluate(samples, other, features=quarters)
    large = read_images(write(lit / "large", pixels(9, side=16)))
    with pytest.raises(InputError, match="must have the size of the samples, 8 by 8 pixels, got 16 by 16"):
        evaluate(samples, large, features=quarters)
    with pytest.raises(InputError, match="unknown figure 'fdi'"):
        evaluate(samples, None, features=quarters, figures=("fdi",))
    with pytest.raises(InputError, match="unknown class of .*'cube'"):
        evaluate(read_images(lit / "lit"), None, features=quarters, target="cube")


def test_adms_numbers_are_the_guides(lit, pixels, quarters):
    np.savez(lit / "batch.npz", pixels(9, seed=3), np.array([1, 0, 1, 0, 1, 0, 1, 0, 1]))
    samples, reference = read_images(lit / "one"), read_images(lit / "batch.npz")
    settings = {"features": quarters, "figures": ("cfid",), "resamples": 0}
    found = evaluate(samples, reference, target="light", guide=lights(), **settings)
    assert found["cfid"] == evaluate(samples, reference, target="1", **settings)["cfid"]


FULL = (torch.OutOfMemoryError("no more"), RuntimeError("DefaultCPUAllocator: can't allocate memory"))


@pytest.mark.parametrize("error", FULL, ids=["cuda", "cpu"])
def test_a_batch_that_memory_does_not_hold_is_halved(lit, quarters, error, recwarn):
    class Small(Brightness):
        def forward(self, images):
            sizes.append(len(images))
            if len(images) > 3:
                raise error
            return super().forward(images)

    def embed(images):
        sizes.append(len(images))
        if len(images) > 3:
            raise error
        return quarters.embed(images)

    sizes = []
    samples, told = read_images(lit / "lit"), []
    settings = {"reference": read_images(lit / "one"), "resamples": 2}
    whole = evaluate(samples, features=quarters, judge=lights(), **settings)
    full = Classifier(Small(), preprocess=RAW, names=("dark", "light"))
    few = Extractor(name=quarters.name, embed=embed)
    assert evaluate(samples, features=few, judge=full, batch_size=8, on_images=told.append, **settings) == whole
    assert told == [8, 2] * 3 and max(sizes) == 8
    assert "does not hold 8 images at a time: 2 are taken" in str(recwarn[0].message)
