from steersman.sample.ddim import DDIM
from steersman.sample.ddpm import DDPM
from steersman.sample.loop import Callback, Recurrence, Report, sample
from steersman.sample.noise import GivenNoise, Noise, SeededNoise
from steersman.sample.sampler import Move, Predict, Sampler

__all__ = [
    "DDIM",
    "DDPM",
    "Callback",
    "GivenNoise",
    "Move",
    "Noise",
    "Predict",
    "Recurrence",
    "Report",
    "Sampler",
    "SeededNoise",
    "sample",
]
