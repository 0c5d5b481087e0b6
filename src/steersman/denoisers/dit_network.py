"""DiT (Peebles & Xie 2023) as its authors tell it the time.

The time t is told by cosine and sine of ``t f_i``, ``f_i = 10000^(-i / (128 - shift))`` for i from 0 to 127. The
authors' shift is 0, diffusers' is 1: with their weights its output is some hundredths to a fifth off.
"""

from typing import Any

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import Timesteps
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

__all__ = ["DiT"]


class DiT(DiTTransformer2DModel):
    """diffusers' `DiTTransformer2DModel` with another shift of its frequencies, which is kept where it is saved.

    Args:
        time_shift: The shift; None is diffusers' own.
        kwargs: As a `DiTTransformer2DModel` takes them.
    """

    @register_to_config
    def __init__(self, *, time_shift: float | None = None, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(**kwargs)
        for module in self.modules():
            if isinstance(module, Timesteps) and time_shift is not None:
                module.downscale_freq_shift = time_shift

    @staticmethod
    def _get_init_keys(input_class: type) -> set[str]:
        """Returns what a configuration may say: diffusers reads it off the signature, which names the change only."""
        return ConfigMixin._get_init_keys(input_class) | ConfigMixin._get_init_keys(DiTTransformer2DModel)
