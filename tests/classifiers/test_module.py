"""One's own classifier, by the name of its factory."""

import sys

import pytest
import torch

from steersman.errors import InputError
from steersman.models.classifiers import RAW, Classifier, load_classifier

OWN = """
import torch
from steersman.models.classifiers import Classifier, Preprocess
from steersman.errors import InputError

class Net(torch.nn.Module):
    def __init__(self, names=("left", "right")):
        super().__init__()
        self.names = names
        self.relu = torch.nn.ReLU()

    def forward(self, x):
        return self.relu(torch.stack([-x.mean((1, 2, 3)), x.mean((1, 2, 3))], 1))

def whole():
    return Classifier(Net(), preprocess=Preprocess(size=4), names=["left", "right"])

def attributes():
    net = Net()
    net.multilabel = True
    return net

def detector():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 1))
    net.names, net.binary = ["a cat"], True
    return net

def nameless():
    net = Net()
    del net.names
    return net

def letters():
    return Net("ab")

def empty():
    return Net([])

def numbers():
    return Net([0, 1])

def text():
    return "a classifier"

def asks(more):
    return Net()

def fails():
    raise RuntimeError("first line\\nsecond line")

def refuses():
    raise InputError("own must be 4, got 3")

constant = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Modules in the current folder, which nothing imported before."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_balls").mkdir()
    (tmp_path / "own_balls" / "nets.py").write_text(OWN)
    (tmp_path / "own_broken.py").write_text("import not_installed_anywhere")
    (tmp_path / "own_wrong.py").write_text("def (")
    (tmp_path / "json.py").write_text("raise SystemError('must not hide the real one')")
    before, path = set(sys.modules), list(sys.path)
    yield
    assert sys.path == path
    for name in set(sys.modules) - before:
        if name.startswith("own_"):
            del sys.modules[name]


@pytest.mark.usefixtures("own")
def test_a_network_with_names_sees_the_sample_as_it_is():
    classifier = load_classifier("module:own_balls.nets:Net", dtype=torch.float64)
    assert isinstance(classifier, Classifier)
    assert (classifier.names, classifier.preprocess) == (("left", "right"), RAW)
    image = torch.full((1, 3, 8, 8), 0.5)
    assert torch.equal(classifier(image), torch.tensor([[0.0, 0.5]], dtype=torch.float64))
    assert "own_balls.nets" in sys.modules and "own_broken" not in sys.modules


@pytest.mark.usefixtures("own")
def test_a_network_says_what_its_logits_mean():
    classifier = load_classifier("module:own_balls.nets:attributes")
    assert classifier.multilabel and classifier.names == ("left", "right")
    classifier = load_classifier("module:own_balls.nets:detector")
    assert classifier.binary and classifier.names == ("not a cat", "a cat")
    assert classifier(torch.zeros(2, 3, 2, 2)).shape == (2, 1)


@pytest.mark.usefixtures("own")
def test_a_classifier_takes_the_settings_of_all_sources():
    classifier = load_classifier("module:own_balls.nets:whole", softplus=2.0)
    assert (classifier.preprocess.size, classifier.smoothed) == (4, 1)
    assert load_classifier("module:own_balls.nets:whole", preprocess="raw", size=6).preprocess.size == 6


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("module:", "module:NAME"),
        ("module:own_balls.nets", "must be given as module:PACKAGE.NAME:FUNCTION"),
        ("module:own_balls/nets.py:Net", "must be given as module:PACKAGE.NAME:FUNCTION"),
        ("module::Net", "must be given as module:PACKAGE.NAME:FUNCTION"),
        ("module:own_balls.nets:Net()", "must be given as module:PACKAGE.NAME:FUNCTION"),
        (
            "module:own_boxes:Net",
            "module 'own_boxes' cannot be imported .ModuleNotFoundError: No module named 'own_boxes'",
        ),
        ("module:own_broken:Net", "cannot be imported .ModuleNotFoundError: No module named 'not_installed_anywhere'"),
        ("module:own_wrong:Net", "cannot be imported .SyntaxError"),
        ("module:own_balls.nets:net", "unknown function of module 'own_balls.nets' 'net'; did you mean 'Net'"),
        (
            "module:own_balls.nets:constant",
            "unknown function of module 'own_balls.nets' 'constant'",
        ),
        ("module:own_balls.nets:asks", r"asks\(\) failed .TypeError: asks\(\) missing 1 required positional argument"),
        ("module:own_balls.nets:fails", r"fails\(\) failed .RuntimeError: first line\)"),
        ("module:own_balls.nets:refuses", "own must be 4, got 3"),
        ("module:own_balls.nets:text", "must return a Classifier, or a network with names, got a str"),
        ("module:own_balls.nets:nameless", "must have names, a list of its classes' names, got none"),
        ("module:own_balls.nets:letters", "must have names, a list of its classes' names, got none"),
        ("module:own_balls.nets:empty", "must have names, a list of its classes' names, got none"),
        ("module:own_balls.nets:numbers", "must have names, a list of its classes' names, got none"),
    ],
)
@pytest.mark.usefixtures("own")
def test_what_can_go_wrong_is_one_line(spec, message):
    with pytest.raises(InputError, match=message) as refused:
        load_classifier(spec)
    assert "\n" not in str(refused.value)
