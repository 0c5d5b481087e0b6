"""``steersman analyze sensitivity``."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from torch import Tensor

from steersman.cli.analyzing.scope import Scope
from steersman.cli.analyzing.terminal import carry_out, print_curves
from steersman.errors import InputError, unknown
from steersman.files import parse_yaml
from steersman.guidance import Stabilizer
from steersman.lab.analysis import sensitivities
from steersman.lab.analysis.figures import mean_curves
from steersman.lab.analysis.forward import Forward
from steersman.lab.analysis.parts import Key, Parts
from steersman.lab.analysis.sensitivity import GRADIENTS, LOGITS
from steersman.lab.analysis.times import all_levels, axis
from steersman.lab.metrics.images import read_images
from steersman.lab.report.curves import write_curves
from steersman.recipes.axes import build, options, settings_of

__all__ = ["sensitivity", "stabilizer"]

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
    console = Console()
    if asked not in ASKED:
        raise unknown("time asked at", asked, ASKED)
    views = scope.shown()
    steadied = {name: stabilizer(name) for name in stabilizers or STABILIZERS}
    if objective not in options("objective"):
        raise unknown("objective", objective, options("objective"))
    with console.status("loading the networks"):
        denoiser, classifiers = scope.load_denoiser(), scope.load_classifiers()
        forward = Forward(
            denoiser,
            classifiers,
            read_images(data),
            seed=seed,
            num=num,
            target=target,
            labelled=label,
            device=scope.device,
        )
    levels = all_levels(denoiser.schedule)
    pairs = [(levels[place], levels[place + 1]) for place in scope.places(levels) if place + 1 < len(levels)]
    if not pairs:
        raise InputError("times must include one that has a cleaner level after it, got only the cleanest")
    settings = scope.settings() | {"stabilizers": list(steadied), "objective": objective}
    settings |= {"target": target, "asked": asked, "data": data, "num": num, "label": label, "seed": seed}
    parts = Parts(out, {"analysis": "sensitivity"} | settings, len(forward))

    def measure(places: list[int], on_step: Callable[[], None]) -> dict[Key, Tensor]:
        batch = forward.batch(places)
        return sensitivities(
            batch.denoiser,
            classifiers,
            batch.images,
            batch.targets,
            pairs,
            objective=lambda classifier: build("objective", objective, classifier=classifier),
            eps=batch.eps,
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
    console.print(f"figures in {escape(str(out))}", soft_wrap=True)


def stabilizer(text: str) -> Stabilizer:
    """Returns the stabilizer that a recipe's section or ``KIND VALUE`` names, such as ``ema 0.9``.

    Raises:
        InputError: It names none.
    """
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
