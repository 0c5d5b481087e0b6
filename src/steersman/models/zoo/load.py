"""The bundled weights: safetensors files with a card beside each, and folders in diffusers' layout."""

from importlib import resources
from pathlib import Path
from typing import Any

from torch import nn

from steersman.errors import InputError, about, unknown
from steersman.files import class_names, read_json
from steersman.models.checkpoint import read_tensors
from steersman.models.classifiers.networks import build_network

__all__ = ["folder", "folders", "load_network", "names", "read_network"]

_ROOT = Path(str(resources.files("steersman.models.zoo")))


def names() -> tuple[str, ...]:
    """Returns the names of the bundled networks."""
    return tuple(sorted(path.stem for path in _ROOT.glob("*.safetensors")))


def folders() -> tuple[str, ...]:
    """Returns the names of the bundled denoisers."""
    return tuple(sorted(entry.name for entry in _ROOT.iterdir() if (entry / "unet").is_dir()))


def folder(name: str) -> Path:
    """Returns the folder of a bundled denoiser."""
    if name not in folders():
        raise unknown("bundled denoiser", name, folders())
    return _ROOT / name


def load_network(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """Returns a bundled network, in float32 and evaluation mode, and its card."""
    if name not in names():
        raise unknown("bundled network", name, names())
    return read_network(_ROOT / f"{name}.safetensors", _ROOT / f"{name}.json")


def read_network(weights: Path, card: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Returns the network of a safetensors file, in float32 and evaluation mode, and its card.

    The card names ``architecture`` and ``classes``, and ``channels`` where they are not 3.
    """
    with about("card", card):
        facts = read_json(card, "card")
        network = build_network(facts["architecture"], len(class_names(facts["classes"])), facts.get("channels", 3))
    with about("weights", weights):
        state = read_tensors(weights)
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise InputError(" ".join(str(error).split())) from error
    return network.eval(), facts
