"""diffusers' pixel models as denoisers.

With labels, ``x0_hat(x_t, y)`` is the conditional model, ``x0_hat(x_t, null)`` the unconditional one, and
classifier-free guidance of scale ``w`` (Ho & Salimans 2022) predicts
``x0_hat(null) + w (x0_hat(y) - x0_hat(null))`` from one doubled batch.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn

from steersman.blocks import in_blocks
from steersman.denoise import Parameterization, Prediction, to_x0
from steersman.errors import InputError
from steersman.schedule import Flow, Level, Schedule, from_diffusers

__all__ = ["DiffusersDenoiser"]


class DiffusersDenoiser:
    """A `UNet2DModel` with the schedule of its scheduler's configuration.

    A network with ``num_class_embeds`` labels has them as ``classes``; where it has one more than there are names, the
    last is the null label. Images enter and leave in float32 or float64, whatever the network runs in.

    Args:
        network: The network; put into evaluation mode, its weights without gradients.
        schedule: The noise that it was trained on.
        parameterization: What its output means.
        classes: The names of its labels, without the null label.

    Attributes:
        block: How many images the network sees at a time, None for the whole batch (`steersman.blocks`).
    """

    block: int | None = None

    def __init__(
        self,
        network: UNet2DModel,
        *,
        schedule: Schedule,
        parameterization: Parameterization = "epsilon",
        classes: tuple[str, ...] = (),
    ) -> None:
        config = network.config
        labels = config.get("num_class_embeds") or 0
        if classes and len(classes) not in (labels, labels - 1):
            raise InputError(f"classes: {len(classes)} names given; the network has {labels} labels")
        size = config["sample_size"]
        height, width = size if isinstance(size, list | tuple) else (size, size)
        self.network = network.eval().requires_grad_(False)
        self.schedule = schedule
        self.parameterization: Parameterization = parameterization
        self.shape = (int(config["in_channels"]), int(height), int(width))
        self.classes = classes or tuple(str(label) for label in range(labels))
        self.null = labels - 1 if len(self.classes) < labels else None

    @classmethod
    def from_folder(cls, folder: str | Path, *, classes: tuple[str, ...] = ()) -> "DiffusersDenoiser":
        """Loads a pipeline's folder as diffusers saves it: ``unet`` and ``scheduler`` beside each other.

        Raises:
            InputError: The folder is not there, or holds no such pipeline.
        """
        folder = Path(folder)
        settings = folder / "scheduler" / "scheduler_config.json"
        if not (folder / "unet").is_dir() or not settings.is_file():
            raise InputError(
                f"denoiser: {str(folder)!r} given; allowed: a folder with unet/ and scheduler/, as diffusers saves them"
            )
        try:
            scheduler = json.loads(settings.read_text())
            network = UNet2DModel.from_pretrained(folder / "unet", local_files_only=True, use_safetensors=True)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"denoiser: {str(folder)!r} cannot be read ({reason})") from error
        schedule = from_diffusers(scheduler)
        return cls(
            network,
            schedule=schedule,
            parameterization=scheduler.get(
                "prediction_type", "flow_prediction" if isinstance(schedule, Flow) else "epsilon"
            ),
            classes=classes,
        )

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "DiffusersDenoiser":
        """Moves the network, and returns self."""
        nn.Module.to(self.network, device=device, dtype=dtype)
        return self

    def __call__(
        self,
        x_t: Float[Tensor, "B C H W"],
        level: Level,
        *,
        label: Int[Tensor, " B"] | None = None,
        cfg_scale: float = 1.0,
        **_: Any,  # noqa: ANN401
    ) -> Prediction:
        """Returns the prediction; without a label, the unconditional one.

        Args:
            x_t: Noisy images.
            level: Their level, one for all or one each.
            label: A label each.
            cfg_scale: The classifier-free scale ``w``; at 1 only the conditional model is asked.

        Raises:
            InputError: A label for a model without labels, none for a model without null label, or a ``cfg_scale``
                for a model that is not both conditional and unconditional.
        """
        if not self.classes:
            if label is not None:
                raise InputError("label: given, but the denoiser was trained without labels; allowed: none")
            return self._predict(x_t, level, None)
        null = None if self.null is None else torch.full((len(x_t),), self.null, device=x_t.device)
        if label is None:
            if null is None:
                raise InputError(
                    f"label: none given; the denoiser has no unconditional model; allowed: {', '.join(self.classes)}"
                )
            return self._predict(x_t, level, null)
        if cfg_scale == 1:
            return self._predict(x_t, level, label)
        if null is None:
            raise InputError(f"cfg_scale: {cfg_scale} given, but the denoiser has no unconditional model; allowed: 1")
        double = Level(*(value.repeat(2) if value.ndim else value for value in level))
        both = self._predict(torch.cat([x_t, x_t]), double, torch.cat([label, null]))
        x0_hat, unconditional = both.x0_hat.chunk(2)
        fraction = None if both.variance_fraction is None else both.variance_fraction.chunk(2)[0]
        return Prediction(unconditional + cfg_scale * (x0_hat - unconditional), fraction, unconditional)

    def _predict(self, x_t: Tensor, level: Level, label: Tensor | None) -> Prediction:
        time = level.time.to(x_t.device).expand(len(x_t))
        dtype = self.network.dtype
        inputs = (x_t.to(dtype), time) if label is None else (x_t.to(dtype), time, label)
        output = in_blocks(self._output, self.block, *inputs).to(x_t.dtype)
        fraction = None
        if output.shape[1] == 2 * x_t.shape[1]:
            output, learned = output.chunk(2, dim=1)
            fraction = (learned + 1) / 2
        return Prediction(to_x0(self.parameterization, x_t, output, level), fraction)

    def _output(self, x_t: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        return self.network(x_t, time, class_labels=label).sample

    def decode(self, x0: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Returns the sample itself: it is an image."""
        return x0
