from steersman.denoisers.diffusers import DiffusersDenoiser
from steersman.denoisers.edm import EDMDenoiser
from steersman.denoisers.load import load_denoiser
from steersman.denoisers.network import NetworkDenoiser
from steersman.denoisers.pipeline import PipelineDenoiser

__all__ = ["DiffusersDenoiser", "EDMDenoiser", "NetworkDenoiser", "PipelineDenoiser", "load_denoiser"]
