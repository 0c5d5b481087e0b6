from steersman.denoisers.diffusers import DiffusersDenoiser
from steersman.denoisers.load import load_denoiser

__all__ = ["DiffusersDenoiser", "load_denoiser"]
