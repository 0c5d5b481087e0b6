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
from steersman.models.denoisers.pipeline import PipelineDenoiser
from steersman.models.denoisers.pipeline_folder import fetch, load_file, load_pipeline
from steersman.names import split_options
from steersman.schedule import Schedule
from steersman.trust import call_function

__all__ = ["is_pipeline", "load_denoiser"]

HUB = r"\w[\w.-]*/\w[\w.-]*"
"""What an id of the hub looks like."""
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
    source, separator, name = spec.partition(":")
    if separator and source == "module":
        return _load_module(name, device, dtype)
    if separator and source in SOURCES:
        return SOURCES[source](name).to(device, dtype)
    if (file := _file(spec)) is not None:
        return load_file(file[0], file[1], device=device, dtype=dtype)
    name, options = (spec, {}) if Path(spec).is_dir() else split_options(spec, OPTIONS, "option of a pipeline")
    if not (Path(name).is_dir() or (re.fullmatch(HUB, name) and not Path(name).exists())):
        raise InputError(
            "denoiser must be zoo:sportballs, adm:FILE, dit:FILE?vae=FOLDER, edm:FILE, module:PACKAGE.NAME:FUNCTION, "
            "a folder as diffusers saves a pipeline, ORG/NAME of the hub, or FILE.safetensors?config=FOLDER, got "
            f"{spec!r}"
        )
    path = Path(name) if Path(name).is_dir() else fetch(spec, name, options)
    kind = read_index(path).get("_class_name")
    if kind in PIPELINES:
        return load_pipeline(path, options, device=device, dtype=dtype)
    if options:
        raise InputError(f"denoiser must be {name}, a {kind or 'model'} without such options, got {spec!r}")
    return load_folder(path).to(device, dtype)


def is_pipeline(spec: str) -> bool:
    """Returns whether a spec names a text pipeline, in a folder, in a file or on the hub, without loading it."""
    name, _, _ = spec.partition("?")
    if _file(spec) is not None:
        return True
    if not Path(name).exists():
        return re.fullmatch(HUB, name) is not None
    return read_index(Path(name)).get("_class_name") in PIPELINES


def _file(spec: str) -> tuple[Path, dict[str, str]] | None:
    """Returns the file and the options of a pipeline's weights in one file, None for another spec."""
    if spec.endswith(".safetensors") and Path(spec).is_file():
        return Path(spec), {}
    if not spec.partition("?")[0].endswith(".safetensors"):
        return None
    name, options = split_options(spec, (*OPTIONS, "config"), "option of a pipeline's file")
    if not Path(name).is_file():
        raise InputError(f"denoiser: {name!r} must be a file of a pipeline's weights, and is none")
    return Path(name), options


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
    missing = [each for each in NEEDED if not hasattr(denoiser, each)] + ["__call__"] * (not callable(denoiser))
    if missing:
        raise InputError(
            f"denoiser: {called} must return a Denoiser, got {type(denoiser).__name__} without {', '.join(missing)}; "
            "wrap a network as NetworkDenoiser(network, schedule=VP.from_betas(betas), shape=(3, 64, 64))"
        )
    shape, classes, schedule = denoiser.shape, denoiser.classes, denoiser.schedule
    wanted = ""
    if not (isinstance(shape, tuple) and shape and all(isinstance(each, int) and each > 0 for each in shape)):
        wanted = f"shape of {called} must be that of one sample, such as (3, 64, 64), got {shape}"
    elif not (isinstance(classes, tuple) and all(isinstance(each, str) for each in classes)):
        wanted = f"classes of {called} must be a tuple of names, empty for none, got {classes}"
    elif not isinstance(schedule, Schedule):
        given = type(schedule).__name__
        wanted = f"schedule of {called} must be VP, EDM, Flow or one with their methods, got {given}"
    elif not isinstance(denoiser.network, nn.Module):
        wanted = f"network of {called} must be a torch.nn.Module, got {type(denoiser.network).__name__}"
    if wanted:
        raise InputError(f"denoiser: the {wanted}")
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
