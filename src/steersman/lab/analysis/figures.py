"""The pictures of an analysis: reliability diagrams, fields of directions, images with their gradients."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from steersman.files import replacing
from steersman.lab.metrics.classification import Reliability
from steersman.lab.report.images import GAP, heat, sheet
from steersman.lab.report.plots import COLOURS, LINE, MARKS, write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_fields", "draw_reliability", "draw_trajectories"]

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
    from matplotlib.lines import Line2D

    panels = list(dict.fromkeys(panel for panel, _ in rows))
    names = list(dict.fromkeys(name for _, name in rows))
    looks = {
        name: {
            "marker": MARKS[i // len(COLOURS) % len(MARKS)],
            "markerfacecolor": f"{COLOURS[i % len(COLOURS)]}40",
            "markeredgecolor": COLOURS[i % len(COLOURS)],
        }
        for i, name in enumerate(names)
    }
    columns = max(1, min(len(names) + 1, 34 * len(titles) // (max(map(len, names)) + 8)))
    lines = -(-(len(names) + 1) // columns)
    labels = ["accuracy" if panel is None else f"{panel}\naccuracy" for panel in panels]
    figure, grid = _panels(labels, titles, below=0.4 + LINE * (lines + 1))
    for axes in grid.flat:
        axes.plot([0, 1], [0, 1], color="0.6", linestyle=":", linewidth=1, label="calibrated")
        axes.set(xlim=(-0.07, 1.07), ylim=(-0.07, 1.07), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1), aspect="equal")
        axes.spines[["top", "right"]].set_visible(False)
    for (panel, name), diagrams in rows.items():
        look = looks[name]
        for axes, diagram in zip(grid[panels.index(panel)], diagrams, strict=True):
            filled = diagram.count >= least
            area = LARGEST * diagram.count[filled] / diagram.count.sum()
            axes.scatter(
                *(diagram.confidence[filled], diagram.accuracy[filled], (8 + area).numpy()),
                marker=look["marker"],
                facecolor=look["markerfacecolor"],
                edgecolor=look["markeredgecolor"],
                linewidth=1,
            )
    for axes in grid[-1]:
        axes.set_xlabel("confidence")
    handles = [grid[0, 0].lines[0], *(Line2D([], [], linestyle="", **look) for look in looks.values())]
    title = f"a dot's area tells the share of the images in its bin; bins of at least {least} images"
    small = {"fontsize": "small", "title": title, "title_fontsize": "small", "frameon": False}
    figure.legend(handles, ["calibrated", *names], loc="outside lower center", ncols=columns, **small)
    write_figure(path, figure)


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
    levels, fields = (list(dict.fromkeys(key[part] for key in panels)) for part in (0, 1))
    figure, grid = _panels(levels, fields, below=0.1)
    low, high = float(points.min()), float(points.max())
    cell = (high - low) / (round(len(points) ** 0.5) - 1)
    edges = (low - cell / 2, high + cell / 2)
    for (level, field), arrows in panels.items():
        axes = grid[levels.index(level), fields.index(field)]
        axes.imshow(density[level], origin="lower", extent=(low, high, low, high), cmap="Greys", alpha=0.5)
        length = arrows.norm(dim=1, keepdim=True)
        shown = arrows / length.clamp(min=1e-30) * (length / length.max().clamp(min=1e-30)).sqrt() * cell
        style = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.006, "color": COLOURS[0], "pivot": "mid"}
        axes.quiver(*points.T, *shown.T, **style)
        others = [k for k in range(len(means[level])) if k != target]
        axes.scatter(*means[level][others].T, marker="x", s=30, color="black", label="other classes")
        axes.scatter(*means[level][target], marker="*", s=90, color=COLOURS[1], label="target")
        axes.set(xlim=edges, ylim=edges, aspect="equal")
        axes.tick_params(labelsize="x-small")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    write_figure(path, figure)


def _panels(rows: Sequence[str], columns: Sequence[str], *, below: float) -> tuple["Figure", np.ndarray]:
    """Returns a figure of panels with a name for each row and column, and some inches below for a legend."""
    from matplotlib.figure import Figure

    size = (PANEL * len(columns) + 0.5, PANEL * len(rows) + 0.5 + below)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), len(columns), sharex=True, sharey=True, squeeze=False)
    for axes, name in zip(grid[0], columns, strict=True):
        axes.set_title(name, fontsize="medium")
    for axes, name in zip(grid[:, 0], rows, strict=True):
        axes.set_ylabel(name)
    return figure, grid


def draw_trajectories(
    path: Path,
    trajectories: Mapping[str, tuple[Float[Tensor, "B K 3 H W"], Float[Tensor, "B K C h w"]]],
    times: Sequence[str],
    *,
    zoom: int = 1,
) -> None:
    """Writes a contact sheet: of each image and trajectory a row of its images, and below it one of their gradients.

    The heat maps of one row share their scale, so that a gradient which fades is seen to.
    """
    rows = {}
    count = len(next(iter(trajectories.values()))[0])
    for place in range(count):
        for name, (images, gradients) in trajectories.items():
            shown = heat(gradients[place], shared=True)
            if shown.shape[-2:] != images.shape[-2:]:  # of a latent
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
