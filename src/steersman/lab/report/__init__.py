"""What a person reads of a run: plots, tables, contact sheets, animations and a page."""

from steersman.lab.report.images import Frames, animation, grid, heat, sheet

__all__ = ["Frames", "animation", "grid", "heat", "sheet"]
