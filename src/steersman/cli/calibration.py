"""``steersman analyze calibration`` and ``agree``: is a classifier as often right as it is sure, and does it matter."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from steersman.cli import options
from steersman.cli.analyze import Inputs, Out, Scope, app, measured, show_curves
from steersman.cli.options import argument, option
from steersman.cli.root import Terminal
from steersman.errors import InputError, unknown

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from steersman.lab.analysis.calibration import Turns
    from steersman.lab.analysis.parts import Key
    from steersman.models.classifiers import Classifier
    from steersman.schedule import Level, Schedule

__all__ = ["agree", "calibration"]

PANELS = 4  # reliability diagrams side by side


@app.command()
@options.grouped
def calibration(
    *,
    out: Out = Path("outputs/calibration"),
    scope: Scope,
    inputs: Inputs,
    num: Annotated[int, option("Total number of images, spread over the classes.")] = 256,
    classes: Annotated[
        list[str] | None, option("Class to draw; repeat for more. By default all classes of the denoiser.", "--class")
    ] = None,
    softplus: Annotated[
        str, option("Sharpness of softplus in place of ReLU; none for the network as it was trained.", metavar="B,B,…")
    ] = "none",
    temperature: Annotated[str, option("Factors on the logits.", metavar="T,T,…")] = "1",
    bins: Annotated[int, option("Number of confidence bins.")] = 15,
    sampler: Annotated[str, option("Sampler, in the forms that a recipe takes.")] = "ddpm",
    steps: Annotated[int, option("Sampling steps.")] = 50,
    switch: Annotated[
        list[str] | None,
        option(
            "Also measure two classifiers as one: ABOVE where sigma / alpha > AT, else BELOW (ensemble.at of a "
            "recipe); repeat for more.",
            metavar="[NAME=]ABOVE,BELOW,AT",
        ),
    ] = None,
    cfg_scale: Annotated[float, option("Classifier-free guidance scale.")] = 1.0,
    seed: options.Seed = 0,
) -> None:
    """Measure a classifier's calibration error at each sampling step."""
    from steersman.files import parse_yaml
    from steersman.guidance.target import class_rows
    from steersman.lab.analysis import confidences, in_turn
    from steersman.lab.analysis.forward import indices_among
    from steersman.recipes.axes import build
    from steersman.sampling import levels_of

    terminal, by_name = Terminal(), inputs.by_name()
    turns = [_turns(text, inputs.specs()) for text in switch or ()]
    temperatures = options.numbers("temperature", temperature)
    if num < 1 or bins < 1:
        raise InputError(f"num and bins must be at least 1, got num {num} and bins {bins}")
    built = build("sampler", parse_yaml(sampler))
    with terminal.status("loading the networks"):
        denoiser = scope.load_denoiser()
        classifiers: dict[Key, Classifier] = {}
        for sharpness in softplus.split(","):
            beta = None if sharpness == "none" else options.numbers("softplus", sharpness)[0]
            smoothing = "as trained" if beta is None else f"β {beta:g}"
            loaded = inputs.load(scope, softplus=beta)
            classifiers |= {(name, smoothing): classifier for name, classifier in loaded.items()}
    if not denoiser.classes:
        raise InputError("denoiser must have labels, as images are drawn for each class")
    drawn = tuple(classes or denoiser.classes)
    for name in drawn:
        if name not in denoiser.classes:
            raise unknown("class of the denoiser", name, denoiser.classes)
    labels = [denoiser.classes.index(name) for name in drawn]
    targets = {key: indices_among(classifier, drawn) for key, classifier in classifiers.items()}
    levels = levels_of(built, denoiser.schedule, steps)[:-1]
    at = scope.places(levels)

    def measure(images: list[int], on_step: Callable[[], None]) -> "dict[Key, Tensor]":
        def of_images(classes: "Sequence[int | Sequence[int]]") -> "Tensor":
            return class_rows([classes[image % len(drawn)] for image in images]).to(scope.device)

        return confidences(
            denoiser,
            built,
            classifiers,
            {key: of_images(indices) for key, indices in targets.items()},
            [seed + image for image in images],
            inputs=by_name,
            temperatures=temperatures,
            at=set(at),
            condition={"label": of_images(labels), "cfg_scale": cfg_scale},
            device=scope.device,
            on_step=on_step,
            steps=steps,
        )

    settings = {"analysis": "calibration"} | scope.settings() | inputs.settings()
    settings |= {"softplus": softplus, "temperature": temperature, "num": num, "classes": list(drawn)}
    settings |= {"sampler": sampler, "steps": steps, "cfg_scale": cfg_scale, "seed": seed}
    networks = [denoiser, *classifiers.values()]
    values = measured(measure, terminal, out, scope, networks, settings=settings, count=num, steps=steps)
    visited = [levels[place] for place in at]
    for both in turns:
        values |= in_turn(values, both, visited)
    heading = (
        f"{num} images, the classes in turn, seeds {seed} to {seed + num - 1}, in {steps} steps ({sampler}), "
        f"unguided; {bins} bins"
    )
    _show(terminal, out, values, visited, denoiser.schedule, bins, heading)


def _turns(text: str, known: Collection[str]) -> "Turns":
    """Returns the two classifiers that ``[NAME=]ABOVE,BELOW,AT`` names."""
    from steersman.lab.analysis.calibration import Turns

    name, named, rest = text.partition("=")
    name, rest = (name, rest) if named and not {",", ":"} & set(name) else (None, text)
    above, below, at = (["", "", *rest.rsplit(",", 2)])[-3:]
    try:
        ratio = float(at)
    except ValueError:
        ratio = -1.0
    if not (above and below and ratio >= 0):
        raise InputError(f"switch must be [NAME=]ABOVE,BELOW,AT, two classifiers and sigma / alpha, got {text!r}")
    for classifier in (above, below):
        if classifier not in known:
            raise unknown("classifier to switch", classifier, known)
    if name in known:
        raise InputError(f"switch: {name!r} is already the name of a classifier; give another name")
    return Turns(name=name or f"{above} until {ratio:g} then {below}", above=above, below=below, at=ratio)


def _show(
    terminal: Terminal,
    out: Path,
    values: "Mapping[Key, np.ndarray]",
    levels: "list[Level]",
    schedule: "Schedule",
    bins: int,
    heading: str,
) -> None:
    """Writes the figures of what was measured at some noise levels, and prints them."""
    from steersman.lab.analysis.calibration import (
        ERROR,
        calibration_errors,
        diagrams,
        error_curves,
        write_diagrams,
        write_integrals,
    )
    from steersman.lab.analysis.figures import draw_reliability
    from steersman.lab.analysis.forward import axis, choose
    from steersman.lab.analysis.parts import apart
    from steersman.lab.report.tables import as_text

    x_axis = x, title, _ = axis(schedule, levels)
    errors = calibration_errors(values, [float(level.time) for level in levels], bins)
    reliability = diagrams(values, bins)
    integrals = {key: each.integral for key, each in errors.items()}
    write_integrals(out, integrals, heading)
    write_diagrams(out, reliability, x)
    panels = choose(levels, count=min(PANELS, len(levels)))
    count = len(next(iter(values.values())))
    draw_reliability(
        out / "reliability.png",
        {name: [reliability[key][place] for place in panels] for key, name in apart(reliability).items()},
        [f"{title.partition(' (')[0]} = {x[place]:.3g}" for place in panels],
        least=max(1, round(count**0.5 / 3)),  # 5 of 256: what one image does not move from 0 to 1
    )
    means = [as_text(ERROR, each) for each in integrals.values()]
    curves = error_curves(errors, x)
    show_curves(terminal, out / "calibration", curves, x_axis, "expected calibration error", ".3f", means=means)
    terminal.print(f"figures in {out}")


@app.command()
def agree(
    calibration: Annotated[Path, argument("Folder that analyze calibration wrote.")],
    sweep: Annotated[Path, argument("Folder that sweep wrote, whose cells are named as the calibration's settings.")],
    out: Annotated[Path, option("Output folder.")] = Path("outputs/agree"),
    figure: Annotated[
        list[str] | None,
        option("Figure to compare: fid, cfid, accuracy/judge or accuracy/guide; repeat for more. By default all."),
    ] = None,
    where: Annotated[
        list[str] | None, option("Use only the cells with this value; repeat for more.", metavar="KEY=VALUE")
    ] = None,
    best: Annotated[
        list[str] | None,
        option("Compare the settings at their best value of KEY, such as scale; repeat for more.", metavar="KEY"),
    ] = None,
) -> None:
    """Measure the rank correlation between calibration error and sample quality."""
    from steersman.lab.analysis.calibration import pairs, read_cells, read_errors, write_agreement
    from steersman.lab.analysis.parts import Parts
    from steersman.lab.sweep.sweeping import FRONTS

    for name in figure or ():
        if name not in FRONTS:
            raise unknown("figure", name, FRONTS)
    values = {}
    for text in where or ():
        key, equals, values[key] = text.partition("=")
        if not equals:
            raise InputError(f"where must be KEY=VALUE, as in scale=5, got {text!r}")
    errors, cells = read_errors(calibration), read_cells(sweep, where=values, best=best or (), larger=FRONTS)
    known = {name for cell in cells.values() for name, each in cell.items() if each.value is not None}
    found = {name: pairs(errors, cells, name) for name in figure or FRONTS if figure or name in known}
    if not found:
        raise InputError(f"sweep: {str(sweep)!r} must have one of the figures {', '.join(FRONTS)}, it has none")
    settings = {"analysis": "agree", "calibration": str(calibration), "sweep": str(sweep)}
    settings |= {"figures": figure, "where": where or [], "best": best or []}
    Parts(out, settings, 0).write_settings()
    terminal = Terminal()
    for header, rows in write_agreement(out, found):
        terminal.table(header, rows)
    both = {pair.name for each in found.values() for pair in each}
    if left := [name for name in errors if name not in both]:
        terminal.print(f"in the calibration alone: {' | '.join(left)}")
    terminal.print(f"figures in {out}")
