"""What a page says of a folder: of a run, a sweep, a tune or an analysis.

    run         run.yaml, metrics.json, evaluation.json where there is one, the images made small
    sweep       sweep.yaml, sweep.csv, its plots, the first images of each cell
    tune        tune.yaml, tune.csv, its plots, the recipe that was taken
    analysis    settings.json, the tables without a plot, and plots, most with their table beside them

Each says what the folder holds so far; one that is under way has no figures yet.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from steersman.errors import InputError, one_line
from steersman.files import read_csv, read_json, read_yaml
from steersman.lab.report.images import embedded, thumbnail
from steersman.lab.report.page import Page, Picture, Section, Table, write_page
from steersman.lab.report.tables import in_a_line, with_interval

__all__ = ["page_of", "report"]

SHOWN = 96  # thumbnails on a page, at most
LINES = 200  # rows of a folded table, at most


def report(folder: Path) -> Path:
    """Writes ``report.html`` into a folder and returns its path."""
    page, path = page_of(folder), folder / "report.html"
    try:
        write_page(path, page)
    except OSError as error:
        raise InputError(
            f"report: {str(path)!r} cannot be written ({error.strerror}); give a folder that can be written to"
        ) from error
    return path


def page_of(folder: Path) -> Page:
    """Returns what there is to say of a folder."""
    kinds = {"sweep.yaml": _sweep, "tune.yaml": _tune, "run.yaml": _run, "settings.json": _analysis}
    for name, described in kinds.items():
        if (folder / name).is_file():
            try:
                return described(folder)
            except InputError:
                raise
            except Exception as error:  # what records of another form hold may fail anywhere
                raise InputError(
                    f"report: {str(folder)!r} holds records of another form ({one_line(error)}); give a folder of a "
                    "run, a sweep, a tune or an analysis"
                ) from error
    raise InputError(
        f"report: {str(folder)!r} must be a folder of a run (run.yaml), a sweep (sweep.yaml), a tune (tune.yaml) or an "
        "analysis (settings.json), it holds none of these files"
    )


def _run(folder: Path) -> Page:
    record, metrics = _yaml(folder / "run.yaml"), _json(folder / "metrics.json")
    images = _by_target(folder)
    steered = "steered to" if record.get("guided", True) else "unsteered; asked for"
    targets = ", ".join(map(str, record.get("targets") or ())) or in_a_line(record.get("blend") or {})
    count, seed = record.get("num", 0), record.get("seed", 0)
    lines = [f"{count} images of each target, seeds {seed} to {seed + count - 1}, {steered} {targets}."]
    if metrics:
        asked, lost = metrics["network_evaluations"], metrics.get("lost") or ()
        lines += [
            f"{metrics['seconds']:.1f} s; an image took {asked['denoiser']:g} evaluations of the denoiser and "
            f"{asked['classifier']:g} of the guide."
        ]
        lines += [f"Not finite and not written: {', '.join(lost)}."] if lost else []
        lines += metrics.get("warnings", [])
    else:
        lines += ["The run is not finished: no figures yet."]
    sections = []
    if tables := [*_evaluations(metrics), *_evaluation(_json(folder / "evaluation.json"))]:
        sections += [Section(title="Figures", tables=tables)]
    if images:
        sections += [_thumbs(images)]
    elif (folder / "grid.png").is_file():
        sections += [Section(title="Images", pictures=[_picture(folder / "grid.png", "the first images")])]
    if (folder / "animation.gif").is_file():
        picture = _picture(folder / "animation.gif", "the denoising, with the guide's gradient beside it")
        sections += [Section(title="Animation", pictures=[picture])]
    sections += [_settings(record)]
    return Page(kind="Run", title=folder.resolve().name, lines=lines, sections=sections)


def _sweep(folder: Path) -> Page:
    record, sections = _yaml(folder / "sweep.yaml"), []
    lines = [f"{key}: {', '.join(map(in_a_line, values))}" for key, values in (record.get("varied") or {}).items()]
    if (folder / "sweep.csv").is_file():
        sections += [Section(title="Figures", tables=[_cells(_rows(folder / "sweep.csv"))])]
    else:
        lines += ["The sweep is not finished: no figures yet."]
    if pictures := [_picture(path, _over(path)) for path in sorted(folder.glob("*.png")) if path.stem != "grid"]:
        sections += [Section(title="Plots", pictures=pictures)]
    if (folder / "grid.png").is_file():
        picture = _picture(folder / "grid.png", "the first images of each cell; the same seeds in each column")
        sections += [Section(title="Images", pictures=[picture])]
    shared = record.pop("shared")
    sections += [_settings({key: value for key, value in record.items() if key != "varied"} | shared)]
    return Page(kind="Sweep", title=folder.resolve().name, lines=lines, sections=sections)


def _tune(folder: Path) -> Page:
    record, sections = _yaml(folder / "tune.yaml"), []
    lines = [f"around {', '.join(record['recipes'])}"] if record.get("recipes") else []
    lines += [f"{key}: {in_a_line(values)}" for key, values in record.pop("space").items()]
    if (folder / "tune.csv").is_file():
        header, *trials = _rows(folder / "tune.csv")
        place, why = header.index("pareto"), header.index("refused")
        refused = [[row[0], row[1], row[why]] for row in trials if row[why]]
        drawn = [row for row in trials if not row[why]]
        best = [row for row in drawn if row[place]]
        tables = [
            _cells([header, *best], caption="the trials that no other beats in accuracy, distance and cost"),
            _cells([header, *drawn], caption=f"all {len(drawn)} that were drawn", folded=True),
            Table(header=[*header[:2], "why"], rows=refused, caption=f"{len(refused)} refused", folded=True),
        ]
        sections += [Section(title="Trials", tables=[table for table in tables if table.rows])]
    else:
        lines += ["The tune is not finished: no figures yet."]
    if pictures := [_picture(path, _over(path)) for path in sorted(folder.glob("pareto-*.png"))]:
        sections += [Section(title="Plots", pictures=pictures)]
    if (folder / "recipe.yaml").is_file():
        taken = _yaml(folder / "recipe.yaml")
        sections += [
            Section(
                title="The recipe that was taken",
                tables=[
                    Table(rows=[["gave", each] for each in taken.get("expected") or ()]),
                    Table(rows=_flat(taken["settings"]), caption="its settings", folded=True),
                ],
            )
        ]
    shared = record.pop("shared")
    sections += [_settings({key: value for key, value in record.items() if key != "recipes"} | shared)]
    return Page(kind="Tune", title=folder.resolve().name, lines=lines, sections=sections)


def _analysis(folder: Path) -> Page:
    sections = []
    for path in _plots(folder):
        title = str(path.relative_to(folder).with_suffix(""))
        header, *rows = _rows(path.with_suffix(".csv"))
        caption = f"{len(rows)} values" if len(rows) <= LINES else f"the first {LINES} of {len(rows)} values"
        table = Table(header=header, rows=rows[:LINES], caption=caption, numbers=len(header) - 1, folded=True)
        sections += [Section(title=title, tables=[table], pictures=[_picture(path, title)])]
    sections += [
        Section(title=path.stem, pictures=[_picture(path, path.stem)])
        for path in sorted(folder.glob("*.png"))
        if not path.with_suffix(".csv").is_file()
    ]
    tables = [path for path in sorted(folder.glob("*.csv")) if not path.with_suffix(".png").is_file()]
    sections = [Section(title=path.stem, tables=[_cells(_rows(path))]) for path in tables] + sections
    lines = [] if sections else ["The analysis is not finished: no plots yet."]
    sections += [Section(title="Settings", tables=[Table(rows=_flat(_json(folder / "settings.json")))])]
    return Page(kind="Analysis", title=folder.resolve().name, lines=lines, sections=sections)


def _settings(record: Mapping[str, Any]) -> Section:
    """Returns the settings of a run; those of its recipe and the versions open with a tap."""
    recipe, versions = record.get("recipe") or {}, record.get("versions") or {}
    tables = [
        Table(rows=_flat({key: value for key, value in record.items() if key not in ("recipe", "versions")})),
        Table(caption=f"recipe {recipe.get('name', '')}", rows=_flat(recipe.get("settings") or {}), folded=True),
        Table(caption="versions", rows=_flat(versions), folded=True),
    ]
    return Section(title="Settings", tables=[table for table in tables if table.rows])


def _over(path: Path) -> str:
    """Returns what a sweep's plot shows."""
    figure = path.stem.removeprefix("pareto-")
    return figure if figure == path.stem else f"{figure} against cost, named where no other is as good for less"


def _plots(folder: Path) -> Iterator[Path]:
    """Yields the plots that have their table beside them."""
    return (path for path in sorted(folder.rglob("*.png")) if path.with_suffix(".csv").is_file())


def _by_target(folder: Path) -> dict[str, list[Path]]:
    """Returns the images of a run, by target where it has several."""
    folders = {"": folder} | {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()}
    found = {name: sorted(path.glob("[0-9]*.png")) for name, path in folders.items()}
    return {name: paths for name, paths in found.items() if paths}


def _thumbs(images: Mapping[str, list[Path]]) -> Section:
    most, count = max(1, SHOWN // len(images)), sum(map(len, images.values()))
    thumbs = [
        Picture(data=thumbnail(path), caption=", ".join(filter(None, (name, f"seed {int(path.stem)}"))))
        for name, paths in images.items()
        for path in paths[:most]
    ][:SHOWN]
    return Section(title="Images" if len(thumbs) == count else f"Images: {len(thumbs)} of {count}", thumbs=thumbs)


def _evaluations(metrics: Mapping[str, Any]) -> Iterator[Table]:
    """Yields the table of what guide and judge said, if they said anything."""
    columns = [
        (figure, network)
        for figure in ("accuracy", "probability", "similarity")
        for network, value in (metrics.get(figure) or {}).items()
        if value is not None
    ]
    if columns:
        rows = {"all": metrics} | metrics.get("targets", {})
        yield Table(
            header=["target", *(f"{figure}, {network}" for figure, network in columns)],
            rows=[
                [name, *(in_a_line(row[figure][network]) for figure, network in columns)] for name, row in rows.items()
            ],
            numbers=len(columns),
        )


def _evaluation(held: Mapping[str, Any]) -> Iterator[Table]:
    """Yields the table of what `steersman evaluate` said, if it did."""
    figures = {name: each for name, each in (held.get("figures") or {}).items() if each["value"] is not None}
    if figures:
        rows = [[name, with_interval(name, each["value"], each["low"], each["high"])] for name, each in figures.items()]
        against = f", against {held['reference']} by {held['features']}" if held.get("reference") else ""
        yield Table(rows=rows, caption=f"with 95% intervals{against}", numbers=1)


def _cells(content: list[list[str]], *, caption: str = "", folded: bool = False) -> Table:
    """Returns a table of figures, each with its interval in one cell, without those that no row has."""
    header, *rows = content
    cells = [dict(zip(header, row, strict=True)) for row in rows]
    names = [name for name in header if not name.endswith((" low", " high"))]
    names = [name for name in names if any(cell[name] for cell in cells)]
    figures = {name for name in names if f"{name} low" in header}

    def shown(cell: Mapping[str, str], name: str) -> str:
        if not cell[name]:
            return "–"
        if name not in figures:
            return cell[name]
        value, low, high = (float(cell[name + end]) if cell[name + end] else None for end in ("", " low", " high"))
        return with_interval(name, value, low, high)

    first = next((place for place, name in enumerate(names) if name in figures or name == "lost"), len(names))
    rows = [[shown(cell, name) for name in names] for cell in cells]
    return Table(header=names, rows=rows, numbers=len(names) - first, caption=caption, folded=folded)


def _picture(path: Path, caption: str) -> Picture:
    return Picture(data=embedded(path), caption=caption)


def _flat(settings: Mapping[Any, Any], prefix: str = "") -> list[list[str]]:
    """Returns settings a row each, those of a section under ``section.setting``; without those that are empty."""
    rows = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        elif value != []:
            rows.append([f"{prefix}{key}", in_a_line(value)])
    return rows


def _rows(path: Path) -> list[list[str]]:
    return read_csv(path, "report")


def _yaml(path: Path) -> dict[str, Any]:
    return read_yaml(path, "report", trusted=None)


def _json(path: Path) -> dict[str, Any]:
    """Returns what a file holds, nothing if it is not there."""
    return read_json(path, "report") if path.exists() else {}
