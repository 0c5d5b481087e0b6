from steersman.models.classifiers.classifier import Classifier, TextClassifier
from steersman.models.classifiers.load import load_classifier, prepared
from steersman.models.classifiers.preprocess import RAW, Preprocess
from steersman.models.classifiers.smoothing import soften

__all__ = [
    "RAW",
    "Classifier",
    "Preprocess",
    "TextClassifier",
    "load_classifier",
    "prepared",
    "soften",
]
