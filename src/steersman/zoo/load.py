"""The bundled weights: each a safetensors file with its card beside it, and folders as diffusers saves them.

A card says what the network is, how it was trained, and what was measured of it.
"""

import json
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from steersman.classifiers.networks import build_network
from steersman.errors import InputError, unknown

__all__ = ["folder", "folders", "load_network", "names", "read_network"]

_ROOT = resources.files("steersman.zoo")
_WEIGHTS = ".safetensors"


def names() -> tuple[str, ...]:
    """Returns the names of the bundled networks."""
    return tuple(
        sorted(entry.name.removesuffix(_WEIGHTS) for entry in _ROOT.iterdir() if entry.name.endswith(_WEIGHTS))
    )


def folders() -> tuple[str, ...]:
    """Returns the names of the bundled denoisers."""
    return tuple(sorted(entry.name for entry in _ROOT.iterdir() if (entry / "unet").is_dir()))


def folder(name: str) -> Path:
    """Returns the folder of a bundled denoiser: ``unet/``, ``scheduler/`` and ``card.json``.

    Raises:
        InputError: The name is unknown.
    """
    if name not in folders():
        raise unknown("bundled denoiser", name, folders())
    return Path(str(_ROOT / name))


def load_network(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """Returns a bundled network, in float32 and evaluation mode, and its card.

    Args:
        name: One of `names`.

    Raises:
        InputError: The name is unknown, or its files are damaged.
    """
    if name not in names():
        raise unknown("bundled network", name, names())
    return read_network(_ROOT / f"{name}{_WEIGHTS}", _ROOT / f"{name}.json")


def read_network(weights: Traversable, card: Traversable) -> tuple[nn.Module, dict[str, Any]]:
    """Returns the network of a safetensors file, in float32 and evaluation mode, and its card.

    Args:
        weights: The file, such as ``model.safetensors`` of a training.
        card: The card, such as its ``card.json``; must name ``architecture`` and ``classes``.

    Raises:
        InputError: A file is missing or damaged, or they do not fit each other.
    """
    try:
        facts = json.loads(card.read_text())
        network = build_network(facts["architecture"], len(facts["classes"]))
    except InputError as error:
        raise InputError(f"card: {str(card)!r}: {error}") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"card: {str(card)!r} cannot be used ({_reason(error)})") from error
    try:
        network.load_state_dict(safetensors.torch.load(weights.read_bytes()))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(f"weights: {str(weights)!r} cannot be used ({_reason(error)})") from error
    return network.eval(), facts


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no more is known'}"
