"""``steersman analyze directions``."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from steersman.cli.analyzing.scope import floats
from steersman.errors import InputError
from steersman.files import writing_to
from steersman.lab.analysis import fields
from steersman.lab.analysis.directions import example, lattice
from steersman.lab.analysis.plots import draw_fields
from steersman.lab.report.curves import write_rows

__all__ = ["directions"]

LAST = 999  # time of the mixture's schedule
FINE = 200  # pixels along an edge of the density


def directions(out: Path, *, target: int, times: str, side: int) -> None:
    """Draws the directions on the mixture."""
    mixture, points = example(), lattice(side)
    for time in (asked := floats("times", times)):
        if not 0 <= time <= LAST:
            raise InputError(f"times must be 0 to {LAST}, got {time:g}")
    levels = [mixture.schedule.at_time(time) for time in asked]
    rows, panels, density, means = [], {}, {}, {}
    fine = lattice(FINE)
    for level in levels:
        name = f"t = {float(level.time):g}"
        for field, arrows in fields(mixture, points, level, target).items():
            panels[name, field] = arrows[:, :, 0, 0]
            for point, arrow in zip(points[:, :, 0, 0].tolist(), panels[name, field].tolist(), strict=True):
                rows.append((float(level.time), field, *point, *arrow))
        density[name] = mixture.log_joint(fine, level).logsumexp(1).exp().reshape(FINE, FINE)
        means[name] = level.alpha * mixture.means
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
    write_rows(out / "directions.csv", ("time", "field", "x", "y", "u", "v"), rows)
    draw_fields(out / "directions.png", points[:, :, 0, 0], panels, density, means, target)
    Console().print(f"figures in {escape(str(out))}", soft_wrap=True)
