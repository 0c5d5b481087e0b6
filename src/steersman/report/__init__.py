from steersman.report.frames import Frames, animation, heat
from steersman.report.sheets import grid, sheet

__all__ = ["Frames", "animation", "grid", "heat", "sheet"]
