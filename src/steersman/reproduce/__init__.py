from steersman.reproduce.requirements import Needs, needs
from steersman.reproduce.schema import Reproduction, load_reproduction, reproduction_names
from steersman.reproduce.work import Work

__all__ = ["Needs", "Reproduction", "Work", "load_reproduction", "needs", "reproduction_names"]
