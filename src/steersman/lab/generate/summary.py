"""The summary of a run whose images are all there: figures, a picture of the first, and advice to the user."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import mean, median
from typing import Any

import torch

from steersman.files import write_json
from steersman.lab.evaluation import CLEAR, USELESS, mean_evaluations, noise_error_limit
from steersman.lab.generate.formats import ImageRecord
from steersman.lab.generate.store import Store
from steersman.lab.run import Run
from steersman.sampling.watch import UNMOVED, larger

__all__ = ["Summary", "advice", "summarize"]

GRID, SHOWN = 64, 1024  # images of a target in the grid, and of all targets together
DISAGREE = 0.25  # a difference in accuracy between guide and judge that the user is told of
STEADIER = {"wrt": "x_t", "input": "lookahead"}  # choices by which a guide is less easily fooled


@dataclass(kw_only=True)
class Summary:
    """The content of ``metrics.json``, advice to the user, and the names of images that became non-finite."""

    metrics: dict[str, Any]
    warnings: list[str]
    lost: list[str]

    @property
    def nothing_survived(self) -> bool:
        """Whether all images are lost, or burnt by guidance."""
        errors, left = self.metrics["noise_error"], self.metrics["images"] - len(self.lost)
        if left == 0 or errors is None:
            return left == 0
        return errors["unguided"] is not None and errors["unguided"] < USELESS and len(errors["broken"]) == left


def summarize(
    store: Store, run: Run, records: Mapping[int, ImageRecord], unguided_errors: Callable[[], Sequence[float]]
) -> Summary:
    """Writes ``grid.png`` and ``metrics.json``; asks for noise errors of unguided samples only if they are needed."""
    ordered = [records[index] for index in sorted(records)]
    drawn = [record for record in ordered if not record.lost]
    lost = [record.name for record in ordered if record.lost]
    metrics = _evaluations(drawn)
    if len(store.targets) > 1:
        metrics["targets"] = {
            name: _evaluations(record for record in drawn if record.target == name) for name in store.targets
        }
    seconds = sum(record.seconds for record in ordered)
    dropped = {record.name: record.dropped for record in ordered if record.dropped}
    metrics |= {
        "images": len(ordered),
        "seconds": round(seconds, 3),
        "images_per_second": round(len(ordered) / seconds, 4),
        "network_evaluations": {
            name: round(mean(record.evaluations[name] for record in ordered), 6) for name in ordered[0].evaluations
        },
        "nonfinite_gradients": sum(dropped.values()),
        "nonfinite_gradients_of": dropped,
        "lost": lost,
        "noise_error": _noise_errors(drawn, run, unguided_errors),
    }
    moved = [record.moved for record in drawn if record.moved is not None]
    metrics["warnings"] = advice(metrics, moved, run)
    _write_grid(store, records)
    write_json(store.out / "metrics.json", metrics)
    return Summary(metrics=metrics, warnings=metrics["warnings"], lost=lost)


def _evaluations(records: Iterable[ImageRecord]) -> dict[str, Any]:
    return mean_evaluations([{"guide": record.guide, "judge": record.judge} for record in records])


def _noise_errors(
    drawn: Sequence[ImageRecord], run: Run, unguided_errors: Callable[[], Sequence[float]]
) -> dict[str, Any] | None:
    """Returns the median noise error of images and unguided samples, and the names of images beyond the limit."""
    errors = {record.name: record.noise_error for record in drawn if record.noise_error is not None}
    if not errors:
        return None
    unguided = unguided_errors() if run.guided and max(errors.values()) > CLEAR else []
    limit = noise_error_limit(unguided)
    return {
        "median": round(median(errors.values()), 4),
        "unguided": round(median(unguided), 4) if unguided else None,
        "broken": [name for name, error in errors.items() if error > limit],
    }


def _write_grid(store: Store, records: Mapping[int, ImageRecord]) -> None:
    """Writes a picture with the first images of each target in a row."""
    from steersman.lab.report import grid

    most = max(1, min(GRID, SHOWN // len(store.targets)))
    chosen: dict[str, list[int]] = {name: [] for name in store.targets}
    for index, record in sorted(records.items()):
        if not record.lost and len(chosen[record.target]) < most:
            chosen[record.target].append(index)
    pixels = store.pixels(chain.from_iterable(chosen.values()))
    rows = {
        name: torch.stack([torch.from_numpy(pixels[index]) for index in indices]).permute(0, 3, 1, 2) / 127.5 - 1
        for name, indices in chosen.items()
        if indices
    }
    if rows:
        grid(rows, store.out / "grid.png")


def advice(metrics: Mapping[str, Any], moved: Sequence[float], run: Run) -> list[str]:
    """Returns what the user should know of metrics and changes by guidance, and settings to try that the run lacks."""
    guide, judge = metrics["accuracy"]["guide"], metrics["accuracy"]["judge"]
    warnings = _broken_images(metrics, run)
    change = mean(moved) if moved else None
    if change is not None and change < UNMOVED:
        scales = _scaled(run, larger(change))
        tries = [f"{option} (now {_scale(run):g})" for option in scales] + _settings(run, {"weight": "constant"})
        warnings.append(_trying(f"The guidance hardly changed the images: by {change:.2g} where they span 2.", tries))
    of_each = {name: each["accuracy"] for name, each in metrics.get("targets", {}).items()}
    unjudged = [name for name, each in of_each.items() if each["judge"] is None and each["guide"] is not None]
    if run.judge is not None and guide is not None and (judge is None or unjudged):
        what = "the target" if judge is None else ", ".join(unjudged)
        warnings.append(
            f"The judge {run.judge} does not know {what}, so only the guide says whether it is there. Name another "
            "--judge that does, and look at the pictures."
        )
    if guide is None and judge is None:
        warnings.append(
            "Neither guide nor judge can say whether the target is there, as neither tells it from another class. Name "
            "a --judge that does, and look at the pictures."
        )
    if guide is not None and judge is not None:
        if moved and guide - judge > DISAGREE:
            said = (
                f"The guide sees its target in {guide:.0%} of the images, the judge in {judge:.0%}: the guide may be "
                "fooled by its own gradient."
            )
            warnings.append(_trying(said, _scaled(run, 1 / 3) + _settings(run, STEADIER)))
        if judge - guide > DISAGREE:
            warnings.append(
                f"The judge sees the target in {judge:.0%} of the images, the guide in {guide:.0%}: look at the "
                "pictures before you trust either."
            )
    if moved and judge is not None and judge < 0.5 and not warnings:
        seen = "Neither guide nor judge sees" if guide is not None and guide < 0.5 else "The judge does not see"
        # An error beyond that of any clear image comes before burnt images, which a larger scale would bring.
        near = (metrics.get("noise_error") or {"median": 0.0})["median"] > CLEAR
        tries = ([] if near else _scaled(run, 3.0)) + [f"--steps {2 * run.steps}"]
        warnings.append(_trying(f"{seen} the target in more than half of the images.", tries))
    return warnings


def _broken_images(metrics: Mapping[str, Any], run: Run) -> list[str]:
    """Returns a warning where images are unlike those that the denoiser draws without guidance."""
    errors = metrics.get("noise_error")
    if not errors or not errors["broken"]:
        return []
    broken = f"{len(errors['broken'])} of the images look burnt or are noise"
    measured = f"the denoiser's noise prediction error on the images is {errors['median']:.2g} (1 is a guess)"
    if not run.guided or (errors["unguided"] or 0) > USELESS:
        return [f"{broken}: {measured}, without guidance too. The denoiser needs more --steps, or more training."]
    tries = _scaled(run, 0.1 if errors["median"] > USELESS else 1 / 3)
    return [_trying(f"{broken}: {measured}, on unguided ones {errors['unguided']:.2g}.", tries)]


def _trying(text: str, options: Sequence[str]) -> str:
    return f"{text} Try {' or '.join(options)}."


def _scale(run: Run) -> float:
    return float(run.recipe.resolved()["scale"]["value"])


def _scaled(run: Run, factor: float) -> list[str]:
    """Returns the option for a scale times a factor; none where the scale is zero."""
    return [f"--scale {float(f'{_scale(run) * factor:.2g}'):g}"] if _scale(run) else []


def _settings(run: Run, choices: Mapping[str, str]) -> list[str]:
    """Returns the options for those choices on the axes of a recipe that it has not made."""
    resolved, options = run.recipe.resolved(), []
    for axis, kind in choices.items():
        sections = resolved[axis] if isinstance(resolved[axis], list) else [resolved[axis]]
        if [section["kind"] for section in sections] != [kind]:
            options.append(f"--set {axis}={kind}")
    return options
