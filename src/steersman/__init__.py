"""Steer any diffusion model with any classifier, without training either."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steersman.pipelines import steer

__all__ = ["steer"]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Imports what is offered when it is first asked for: the package itself loads without torch."""
    if name == "steer":
        from steersman.pipelines import steer

        return steer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
