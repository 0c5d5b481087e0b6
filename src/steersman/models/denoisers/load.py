"""A denoiser from one line of text: ``SOURCE:NAME``, or a pipeline as diffusers saves it, in a folder or on the hub.

``module:PACKAGE.NAME:FUNCTION`` is a denoiser of one's own: the function takes no arguments and returns a
`steersman.denoise.Denoiser` that also has ``network`` and ``to``, most often a `NetworkDenoiser`. The module is
installed or lies in the current folder (`steersman.files`).
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steersman.denoise import Prediction
from steersman.errors import InputError, one_line
from steersman.models.denoisers.adm import load_adm
from steersman.models.denoisers.dit import load_dit
from steersman.models.denoisers.edm import load_edm
from steersman.models.denoisers.folder import PIPELINES, load_folder, read_index
from steersman.models.denoisers.network import NetworkDenoiser
from steersman.models.denoisers.pipeline import PipelineDenoiser, fetch, load_pipeline
from steersman.names import split_options
from steersman.schedule import Schedule
from steersman.trust import call_function

__all__ = ["is_pipeline", "load_denoiser"]

HUB = r"\w[\w.-]*/\w[\w.-]*"  # an id of the hub
FILE = ".safetensors"
OPTIONS = ("height", "width", "variant")
NEEDED = ("network", "schedule", "shape", "classes", "decode", "to")


def load_denoiser(
    spec: str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> NetworkDenoiser | PipelineDenoiser:
    """Loads a diffusion model.

    Args:
        spec: ``zoo:sportballs`` or ``zoo:mnist``; ``adm:FILE``, ``dit:FILE?vae=FOLDER`` and ``edm:FILE`` for files as
            their authors released them; ``module:PACKAGE.NAME:FUNCTION`` for one's own; or a folder as diffusers saves
            a pipeline, which may have a ``card.json`` with ``classes``, the names of its labels. A folder of a text
            pipeline may be followed by options, ``FOLDER?height=512&width=768``; in place of a folder, ``ORG/NAME`` is
            one of the hub, and ``FILE.safetensors?config=FOLDER`` a pipeline's weights in one file.
        device: The device of the network.
        dtype: The type of its weights.

    Raises:
        InputError: There is no such denoiser, or it cannot be read.

    Example:
        >>> import steersman as sm
        >>> denoiser = sm.load_denoiser("zoo:mnist", device="cpu")
        >>> denoiser.shape, denoiser.classes[:2]
        ((1, 28, 28), ('0 - zero', '1 - one'))
    """
    if not isinstance(spec, str):
        raise InputError(
            f"a denoiser is loaded by a text such as 'zoo:sportballs', got {type(spec).__name__}; a pipeline is "
            "steered by steersman.steer, a network wrapped as NetworkDenoiser(network, schedule=..., shape=...)"
        )
    source, separator, name = spec.partition(":")
    if separator and source == "module":
        return _load_module(name, device, dtype)
    if separator and source in SOURCES:
        return SOURCES[source](name).to(device, dtype)
    name, options = _split(spec)
    path = Path(name)
    if name.endswith(FILE) and not path.is_dir():
        return load_pipeline(path, options, device=device, dtype=dtype)
    if not (path.is_dir() or (re.fullmatch(HUB, name) and not path.exists())):
        raise InputError(
            "denoiser must be zoo:sportballs, adm:FILE, dit:FILE?vae=FOLDER, edm:FILE, module:PACKAGE.NAME:FUNCTION, "
            "a folder as diffusers saves a pipeline, ORG/NAME of the hub, or FILE.safetensors?config=FOLDER, got "
            f"{spec!r}"
        )
    path = path if path.is_dir() else fetch(spec, name, options)
    kind = read_index(path).get("_class_name")
    if kind in PIPELINES:
        return load_pipeline(path, options, device=device, dtype=dtype)
    if options:
        raise InputError(f"denoiser must be {name}, a {kind or 'model'} without such options, got {spec!r}")
    return load_folder(path).to(device, dtype)


def is_pipeline(spec: str) -> bool:
    """Returns whether a spec names a text pipeline, in a folder, in a file or on the hub, without loading it."""
    if spec.partition(":")[0] in (*SOURCES, "module"):
        return False
    name, _ = _split(spec)
    if not Path(name).is_dir():
        return name.endswith(FILE) or (not Path(name).exists() and re.fullmatch(HUB, name) is not None)
    return read_index(Path(name)).get("_class_name") in PIPELINES


def _split(spec: str) -> tuple[str, dict[str, str]]:
    """Returns the name and the options of a pipeline's spec."""
    if Path(spec).exists():
        return spec, {}
    allowed = (*OPTIONS, "config") if spec.partition("?")[0].endswith(FILE) else OPTIONS
    return split_options(spec, allowed, "option of a pipeline")


def _load_zoo(name: str) -> NetworkDenoiser:
    from steersman.models.zoo import folder

    return load_folder(folder(name))


SOURCES: dict[str, Callable[[str], NetworkDenoiser]] = {
    "adm": load_adm,
    "dit": load_dit,
    "edm": load_edm,
    "zoo": _load_zoo,
}


@torch.no_grad()
def _load_module(name: str, device: torch.device | str, dtype: torch.dtype) -> Any:  # noqa: ANN401
    """Returns the denoiser of ``PACKAGE.NAME:FUNCTION``, once it has predicted one sample there."""
    denoiser: Any = call_function(name, "denoiser")
    called = f"{name.replace(':', '.')}()"
    missing = [name for name in NEEDED if not hasattr(denoiser, name)] + ["__call__"] * (not callable(denoiser))
    if missing:
        raise InputError(
            f"denoiser: {called} must return a Denoiser, got {type(denoiser).__name__} without {', '.join(missing)}; "
            "wrap a network as NetworkDenoiser(network, schedule=VP.from_betas(betas), shape=(3, 64, 64))"
        )
    shape, classes, schedule = denoiser.shape, denoiser.classes, denoiser.schedule
    shaped = isinstance(shape, tuple) and shape and all(isinstance(side, int) and side > 0 for side in shape)
    named = isinstance(classes, tuple) and all(isinstance(label, str) for label in classes)
    kind = type(schedule).__name__
    for valid, name, wanted, given in (
        (shaped, "shape", "that of one sample, such as (3, 64, 64)", shape),
        (named, "classes", "a tuple of names, empty for none", classes),
        (isinstance(schedule, Schedule), "schedule", "VP, EDM, Flow or one with their methods", kind),
        (isinstance(denoiser.network, nn.Module), "network", "a torch.nn.Module", type(denoiser.network).__name__),
    ):
        if not valid:
            raise InputError(f"denoiser: the {name} of {called} must be {wanted}, got {given}")
    x = torch.zeros(1, *shape, device=device)
    condition = {"label": torch.zeros(1, dtype=torch.int64, device=device)} if classes else {}
    try:
        denoiser.to(device, dtype)
        prediction = denoiser(x, schedule.levels(2)[1], **condition)
        image = denoiser.decode(x)
    except InputError:
        raise
    except Exception as error:  # it is the user's own code, which may fail in any way
        raise InputError(f"denoiser: what {called} returns fails when it is asked ({one_line(error)})") from error
    valid = isinstance(prediction, Prediction)
    if not (valid and prediction.x0_hat.shape == x.shape and isinstance(image, Tensor)):
        given = f"x0_hat of {tuple(prediction.x0_hat.shape)}" if valid else type(prediction).__name__
        raise InputError(
            f"denoiser: what {called} returns must make a Prediction of x0_hat of {tuple(x.shape)}, and decode it into "
            f"an image, got {given}"
        )
    return denoiser
