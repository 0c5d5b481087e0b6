from steersman.classifiers.base import Classifier
from steersman.classifiers.load import load_classifier, prepared
from steersman.classifiers.networks import build_network
from steersman.classifiers.preprocess import RAW, Preprocess
from steersman.classifiers.smoothing import soften
from steersman.classifiers.text import TextClassifier

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
