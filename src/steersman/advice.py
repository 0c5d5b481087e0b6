"""What a run's figures tell its user to try."""

from collections.abc import Mapping, Sequence
from typing import Any

from steersman.recipes import Recipe

__all__ = ["advice"]

DISAGREE = 0.25  # a difference in accuracy between guide and judge that is worth a word
STEADIER = {"route": "through", "view": "ahead"}  # choices that a gradient fools less easily
UNMOVED = 0.01  # a summed push with a smaller root mean square leaves an image in [-1, 1] as it was


def advice(metrics: Mapping[str, Any], moved: Sequence[float], recipe: Recipe) -> list[str]:
    """Returns what the user should know of the figures, and what to try that the recipe does not do yet."""
    guide, judge = (metrics["accuracy"][name] for name in ("guide", "judge"))
    chosen = {axis: recipe.resolved()[axis]["kind"] for axis in STEADIER}
    warnings = []
    if moved and sum(moved) / len(moved) < UNMOVED:
        warnings.append(
            "The guide hardly moved the images: they are as they would be unguided. Try a larger --scale, or "
            "--set strength=constant."
        )
    if moved and guide is not None and judge is not None and guide - judge > DISAGREE:
        tries = ["a smaller --scale"]
        tries += [f"--set {axis}={kind}" for axis, kind in STEADIER.items() if chosen[axis] != kind]
        warnings.append(
            "The guide sees its target more often than the judge: it may be fooled by its own gradient. Try "
            f"{' or '.join(tries)}."
        )
    if guide is not None and judge is not None and judge - guide > DISAGREE:
        warnings.append(
            "The judge sees the target more often than the guide: look at the pictures before you trust one."
        )
    if moved and judge is not None and judge < 0.5 and not warnings:
        warnings.append(
            "The judge sees the target in less than half of the images. Try a larger --scale or more --steps."
        )
    return warnings
