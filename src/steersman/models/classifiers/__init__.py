from steersman.models.classifiers.base import Classifier
from steersman.models.classifiers.load import load_classifier, prepared
from steersman.models.classifiers.networks import build_network
from steersman.models.classifiers.preprocess import RAW, Preprocess
from steersman.models.classifiers.smoothing import soften
from steersman.models.classifiers.text import TextClassifier

__all__ = [
    "RAW",
    "Classifier",
    "Preprocess",
    "TextClassifier",
    "build_network",
    "load_classifier",
    "prepared",
    "soften",
]
