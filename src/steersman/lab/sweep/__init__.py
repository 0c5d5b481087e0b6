from steersman.lab.sweep.cells import Cell, Sweep, varied
from steersman.lab.sweep.sweeping import Sweeping
from steersman.lab.sweep.table import Row

__all__ = ["Cell", "Row", "Sweep", "Sweeping", "varied"]
