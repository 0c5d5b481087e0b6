"""Networks with EDM's preconditioning (Karras et al. 2022, eq. 7 and table 1), of ``x_t = x_0 + sigma eps``:

    x0_hat = c_skip x_t + c_out F(c_in x_t, c_noise, y)

    c_skip = s^2 / (sigma^2 + s^2)            c_in    = 1 / sqrt(sigma^2 + s^2)
    c_out  = sigma s / sqrt(sigma^2 + s^2)    c_noise = ln(sigma) / 4

with s the deviation of the data: what F is shown and what it is to put out then have unit variance at every level.
diffusers' EDM schedulers say the same of an ordinary U-Net beside them, in a folder.
"""  # noqa: D205, D415

import math
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from jaxtyping import Float, Int
from torch import Tensor, nn

from steersman.blocks import in_blocks
from steersman.denoise import Prediction, check_condition, classifier_free
from steersman.errors import InputError
from steersman.models.denoisers.adm_network import ADMUNet
from steersman.models.denoisers.folder import Folder
from steersman.precision import loss_scaled
from steersman.schedule import EDM, Level, Schedule, broadcast, times

__all__ = ["EDMDenoiser"]


class EDMDenoiser:
    """A network F with EDM's preconditioning.

    Args:
        network: Called as a `UNet2DModel` is: with ``c_in x_t`` (B, C, H, W), ``c_noise`` (B,), and ``class_labels``
            (B,), K for no label, or None for a model without labels; its output's ``sample`` is F. Put into evaluation
            mode, its weights without gradients.
        shape: The shape (C, H, W) of one image.
        classes: The names of its labels.
        unconditional: Whether it was trained with some labels left out, so that K has a meaning.
        sigma_data: ``s``.
        schedule: The range of sigma that walks take.

    Attributes:
        block: How many images the network sees at a time, None for the whole batch (`steersman.blocks`).

    Raises:
        InputError: ``sigma_data`` is not above 0.
    """

    block: int | None = None
    latent: bool = False

    def __init__(
        self,
        network: nn.Module,
        *,
        shape: tuple[int, int, int],
        classes: tuple[str, ...] = (),
        unconditional: bool = False,
        sigma_data: float = 0.5,
        schedule: EDM = EDM(),  # noqa: B008 - frozen
    ) -> None:
        if not 0 < sigma_data < math.inf:
            raise InputError(f"sigma_data must be above 0 and finite, got {sigma_data}")
        self.network = network.eval().requires_grad_(False)
        self.shape, self.classes, self.unconditional = shape, classes, unconditional
        self.sigma_data = sigma_data
        self.schedule: Schedule = schedule

    @classmethod
    def from_folder(
        cls, folder: str | Path, *, classes: tuple[str, ...] = (), unconditional: bool = True
    ) -> "EDMDenoiser":
        """Loads a folder of ``unet`` and ``scheduler``, one of diffusers' EDM schedulers.

        Args:
            folder: The folder.
            classes: The names of the labels; by default those in the folder's ``model_index.json``, where it has some.
            unconditional: Whether a label more than there are names is one that the network was trained with.

        Raises:
            InputError: The folder is not there, or holds something else.
        """
        parts = Folder(folder)
        config = parts.settings("scheduler/scheduler_config.json")
        if parts.found != {"scheduler", "unet"}:
            raise InputError(
                f"denoiser: {str(folder)!r} must have unet and scheduler, got {', '.join(sorted(parts.found))}"
            )
        if (meant := config.get("prediction_type", "epsilon")) != "epsilon":
            raise InputError(f"prediction_type must be epsilon with EDM's preconditioning, got {meant}")
        network = parts.model("unet", UNet2DModel, ADMUNet)
        channels, size = network.config["in_channels"], network.config["sample_size"]
        if network.config["out_channels"] != channels:
            given = network.config["out_channels"]
            raise InputError(
                f"out_channels must be {channels}, as in_channels, with EDM's preconditioning, got {given}"
            )
        labels = network.config["num_class_embeds"] or 0
        classes = classes or parts.names or tuple(map(str, range(labels)))
        if len(classes) not in (labels, labels - 1):
            raise InputError(f"classes must name the {labels} labels of the network, got {len(classes)} names")
        height, width = size if isinstance(size, list | tuple) else (size, size)
        own = EDM()
        return cls(
            network,
            shape=(channels, height, width),
            classes=classes,
            unconditional=unconditional and len(classes) == labels - 1,
            sigma_data=float(config.get("sigma_data", 0.5)),
            schedule=EDM(
                ratio_min=float(config.get("sigma_min", own.ratio_min)),
                ratio_max=float(config.get("sigma_max", own.ratio_max)),
            ),
        )

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "EDMDenoiser":
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
        **_others: Any,  # noqa: ANN401
    ) -> Prediction:
        """Returns the prediction; without a label, the unconditional one.

        Args:
            x_t: Noisy images.
            level: Their level, one for all or one each.
            label: A label each.
            cfg_scale: The classifier-free scale ``w``; at 1 only the conditional model is asked.

        Raises:
            InputError: A condition that the model cannot follow (`steersman.denoise.check_condition`).
        """
        check_condition(label, cfg_scale, _others, classes=self.classes, unconditional=self.unconditional)
        if not self.classes:
            return Prediction(self._x0_hat(x_t, level, None))
        none = torch.full((len(x_t),), len(self.classes), device=x_t.device)
        if label is None:
            return Prediction(self._x0_hat(x_t, level, none))
        conditional = Prediction(self._x0_hat(x_t, level, label))
        if cfg_scale == 1:
            return conditional
        return classifier_free(conditional, self._x0_hat(x_t, level, none), cfg_scale)

    def _x0_hat(
        self, x_t: Float[Tensor, "B C H W"], level: Level, label: Int[Tensor, " B"] | None
    ) -> Float[Tensor, "B C H W"]:
        total = (level.sigma**2 + self.sigma_data**2).sqrt()
        c_skip, c_out, c_in = (
            broadcast(each, x_t)
            for each in (self.sigma_data**2 / total**2, level.sigma * self.sigma_data / total, 1 / total)
        )
        dtype = next(self.network.parameters(), x_t).dtype
        noise = times(level, len(x_t), x_t.device, torch.promote_types(dtype, torch.float32))
        told = () if label is None else (label,)

        def wide(x: Tensor, *told: Tensor) -> Tensor:
            return self._output(x.to(dtype), *told).to(x.dtype)

        return c_skip * x_t + c_out * in_blocks(loss_scaled(wide, dtype), self.block, c_in * x_t, noise, *told)

    def _output(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        return self.network(x, noise, class_labels=label).sample

    def decode(self, x0: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Returns the sample itself: it is an image."""
        return x0
