"""Figures and settings as they are read in a table."""

import math

import yaml

__all__ = ["in_a_line", "with_interval"]

SHARES = ("accuracy", "precision", "recall", "coverage")  # of what lies in [0, 1] and is read in per cent


def in_a_line(value: object) -> str:
    """Returns a setting as a text: itself, or YAML in one line."""
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False).removesuffix("...\n").strip()


def with_interval(name: str, value: float | None, low: float | None, high: float | None) -> str:
    """Returns a figure as ``value [low, high]``, a dash if there is none: a share in per cent, else with three digits.

    Args:
        name: What it is called.
        value: The figure.
        low: The lower end of its interval.
        high: The upper end.
    """
    if value is None:
        return "–"
    if low is None or high is None:
        return _rounded(name, value)
    return f"{_rounded(name, value)} [{_rounded(name, low)}, {_rounded(name, high)}]"


def _rounded(name: str, number: float) -> str:
    if math.isnan(number):
        return "–"
    if name.startswith(SHARES):
        return f"{number:.1%}"
    return f"{number:.3g}" if abs(number) < 100 else f"{number:.1f}"
