from steersman.lab.report.frames import Frames, animation, heat
from steersman.lab.report.sheets import grid, sheet

__all__ = ["Frames", "animation", "grid", "heat", "sheet"]
