from steersman.sweep.cells import Cell, Sweep, varied
from steersman.sweep.sweeping import Sweeping
from steersman.sweep.table import Row

__all__ = ["Cell", "Row", "Sweep", "Sweeping", "varied"]
