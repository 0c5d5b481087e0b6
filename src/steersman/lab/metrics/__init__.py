from steersman.lab.metrics.classification import accuracy, correct, target_probability
from steersman.lab.metrics.distances import frechet_distance, spread
from steersman.lab.metrics.features import classifier_features
from steersman.lab.metrics.intervals import wilson

__all__ = [
    "accuracy",
    "classifier_features",
    "correct",
    "frechet_distance",
    "spread",
    "target_probability",
    "wilson",
]
