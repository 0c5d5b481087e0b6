from steersman.sampling.ddim import DDIM
from steersman.sampling.ddpm import DDPM
from steersman.sampling.diffusers import DiffusersSampler
from steersman.sampling.dpmpp import DPMpp
from steersman.sampling.heun import Heun
from steersman.sampling.loop import Callback, Recurrence, Report, sample
from steersman.sampling.named import NamedScheduler
from steersman.sampling.noise import GivenNoise, Noise, SeededNoise
from steersman.sampling.particles import Particles
from steersman.sampling.sampler import Move, OwnLevels, Predict, Sampler, levels_of

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
