"""Guides of latents: what is clipped is the image ``Dec(z)``, never the latent z, which has no range."""

from dataclasses import dataclass, is_dataclass, replace

from jaxtyping import Float, Int
from torch import Tensor

from steersman.guidance.guide import Guide
from steersman.guidance.objective import Objective
from steersman.schedule import Level

__all__ = ["after_decoding"]


@dataclass(frozen=True, kw_only=True)
class _Clipped:
    """An objective that sees the image clipped to [-1, 1]: on latents, what a clipping view means."""

    objective: Objective

    def __call__(self, image: Float[Tensor, "B C H W"], target: Int[Tensor, " B"], level: Level) -> Float[Tensor, " B"]:
        return self.objective(image.clamp(-1, 1), target, level)


def after_decoding(guide: Guide) -> Guide:
    """Returns the same guide, that clips the decoded image in place of the latents."""
    if not getattr(guide.input, "clip", False) or not is_dataclass(guide.input):
        return guide
    return replace(guide, input=replace(guide.input, clip=False), objective=_Clipped(objective=guide.objective))
