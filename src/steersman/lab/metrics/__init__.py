from steersman.lab.metrics.classification import Reliability, accuracy, correct, reliability, target_probability
from steersman.lab.metrics.distances import frechet_distance, mean_pairwise_distance
from steersman.lab.metrics.features import classifier_features
from steersman.lab.metrics.intervals import wilson

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
