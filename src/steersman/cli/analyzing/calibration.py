"""``steersman analyze calibration``."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import yaml
from rich.console import Console
from rich.markup import escape
from torch import Tensor

from steersman.analysis import integral, trusted
from steersman.analysis.figures import diagrams, error_curves, filled_bins, names
from steersman.analysis.forward import numbers
from steersman.analysis.parts import Key, Parts
from steersman.analysis.plots import draw_reliability
from steersman.analysis.times import axis, choose
from steersman.classifiers import Classifier
from steersman.cli.analyzing.scope import Scope, floats
from steersman.cli.analyzing.terminal import carry_out, print_curves
from steersman.errors import InputError, unknown
from steersman.metrics import Reliability
from steersman.recipes.axes import build
from steersman.report.curves import write_curves, write_rows
from steersman.sample import levels_of
from steersman.schedule import Level, Schedule

__all__ = ["calibration"]

PANELS = 4  # reliability diagrams side by side


def calibration(
    scope: Scope,
    out: Path,
    *,
    num: int,
    classes: Sequence[str] | None,
    softplus: str,
    temperature: str,
    bins: int,
    sampler: str,
    steps: int,
    cfg_scale: float,
    seed: int,
) -> None:
    """Measures calibration along the reverse process."""
    console = Console()
    views = scope.shown()
    temperatures = floats("temperature", temperature)
    smoothings = [None if each == "none" else floats("softplus", each)[0] for each in softplus.split(",")]
    if num < 1 or bins < 1:
        raise InputError(f"num, bins: {num}, {bins} given; allowed: 1 and more")
    walker = build("sampler", yaml.safe_load(sampler))
    with console.status("loading the networks"):
        denoiser = scope.load_denoiser()
        classifiers: dict[Key, Classifier] = {}
        for beta in smoothings:
            smoothed = "as trained" if beta is None else f"β {beta:g}"
            loaded = scope.load_classifiers(softplus=beta)
            classifiers |= {(name, smoothed): classifier for name, classifier in loaded.items()}
    if not denoiser.classes:
        raise InputError("denoiser: one without labels given; allowed: one of classes, as images are drawn for each")
    wanted = tuple(classes or denoiser.classes)
    for name in wanted:
        if name not in denoiser.classes:
            raise unknown("class of the denoiser", name, denoiser.classes)
    targets = {key: numbers(classifier, wanted) for key, classifier in classifiers.items()}
    levels = levels_of(walker, denoiser.schedule, steps)[:-1]
    at = scope.places(levels)
    settings = scope.settings() | {"softplus": softplus, "temperature": temperature, "num": num}
    settings |= {"classes": list(wanted), "sampler": sampler, "steps": steps, "cfg_scale": cfg_scale, "seed": seed}
    parts = Parts(out, {"analysis": "calibration"} | settings, num)

    def measure(places: list[int], on_step: Callable[[], None]) -> dict[Key, Tensor]:
        drawn = [place % len(wanted) for place in places]
        labels = [denoiser.classes.index(wanted[each]) for each in drawn]
        return trusted(
            denoiser,
            walker,
            classifiers,
            {key: torch.tensor([row[each] for each in drawn], device=scope.device) for key, row in targets.items()},
            [seed + place for place in places],
            views=views,
            temperatures=temperatures,
            at=set(at),
            condition={"label": torch.tensor(labels, device=scope.device), "cfg_scale": cfg_scale},
            device=scope.device,
            on_step=on_step,
            steps=steps,
        )

    carry_out(console, parts, scope.batch_size, steps, measure)
    _show(console, out, diagrams(parts.read(), bins), [levels[place] for place in at], denoiser.schedule)


def _show(
    console: Console, out: Path, found: Mapping[Key, Sequence[Reliability]], levels: Sequence[Level], schedule: Schedule
) -> None:
    """Writes the figures of the diagrams at some levels, and prints them."""
    x, title, log_x = axis(schedule, levels)
    called, curves = names(found), error_curves(found, x)
    write_curves(out / "calibration", curves, x=title, y="expected calibration error", log_x=log_x)
    times = [float(level.time) for level in levels]
    errors = {key: integral([each.error for each in row], times) for key, row in found.items()}
    header = ("classifier", "smoothing", "view", "temperature", "integral calibration error")
    write_rows(out / "integral.csv", header, [(*key, error) for key, error in errors.items()])
    rows = [
        (called[key], time, *numbers_of)
        for key, row in found.items()
        for time, each in zip(x, row, strict=True)
        for numbers_of in filled_bins(each)
    ]
    write_rows(out / "reliability.csv", ("curve", "x", "low", "high", "count", "confidence", "accuracy"), rows)
    panels = choose(levels, count=min(PANELS, len(levels)))
    draw_reliability(
        out / "reliability.png",
        {called[key]: [row[place] for place in panels] for key, row in found.items()},
        [f"{title.partition(' (')[0]} = {x[place]:.3g}" for place in panels],
    )
    means = {called[key]: error for key, error in errors.items()}
    print_curves(console, curves, "expected calibration error", ".3f", means)
    console.print(f"figures in {escape(str(out))}", soft_wrap=True)
