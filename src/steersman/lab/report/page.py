"""A page about a folder: text, tables and pictures in one HTML file, without scripts or anything outside it.

    run         run.yaml, metrics.json, evaluation.json where there is one, the images made small
    sweep       sweep.yaml, sweep.csv, its plots, the first images of each cell
    tune        tune.yaml, tune.csv, its plots, the recipe that was taken
    analysis    settings.json, the tables without a plot, and plots, most with their table beside them

Each says what the folder holds so far; one that is under way has no figures yet. The template escapes all text, which
may come from anybody; the pictures are encoded here.
"""

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from steersman.errors import InputError, one_line
from steersman.files import in_rgb, open_image, read_bytes, read_csv, read_json, read_yaml, replacing
from steersman.lab.metrics.intervals import Figure
from steersman.lab.report.tables import FEW, as_text, few_images, in_a_line, read_figures, title
from steersman.lab.run import DRAWN

__all__ = ["LARGEST", "SHOWN", "SIDE", "WIDEST", "Page", "embedded", "page_of", "report", "thumbnail"]

TEMPLATE = "page.html.jinja"
SHOWN = 96  # thumbnails on a page, at most
LINES = 200  # rows of a folded table, at most
LARGEST = 3_000_000  # bytes of a file that a page holds as it is
WIDEST, SIDE = 1600, 128  # pixels along the longer side of a larger image in a page, and of a thumbnail


class Picture(NamedTuple):
    """An image as a data URI, and what it shows."""

    data: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text; ``numbers`` columns at the end stand to the right, and a folded table opens with its caption."""

    rows: Sequence[Sequence[str]]
    header: Sequence[str] = ()
    caption: str = ""
    numbers: int = 0
    folded: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with tables, then pictures as large as there is room, then thumbnails side by side."""

    title: str
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    thumbs: Sequence[Picture] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    """What there is to say of a folder: its kind and name, a paragraph for each line and warning, and sections."""

    kind: str
    title: str
    lines: Sequence[str]
    warnings: Sequence[str]
    sections: Sequence[Section]


Content = tuple[list[str], list[str], list[Section]]
"""Lines, warnings and sections of a page, which leaves out tables without rows and sections without anything."""


def report(folder: Path) -> Path:
    """Writes ``report.html`` into a folder and returns its path."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    page, path = page_of(folder), folder / "report.html"
    loader, settings = PackageLoader("steersman.lab.report", "."), {"trim_blocks": True, "lstrip_blocks": True}
    template = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, **settings).get_template(TEMPLATE)
    try:
        with replacing(path) as beside:
            beside.write_text(template.render(page=page), encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"report: {str(path)!r} cannot be written ({error.strerror}); give a folder that can be written to"
        ) from error
    return path


def page_of(folder: Path) -> Page:
    """Returns what there is to say of a folder."""
    kinds = {
        "sweep.yaml": ("Sweep", _sweep),
        "tune.yaml": ("Tune", _tune),
        "run.yaml": ("Run", _run),
        "settings.json": ("Analysis", _analysis),
    }
    kind, describe = next((kinds[name] for name in kinds if (folder / name).is_file()), (None, None))
    if kind is None or describe is None:
        raise InputError(
            f"report: {str(folder)!r} must be a folder of a run (run.yaml), a sweep (sweep.yaml), a tune (tune.yaml) "
            "or an analysis (settings.json), it holds none of these files"
        )
    try:
        lines, warnings, sections = describe(folder)
    except InputError:
        raise
    except Exception as error:  # what records of another form hold may fail anywhere
        raise InputError(
            f"report: {str(folder)!r} holds records of another form ({one_line(error)}); give a folder of a run, a "
            "sweep, a tune or an analysis"
        ) from error
    sections = [each for each in sections if each.pictures or each.thumbs or any(table.rows for table in each.tables)]
    return Page(kind=kind, title=folder.resolve().name, lines=lines, warnings=warnings, sections=sections)


def _run(folder: Path) -> Content:
    record, metrics = _yaml(folder / "run.yaml"), _json(folder / "metrics.json")
    drawn, images = record.pop(DRAWN, None) or {}, _by_target(folder)
    steered = "steered to" if record.get("guided", True) else "unguided; measured for"
    blend = [f"{weight:g} × {name}" for name, weight in (record.get("blend") or {}).items()]
    targets = " and ".join(blend) or ", ".join(map(str, drawn.get("targets") or record.get("targets") or ()))
    lines = [f"{_seeds(record)}, {steered} {targets}."]
    if metrics:
        needed = metrics["network_evaluations"]
        lines.append(
            f"{metrics['seconds']:.1f} s; an image took {needed['denoiser']:g} evaluations of the denoiser and "
            f"{needed['classifier']:g} of the guide."
        )
    else:
        lines.append("The run is not finished: no figures yet.")
    lost = metrics.get("lost")
    warnings = [*([f"Not finite and not written: {', '.join(lost)}."] if lost else []), *metrics.get("warnings", [])]
    figures = [_evaluations(metrics), _evaluation(_json(folder / "evaluation.json"))]
    first = [] if images else _pictures({folder / "grid.png": "the first images"})
    animation = {folder / "animation.gif": "the denoising, with the guide's gradient beside it"}
    return (
        lines,
        warnings,
        [
            Section(title="Figures", tables=figures),
            Section(title="Images", pictures=first),
            *_thumbs(images),
            Section(title="Animation", pictures=_pictures(animation)),
            _settings(record),
        ],
    )


def _seeds(record: Mapping[str, Any]) -> str:
    count, seed = record.get("num", 0), record.get("seed", 0)
    return f"{count} images of each target, seeds {seed} to {seed + count - 1}"


def _sweep(folder: Path) -> Content:
    record, cells = _yaml(folder / "sweep.yaml"), _figures(folder / "sweep.csv")
    varied, shared = record.pop("varied", None) or {}, record.pop("shared")
    counts = ", ".join(f"{len(values)} values of {key}" for key, values in varied.items())
    lines = [f"{counts}. In each cell {_seeds(shared)}; against {record['reference']}, with 95% intervals."]
    lines += [] if cells else ["The sweep is not finished: no figures yet."]
    names = [", ".join(f"{key}={row[key]}" for key in varied if row.get(key)) or "unguided" for row in cells]
    warnings = [
        f"{name}: {how}: {count}."
        for column, how in (
            ("broken", "images that are burnt or noise"),
            ("lost", "images that are not finite and not written"),
        )
        for name, row in zip(names, cells, strict=True)
        if (count := row.get(column, "0")) != "0"
    ]
    warnings += few_images(shared.get("num", FEW))
    plots = {path: _over(path) for path in sorted(folder.glob("*.png")) if path.stem != "grid"}
    grid = {folder / "grid.png": "the first images of each cell; the same seeds in each column"}
    return (
        lines,
        warnings,
        [
            Section(title="Figures", tables=[_table(cells, features=record.get("features", ""))]),
            Section(title="Plots", pictures=_pictures(plots)),
            Section(title="Images", pictures=_pictures(grid)),
            _settings(record | shared),
        ],
    )


def _tune(folder: Path) -> Content:
    record, trials = _yaml(folder / "tune.yaml"), _figures(folder / "tune.csv")
    recipes, space, shared = record.pop("recipes", None), record.pop("space"), record.pop("shared")
    lines = [f"{_seeds(shared)}; against {record['reference']}, with 95% intervals."]
    lines += [f"The first trials are of {', '.join(recipes)}."] if recipes else []
    lines += [] if trials else ["The tune is not finished: no figures yet."]
    drawn = [row for row in trials if not row["refused"]]
    best = [row for row in drawn if row["pareto"]]
    refused = [[row[name] for name in ("trial", "settings", "refused")] for row in trials if row["refused"]]
    tables = [
        _table(best, caption="the trials that no other beats in accuracy, distance and cost"),
        _table(drawn, caption=f"all {len(drawn)} that were drawn", folded=True),
        Table(header=["trial", "settings", "why"], rows=refused, caption=f"{len(refused)} refused", folded=True),
    ]
    grids = {
        folder
        / "trials"
        / f"{int(str(row.get('same as') or row['trial'])):04d}"
        / "grid.png": f"trial {row['trial']}: "
        f"judge {as_text('accuracy', row['accuracy'])}, distance {as_text('distance', row['distance'])}"
        for row in best
    }
    taken = []
    if (folder / "recipe.yaml").is_file():
        recipe = _yaml(folder / "recipe.yaml")
        taken = [
            Table(rows=[["gave", each] for each in recipe.get("expected") or ()]),
            Table(rows=_flat(recipe["settings"]), caption="its settings", folded=True),
        ]
    return (
        lines,
        [],
        [
            Section(title="Trials", tables=tables),
            Section(title="Images of these trials", pictures=_pictures(grids)),
            Section(
                title="Plots", pictures=_pictures({path: _over(path) for path in sorted(folder.glob("pareto-*.png"))})
            ),
            Section(title="The recipe that was taken", tables=taken),
            Section(title="Search space", tables=[Table(rows=_flat(space), caption="values and ranges", folded=True)]),
            _settings(record | shared),
        ],
    )


def _analysis(folder: Path) -> Content:
    alone = [path for path in sorted(folder.glob("*.csv")) if not path.with_suffix(".png").is_file()]
    sections = [Section(title=path.stem, tables=[_table(_figures(path))]) for path in alone]
    for path in sorted(folder.rglob("*.png")):
        if path.with_suffix(".csv").is_file():
            title = str(path.relative_to(folder).with_suffix(""))
            header, *rows = read_csv(path.with_suffix(".csv"), "report")
            caption = f"{len(rows)} values" if len(rows) <= LINES else f"the first {LINES} of {len(rows)} values"
            table = Table(header=header, rows=rows[:LINES], caption=caption, numbers=len(header) - 1, folded=True)
            sections.append(Section(title=title, tables=[table], pictures=_pictures({path: title})))
    for path in sorted(folder.glob("*.png")):
        if not path.with_suffix(".csv").is_file():
            sections.append(Section(title=path.stem, pictures=_pictures({path: path.stem})))
    lines = [] if sections else ["The analysis is not finished: no plots yet."]
    return (
        lines,
        [],
        [*sections, Section(title="Settings", tables=[Table(rows=_flat(_json(folder / "settings.json")))])],
    )


def _settings(record: Mapping[str, Any]) -> Section:
    """Returns the settings of a run; those of its recipe and the versions open with a tap."""
    recipe, versions = record.get("recipe") or {}, record.get("versions") or {}
    plain = {key: value for key, value in record.items() if key not in ("recipe", "versions")}
    tables = [
        Table(rows=_flat(plain)),
        Table(caption=f"recipe {recipe.get('name', '')}", rows=_flat(recipe.get("settings") or {}), folded=True),
        Table(caption="versions", rows=_flat(versions), folded=True),
    ]
    return Section(title="Settings", tables=tables)


def _flat(settings: Mapping[Any, Any], prefix: str = "") -> list[list[str]]:
    """Returns settings a row each, those of a section under ``section.setting``; without those that are empty."""
    rows = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        elif value != []:
            rows.append([f"{prefix}{key}", _plain(value)])
    return rows


def _plain(value: object) -> str:
    """Returns a setting as a reader of a page takes it in: a list without brackets, a dash for nothing."""
    if isinstance(value, list) and not any(isinstance(each, list | Mapping) for each in value):
        return ", ".join(map(_plain, value))
    return (
        {None: "–", True: "yes", False: "no"}[value] if value is None or isinstance(value, bool) else in_a_line(value)
    )


def _evaluations(metrics: Mapping[str, Any]) -> Table:
    """Returns what guide and judge said of each target, as far as they said anything."""
    columns = [
        (figure, network)
        for figure in ("accuracy", "probability", "similarity")
        for network, value in (metrics.get(figure) or {}).items()
        if value is not None
    ]
    targets = {"all": metrics} | metrics.get("targets", {}) if columns else {}
    rows = [
        [name, *(as_text(figure, row[figure][network]) for figure, network in columns)] for name, row in targets.items()
    ]
    header = ["target", *(f"{figure}, {network}" for figure, network in columns)]
    return Table(header=header, rows=rows, numbers=len(columns))


def _evaluation(content: Mapping[str, Any]) -> Table:
    """Returns what `steersman evaluate` said, if it did."""
    figures = {name: each for name, each in (content.get("figures") or {}).items() if each["value"] is not None}
    rows = [[name, as_text(name, Figure(each["value"], each["low"], each["high"]))] for name, each in figures.items()]
    against = f", against {content['reference']} by {content['features']}" if content.get("reference") else ""
    return Table(rows=rows, caption=f"with 95% intervals{against}", numbers=1)


def _table(
    rows: Sequence[Mapping[str, str | Figure]], *, caption: str = "", folded: bool = False, features: str = ""
) -> Table:
    """Returns a table of figures, each with its interval in one cell, without columns that no row has."""
    nothing = {"lost": ("", "0"), "broken": ("", "0")}
    names = [
        name
        for name in (rows[0] if rows else ())
        if any(row[name] not in nothing.get(name, ("", Figure())) for row in rows)
    ]
    # What follows the first figure is a number as well; a table without figures has at most the count of lost images.
    first = next((i for i, name in enumerate(names) if isinstance(rows[0][name], Figure) or name == "lost"), len(names))
    content = [[as_text(name, row[name], "\n") for name in names] for row in rows]
    header = [title(name, features) for name in names]
    return Table(header=header, rows=content, numbers=len(names) - first, caption=caption, folded=folded)


def _over(path: Path) -> str:
    """Returns what a sweep's plot shows."""
    figure = path.stem.removeprefix("pareto-")
    return figure if figure == path.stem else f"{figure} against cost, named where no other is as good for less"


def _by_target(folder: Path) -> dict[str, list[Path]]:
    """Returns the images of a run, by target where it has several."""
    folders = {"": folder} | {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()}
    found = {name: sorted(path.glob("[0-9]*.png")) for name, path in folders.items()}
    return {name: paths for name, paths in found.items() if paths}


def _thumbs(images: Mapping[str, list[Path]]) -> list[Section]:
    """Returns the first images of each target under a heading of their own."""
    sections = []
    for name, paths in images.items():
        thumbs = [
            Picture(thumbnail(path), ", ".join(filter(None, (name, f"seed {int(path.stem)}"))))
            for path in paths[: max(1, SHOWN // len(images))]
        ]
        count = f"{len(thumbs)} of {len(paths)}" if len(thumbs) < len(paths) else len(paths)
        sections.append(Section(title=f"{name or 'Images'} ({count})", thumbs=thumbs))
    return sections[:SHOWN]


def _pictures(captions: Mapping[Path, str]) -> list[Picture]:
    """Returns those pictures that there are, with their captions."""
    return [Picture(embedded(path), caption) for path, caption in captions.items() if path.is_file()]


def embedded(path: Path) -> str:
    """Returns an image file as a data URI: as it is, or a large one made smaller, of an animation the first frame."""
    with open_image(path, still=False) as image:
        if path.stat().st_size > LARGEST:
            return _jpeg(image, WIDEST)
        return _uri(Image.MIME[image.format or ""], read_bytes(path))


def thumbnail(path: Path) -> str:
    """Returns an image file, made small, as a data URI."""
    with open_image(path) as image:
        return _jpeg(image, SIDE)


def _jpeg(image: Image.Image, side: int) -> str:
    small, written = in_rgb(image), io.BytesIO()
    small.thumbnail((side, side))
    small.save(written, format="JPEG", quality=88, subsampling=0)
    return _uri("image/jpeg", written.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{b64encode(content).decode()}"


def _figures(path: Path) -> list[dict[str, str | Figure]]:
    """Returns the rows of a table, none if it is not there yet."""
    return read_figures(path, "report") if path.is_file() else []


def _yaml(path: Path) -> dict[str, Any]:
    return read_yaml(path, "report", trusted=None)


def _json(path: Path) -> dict[str, Any]:
    """Returns what a file holds, nothing if it is not there."""
    return read_json(path, "report") if path.exists() else {}
