from steersman.lab.reproduce.requirements import Needs, needs
from steersman.lab.reproduce.schema import Reproduction, load_reproduction, reproduction_names
from steersman.lab.reproduce.work import Work

__all__ = ["Needs", "Reproduction", "Work", "load_reproduction", "needs", "reproduction_names"]
