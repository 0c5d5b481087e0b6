from dataclasses import replace

import pytest
import torch
from torch import nn

from steersman.errors import InputError
from steersman.guidance import ClassProbability, Constant, Guide, NoisePrediction, Noisy
from steersman.models.classifiers import RAW, Classifier, Preprocess
from steersman.sampling import DDIM, sample
from steersman.schedule import EDM, VP, Flow, Level

NAMES = ("tench, Tinca tinca", "crane", "baseball", "missile", "projectile, missile", "crane")


class Told(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x, time):
        assert time.shape == (x.shape[0],)
        return self.head(x.mean((2, 3))) + time[:, None]


def linear(**settings):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.LazyLinear(len(NAMES)))
    network.eval()(torch.zeros(1, 3, 8, 8))
    return Classifier(network.train(), **{"preprocess": RAW, "names": NAMES} | settings)


@pytest.mark.parametrize(
    ("target", "index"),
    [("baseball", 2), ("BaseBall", 2), ("Tinca tinca", 0), (" tench ", 0), ("tench, tinca tinca", 0), (4, 4), ("4", 4)],
)
def test_resolve(target, index):
    assert linear().resolve(target) == index


def test_a_full_name_comes_before_a_synonym():
    assert linear().resolve("missile") == 3


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("basebal", "did you mean 'baseball'"),
        ("crane", r"ambiguous: 1 \(crane\), 5 \(crane\)"),
        (-1, "class index must be 0 to 5, got -1"),
        ("-1", "class index must be 0 to 5, got -1"),
        (6, "class index must be 0 to 5, got 6"),
    ],
)
def test_resolve_refuses(target, message):
    with pytest.raises(InputError, match=message):
        linear().resolve(target)


def test_names_must_fit():
    with pytest.raises(InputError, match="names"):
        linear(names=())
    with pytest.raises(InputError, match="two names, got 3"):
        linear(binary=True, names=("a", "b", "c"))


def test_a_binary_classifier_of_one_name_calls_the_other_class_not_it():
    assert linear(binary=True, names=["cat"]).names == ("not cat", "cat")
    with pytest.raises(InputError, match="binary or multilabel, got both"):
        linear(binary=True, multilabel=True, names="ab")


class Gives(nn.Module):
    """Gives whatever it is made with, for any image."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, image):
        if isinstance(self.output, Exception):
            raise self.output
        return self.output


@pytest.mark.parametrize(
    ("output", "settings", "message"),
    [
        (torch.zeros(2, 1), {"names": "ab"}, r"\(images, 2\) logits.*2 names, got .*\(2, 1\); .* is stated as binary"),
        (torch.zeros(2, 5), {"names": "abc"}, r"must give \(images, 3\) logits, as it has 3 names, got .*\(2, 5\)$"),
        (torch.zeros(2, 2), {"names": "ab", "binary": True}, r"\(images, 1\) logits.* got .*\(2, 2\)$"),
        (torch.zeros(2, 1), {"names": "ab", "multilabel": True}, r"\(images, 2\) logits"),
        (torch.zeros(2, 2, 1, 1), {"names": "ab"}, r"got outputs of shape \(2, 2, 1, 1\)$"),
        ({"logits": torch.zeros(2, 2)}, {"names": "ab"}, "got dict$"),
        (RuntimeError("mat1 and mat2"), {"names": "ab"}, "Gives does not take an input of 3 x 4 x 4 .*mat1 and mat2"),
    ],
)
def test_outputs_that_are_no_logits_of_its_classes_are_refused(output, settings, message, unchecked):
    classifier = Classifier(Gives(output), preprocess=RAW, **settings)
    with pytest.raises(InputError, match=message) as refused:
        classifier(torch.zeros(2, 3, 4, 4))
    assert "\n" not in str(refused.value)


def test_one_logit_may_come_without_an_axis():
    classifier = Classifier(Gives(torch.ones(2)), preprocess=RAW, names="ab", binary=True)
    assert torch.equal(classifier(torch.zeros(2, 3, 4, 4)), torch.ones(2, 1))


def test_memory_that_runs_out_is_no_fault_of_the_images():
    classifier = Classifier(Gives(torch.OutOfMemoryError("no more")), preprocess=RAW, names="ab")
    with pytest.raises(torch.OutOfMemoryError):
        classifier(torch.zeros(2, 3, 4, 4))


def test_stays_in_evaluation_and_frozen():
    classifier = linear()
    assert not any(module.training for module in classifier.train().modules())
    image = torch.rand(2, 3, 8, 8, requires_grad=True)
    classifier(image).sum().backward()
    assert image.grad.isfinite().all() and (image.grad != 0).any()
    assert all(p.grad is None and not p.requires_grad for p in classifier.parameters())


@pytest.mark.parametrize(
    ("dtype", "logits"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
@pytest.mark.parametrize("image", [torch.float16, torch.float32, torch.float64])
def test_dtypes(dtype, logits, image):
    classifier = linear(preprocess=Preprocess(size=8)).to(dtype)
    x = torch.rand(2, 3, 16, 16).to(image).requires_grad_()
    f = classifier(x)
    assert f.dtype == logits
    assert torch.autograd.grad(f.sum(), x)[0].dtype == image
    assert classifier.features(x).dtype == logits


@pytest.mark.parametrize("batch", [(), (2,)])
def test_told_the_level(batch):
    classifier = Classifier(Told(), preprocess=RAW, names=("a", "b"), noise_aware=True)
    image = torch.zeros(2, 3, 4, 4)
    one, time = torch.ones(batch, dtype=torch.float64), torch.full(batch, 7.0, dtype=torch.float64)
    level = Level(alpha=one, sigma=one, time=time)
    torch.testing.assert_close(classifier(image, level), classifier.network.head.bias.expand(2, 2) + 7)
    with pytest.raises(InputError, match="noise level"):
        classifier(image)


class Knowing(nn.Module):
    """The exact classifier of a mixture on a schedule, told the time alone."""

    def __init__(self, mixture, schedule):
        super().__init__()
        self.mixture, self.schedule = mixture, schedule
        self.unit = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x, time):
        return self.unit * self.mixture.log_posterior(x, self.schedule.at_time(time))


SCHEDULES = [VP.linear(), VP.cosine(), EDM(), Flow(shift=2.0)]


@pytest.mark.parametrize("theirs", SCHEDULES)
@pytest.mark.parametrize("own", SCHEDULES)
def test_noise_of_another_schedule(own, theirs, mixture, draw):
    """Whatever scale it is on and time it is told, the exact classifier is the same function of the noisy image."""
    classifier = Classifier(Knowing(mixture, own), preprocess=RAW, names="abc", noise_aware=True, schedule=own)
    ratios = torch.tensor([0.02, 0.7, 60.0], dtype=torch.float64)
    each = [theirs.at_ratio(ratios), *(theirs.at_ratio(ratio) for ratio in ratios)]
    for level in each:
        images = [draw(3, 2, 1, 1).requires_grad_() for _ in range(2)]
        images[1].data.copy_(images[0].data)
        logits = classifier(images[0], level), mixture.log_posterior(images[1], level)
        torch.testing.assert_close(*logits, rtol=1e-8, atol=1e-8)
        ours, exact = (torch.autograd.grad(f[:, 0].sum(), x)[0] for f, x in zip(logits, images, strict=True))
        torch.testing.assert_close(ours, exact, rtol=1e-8, atol=1e-8)


def test_noise_beyond_its_schedule():
    """At the nearest time, and on the scale of what there is more of: the image, or its noise."""
    own, seen = VP.linear(), []

    class Seeing(Told):
        def forward(self, x, time):
            seen.append((float(x[0, 0, 0, 0]), float(time[0])))
            return super().forward(x, time)

    classifier = Classifier(Seeing(), preprocess=RAW, names=("a", "b"), noise_aware=True, schedule=own)
    for schedule, sigma in ((EDM(), 0.0001), (EDM(), 1e4), (Flow(), torch.inf)):
        level = schedule.at_ratio(sigma)
        classifier(torch.full((1, 3, 4, 4), 2.0), level)
        (shown, time), end = seen[-1], own.at_time(0 if sigma < 1 else 999)
        assert time == float(end.time)
        scale = end.alpha / level.alpha if sigma < 1 else end.sigma / level.sigma
        assert shown == pytest.approx(2 * float(scale), rel=1e-6)


def test_the_same_walk_in_edms_coordinates(mixture, draw):
    """DDIM steps by x / alpha and sigma / alpha alone, and so does a guide of the noise that it predicts."""
    vp, noise, ends = VP.linear(), draw(3, 2, 1, 1), []
    start = vp.at_ratio(50.0)
    classifier = Classifier(Knowing(mixture, vp), preprocess=RAW, names="abc", noise_aware=True, schedule=vp)
    for schedule in (vp, EDM()):
        guide = Guide(
            objective=ClassProbability(classifier=classifier),
            input=Noisy(),
            injection=NoisePrediction(),
            weight=Constant(),
        )
        x = sample(
            replace(mixture, schedule=schedule),
            DDIM(),
            guides=[guide],
            target=[0, 1, 2],
            seeds=range(3),
            noise=[noise / (1 if schedule is vp else start.sigma)],  # VP starts from 1, EDM from sigma
            steps=6,
            spacing="karras",
            ratio_min=0.05,
            ratio_max=50.0,
            clip=False,
            dtype=torch.float64,
        )
        ends.append(x)
    assert (ends[0] - ends[1]).abs().max() < 1e-6


def test_features_are_what_the_last_linear_layer_reads():
    classifier = linear()
    image = torch.rand(2, 3, 8, 8)
    features = classifier.features(image)
    assert features.shape == (2, 5 * 6 * 6)
    assert torch.equal(classifier.network[-1](features), classifier(image))
    assert not classifier.network[-1]._forward_pre_hooks


def test_features_need_a_linear_layer():
    classifier = Classifier(nn.Flatten(), preprocess=RAW, names=NAMES)
    with pytest.raises(InputError, match="no linear layer"):
        classifier.features(torch.zeros(1, 3, 2, 2))


def test_smooth_needs_a_relu():
    with pytest.raises(InputError, match="must have a ReLU for softplus 8 to replace"):
        linear().smooth(8.0)
