from steersman.lab.metrics.calibration import Reliability, reliability
from steersman.lab.metrics.classification import accuracy, correct, target_probability, wilson
from steersman.lab.metrics.features import classifier_features, mean_pairwise_distance
from steersman.lab.metrics.frechet import frechet_distance

__all__ = [
    "Reliability",
    "accuracy",
    "classifier_features",
    "correct",
    "frechet_distance",
    "mean_pairwise_distance",
    "reliability",
    "target_probability",
    "wilson",
]
