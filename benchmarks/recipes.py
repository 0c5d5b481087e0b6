"""All training-free recipes side by side, on the bundled models: the same seeds, steps, guide and judges.

    python benchmarks/recipes.py outputs/recipes [RECIPE ...]        draws; a second call draws what is missing
    python benchmarks/recipes.py outputs/recipes --write docs/recipes.md

Each recipe keeps its own input, wrt, stabilizer, weight, injection, recurrence and particles. Its scale is found
anew, since a scale belongs to a model: by factors of 10^(1/2) from the published one, as long as the judge's mean
probability of the target grows, over 16 images of seeds 1000 to 1003, four a class. Then 256 images are drawn, 64 a
class, of seeds 0 to 63. Seconds are those of another run of 8 images, on a machine that does nothing else (``--time``).
"""

import argparse
import json
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.io import decode_image

from steersman.lab.data import SportBalls
from steersman.lab.generate import generate, open_session
from steersman.lab.metrics import classifier_features, correct, frechet_distance, wilson
from steersman.lab.run import Run
from steersman.models.classifiers import Classifier, load_classifier
from steersman.recipes import Recipe, load_recipe

GUIDE = "zoo:sportballs-mobilenet"
JUDGE, SECOND = "zoo:sportballs-judge", "zoo:sportballs-judge2"
SEEN = (JUDGE, "imagenet:efficientnet-lite0")  # in whose features distances are measured
STEPS = "sampling.steps=24"

METHODS: dict[str, tuple[str, ...]] = {
    "default": ("preprocess.size=64",),
    "elucd-ddpm": (STEPS,),
    "elucd-edm": (),
    "nrcg/denoised": (STEPS,),
    "nrcg/ema90": (STEPS,),
    "nrcg/ema99": (STEPS,),
    "nrcg/adam": (STEPS,),
    "dps": (STEPS,),
    "lgd": (STEPS, "smoothing.copies=4"),
    "mpgd": (STEPS,),
    "freedom/once": (STEPS,),
    "freedom": (STEPS,),
    "universal/once": (STEPS,),
    "universal": (STEPS,),
    "tfg": (STEPS,),
    "dsg": (STEPS,),
    "polyak/once": (STEPS, "smoothing.copies=4"),
    "adam-moments": (STEPS,),
    "interval": (STEPS,),
    "flow": (STEPS,),
    "fk-steering": (STEPS, "particles.every=4"),
    "fk-steering/best-of-n": (STEPS,),
}
"""Each recipe, with what is changed: all take 24 steps but those that fix their own, and costly averages 4 copies."""

UNGUIDED = "unguided"

PAGE = f"""# Training-free recipes side by side

256 images each, 64 of each of the four balls, seeds 0 to 63, by the bundled denoiser and one guide for all,
`{GUIDE}`: nrCG's non-robust classifier, trained on clean images alone. No setting was chosen on these
seeds. A scale belongs to a model, so each recipe's was found anew on seeds 1000 to 1003 (four images a class), by
factors of 10^(1/2) from the recipe's own; several guides of one recipe were scaled together. All else is the recipe's,
but for what the second column says. Float32, a two-core Xeon without GPU.

```bash
python benchmarks/recipes.py outputs/recipes && python benchmarks/recipes.py outputs/recipes --time
python benchmarks/recipes.py outputs/recipes --write docs/recipes.md
```

Judge: the share of images in which a network that never guides sees the target, with Wilson's 95% interval; an image
lost to numbers that are not finite is one in which it does not. The second judge is of another architecture. Distance:
the Fréchet distance to real images of the class in the judge's features, the mean of the four classes (two sets of 64
real ones: {{real[0]}}); ImageNet distance: the same in the features of `{SEEN[1]}`,
which takes no part here either and has seen more than balls ({{real[1]}}). Denoiser, guide: evaluations for an image; a
recipe with `wrt: x_t` also goes back through as many. Seconds: for an image, of 8 drawn at once.

The scale is the one at which the judge is surest, not the one with the best pictures. A judge that knows nothing but
balls sees them in burnt and broken pictures too; these are far from real ones in the ImageNet network's features.

"""


def recipe_of(name: str, factor: float = 1.0) -> Recipe:
    """Returns a method's recipe, the scales of all its guides multiplied by a factor."""
    recipe = load_recipe("nrcg" if name == UNGUIDED else name, METHODS.get(name, (STEPS,)))
    if factor == 1:
        return recipe
    settings = recipe.resolved()
    scales = {"scale": settings["scale"]["value"]}
    scales |= {
        f"extra_guides.{place}.scale": each["scale"]["value"] for place, each in enumerate(settings["extra_guides"])
    }
    return recipe.changed({key: float(f"{value * factor:.3g}") for key, value in scales.items()})


def drawn(out: Path, name: str, factor: float, *, num: int, seed: int) -> dict[str, Any]:
    """Returns the figures of a run, which is drawn where it is not there."""
    metrics = out / "metrics.json"
    if not metrics.exists():
        run = Run(
            targets=("all",),
            num=num,
            seed=seed,
            classifiers=(GUIDE,),
            judge=JUDGE,
            recipe=recipe_of(name, factor),
            guided=name != UNGUIDED,
        )
        generate(open_session(run), out)
    return json.loads(metrics.read_text())


def scale_of(name: str, factor: float) -> float:
    """Returns the first guide's scale."""
    return float(recipe_of(name, factor).resolved()["scale"]["value"])


def search(out: Path, name: str) -> float:
    """Returns the factor at which the judge is surest; 1 for ours, which was chosen before, and where no scale is."""
    if name in ("default", UNGUIDED) or not scale_of(name, 1.0):
        return 1.0
    tried: dict[int, float] = {}

    def surety(place: int) -> float:
        if place not in tried:
            factor = 10 ** (place / 2)
            folder = out / "search" / name.replace("/", "-") / f"{scale_of(name, factor):g}"
            tried[place] = drawn(folder, name, factor, num=4, seed=1000)["probability"]["judge"]
            print(f"{name} scale {scale_of(name, factor):g}: {tried[place]:.3f}", flush=True)
        return tried[place]

    def best_of(*places: int) -> int:
        """Returns the surest, and of those that are as sure the largest, so that a scale without effect is left."""
        most = max(map(surety, places))
        return max(place for place in places if surety(place) > most - 0.01)

    place = 0
    while (best := best_of(place, place - 1, place + 1)) != place:
        place = best
    return 10 ** (place / 2)


def images_of(folder: Path) -> Float[Tensor, "B 3 H W"]:
    """Returns a folder's numbered images in [-1, 1]."""
    return torch.stack([decode_image(str(file)) for file in sorted(folder.glob("[0-9]*.png"))]).float() / 127.5 - 1


@cache
def network(spec: str) -> Classifier:
    """Returns a network, loaded once."""
    return load_classifier(spec)


@cache
def real(spec: str, seed: int) -> tuple[Float[Tensor, "64 D"], ...]:
    """Returns a network's features of 64 real images of each class."""
    balls, labels = SportBalls.preset("large", num=400, seed=seed).batch(range(400))
    return tuple(classifier_features(network(spec), balls[labels == label][:64]) for label in range(4))


def floor(spec: str) -> float:
    """Returns the mean distance between two sets of 64 real images of a class, in a network's features."""
    pairs = zip(real(spec, 99), real(spec, 98), strict=True)
    return mean(frechet_distance(*pair) for pair in pairs)


def row(out: Path, name: str) -> list[str] | None:
    """Returns a method's row of the table, None where its run is not there yet."""
    folder = out / name.replace("/", "-")
    if not (folder / "metrics.json").exists():
        return None
    metrics = json.loads((folder / "metrics.json").read_text())
    judge, second = network(JUDGE), network(SECOND)
    right, agreed, count, distances = 0, 0, 0, {spec: [] for spec in SEEN}
    for label, target in enumerate(judge.names):
        images = images_of(folder / target)
        wanted = torch.full((len(images),), label)
        with torch.no_grad():
            right += int(correct(judge(images), wanted).sum())
            agreed += int(correct(second(images), wanted).sum())
        count += len(images)
        for spec, found in distances.items():
            found.append(frechet_distance(classifier_features(network(spec), images), real(spec, 99)[label]))
    lost = len(metrics["lost"])
    count += lost
    ratio_min, ratio_max = wilson(right, count)
    timed = out / "time" / name.replace("/", "-") / "metrics.json"
    seconds = f"{1 / json.loads(timed.read_text())['images_per_second']:.1f}" if timed.exists() else "–"
    evaluations = metrics["network_evaluations"]
    factor = float((out / f"{name.replace('/', '-')}.factor").read_text())
    return [
        f"`{name}`" if name != UNGUIDED else name,
        " ".join(METHODS.get(name, ())) or "–",
        "–" if name == UNGUIDED else f"{scale_of(name, factor):g}",
        f"{right / count:.0%} ({ratio_min:.0%}-{ratio_max:.0%})" + (f", {lost} images lost" if lost else ""),
        f"{agreed / count:.0%}",
        *(f"{mean(found):.1f}" for found in distances.values()),
        f"{evaluations['denoiser']:.0f}",
        f"{evaluations['classifier']:.0f}",
        seconds,
    ]


def main() -> None:
    """Draws, times or writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("recipes", nargs="*")
    parser.add_argument("--time", action="store_true", help="time 8 images of each recipe that was drawn")
    parser.add_argument("--write", type=Path, help="write the table")
    given = parser.parse_args()
    names = given.recipes or [UNGUIDED, *METHODS]
    if given.write:
        found = {name: row(given.out, name) for name in names}
        rows, missing = [each for each in found.values() if each], [name for name, each in found.items() if not each]
        heads = ["recipe", "changed", "scale", "judge", "second judge", "distance", "ImageNet distance"]
        heads += ["denoiser", "guide", "s an image"]
        lines = [" | ".join(each) for each in (heads, ["---"] * len(heads), *rows)]
        text = PAGE.format(real=[f"{floor(spec):.1f}" for spec in SEEN]) + "".join(f"| {line} |\n" for line in lines)
        given.write.write_text(text + (f"\nNot drawn yet: {', '.join(missing)}.\n" if missing else ""))
        return
    for name in names:
        short = name.replace("/", "-")
        noted = given.out / f"{short}.factor"
        if given.time:
            drawn(given.out / "time" / short, name, float(noted.read_text()), num=2, seed=0)
            continue
        factor = search(given.out, name)
        metrics = drawn(given.out / short, name, factor, num=64, seed=0)
        noted.write_text(f"{factor:.3g}")
        print(
            f"{name} x {factor:.3g}: judge {metrics['accuracy']['judge']:.3f}, {metrics['seconds']:.0f} s", flush=True
        )


if __name__ == "__main__":
    main()
