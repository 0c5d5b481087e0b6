from steersman.lab.sweep.cells import Cell, Study, Sweep, varied
from steersman.lab.sweep.sweeping import Row, Sweeping

__all__ = ["Cell", "Row", "Study", "Sweep", "Sweeping", "varied"]
