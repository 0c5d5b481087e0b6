from steersman.report.animation import Frames, animation, heat
from steersman.report.grid import grid, sheet

__all__ = ["Frames", "animation", "grid", "heat", "sheet"]
