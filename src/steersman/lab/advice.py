"""What the figures of a run tell its user, and what to try next."""

from collections.abc import Mapping, Sequence
from typing import Any

from steersman.lab.realism import USELESS
from steersman.lab.run import Run

__all__ = ["advice"]

DISAGREE = 0.25  # a difference in accuracy between guide and judge that is worth a word
STEADIER = {"wrt": "x_t", "input": "lookahead"}  # choices that a gradient fools less easily
UNMOVED = 0.01  # guidance that moves an image in [-1, 1] by a smaller root mean square leaves it as it was
VISIBLE = 0.1  # a change that shows
MOST = 30.0  # times the scale that was, at most, for the next try


def advice(metrics: Mapping[str, Any], moved: Sequence[float], run: Run) -> list[str]:
    """Returns what the user should know of the figures, and what to try that the run does not do yet.

    Args:
        metrics: What ``metrics.json`` holds.
        moved: How far guidance moved each image, as a root mean square in the units of a sample; empty where no guide
            was active.
        run: The run.
    """
    guide, judge = (metrics["accuracy"][name] for name in ("guide", "judge"))
    warnings = _unlike(metrics, run)
    mean = sum(moved) / len(moved) if moved else None
    if mean is not None and mean < UNMOVED:
        tries = [
            f"{each} (now {_scale(run):g})" for each in _scaled(run, min(MOST, VISIBLE / max(mean, VISIBLE / MOST)))
        ]
        tries += ["--set weight=constant"] if _chosen(run, "weight") != ["constant"] else []
        warnings.append(
            f"The guidance hardly changed the images: by {mean:.2g} where they span 2. Try {' or '.join(tries)}."
        )
    if run.judge is not None and judge is None and metrics["accuracy"].get("guide") is not None:
        warnings.append(
            f"The judge {run.judge} does not know the target, so only the guide says whether it is there. Name another "
            "--judge that does, and look at the pictures."
        )
    if moved and guide is not None and judge is not None and guide - judge > DISAGREE:
        tries = _scaled(run, 1 / 3) + [
            f"--set {axis}={kind}" for axis, kind in STEADIER.items() if _chosen(run, axis) != [kind]
        ]
        warnings.append(
            f"The guide sees its target in {guide:.0%} of the images, the judge in {judge:.0%}: the guide may be "
            f"fooled by its own gradient. Try {' or '.join(tries)}."
        )
    if guide is not None and judge is not None and judge - guide > DISAGREE:
        warnings.append(
            f"The judge sees the target in {judge:.0%} of the images, the guide in {guide:.0%}: look at the pictures "
            "before you trust either."
        )
    if mean is not None and judge is not None and judge < 0.5 and not warnings:
        tries = _scaled(run, 3.0) + [f"--steps {2 * run.recipe.sampling()['steps']}"]
        seen = "Neither guide nor judge sees" if guide is not None and guide < 0.5 else "The judge does not see"
        warnings.append(f"{seen} the target in more than half of the images. Try {' or '.join(tries)}.")
    return warnings


def _unlike(metrics: Mapping[str, Any], run: Run) -> list[str]:
    """Returns a warning where images are not like those that the denoiser draws."""
    found = metrics.get("noise_error")
    if not found or not found["broken"]:
        return []
    unlike = f"{len(found['broken'])} of the images look burnt or are noise"
    measured = f"the denoiser's noise prediction error on the images is {found['median']:.2g} (1 is a guess)"
    if not run.guided or (found["unguided"] or 0) > USELESS:
        return [f"{unlike}: {measured}, without guidance too. The denoiser needs more --steps, or more training."]
    tries = _scaled(run, 0.1 if found["median"] > USELESS else 1 / 3)
    return [f"{unlike}: {measured}, on unguided ones {found['unguided']:.2g}. Try {' or '.join(tries)}."]


def _scale(run: Run) -> float:
    return float(run.recipe.resolved()["scale"]["value"])


def _scaled(run: Run, factor: float) -> list[str]:
    """Returns an option with the scale times a factor; none where there is no scale to change."""
    return [f"--scale {_scale(run) * factor:.2g}"] if _scale(run) else []


def _chosen(run: Run, axis: str) -> list[str]:
    """Returns the kinds that a recipe takes on an axis."""
    section = run.recipe.resolved()[axis]
    return [each["kind"] for each in (section if isinstance(section, list) else [section])]
