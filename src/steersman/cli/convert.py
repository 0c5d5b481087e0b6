"""``steersman convert``: a denoiser as a folder that diffusers loads."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["EPILOG", "convert"]

EPILOG = "Example: steersman convert adm:256x256_diffusion_uncond.pt adm-256"


def convert(
    denoiser: Annotated[str, typer.Argument(help="Diffusion model, in the forms that sample --denoiser takes.")],
    out: Annotated[Path, typer.Argument(help="Output folder.")],
) -> None:
    """Write a diffusion model as a folder that diffusers loads."""
    from rich.console import Console

    from steersman.errors import InputError
    from steersman.models.denoisers import load_denoiser
    from steersman.models.denoisers.load import is_pipeline
    from steersman.models.denoisers.save import save_folder

    if is_pipeline(denoiser):
        raise InputError(
            f"denoiser must be adm:FILE, dit:FILE or edm:FILE, got {denoiser!r}, which diffusers loads as it is"
        )
    unsaid = save_folder(load_denoiser(denoiser), out)
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"written to {out}", markup=False)
    if unsaid:
        console.print(
            f"diffusers' configuration cannot say {', '.join(unsaid)}: loaded by steersman, the folder is the same "
            "model; loaded by diffusers itself it is not",
            markup=False,
        )
