"""``steersman analyze accuracy``."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from torch import Tensor

from steersman.cli.analyzing.scope import Scope
from steersman.cli.analyzing.terminal import carry_out, print_curves
from steersman.lab.analysis import seen
from steersman.lab.analysis.figures import share_curves
from steersman.lab.analysis.forward import Forward
from steersman.lab.analysis.parts import Key, Parts
from steersman.lab.analysis.times import all_levels, axis
from steersman.lab.metrics.images import read_images
from steersman.lab.report.curves import write_curves

__all__ = ["accuracy"]


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
    console = Console()
    views = scope.shown()
    with console.status("loading the networks"):
        denoiser, classifiers = scope.load_denoiser(), scope.load_classifiers()
        forward = Forward(
            denoiser,
            classifiers,
            read_images(data),
            seed=seed,
            num=num,
            labelled=label,
            device=scope.device,
        )
    every_level = all_levels(denoiser.schedule)
    levels = [every_level[place] for place in scope.places(every_level)]
    settings = scope.settings() | {"data": data, "num": num, "label": label, "seed": seed}
    parts = Parts(out, {"analysis": "accuracy"} | settings, len(forward))

    def measure(places: list[int], on_step: Callable[[], None]) -> dict[Key, Tensor]:
        batch = forward.batch(places)
        return seen(
            batch.denoiser,
            classifiers,
            batch.images,
            batch.targets,
            levels,
            eps=batch.eps,
            views=views,
            on_step=on_step,
        )

    carry_out(console, parts, scope, [denoiser, *classifiers.values()], len(levels), measure)
    x, title, log_x = axis(denoiser.schedule, levels)
    curves = share_curves(parts.read(), x)
    write_curves(out / "accuracy", curves, x=title, y="accuracy", log_x=log_x)
    print_curves(console, curves, "accuracy", ".1%")
    console.print(f"figures in {escape(str(out))}", soft_wrap=True)
