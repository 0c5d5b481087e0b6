from steersman.lab.reproduce.schema import Needs, Reproduction, load_reproduction, needs, reproduction_names
from steersman.lab.reproduce.work import Work

__all__ = ["Needs", "Reproduction", "Work", "load_reproduction", "needs", "reproduction_names"]
