from steersman.analysis.accuracy import seen
from steersman.analysis.calibration import integral, trusted
from steersman.analysis.directions import fields
from steersman.analysis.gradients import followed
from steersman.analysis.sensitivity import sensitivities

__all__ = ["fields", "followed", "integral", "seen", "sensitivities", "trusted"]
