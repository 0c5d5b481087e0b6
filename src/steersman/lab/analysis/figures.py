"""From what was measured of each image to curves with bands, reliability diagrams and plots."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from steersman.files import replacing
from steersman.lab.analysis.calibration import CONFIDENCE, CORRECT, integral
from steersman.lab.analysis.parts import Key
from steersman.lab.metrics.classification import Reliability, binned, errors
from steersman.lab.metrics.intervals import Figure, resampled_together
from steersman.lab.report.images import GAP, heat, sheet
from steersman.lab.report.plots import COLOURS, LINE, MARKS, Curve, write_figure

if TYPE_CHECKING:
    from matplotlib.lines import Line2D

__all__ = [
    "Errors",
    "apart",
    "diagrams",
    "draw_fields",
    "draw_reliability",
    "draw_walks",
    "error_curves",
    "filled_bins",
    "found_errors",
    "mean_curves",
    "names",
    "share_curves",
]

CROWDED = 6  # curves that a panel has at most, where it can be


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Calibration errors of a classifier along a walk.

    Attributes:
        steps: ``ECE_t``, a level each.
        integral: Their mean over time.
    """

    steps: Sequence[Figure]
    integral: Figure


def names(keys: Iterable[Key]) -> dict[Key, str]:
    """Returns a name for each key: its parts that are not the same in all of them, or its first one."""
    keys = list(keys)
    told = _told(keys)
    return {key: _joined(key, told) for key in keys}


def apart(keys: Iterable[Key], most: int = CROWDED) -> dict[Key, tuple[str | None, str]]:
    """Returns each key's name in two: what its panel is called, None if one panel does, and what is left.

    The panel tells as many of the first parts as it takes for few keys in each.
    """
    keys = list(keys)
    told = _told(keys)
    splits = [(told[:place], told[place:]) for place in range(len(told))]

    def largest(outer: Sequence[int]) -> int:
        return max(Counter(_joined(key, outer) for key in keys).values())

    outer, inner = next((each for each in splits if largest(each[0]) <= most), splits[-1])
    return {key: (_joined(key, outer) if outer else None, _joined(key, inner)) for key in keys}


def _told(keys: Sequence[Key]) -> list[int]:
    return [place for place, parts in enumerate(zip(*keys, strict=True)) if len(set(parts)) > 1] or [0]


def _joined(key: Key, places: Sequence[int]) -> str:
    return ", ".join(key[place] for place in places)


def mean_curves(values: Mapping[Key, np.ndarray], x: Sequence[float]) -> list[Curve]:
    """Returns each mean over the images with their standard deviation as the band; what is not finite is left out."""
    curves = []
    for key, (panel, name) in apart(values).items():
        columns = [column[np.isfinite(column)] for column in values[key].astype(np.float64).T]
        y = [float(column.mean()) if len(column) else float("nan") for column in columns]
        spread = [float(column.std(ddof=1)) if len(column) > 1 else 0.0 for column in columns]
        curves.append(Curve(name=name, panel=panel, x=x, y=y, spread=spread))
    return curves


def share_curves(values: Mapping[Key, np.ndarray], x: Sequence[float]) -> list[Curve]:
    """Returns the share of images of which something is true, with its standard error ``sqrt(p (1 - p) / n)``."""
    curves = []
    for key, (panel, name) in apart(values).items():
        p = values[key].mean(0)
        spread = np.sqrt(p * (1 - p) / len(values[key]))
        curves.append(Curve(name=name, panel=panel, x=x, y=p.tolist(), spread=spread.tolist()))
    return curves


def diagrams(values: Mapping[Key, np.ndarray], bins: int) -> dict[Key, list[Reliability]]:
    """Returns the reliability diagram at each level, by what names a classifier, its view and its temperature."""
    return {
        key: [binned(sure[:, place], right[:, place], bins) for place in range(sure.shape[1])]
        for key, (sure, right) in _predictions(values).items()
    }


def found_errors(values: Mapping[Key, np.ndarray], times: Sequence[float], bins: int) -> dict[Key, Errors]:
    """Returns the calibration errors with their intervals, by what names a classifier, its view and its temperature."""
    found = {}
    for key, (sure, right) in _predictions(values).items():

        def figures(chosen: Int[Tensor, " m"], sure: Tensor = sure, right: Tensor = right) -> Float[Tensor, " K"]:
            steps = errors(sure[chosen], right[chosen], bins)
            return torch.cat([steps, steps.new_tensor([integral(steps.tolist(), times)])])

        *steps, over_time = resampled_together(figures, len(sure), bounds=(0.0, 1.0))
        found[key] = Errors(steps=steps, integral=over_time)
    return found


def error_curves(found: Mapping[Key, Errors], x: Sequence[float]) -> list[Curve]:
    """Returns ``ECE_t`` of each, with its interval as the band."""
    curves = []
    for key, (panel, name) in apart(found).items():
        y, low, high = (np.array([getattr(each, end) for each in found[key].steps], float) for end in _ENDS)
        below, above = (
            (None, None) if np.isnan(low).any() else ((y - low).clip(0).tolist(), (high - y).clip(0).tolist())
        )
        curves.append(Curve(name=name, panel=panel, x=x, y=y.tolist(), spread=below, above=above))
    return curves


_ENDS = ("value", "low", "high")


def _predictions(values: Mapping[Key, np.ndarray]) -> dict[Key, tuple[Tensor, Tensor]]:
    """Returns confidence and correctness, (images, levels), by the rest of their keys."""
    return {
        key[1:]: (torch.from_numpy(values[key]), torch.from_numpy(values[CORRECT, *key[1:]]))
        for key in values
        if key[0] == CONFIDENCE
    }


def filled_bins(diagram: Reliability) -> list[tuple[float, float, int, float, float]]:
    """Returns of each bin that is not empty: low and high end, count, mean confidence, accuracy."""
    bins = len(diagram.count)
    return [
        (m / bins, (m + 1) / bins, int(diagram.count[m]), float(diagram.confidence[m]), float(diagram.accuracy[m]))
        for m in range(bins)
        if diagram.count[m]
    ]


PANEL = 2.6  # inches: a side
LARGEST = 120  # square points: the area of the dot of all images
HEADER = 24  # pixels above a contact sheet, for what its columns are


def draw_reliability(
    path: Path,
    rows: Mapping[tuple[str | None, str], Sequence[Reliability]],
    titles: Sequence[str],
    *,
    least: int,
) -> None:
    """Draws accuracy over confidence, a column a step and a row a panel; a dot's area tells the images in its bin."""
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys(panel for panel, _ in rows))
    names = list(dict.fromkeys(name for _, name in rows))
    looks = {name: (COLOURS[i % len(COLOURS)], MARKS[i // len(COLOURS) % len(MARKS)]) for i, name in enumerate(names)}
    columns = max(1, min(len(names) + 1, 34 * len(titles) // (max(map(len, names)) + 8)))
    lines = -(-(len(names) + 1) // columns)
    size = (PANEL * len(titles) + 0.6, PANEL * len(panels) + 0.9 + LINE * (lines + 1))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(panels), len(titles), sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat:
        axes.plot([0, 1], [0, 1], color="0.6", linestyle=":", linewidth=1, label="calibrated")
        axes.set(xlim=(-0.07, 1.07), ylim=(-0.07, 1.07), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1), aspect="equal")
        axes.spines[["top", "right"]].set_visible(False)
    for (panel, name), diagrams in rows.items():
        colour, mark = looks[name]
        for axes, diagram in zip(grid[panels.index(panel)], diagrams, strict=True):
            filled = diagram.count >= least
            area = LARGEST * diagram.count[filled] / diagram.count.sum()
            dots = diagram.confidence[filled], diagram.accuracy[filled], (8 + area).numpy()
            axes.scatter(*dots, marker=mark, facecolor=f"{colour}40", edgecolor=colour, linewidth=1)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize="medium")
    for axes, panel in zip(grid[:, 0], panels, strict=True):
        axes.set_ylabel("accuracy" if panel is None else f"{panel}\naccuracy")
    for axes in grid[-1]:
        axes.set_xlabel("confidence")
    handles = [grid[0, 0].lines[0], *(_in_legend(*look) for look in looks.values())]
    title = f"a dot's area tells the share of the images in its bin; bins of at least {least} images"
    small = {"fontsize": "small", "title": title, "title_fontsize": "small", "frameon": False}
    figure.legend(handles, ["calibrated", *names], loc="outside lower center", ncols=columns, **small)
    write_figure(path, figure)


def _in_legend(colour: str, mark: str) -> "Line2D":
    """Returns what a legend shows of a dot."""
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="", marker=mark, markerfacecolor=f"{colour}40", markeredgecolor=colour)


def draw_fields(
    path: Path,
    points: Float[Tensor, "P 2"],
    panels: Mapping[tuple[str, str], Float[Tensor, "P 2"]],
    density: Mapping[str, Float[Tensor, "S S"]],
    means: Mapping[str, Float[Tensor, "K 2"]],
    target: int,
) -> None:
    """Draws fields of directions as arrows over the density, a row a level and a column a field.

    The longest arrow of a panel fills a cell; the others are as the root of their length, so that all can be seen.
    """
    from matplotlib.figure import Figure

    rows, columns = (list(dict.fromkeys(key[part] for key in panels)) for part in (0, 1))
    size = (PANEL * len(columns) + 0.5, PANEL * len(rows) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), len(columns), sharex=True, sharey=True, squeeze=False)
    low, high = float(points.min()), float(points.max())
    cell = (high - low) / (round(len(points) ** 0.5) - 1)
    for (level, field), arrows in panels.items():
        axes = grid[rows.index(level), columns.index(field)]
        axes.imshow(density[level], origin="lower", extent=(low, high, low, high), cmap="Greys", alpha=0.5)
        length = arrows.norm(dim=1, keepdim=True)
        shown = arrows / length.clamp(min=1e-30) * (length / length.max().clamp(min=1e-30)).sqrt() * cell
        x, y, u, v = points[:, 0], points[:, 1], shown[:, 0], shown[:, 1]
        axes.quiver(x, y, u, v, angles="xy", scale_units="xy", scale=1, width=0.006, color=COLOURS[0], pivot="mid")
        others = [k for k in range(len(means[level])) if k != target]
        axes.scatter(*means[level][others].T, marker="x", s=30, color="black", label="other classes")
        axes.scatter(*means[level][target], marker="*", s=90, color=COLOURS[1], label="target")
        axes.set(xlim=(low - cell / 2, high + cell / 2), ylim=(low - cell / 2, high + cell / 2), aspect="equal")
        axes.tick_params(labelsize="x-small")
    for column, field in enumerate(columns):
        grid[0, column].set_title(field, fontsize="medium")
    for row, level in enumerate(rows):
        grid[row, 0].set_ylabel(level, fontsize="small")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    write_figure(path, figure)


def draw_walks(
    path: Path,
    walks: Mapping[str, tuple[Float[Tensor, "B K 3 H W"], Float[Tensor, "B K C h w"]]],
    times: Sequence[str],
    *,
    zoom: int = 1,
) -> None:
    """Writes a contact sheet: of each image and walk a row of its images, and below it one of the gradients on them.

    The heat maps of one row share their scale, so that a gradient which fades is seen to.
    """
    rows = {}
    count = len(next(iter(walks.values()))[0])
    for place in range(count):
        for name, (images, gradients) in walks.items():
            shown = heat(gradients[place], shared=True)
            if shown.shape[-2:] != images.shape[-2:]:
                shown = torch.nn.functional.interpolate(shown, images.shape[-2:], mode="nearest")
            number = f"{place + 1}: " if count > 1 else ""
            rows[f"{number}{name}"] = images[place]
            rows[f"{number}{name}, gradient"] = shown
    drawn = sheet(rows, columns=len(times), zoom=zoom)
    pitch = next(iter(rows.values())).shape[-1] * zoom + GAP
    margin = drawn.width - GAP - pitch * len(times)
    canvas = Image.new("RGB", (drawn.width, drawn.height + HEADER), "white")
    canvas.paste(drawn, (0, HEADER))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(HEADER * 2 // 3)
    for column, time in enumerate(times):
        middle = (margin + GAP + (column + 0.5) * pitch, HEADER / 2)
        draw.text(middle, time if column else f"t = {time}", fill="black", font=font, anchor="mm")
    with replacing(path) as beside:
        canvas.save(beside, format="PNG")
