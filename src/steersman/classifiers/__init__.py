from steersman.classifiers.base import Classifier
from steersman.classifiers.load import load_classifier
from steersman.classifiers.networks import build_network
from steersman.classifiers.preprocess import RAW, Preprocess
from steersman.classifiers.smoothing import soften

__all__ = ["RAW", "Classifier", "Preprocess", "build_network", "load_classifier", "soften"]
