from steersman.models.denoisers.edm import EDMDenoiser
from steersman.models.denoisers.load import load_denoiser
from steersman.models.denoisers.network import DiffusersDenoiser, NetworkDenoiser
from steersman.models.denoisers.pipeline import PipelineDenoiser

__all__ = ["DiffusersDenoiser", "EDMDenoiser", "NetworkDenoiser", "PipelineDenoiser", "load_denoiser"]
