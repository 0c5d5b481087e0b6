from steersman.guidance.average import Augmented, MonteCarlo
from steersman.guidance.guide import Guide, Push, Route, Steering
from steersman.guidance.injection import DenoisedImage, Estimate, Injection, Mean, NoisePrediction
from steersman.guidance.objective import BinaryProbability, ClassProbability, Objective, TargetLogit
from steersman.guidance.stabilizer import Adam, Chain, Clip, Ema, Identity, Normalise, Stabilizer, State
from steersman.guidance.step import Step, posterior_mean, reverse_variance
from steersman.guidance.strength import Constant, Deviation, Every, Interval, Linear, Product, Sine, Strength, Variance
from steersman.guidance.view import Ahead, Denoised, Noisy, Rescaled, View

__all__ = [
    "Adam",
    "Ahead",
    "Augmented",
    "BinaryProbability",
    "Chain",
    "ClassProbability",
    "Clip",
    "Constant",
    "Denoised",
    "DenoisedImage",
    "Deviation",
    "Ema",
    "Estimate",
    "Every",
    "Guide",
    "Identity",
    "Injection",
    "Interval",
    "Linear",
    "Mean",
    "MonteCarlo",
    "NoisePrediction",
    "Noisy",
    "Normalise",
    "Objective",
    "Product",
    "Push",
    "Rescaled",
    "Route",
    "Sine",
    "Stabilizer",
    "State",
    "Steering",
    "Step",
    "Strength",
    "TargetLogit",
    "Variance",
    "View",
    "posterior_mean",
    "reverse_variance",
]
