"""``steersman analyze accuracy``, ``sensitivity``, ``gradients`` and ``directions``."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steersman.cli.analyzing.common import Scope, carry_out, floats, print_curves
from steersman.cli.root import Terminal
from steersman.denoise import Denoiser
from steersman.errors import InputError, unknown
from steersman.files import parse_yaml, writing_to
from steersman.guidance import Stabilizer
from steersman.lab.analysis import fields, followed, seen, sensitivities
from steersman.lab.analysis.figures import draw_fields, draw_walks
from steersman.lab.analysis.forward import GRADIENTS, LOGITS, Forward, all_levels, axis
from steersman.lab.analysis.gradients import GRADIENT, IMAGE, NORM, example, lattice
from steersman.lab.analysis.parts import Key, Parts, mean_curves, share_curves
from steersman.lab.metrics.images import read_images
from steersman.lab.report.plots import write_curves
from steersman.lab.report.tables import write_rows
from steersman.models.classifiers import Classifier
from steersman.recipes import load_recipe
from steersman.recipes.axes import build, options, settings_of
from steersman.sampling import levels_of

__all__ = ["accuracy", "directions", "gradients", "sensitivity", "stabilizer"]


def _noised(
    scope: Scope, data: str, *, num: int | None, label: bool, seed: int, target: str | None = None
) -> tuple[Any, dict[str, Classifier], Forward]:
    """Returns the denoiser, the classifiers, and the forward process of the images."""
    denoiser, classifiers = scope.load_denoiser(), scope.load_classifiers()
    settings = {"seed": seed, "num": num, "target": target, "labelled": label, "device": scope.device}
    return denoiser, classifiers, Forward(denoiser, classifiers, read_images(data), **settings)


def accuracy(
    scope: Scope,
    out: Path,
    *,
    data: str,
    num: int | None,
    label: bool,
    seed: int,
) -> None:
    """Measures accuracy against noise."""
    console = Terminal()
    views = scope.shown()
    with console.status("loading the networks"):
        denoiser, classifiers, forward = _noised(scope, data, num=num, label=label, seed=seed)
    every_level = all_levels(denoiser.schedule)
    levels = [every_level[place] for place in scope.places(every_level)]
    settings = scope.settings() | {"data": data, "num": num, "label": label, "seed": seed}
    parts = Parts(out, {"analysis": "accuracy"} | settings, len(forward))

    def measure(places: list[int], on_step: Callable[[], None]) -> dict[Key, Tensor]:
        return seen(forward.batch(places), classifiers, levels, views=views, on_step=on_step)

    carry_out(console, parts, scope, [denoiser, *classifiers.values()], len(levels), measure)
    x, title, log_x = axis(denoiser.schedule, levels)
    curves = share_curves(parts.read(), x)
    write_curves(out / "accuracy", curves, x=title, y="accuracy", log_x=log_x)
    print_curves(console, curves, "accuracy", ".1%")
    console.print(f"figures in {out}")


STABILIZERS = ("none", "ema 0.9", "ema 0.99", "adam")
ASKED = ("own", "shared")
SAID = {"class": "log p({})", "logit": "logit({})", "binary": "log p({})"}
"""What each objective makes gradients of."""


def sensitivity(
    scope: Scope,
    out: Path,
    *,
    data: str,
    num: int | None,
    stabilizers: Sequence[str] | None,
    objective: str,
    target: str | None,
    asked: str,
    label: bool,
    seed: int,
) -> None:
    """Measures the sensitivity of logits and gradients."""
    console = Terminal()
    if asked not in ASKED:
        raise unknown("time asked at", asked, ASKED)
    views = scope.shown()
    steadied = {name: stabilizer(name) for name in stabilizers or STABILIZERS}
    if objective not in options("objective"):
        raise unknown("objective", objective, options("objective"))
    with console.status("loading the networks"):
        denoiser, classifiers, forward = _noised(scope, data, num=num, label=label, seed=seed, target=target)
    levels = all_levels(denoiser.schedule)
    pairs = [(levels[place], levels[place + 1]) for place in scope.places(levels) if place + 1 < len(levels)]
    if not pairs:
        raise InputError("times must include one that has a cleaner level after it, got only the cleanest")
    settings = scope.settings() | {"stabilizers": list(steadied), "objective": objective}
    settings |= {"target": target, "asked": asked, "data": data, "num": num, "label": label, "seed": seed}
    parts = Parts(out, {"analysis": "sensitivity"} | settings, len(forward))

    def measure(places: list[int], on_step: Callable[[], None]) -> dict[Key, Tensor]:
        return sensitivities(
            forward.batch(places),
            classifiers,
            pairs,
            objective=lambda classifier: build("objective", objective, classifier=classifier),
            views=views,
            stabilizers=steadied,
            shared=asked == "shared",
            on_step=on_step,
        )

    carry_out(console, parts, scope, [denoiser, *classifiers.values()], len(pairs), measure)
    x, title, log_x = axis(denoiser.schedule, [level for level, _ in pairs])
    measured = parts.read()
    plain = {key[1:]: of_images for key, of_images in measured.items() if key[0] == LOGITS}
    steadied_too = {key[1:]: of_images for key, of_images in measured.items() if key[0] == GRADIENTS}
    raw = {key[:-1]: of_images for key, of_images in steadied_too.items() if key[-1] == "none"}
    of = f"∇ {SAID[objective].format('own class' if target is None else target)}"
    for name, y, values in (
        ("logits", "sensitivity of logits", plain),
        ("gradients", f"sensitivity of {of}", raw),
        ("stabilised", f"sensitivity of stabilised {of}", steadied_too if len(steadied) > 1 or not raw else {}),
    ):
        if values:
            curves = mean_curves(values, x)
            write_curves(out / name, curves, x=title, y=y, log_x=log_x, log_y=True)
            print_curves(console, curves, y, ".3g")
    console.print(f"figures in {out}")


def stabilizer(text: str) -> Stabilizer:
    """Returns the stabilizer that a recipe's section or ``KIND VALUE`` names, such as ``ema 0.9``."""
    section = parse_yaml(text)
    if isinstance(section, str):
        kind, *value = section.split()
        known = options("stabilizer")
        if kind not in known:
            raise unknown("stabilizer", kind, known)
        names = list(settings_of(known[kind]))[: len(value)]
        if len(value) != len(names):
            raise InputError(f"stabilizer must be a kind and its settings, as in 'ema 0.9', got {text!r}")
        section = {"kind": kind, **dict(zip(names, map(parse_yaml, value), strict=True))}
    return build("stabilizer", section)


def gradients(
    scope: Scope,
    out: Path,
    *,
    target: str,
    marginal: str,
    num: int,
    shown: int,
    recipe: str,
    changes: Sequence[str],
    label: bool,
    seed: int,
) -> None:
    """Follows guided walks, one for each marginal temperature."""
    console = Terminal()
    if num < 1 or not 1 <= shown <= num:
        raise InputError(f"num must be at least 1 and shown 1 to num, got num {num} and shown {shown}")
    recipes = {
        f"tau2 = {temperature:g}": load_recipe(recipe, [*changes, f"objective.marginal={temperature}"])
        for temperature in floats("marginal", marginal)
    }
    first = next(iter(recipes.values()))
    with console.status("loading the networks"):
        denoiser = scope.load_denoiser()
        (classifier,) = scope.load_classifiers(**first.classifier_settings()).values()
    index = classifier.resolve(target)
    condition = _label(denoiser, target) if label else None
    walk = first.sampling()
    levels = levels_of(
        first.sampler(), denoiser.schedule, *(walk[key] for key in ("steps", "spacing", "ratio_min", "ratio_max"))
    )
    at = scope.places(levels[:-1])
    settings = scope.settings() | {"target": target, "num": num, "label": label, "seed": seed, "shown": shown}
    settings |= {"recipes": {name: each.resolved() for name, each in recipes.items()}}
    parts = Parts(out, {"analysis": "gradients"} | settings, num)

    def measure(places: list[int], on_step: Callable[[], None]) -> dict[Key, Tensor]:
        told = None if condition is None else {"label": torch.full((len(places),), condition, device=scope.device)}
        found: dict[Key, Tensor] = {}
        for name, each in recipes.items():
            of_guide = followed(
                denoiser,
                each.sampler(),
                each.bind_prepared(classifier),
                [index] * len(places),
                [seed + place for place in places],
                at=set(at),
                condition=told,
                device=scope.device,
                callbacks=[lambda report: None if report.step.repeat else on_step()],
                **each.sampling(),
            )
            found |= {(name, *key): value for key, value in of_guide.items()}
        return found

    carry_out(console, parts, scope, [denoiser, classifier], len(recipes) * walk["steps"], measure)
    measured = parts.read()
    x, title, log_x = axis(denoiser.schedule, levels[:-1])
    curves = mean_curves({(name,): measured[name, NORM] for name in recipes}, x)
    write_curves(out / "norms", curves, x=title, y="norm of the gradient", log_x=log_x, log_y=True)
    pictures = {
        name: (torch.from_numpy(measured[name, IMAGE][:shown]), torch.from_numpy(measured[name, GRADIENT][:shown]))
        for name in recipes
    }
    zoom = max(1, round(96 / denoiser.shape[-1]))
    draw_walks(out / "gradients.png", pictures, [f"{x[place]:.3g}" for place in at], zoom=zoom)
    print_curves(console, curves, "norm of the gradient", ".3g")
    console.print(f"figures in {out}")


def _label(denoiser: Denoiser, target: str) -> int:
    if target not in denoiser.classes:
        raise unknown("class of the denoiser", target, denoiser.classes)
    return denoiser.classes.index(target)


LAST = 999  # time of the mixture's schedule
FINE = 200  # pixels along an edge of the density


def directions(out: Path, *, target: int, times: str, side: int) -> None:
    """Draws the directions on the mixture."""
    mixture, points = example(), lattice(side)
    for time in (asked := floats("times", times)):
        if not 0 <= time <= LAST:
            raise InputError(f"times must be 0 to {LAST}, got {time:g}")
    levels = [mixture.schedule.at_time(time) for time in asked]
    rows, panels, density, means = [], {}, {}, {}
    fine = lattice(FINE)
    for level in levels:
        name = f"t = {float(level.time):g}"
        for field, arrows in fields(mixture, points, level, target).items():
            panels[name, field] = arrows[:, :, 0, 0]
            for point, arrow in zip(points[:, :, 0, 0].tolist(), panels[name, field].tolist(), strict=True):
                rows.append((float(level.time), field, *point, *arrow))
        density[name] = mixture.log_joint(fine, level).logsumexp(1).exp().reshape(FINE, FINE)
        means[name] = level.alpha * mixture.means
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
    write_rows(out / "directions.csv", ("time", "field", "x", "y", "u", "v"), rows)
    draw_fields(out / "directions.png", points[:, :, 0, 0], panels, density, means, target)
    Terminal().print(f"figures in {out}")
