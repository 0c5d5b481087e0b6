from steersman.denoisers.diffusers import DiffusersDenoiser
from steersman.denoisers.edm import EDMDenoiser
from steersman.denoisers.load import load_denoiser
from steersman.denoisers.pipeline import PipelineDenoiser

__all__ = ["DiffusersDenoiser", "EDMDenoiser", "PipelineDenoiser", "load_denoiser"]
