from steersman.metrics.accuracy import accuracy, correct, target_probability, wilson
from steersman.metrics.features import features, frechet_distance, mean_pairwise_distance

__all__ = [
    "accuracy",
    "correct",
    "features",
    "frechet_distance",
    "mean_pairwise_distance",
    "target_probability",
    "wilson",
]
