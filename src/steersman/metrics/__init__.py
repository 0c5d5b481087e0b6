from steersman.metrics.accuracy import accuracy, correct, target_probability, wilson
from steersman.metrics.calibration import Reliability, reliability
from steersman.metrics.features import features, mean_pairwise_distance
from steersman.metrics.frechet import frechet_distance

__all__ = [
    "Reliability",
    "accuracy",
    "correct",
    "features",
    "frechet_distance",
    "mean_pairwise_distance",
    "reliability",
    "target_probability",
    "wilson",
]
