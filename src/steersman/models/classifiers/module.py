"""One's own classifier, by the name of a function that makes it: ``module:PACKAGE.NAME:FACTORY``.

The function takes no arguments and returns a `Classifier`; or a network with the names of its classes as ``names``,
which maps images in [-1, 1], at the sample's own size, to logits: of a softmax, or as its attribute ``binary`` or
``multilabel`` says. The module is installed, or lies in the current
folder; it alone is imported, and runs as any program does.
"""

from torch import nn

from steersman.errors import InputError
from steersman.models.classifiers.base import Classifier
from steersman.models.classifiers.preprocess import RAW
from steersman.models.classifiers.stated import NOTHING, Stated
from steersman.trust import call_function

__all__ = ["load_module"]


def load_module(name: str, stated: Stated = NOTHING) -> Classifier:
    """Returns the classifier that a function makes.

    Args:
        name: ``PACKAGE.NAME:FACTORY``.
        stated: What else its spec says.

    Raises:
        InputError: The module or the function is not there, fails, or makes something else.
    """
    made = call_function(name, "classifier")
    if isinstance(made, Classifier):
        return made
    called = name.replace(":", ".")
    if not isinstance(made, nn.Module):
        kind = type(made).__name__
        raise InputError(f"classifier: {called}() must return a Classifier, or a network with names, got a {kind}")
    names = getattr(made, "names", None)
    if not isinstance(names, list | tuple) or not names or not all(isinstance(each, str) for each in names):
        raise InputError(
            f"classifier: the network of {called}() must have names, a list of its classes' names, got none"
        )
    binary, multilabel = (bool(getattr(made, head, False)) for head in ("binary", "multilabel"))
    return Classifier(made, preprocess=RAW, names=names, binary=binary, multilabel=multilabel)
