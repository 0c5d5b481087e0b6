"""What turns a pipeline's samples, images or latents, into images."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from steersman.denoise import Prediction
from steersman.denoisers.latent import decoded
from steersman.errors import InputError
from steersman.schedule import Level, Schedule

__all__ = ["Decoder"]


class Decoder:
    """The pipeline as far as guides ask for it: what turns its samples into images.

    Args:
        vae: Its VAE, or None where the samples are images.
        schedule: The noise that its samples have.
    """

    shape: tuple[int, int, int] = (0, 0, 0)
    classes: tuple[str, ...] = ()

    def __init__(self, vae: Any, schedule: Schedule) -> None:  # noqa: ANN401
        self.vae, self.schedule = vae, schedule

    def __call__(self, x_t: Float[Tensor, "B C H W"], level: Level, **_: Any) -> Prediction:  # noqa: ANN401
        """Refuses: only the pipeline can ask."""
        raise InputError("guide: its view asks the network again, whose other inputs only the pipeline knows")

    def decode(self, x0: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """Returns the images, one after the other through the VAE."""
        if self.vae is None:
            if x0.shape[1] not in (1, 3):
                raise InputError(
                    f"pipe: samples of {x0.shape[1]} channels and no VAE given; allowed: images, or latents"
                )
            return x0
        return decoded(self.vae, x0)
