from steersman.sample.ddim import DDIM
from steersman.sample.ddpm import DDPM
from steersman.sample.diffusers import DiffusersSampler
from steersman.sample.dpmpp import DPMpp
from steersman.sample.heun import Heun
from steersman.sample.loop import Callback, Recurrence, Report, sample
from steersman.sample.named import NamedScheduler
from steersman.sample.noise import GivenNoise, Noise, SeededNoise
from steersman.sample.particles import Particles
from steersman.sample.sampler import Move, OwnLevels, Predict, Sampler, levels_of

__all__ = [
    "DDIM",
    "DDPM",
    "DPMpp",
    "Callback",
    "DiffusersSampler",
    "GivenNoise",
    "Heun",
    "Move",
    "NamedScheduler",
    "Noise",
    "OwnLevels",
    "Particles",
    "Predict",
    "Recurrence",
    "Report",
    "Sampler",
    "SeededNoise",
    "levels_of",
    "sample",
]
