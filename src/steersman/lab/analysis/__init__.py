from steersman.lab.analysis.calibration import in_turn, integral, trusted
from steersman.lab.analysis.directions import fields
from steersman.lab.analysis.forward import seen
from steersman.lab.analysis.gradients import followed
from steersman.lab.analysis.sensitivity import sensitivities

__all__ = ["fields", "followed", "in_turn", "integral", "seen", "sensitivities", "trusted"]
