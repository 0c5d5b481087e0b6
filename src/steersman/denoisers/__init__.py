from steersman.denoisers.diffusers import DiffusersDenoiser
from steersman.denoisers.edm import EDMDenoiser
from steersman.denoisers.load import load_denoiser

__all__ = ["DiffusersDenoiser", "EDMDenoiser", "load_denoiser"]
