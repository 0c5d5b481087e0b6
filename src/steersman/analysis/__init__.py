from steersman.analysis.accuracy import seen
from steersman.analysis.calibration import in_turn, integral, trusted
from steersman.analysis.directions import fields
from steersman.analysis.gradients import followed
from steersman.analysis.sensitivity import sensitivities

__all__ = ["fields", "followed", "in_turn", "integral", "seen", "sensitivities", "trusted"]
