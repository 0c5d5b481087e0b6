"""The space that is searched where none is given: around named recipes, whose own settings are tried first.

What all of them have in common is searched together, the rest recipe by recipe:

    steps, levels, sampler, input of the classifier, repeated steps      together
    scale, of each guide: decades around the recipe's own                by recipe
    route; how often the gradient is taken in a step                     by recipe
    weight as it is, within an interval, at every k-th step, or both   by recipe
    candidates, copies, looks ahead: up to the recipe's own              by recipe
"""

from collections.abc import Sequence
from typing import Any

from steersman.lab.sweep.cells import CASE, RECIPE
from steersman.lab.tune.space import ANY
from steersman.recipes import Recipe

__all__ = ["TRIED", "around"]

TRIED = ("default", "freedom", "dsg", "nrcg/ema90", "universal", "elucd-ddpm")
"""The recipes for off-the-shelf classifiers that are worth a look, from `docs/choosing.md`."""

SPREAD = 30.0  # how far a scale is searched below and above the recipe's own, as a factor
GATES = ("interval", "every")
SAMPLERS: dict[str, Any] = {
    "ddpm": {"kind": "ddpm", "fixed": "small"},
    "ddim": {"kind": "ddim", "eta": 0.0},
    "ddim-noise": {"kind": "ddim", "eta": 1.0},
    "dpmpp": {"kind": "dpmpp"},
}
TOGETHER: dict[str, Any] = {
    "sampling.steps": "6..50",
    "sampling.spacing": {ANY: ["linspace", "logsnr"]},
    "sampling.ratio_min": "0.01..0.3",
    "sampling.ratio_max": "20.0..200.0",
    "preprocess.size": {ANY: [None, 64, 128]},
    "sampler": {ANY: SAMPLERS},
    "recurrence": {
        ANY: {"once": {"times": 1}, "repeated": {"times": "2..8", "ratio_min": "0.1..5.0", "ratio_max": "2.0..60.0"}}
    },
}


def around(recipes: Sequence[Recipe]) -> dict[str, Any]:
    """Returns the space around some recipes.

    Args:
        recipes: One or more, of different names.
    """
    cases = {recipe.name: {RECIPE: recipe.name, **_own(recipe.resolved())} for recipe in recipes}
    return {CASE: {ANY: cases}, **TOGETHER}


def _own(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns what is searched for a recipe alone."""
    guides = {"": settings} | {f"extra_guides.{place}.": each for place, each in enumerate(settings["extra_guides"])}
    found: dict[str, Any] = {}
    for prefix, guide in guides.items():
        if own := guide["scale"]["value"]:
            found[f"{prefix}scale"] = f"{own / SPREAD:#.3g}..{own * SPREAD:#.3g}"
        if (ascents := guide["wrt"].get("ascents", 1)) > 1:
            found[f"{prefix}wrt.ascents"] = f"1..{ascents}"
        elif not prefix:
            found["wrt"] = {ANY: ["x0_hat", "x_t"]}
    found["weight"] = _strengths(settings["weight"])
    for key in ("particles.count", "smoothing.copies", "input.evaluations"):
        axis, _, option = key.partition(".")
        if isinstance(settings[axis], dict) and (count := settings[axis].get(option, 1)) > 1:
            found[key] = f"1..{count}"
    if settings["input"]["kind"] == "lookahead":
        found["input"] = {ANY: {"lookahead": settings["input"], "denoised": {"kind": "denoised", "clip": True}}}
    return found


def _strengths(own: Any) -> dict[str, Any]:  # noqa: ANN401
    """Returns a weight in all steps, in an interval, at every k-th step, and both."""
    base = [each for each in (own if isinstance(own, list) else [own]) if each["kind"] not in GATES]
    interval = {"kind": "interval", "ratio_min": "0.03..2.0", "ratio_max": "2.5..100.0"}
    every = {"kind": "every", "k": "2..4"}
    gated = {"interval": [*base, interval], "every": [*base, every], "both": [*base, interval, every]}
    return {ANY: {"always": base[0] if len(base) == 1 else base, **gated} if base else gated}
