"""Sampling: noise levels, samplers, particles and the loop."""

from steersman.sampling.diffusers import DiffusersSampler, NamedScheduler
from steersman.sampling.loop import Callback, Recurrence, Report, sample
from steersman.sampling.particles import Particles
from steersman.sampling.samplers import (
    DDIM,
    DDPM,
    DPMpp,
    GivenNoise,
    Heun,
    Move,
    Predict,
    Sampler,
    SeededNoise,
    levels_of,
)

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
    "Particles",
    "Predict",
    "Recurrence",
    "Report",
    "Sampler",
    "SeededNoise",
    "levels_of",
    "sample",
]
