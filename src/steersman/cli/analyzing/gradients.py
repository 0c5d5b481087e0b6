"""``steersman analyze gradients``."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from torch import Tensor

from steersman.cli.analyzing.scope import Scope, floats
from steersman.cli.analyzing.terminal import carry_out, print_curves
from steersman.denoise import Denoiser
from steersman.errors import InputError, unknown
from steersman.lab.analysis import followed
from steersman.lab.analysis.figures import mean_curves
from steersman.lab.analysis.gradients import GRADIENT, IMAGE, NORM
from steersman.lab.analysis.parts import Key, Parts
from steersman.lab.analysis.plots import draw_walks
from steersman.lab.analysis.times import axis
from steersman.lab.report.curves import write_curves
from steersman.recipes import load_recipe
from steersman.sampling import levels_of

__all__ = ["gradients"]


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
    console = Console()
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
                each.guides(classifier),
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
    console.print(f"figures in {escape(str(out))}", soft_wrap=True)


def _label(denoiser: Denoiser, target: str) -> int:
    if target not in denoiser.classes:
        raise unknown("class of the denoiser", target, denoiser.classes)
    return denoiser.classes.index(target)
