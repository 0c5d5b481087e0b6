"""One's own denoiser, by the name of a function that makes it: ``module:PACKAGE.NAME:FUNCTION``.

The function takes no arguments and returns a `steersman.denoise.Denoiser` that also has its ``network`` and moves with
``to``: most often a `NetworkDenoiser`. The module is installed or lies in the current folder (`steersman.trust`).
"""

from typing import Any

import torch
from torch import Tensor, nn

from steersman.denoise import Prediction
from steersman.errors import InputError, one_line
from steersman.schedule import Schedule
from steersman.trust import call_function

__all__ = ["load_module_denoiser", "moved"]

NEEDED = ("network", "schedule", "shape", "classes", "decode", "to")
WRAP = "NetworkDenoiser(network, schedule=VP.from_betas(betas), shape=(3, 64, 64))"


def load_module_denoiser(name: str) -> Any:  # noqa: ANN401
    """Returns the denoiser that a function makes.

    Args:
        name: ``PACKAGE.NAME:FUNCTION``.

    Raises:
        InputError: The module or the function is not there, fails, or makes something else.
    """
    made: Any = call_function(name, "denoiser")
    called = f"{name.replace(':', '.')}()"
    lacking = [each for each in NEEDED if not hasattr(made, each)] + (["__call__"] * (not callable(made)))
    if lacking:
        raise InputError(
            f"denoiser: {called} must return a Denoiser, got {type(made).__name__} without {', '.join(lacking)}; wrap "
            f"a network as {WRAP}"
        )
    shape, classes, schedule, network = (getattr(made, each) for each in ("shape", "classes", "schedule", "network"))
    if not (isinstance(shape, tuple) and shape and all(isinstance(each, int) and each > 0 for each in shape)):
        raise InputError(
            f"denoiser: the shape of {called} must be that of one sample, such as (3, 64, 64), got {shape}"
        )
    if not (isinstance(classes, tuple) and all(isinstance(each, str) for each in classes)):
        raise InputError(f"denoiser: the classes of {called} must be a tuple of names, empty for none, got {classes}")
    if not isinstance(schedule, Schedule):
        kind = type(schedule).__name__
        raise InputError(
            f"denoiser: the schedule of {called} must be VP, EDM, Flow or one with their methods, got {kind}"
        )
    if not isinstance(network, nn.Module):
        raise InputError(f"denoiser: the network of {called} must be a torch.nn.Module")
    return made


@torch.no_grad()
def moved(denoiser: Any, name: str, device: torch.device | str, dtype: torch.dtype) -> Any:  # noqa: ANN401
    """Returns a denoiser of a user's own on a device and in a type, once asked there.

    Args:
        denoiser: The denoiser.
        name: What it is called in the messages.
        device: Where it runs.
        dtype: In what.

    Raises:
        InputError: It fails, or returns something else than the prediction of one sample.
    """
    called = f"{name.replace(':', '.')}()"
    x, label = torch.zeros(1, *denoiser.shape, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    condition = {"label": label} if denoiser.classes else {}
    try:
        denoiser.to(device, dtype)
        found = denoiser(x, denoiser.schedule.levels(2)[1], **condition)
        image = denoiser.decode(x)
    except InputError:
        raise
    except Exception as error:  # it is the user's own code, which may fail in any way
        raise InputError(f"denoiser: what {called} returns fails when it is asked ({one_line(error)})") from error
    if not (isinstance(found, Prediction) and found.x0_hat.shape == x.shape and isinstance(image, Tensor)):
        said = f"x0_hat of {tuple(found.x0_hat.shape)}" if isinstance(found, Prediction) else type(found).__name__
        raise InputError(
            f"denoiser: what {called} returns must make a Prediction of x0_hat of {tuple(x.shape)}, and decode it into "
            f"an image, got {said}"
        )
    return denoiser
