from steersman.lab.analysis.calibration import confidences, in_turn, integral
from steersman.lab.analysis.forward import accuracies, sensitivities
from steersman.lab.analysis.gradients import fields, guided_gradients

__all__ = ["fields", "guided_gradients", "in_turn", "integral", "accuracies", "sensitivities", "confidences"]
