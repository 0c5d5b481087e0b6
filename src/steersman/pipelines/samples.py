"""What guides ask of a pipeline: the images that its samples stand for, and what its network says of other samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.denoise import Prediction
from steersman.errors import InputError
from steersman.guidance.guide import Guide
from steersman.guidance.objective import Objective
from steersman.latent import decoded
from steersman.schedule import Level, Schedule

__all__ = ["Asked", "over_frames"]


class Asked:
    """The pipeline as far as guides ask for it: a denoiser, whose conditions are those of the present step.

    Args:
        vae: Its VAE, or None where the samples are images.
        schedule: The noise that its samples have.
        ask: Returns what its network predicts for other samples at another level.

    Attributes:
        frames: How many latent frames a sample has; None for images.
    """

    shape: tuple[int, int, int] = (0, 0, 0)
    classes: tuple[str, ...] = ()
    frames: int | None = None

    def __init__(
        self,
        vae: Any,  # noqa: ANN401
        schedule: Schedule,
        ask: Callable[[Float[Tensor, "B C H W"], Level], Prediction],
    ) -> None:
        self.vae, self.schedule, self.ask = vae, schedule, ask

    def __call__(self, x_t: Float[Tensor, "B C H W"], level: Level, **_: Any) -> Prediction:  # noqa: ANN401
        """Returns the network's prediction with the conditions that the pipeline just gave it."""
        return self.ask(x_t, level)

    def decode(self, x0: Float[Tensor, "B C H W"]) -> Float[Tensor, "N C2 H2 W2"]:
        """Returns the images, or all frames of the first video, then of the second and so on."""
        if self.vae is None:
            if x0.shape[1] not in (1, 3):
                raise InputError(f"pipe: without a VAE, samples must be images of 1 or 3 channels, got {x0.shape[1]}")
            return x0
        if self.frames is None:
            return decoded(self.vae, x0)
        return decoded(self.vae, x0.unflatten(2, (self.frames, -1))).transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True, kw_only=True)
class _OverFrames:
    """The mean log-likelihood over a video's frames.

    Attributes:
        objective: What each frame is judged by.
        frames: Which frames are, None for all.
    """

    objective: Objective
    frames: tuple[int, ...] | None

    def __call__(self, image: Float[Tensor, "N C H W"], target: Int[Tensor, " B"], level: Level) -> Float[Tensor, " B"]:
        """Returns the mean of the frames' log-likelihoods."""
        frames = image.unflatten(0, (len(target), -1))
        if self.frames is not None:
            count = frames.shape[1]
            for each in self.frames:
                if not -count <= each < count:
                    raise InputError(f"frames must be {-count} to {count - 1}, got {each}")
            frames = torch.stack([frames[:, each] for each in self.frames], dim=1)
        count = frames.shape[1]
        values = self.objective(frames.flatten(0, 1), target.repeat_interleave(count), level)
        return values.unflatten(0, (-1, count)).mean(1)


def over_frames(guide: Guide, frames: Sequence[int] | None) -> Guide:
    """Returns the same guide for batches of videos, whose frames come one after the other; an image is one frame.

    Args:
        guide: The guide.
        frames: Which frames its classifier sees, negative numbers from the end; None for all.
    """
    chosen = None if frames is None else tuple(frames)
    return replace(guide, objective=_OverFrames(objective=guide.objective, frames=chosen))
