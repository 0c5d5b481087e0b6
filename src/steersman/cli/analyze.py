"""``steersman analyze``: what makes a classifier fit for guidance.

An analysis loads its networks, measures the images that its folder lacks, with a progress bar, and makes of all
together its files and a short table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from steersman.cli import options
from steersman.cli.options import option
from steersman.cli.root import Commands, Terminal, require_lab
from steersman.errors import InputError, unknown

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from steersman.guidance import ClassifierInput, Stabilizer
    from steersman.lab.analysis.forward import Forward
    from steersman.lab.analysis.parts import Key
    from steersman.lab.report.plots import Curve
    from steersman.models.classifiers import Classifier
    from steersman.schedule import Level

__all__ = ["Inputs", "Out", "Scope", "app", "measured", "show_curves", "stabilizer"]

app = Commands(help="Measure how suitable a classifier is for guidance.", no_args_is_help=True)

BALLS = "sportballs?num=256&seed=1000"
COLUMNS, FEWER = 6, 4  # noise levels in a printed table, and beside means with their intervals
LEVELS = 8  # noise levels at which images and gradients are plotted
STABILIZERS = ("none", "ema 0.9", "ema 0.99", "adam")
ASKED = ("own", "shared")
GRADIENT_OF = {"class": "log p({})", "logit": "logit({})", "binary": "log p({})"}
"""What each objective has the gradient of."""

Out = Annotated[Path, option("Output folder, where an interrupted analysis continues.")]


@dataclass(frozen=True, kw_only=True)
class Scope:
    """The denoiser, the noise levels, and where the networks run."""

    denoiser: options.Denoiser = "zoo:sportballs"
    times: Annotated[str | None, option("Use only the noise levels nearest to these times.", metavar="T,T,…")] = None
    every: Annotated[int | None, option("Use only every K-th noise level, counted from the cleanest.", metavar="K")] = (
        None
    )
    count: Annotated[int | None, option("Use only N evenly spaced noise levels.", metavar="N")] = None
    batch_size: Annotated[int, option("Batch size; it does not change the figures.")] = 16
    device: options.Device = "cpu"

    def settings(self) -> dict[str, Any]:
        """Returns the options that the figures depend on."""
        return {name: getattr(self, name) for name in ("denoiser", "times", "every", "count")}

    def load_denoiser(self) -> Any:  # noqa: ANN401
        """Returns the denoiser."""
        from steersman.models.denoisers import load_denoiser

        return load_denoiser(self.denoiser, device=self.device)

    def load_classifier(self, spec: str, **settings: Any) -> "Classifier":  # noqa: ANN401
        """Returns a classifier, whose preprocessing must be known."""
        from steersman.models.classifiers import load_classifier
        from steersman.models.classifiers.spec import Unstated

        classifier = load_classifier(spec, device=self.device, **settings)
        if isinstance(classifier.preprocess, Unstated):
            raise classifier.preprocess.refusal()
        return classifier

    def fit(self, networks: Sequence[Any], size: int) -> None:
        """Has the networks see blocks of one size, for batches of a size that is at most the batch size."""
        from steersman.batching import block_size

        block = block_size(self.device, size)
        for network in networks:
            network.block = block if size == self.batch_size else min(block, size)

    def places(self, levels: "Sequence[Level]") -> list[int]:
        """Returns the indices of the chosen noise levels among all."""
        from steersman.lab.analysis.forward import choose

        times = None if self.times is None else options.numbers("times", self.times)
        return choose(levels, times=times, every=self.every, count=self.count)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The classifiers, and what they see."""

    classifier: Annotated[
        list[str] | None,
        option("Classifier; repeat for more. By default imagenet:efficientnet-lite0.", metavar="[NAME=]SPEC"),
    ] = None
    input: Annotated[
        list[str] | None,
        option("Classifier input: noisy, denoised or lookahead; repeat for more. By default noisy and denoised."),
    ] = None
    preprocess: Annotated[str, option("Preprocessing of classifier inputs: own (as it was trained) or raw.")] = "own"
    size: Annotated[int | None, option("Side of classifier inputs in pixels; by default the classifier's own.")] = None

    def settings(self) -> dict[str, Any]:
        """Returns the options that the figures depend on."""
        classifiers = {"classifiers": self.specs(), "inputs": list(self.by_name())}
        return classifiers | {"preprocess": self.preprocess, "size": self.size}

    def specs(self) -> dict[str, str]:
        """Returns how to load each classifier, by its name."""
        found: dict[str, str] = {}
        for text in self.classifier or ("imagenet:efficientnet-lite0",):
            name, named, spec = text.partition("=")
            name, spec = (name, spec) if named and ":" not in name else (text, text)
            if name in found:
                raise InputError(f"classifier: each name may be given only once, as NAME=SPEC, got {name!r} twice")
            found[name] = spec
        return found

    def by_name(self) -> "dict[str, ClassifierInput]":
        """Returns the classifier inputs by name."""
        from steersman.recipes.axes import build

        return {name: build("input", name) for name in self.input or ("noisy", "denoised")}

    def load(self, scope: Scope, **settings: Any) -> "dict[str, Classifier]":  # noqa: ANN401
        """Returns the classifiers by name."""
        settings |= {"preprocess": self.preprocess, "size": self.size}
        return {name: scope.load_classifier(spec, **settings) for name, spec in self.specs().items()}


@dataclass(frozen=True, kw_only=True)
class _Data:
    """The images to which noise is added."""

    data: Annotated[
        str,
        option(
            "Images with labels: FOLDER[?resolution=64], FILE.npz, cifar10:[FOLDER][?split=test], mnist:…, "
            "sportballs[:PRESET][?num=8&seed=1]."
        ),
    ] = BALLS
    num: Annotated[int | None, option("Number of images, drawn at random; by default all.")] = None
    label: Annotated[bool, option("Condition the denoiser on each image's class.", "--label")] = False
    seed: Annotated[int, option("Seed of the noise.")] = 0

    def load(self, scope: Scope, inputs: Inputs, target: str | None = None) -> "Forward":
        """Returns the images, which noise is added to, with the networks that see them."""
        from steersman.lab.analysis.forward import Forward
        from steersman.lab.data.images import read_images

        networks = scope.load_denoiser(), inputs.load(scope)
        settings = {"seed": self.seed, "num": self.num, "target": target, "labelled": self.label}
        return Forward(*networks, read_images(self.data), device=scope.device, **settings)


def measured(
    measure: "Callable[[list[int], Callable[[], None]], Mapping[Key, Tensor]]",
    terminal: Terminal,
    out: Path,
    scope: Scope,
    networks: Sequence[Any],
    *,
    settings: Mapping[str, Any],
    count: int,
    steps: int,
) -> "dict[Key, np.ndarray]":
    """Measures those of ``count`` images that the folder lacks, and returns what was measured of all.

    ``measure`` gets the indices of some images, and what to call after each of the steps. Where the memory does not
    hold a batch, smaller ones are taken: the figures are each image's own.
    """
    from steersman.batching import Batches
    from steersman.lab.analysis.parts import Parts

    parts = Parts(out, settings, count)
    missing = parts.missing(scope.batch_size)
    scope.fit(networks, scope.batch_size)
    batches = Batches(scope.batch_size, on_halved=partial(scope.fit, networks))
    with terminal.progress() as progress:
        left = sum(map(len, missing))
        task = progress.add_task(f"{left} of {count} images", total=left * steps)

        def measure_batch(images: list[int]) -> "tuple[list[int], Mapping[Key, Tensor]]":
            return images, measure(images, partial(progress.advance, task, len(images)))

        for images in missing:
            for some, values in batches.map(measure_batch, images):
                parts.write(some, values)
    return parts.read()


def show_curves(
    terminal: Terminal,
    path: Path,
    curves: "Sequence[Curve]",
    axis: tuple[list[float], str, bool],
    y: str,
    form: str,
    *,
    log_y: bool = False,
    means: Sequence[str] = (),
) -> None:
    """Writes curves over the noise levels, and prints them at a few levels, beside means where there are any."""
    from steersman.lab.report.plots import write_curves

    x, title, log_x = axis
    write_curves(path, curves, x=title, y=y, log_x=log_x, log_y=log_y)
    columns = FEWER if means else COLUMNS
    places = sorted({round(i * (len(x) - 1) / (columns - 1)) for i in range(columns)})
    rows = [[curve.title, *(f"{curve.y[place]:{form}}" for place in places)] for curve in curves]
    header = ["at", *(f"{x[place]:.3g}" for place in places)]
    if means:
        header, rows = [*header, "over time"], [[*row, mean] for row, mean in zip(rows, means, strict=True)]
    terminal.table(header, rows, title=y)


@app.callback()
def analyze() -> None:
    """Measure how suitable a classifier is for guidance."""
    require_lab("analyze")


@app.command()
@options.grouped
def accuracy(*, out: Out = Path("outputs/accuracy"), scope: Scope, inputs: Inputs, data: _Data) -> None:
    """Measure a classifier's accuracy at each noise level, on the noisy and on the denoised image."""
    from steersman.lab.analysis import accuracies
    from steersman.lab.analysis.forward import all_levels, axis
    from steersman.lab.analysis.parts import share_curves

    terminal, by_name = Terminal(), inputs.by_name()
    with terminal.status("loading the networks"):
        forward = data.load(scope, inputs)
    every_level = all_levels(forward.denoiser.schedule)
    levels = [every_level[place] for place in scope.places(every_level)]

    def measure(images: list[int], on_step: Callable[[], None]) -> "dict[Key, Tensor]":
        return accuracies(forward.batch(images), forward.classifiers, levels, inputs=by_name, on_step=on_step)

    settings = {"analysis": "accuracy"} | scope.settings() | inputs.settings() | vars(data)
    networks = [forward.denoiser, *forward.classifiers.values()]
    counts = {"count": len(forward), "steps": len(levels)}
    values = measured(measure, terminal, out, scope, networks, settings=settings, **counts)
    x_axis = axis(forward.denoiser.schedule, levels)
    show_curves(terminal, out / "accuracy", share_curves(values, x_axis[0]), x_axis, "accuracy", ".1%")
    terminal.print(f"figures in {out}")


@app.command()
@options.grouped
def sensitivity(
    *,
    out: Out = Path("outputs/sensitivity"),
    scope: Scope,
    inputs: Inputs,
    data: _Data,
    stabilizers: Annotated[
        list[str] | None,
        option(
            "Stabilizer of the gradients; repeat for more. By default none, ema 0.9, ema 0.99 and adam.",
            "--stabilizer",
            metavar="KIND [VALUE]",
        ),
    ] = None,
    objective: Annotated[
        str,
        option(
            "Objective of the gradients: class (whose gradient fades where the classifier is sure), logit or binary."
        ),
    ] = "class",
    target: Annotated[str | None, option("Class to use for all images; by default each image's own.")] = None,
    asked: Annotated[
        str,
        option(
            "Time at which the denoiser sees the less noisy image x_{t-1}: own (t-1), or shared (t, as in the "
            "code of nrCG)."
        ),
    ] = "own",
) -> None:
    """Measure how much logits and gradients change from one noise level to the next."""
    from steersman.lab.analysis import sensitivities
    from steersman.lab.analysis.forward import GRADIENTS, LOGITS, all_levels, axis
    from steersman.lab.analysis.parts import mean_curves
    from steersman.recipes.axes import build

    if asked not in ASKED:
        raise unknown("time asked at", asked, ASKED)
    terminal, by_name = Terminal(), inputs.by_name()
    steadied = {name: stabilizer(name) for name in stabilizers or STABILIZERS}
    if objective not in GRADIENT_OF:
        raise unknown("objective", objective, GRADIENT_OF)
    with terminal.status("loading the networks"):
        forward = data.load(scope, inputs, target)
    schedule = forward.denoiser.schedule
    levels = all_levels(schedule)
    pairs = [(levels[place], levels[place + 1]) for place in scope.places(levels) if place + 1 < len(levels)]
    if not pairs:
        raise InputError("times must include one that has a cleaner level after it, got only the cleanest")

    def measure(images: list[int], on_step: Callable[[], None]) -> "dict[Key, Tensor]":
        return sensitivities(
            forward.batch(images),
            forward.classifiers,
            pairs,
            objective=lambda classifier: build("objective", objective, classifier=classifier),
            inputs=by_name,
            stabilizers=steadied,
            shared=asked == "shared",
            on_step=on_step,
        )

    settings = {"analysis": "sensitivity"} | scope.settings() | inputs.settings() | vars(data)
    settings |= {"stabilizers": list(steadied), "objective": objective, "target": target, "asked": asked}
    networks = [forward.denoiser, *forward.classifiers.values()]
    values = measured(measure, terminal, out, scope, networks, settings=settings, count=len(forward), steps=len(pairs))
    x_axis = axis(schedule, [level for level, _ in pairs])
    logits, gradients = (
        {key[1:]: each for key, each in values.items() if key[0] == kind} for kind in (LOGITS, GRADIENTS)
    )
    raw = {key[:-1]: each for key, each in gradients.items() if key[-1] == "none"}
    gradient = f"∇ {GRADIENT_OF[objective].format('own class' if target is None else target)}"
    for name, y, found in (
        ("logits", "sensitivity of logits", logits),
        ("gradients", f"sensitivity of {gradient}", raw),
        ("stabilised", f"sensitivity of stabilised {gradient}", gradients if len(steadied) > 1 or not raw else {}),
    ):
        if found:
            show_curves(terminal, out / name, mean_curves(found, x_axis[0]), x_axis, y, ".3g", log_y=True)
    terminal.print(f"figures in {out}")


def stabilizer(text: str) -> "Stabilizer":
    """Returns the stabilizer that a recipe's section or ``KIND VALUE`` names, such as ``ema 0.9``."""
    from steersman.files import parse_yaml
    from steersman.recipes.axes import AXES, build, settings_of

    section = parse_yaml(text)
    if isinstance(section, str):
        kind, *values = section.split()
        known = AXES["stabilizer"]
        if kind not in known:
            raise unknown("stabilizer", kind, known)
        names = list(settings_of(known[kind]))[: len(values)]
        if len(values) != len(names):
            raise InputError(f"stabilizer must be a kind and its settings, as in 'ema 0.9', got {text!r}")
        section = {"kind": kind, **dict(zip(names, map(parse_yaml, values), strict=True))}
    return build("stabilizer", section)


@app.command()
def directions(
    out: Annotated[Path, option("Output folder.")] = Path("outputs/directions"),
    target: Annotated[int, option("Class of the mixture, 0 to 2.")] = 2,
    times: Annotated[str, option("Times to plot, from 0 to 999.", metavar="T,T,…")] = "0,300,600",
    side: Annotated[int, option("Number of arrows along each side of the plot.")] = 17,
) -> None:
    """Plot joint, marginal and conditional gradients on a mixture of three Gaussians in the plane."""
    from steersman.lab.analysis.gradients import write_fields

    write_fields(out, options.numbers("times", times), target=target, side=side)
    Terminal().print(f"figures in {out}")


@app.command()
@options.grouped
def gradients(
    *,
    out: Out = Path("outputs/gradients"),
    scope: Scope,
    classifier: Annotated[str, option("Classifier that guides.")] = "imagenet:efficientnet-lite0",
    target: Annotated[str, option("Class to steer to.")] = "baseball",
    marginal: Annotated[str, option("Marginal temperatures to compare.", metavar="T,T,…")] = "1,0.5",
    num: Annotated[int, option("Number of images.")] = 8,
    shown: Annotated[int, option("Number of images to plot.")] = 2,
    recipe: options.Recipe = "elucd-ddpm",
    changes: options.Changes,
    label: Annotated[bool, option("Condition the denoiser on the target.", "--label")] = False,
    seed: options.Seed = 0,
) -> None:
    """Plot guided images and their gradients at some noise levels, by default 8, and the gradients' norms at all."""
    import torch

    from steersman.lab.analysis import guided_gradients
    from steersman.lab.analysis.figures import draw_trajectories
    from steersman.lab.analysis.forward import axis
    from steersman.lab.analysis.gradients import GRADIENT, IMAGE, NORM
    from steersman.lab.analysis.parts import mean_curves
    from steersman.recipes import load_recipe
    from steersman.sampling import levels_of

    if scope.times is None and scope.every is None and scope.count is None:
        scope = replace(scope, count=LEVELS)
    if num < 1 or not 1 <= shown <= num:
        raise InputError(f"num must be at least 1 and shown 1 to num, got num {num} and shown {shown}")
    recipes = {
        f"tau2 = {temperature:g}": load_recipe(recipe, [*changes.listed(), f"objective.marginal={temperature}"])
        for temperature in options.numbers("marginal", marginal)
    }
    first, terminal = next(iter(recipes.values())), Terminal()
    with terminal.status("loading the networks"):
        denoiser = scope.load_denoiser()
        guide = scope.load_classifier(classifier, **first.classifier_settings())
    classes, condition = guide.members(target), {}
    if label:
        if target not in denoiser.classes:
            raise unknown("class of the denoiser", target, denoiser.classes)
        condition["label"] = torch.tensor(denoiser.classes.index(target), device=scope.device)
    sampling = first.sampling()
    levels = levels_of(
        first.sampler(), denoiser.schedule, *(sampling[key] for key in ("steps", "spacing", "ratio_min", "ratio_max"))
    )[:-1]
    at = scope.places(levels)

    def measure(images: list[int], on_step: Callable[[], None]) -> "dict[Key, Tensor]":
        found: dict[Key, Tensor] = {}
        for name, each in recipes.items():
            of_recipe = guided_gradients(
                denoiser,
                each.sampler(),
                each.bind_prepared(guide),
                [classes] * len(images),
                [seed + image for image in images],
                at=set(at),
                condition={key: value.expand(len(images)) for key, value in condition.items()},
                device=scope.device,
                callbacks=[lambda report: None if report.step.repeat else on_step()],
                **each.sampling(),
            )
            found |= {(name, *key): values for key, values in of_recipe.items()}
        return found

    settings = {"analysis": "gradients"} | scope.settings() | {"classifier": classifier, "target": target}
    settings |= {"num": num, "label": label, "seed": seed, "shown": shown}
    settings |= {"recipes": {name: each.resolved() for name, each in recipes.items()}}
    steps = len(recipes) * sampling["steps"]
    values = measured(measure, terminal, out, scope, [denoiser, guide], settings=settings, count=num, steps=steps)
    x_axis = axis(denoiser.schedule, levels)
    curves = mean_curves({(name,): values[name, NORM] for name in recipes}, x_axis[0])
    show_curves(terminal, out / "norms", curves, x_axis, "norm of the gradient", ".3g", log_y=True)
    pictures = {
        name: (torch.from_numpy(values[name, IMAGE][:shown]), torch.from_numpy(values[name, GRADIENT][:shown]))
        for name in recipes
    }
    zoom = max(1, round(96 / denoiser.shape[-1]))
    draw_trajectories(out / "gradients.png", pictures, [f"{x_axis[0][place]:.3g}" for place in at], zoom=zoom)
    terminal.print(f"figures in {out}")
