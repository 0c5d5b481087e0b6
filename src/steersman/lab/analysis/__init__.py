from steersman.lab.analysis.calibration import in_turn, integral, trusted
from steersman.lab.analysis.forward import seen, sensitivities
from steersman.lab.analysis.gradients import fields, followed

__all__ = ["fields", "followed", "in_turn", "integral", "seen", "sensitivities", "trusted"]
