from steersman.sample.ddim import DDIM
from steersman.sample.ddpm import DDPM
from steersman.sample.dpmpp import DPMpp
from steersman.sample.heun import Heun
from steersman.sample.loop import Callback, Recurrence, Report, sample
from steersman.sample.noise import GivenNoise, Noise, SeededNoise
from steersman.sample.particles import Particles
from steersman.sample.sampler import Move, Predict, Sampler

__all__ = [
    "DDIM",
    "DDPM",
    "DPMpp",
    "Callback",
    "GivenNoise",
    "Heun",
    "Move",
    "Noise",
    "Particles",
    "Predict",
    "Recurrence",
    "Report",
    "Sampler",
    "SeededNoise",
    "sample",
]
