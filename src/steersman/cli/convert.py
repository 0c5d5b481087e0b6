"""``steersman convert``: a denoiser as a folder that diffusers loads."""

from pathlib import Path
from typing import Annotated

from steersman.cli.options import argument
from steersman.cli.root import Terminal
from steersman.errors import InputError

__all__ = ["convert"]


def convert(
    denoiser: Annotated[str, argument("Diffusion model: adm:FILE, dit:FILE or edm:FILE.")],
    out: Annotated[Path, argument("Output folder.")],
) -> None:
    """Write a diffusion model's checkpoint as a folder that diffusers loads.

    Example: steersman convert adm:256x256_diffusion_uncond.pt adm-256
    """
    from steersman.models.denoisers import load_denoiser
    from steersman.models.denoisers.folder import save_folder
    from steersman.models.denoisers.load import is_pipeline

    if is_pipeline(denoiser):
        raise InputError(
            f"denoiser must be adm:FILE, dit:FILE or edm:FILE, got {denoiser!r}, which diffusers loads as it is"
        )
    unsaid = save_folder(load_denoiser(denoiser), out)
    terminal = Terminal()
    terminal.print(f"written to {out}")
    if unsaid:
        terminal.print(
            f"diffusers' configuration cannot say {', '.join(unsaid)}: loaded by steersman, the folder is the same "
            "model; loaded by diffusers itself it is not"
        )
