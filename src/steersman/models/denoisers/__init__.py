from steersman.models.denoisers.load import load_denoiser
from steersman.models.denoisers.network import DiffusersDenoiser, EDMDenoiser, NetworkDenoiser
from steersman.models.denoisers.pipeline import PipelineDenoiser

__all__ = ["DiffusersDenoiser", "EDMDenoiser", "NetworkDenoiser", "PipelineDenoiser", "load_denoiser"]
