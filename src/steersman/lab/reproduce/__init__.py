from steersman.lab.reproduce.reproduction import Reproduction, Work, load_reproduction, reproduction_names

__all__ = ["Reproduction", "Work", "load_reproduction", "reproduction_names"]
