"""Steer any diffusion model with any classifier, without training either.

    >>> import steersman as sm
    >>> result = sm.sample(
    ...     "zoo:mnist", classifier="zoo:mnist-lenet", target="7", recipe="nrcg", steps=2, seeds=2, progress=False
    ... )
    >>> len(result.images)
    2

What is offered stands in ``__init__.pyi``, and is imported when it is first asked for; the package alone is light.
"""

from typing import Any

import lazy_loader

_attached, _names, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __dir__() -> list[str]:
    """Returns what is offered, for ``dir`` and completion."""
    return [*_names(), "__version__"]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Returns what is offered under a name."""
    if name == "__version__":
        from importlib.metadata import version

        return version("steersman")
    return _attached(name)
