import pytest
import torch
from torch import nn

from steersman.classifiers import RAW, Classifier, Preprocess
from steersman.errors import InputError
from steersman.schedule import Level

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
        (-1, "index -1 is out of range; allowed: 0 to 5"),
        ("-1", "index -1 is out of range"),
        (6, "index 6 is out of range"),
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
    classifier = Classifier(Told(), preprocess=RAW, names=("a", "b"), told_level=True)
    image = torch.zeros(2, 3, 4, 4)
    one, time = torch.ones(batch, dtype=torch.float64), torch.full(batch, 7.0, dtype=torch.float64)
    level = Level(alpha=one, sigma=one, time=time)
    torch.testing.assert_close(classifier(image, level), classifier.network.head.bias.expand(2, 2) + 7)
    with pytest.raises(InputError, match="noise level"):
        classifier(image)


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
    with pytest.raises(InputError, match="no ReLU"):
        linear().smooth(8.0)
