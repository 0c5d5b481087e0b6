"""DiT (Peebles & Xie 2023) as its authors tell it the time.

The time t is told by cosine and sine of ``t f_i``, ``f_i = 10000^(-i / (128 - shift))`` for i from 0 to 127. The
authors' shift is 0, diffusers' is 1: with their weights its output is some hundredths to a fifth off.
"""

from typing import Any

from diffusers.models.embeddings import Timesteps
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

from steersman.models.denoisers.adm_network import extending

__all__ = ["DiT"]


class DiT(DiTTransformer2DModel):
    """diffusers' `DiTTransformer2DModel` with another shift of its frequencies, which is kept where it is saved.

    Args:
        time_shift: The shift; None is diffusers' own.
        kwargs: As a `DiTTransformer2DModel` takes them.
    """

    @extending(DiTTransformer2DModel)
    def __init__(self, *, time_shift: float | None = None, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(**kwargs)
        for module in self.modules():
            if isinstance(module, Timesteps) and time_shift is not None:
                module.downscale_freq_shift = time_shift
