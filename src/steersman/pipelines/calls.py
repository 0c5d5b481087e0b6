"""A pipeline's calls, each of them inside of a context of ours."""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

__all__ = ["around_calls"]


@contextmanager
def around_calls(
    pipe: Any,  # noqa: ANN401
    around: Callable[[Mapping[str, Any]], AbstractContextManager[None]],
) -> Iterator[None]:
    """Lets each call of a pipeline happen inside of a context, while this one lasts.

    Python looks ``pipe(...)`` up in the class; so the pipeline gets a class of its own for the while, which inherits
    from its class and has its name.

    Args:
        pipe: The pipeline; what cannot be called is left alone.
        around: Returns the context of a call from its arguments by name.
    """
    kind = type(pipe)
    if not callable(pipe):
        yield
        return
    own: Any = kind.__call__

    @functools.wraps(own)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if self is not pipe:  # a copy of it, which keeps the class
            return own(self, *args, **kwargs)
        with around(inspect.signature(own).bind_partial(self, *args, **kwargs).arguments):
            return own(self, *args, **kwargs)

    names = {key: getattr(kind, key) for key in ("__module__", "__qualname__", "__doc__")}
    steered: Any = pipe
    steered.__class__ = type(kind.__name__, (kind,), {"__call__": call, **names})
    try:
        yield
    finally:
        steered.__class__ = kind
