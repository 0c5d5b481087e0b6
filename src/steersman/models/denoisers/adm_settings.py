"""What guided-diffusion's and improved-diffusion's training scripts are told, and a checkpoint does not say itself.

A spec states it after the file, ``mine.pt?diffusion_steps=4000&noise_schedule=cosine``, by the scripts' own names. With
T ``diffusion_steps``, the network was trained at times 0 to T - 1 and told t, or with ``rescale_timesteps``
``1000 t / T``. Linear betas go from ``0.1 / T`` to ``20 / T``, which is as much noise in all as for T = 1000.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from steersman.denoise import Parameterization
from steersman.errors import InputError, notice, unknown
from steersman.options import split_options
from steersman.schedule import MOST, VP

__all__ = ["Diffusion", "Stated", "read_stated"]

SHORT = {
    "num_heads": "heads",
    "num_head_channels": "head_channels",
    "num_heads_upsample": "heads_upsample",
    "use_new_attention_order": "attention",
    "image_size": "size",
    "num_res_blocks": "blocks",
    "noise_schedule": "schedule",
    "classifier_width": "num_channels",
    "classifier_depth": "blocks",
    "classifier_attention_resolutions": "attention_resolutions",
    "classifier_use_scale_shift_norm": "use_scale_shift_norm",
    "classifier_resblock_updown": "resblock_updown",
    "classifier_pool": "pool",
    "classifier_use_fp16": "use_fp16",
}
"""The scripts' names of what has a shorter one here; either is taken."""
TRAINING = ("dropout", "use_checkpoint", "use_fp16", "use_kl", "rescale_learned_sigmas", "sigma_small")
"""Settings that change how a network is trained, or a sampler that is not ours, and nothing of what it computes."""
SCHEDULES = {"linear": "linear", "cosine": "cosine", "squaredcos_cap_v2": "cosine"}
TRUE, FALSE = ("true", "yes", "t", "y", "1"), ("false", "no", "f", "n", "0")


@dataclass(frozen=True, kw_only=True)
class Diffusion:
    """The noise that a network was trained on, and what it was told and asked.

    Attributes:
        diffusion_steps: T, the number of times.
        schedule: linear or cosine.
        predict_xstart: Whether the network predicts the image, in place of the noise.
        rescale_timesteps: Whether it was told ``1000 t / T`` in place of t.
    """

    diffusion_steps: int = 1000
    schedule: str = "linear"
    predict_xstart: bool = False
    rescale_timesteps: bool = False

    @property
    def noise(self) -> VP:
        """The schedule.

        Raises:
            InputError: Linear betas over so few times that they reach 1 before the last.
        """
        if self.schedule == "cosine":
            return VP.cosine(self.diffusion_steps)
        scale = 1000 / self.diffusion_steps
        return VP.linear(self.diffusion_steps, scale * 1e-4, scale * 0.02)

    @property
    def time_scale(self) -> float:
        """What t is multiplied with before the network is told it."""
        return 1000 / self.diffusion_steps if self.rescale_timesteps else 1.0

    @property
    def parameterization(self) -> Parameterization:
        """What the network predicts."""
        return "sample" if self.predict_xstart else "epsilon"


class Stated(dict[str, Any]):
    """The settings that a spec states, by their short names; those that it leaves open are missing.

    Attributes:
        source: Whose spec it is, such as ``adm``, for the messages.
        file: The file that it names.
    """

    def __init__(self, source: str, file: str, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.source, self.file = source, file

    def must_be(self, found: Mapping[str, Any]) -> None:
        """Refuses a setting that is not what the file's tensors tell.

        Args:
            found: What they tell, by the settings' names.

        Raises:
            InputError: Such a setting.
        """
        for key, value in found.items():
            if key in self and self[key] != value:
                given = ",".join(map(str, self[key])) if isinstance(self[key], tuple) else self[key]
                value = ",".join(map(str, value)) if isinstance(value, tuple) else value
                raise InputError(f"{key} must be {value}, which the file's tensors tell, got {given}")

    def diffusion(self, base: Diffusion | None, keys: Collection[str]) -> Diffusion:
        """Returns how the network was trained; what is neither known nor stated is the scripts' default, with a notice.

        Args:
            base: What is known of the file; None of a file that is not a released one.
            keys: What can be stated.
        """
        stated = {key: self[key] for key in keys if key in self}
        found = replace(base or Diffusion(), **stated)
        if base is None and (left := [key for key in keys if key not in stated]):
            taken = ", ".join(f"{key}={asdict(found)[key]}" for key in left)
            notice(
                f"{self.source}: {self.file!r} does not say how it was trained; {taken} taken, as guided-diffusion's "
                f"scripts do; state what it was, such as {self.source}:{self.file}?diffusion_steps=4000"
            )
        return found


def read_stated(source: str, text: str, allowed: Collection[str]) -> Stated:
    """Returns the settings that a spec states.

    Args:
        source: Whose spec it is, for the messages.
        text: ``FILE?KEY=VALUE&KEY=VALUE``.
        allowed: The settings that can be stated, by their short names; those of training alone can be too, and say
            nothing.

    Raises:
        InputError: An unknown setting, one that is stated twice, or a value that cannot be.
    """
    known = (*allowed, *TRAINING)
    long = [name for name, short in SHORT.items() if short in known]
    file, given = split_options(text, [*known, *long], f"setting of {source}")
    values: dict[str, Any] = {}
    for name, value in given.items():
        key = SHORT.get(name, name)
        if key in values:
            raise InputError(f"{source}: {key} is stated twice, once as {name}; state it once")
        # The scripts write what is left open as -1, or as nothing.
        if key in TRAINING or (key in OPEN and value in ("", "-1")):
            continue
        values[key] = READ[key](name, value)
    return Stated(source, file, values)


def _number(key: str, text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= MOST):
        raise InputError(f"{key} must be a whole number of at least 1, got {text or 'nothing'}")
    return int(text)


def _flag(key: str, text: str) -> bool:
    if text.lower() not in TRUE + FALSE:
        raise InputError(f"{key} must be True or False, got {text or 'nothing'}")
    return text.lower() in TRUE


def _order(key: str, text: str) -> str:
    if key == "use_new_attention_order":
        return "new" if _flag(key, text) else "legacy"
    if text not in ("legacy", "new"):
        raise unknown("attention", text, ("legacy", "new"))
    return text


def _schedule(key: str, text: str) -> str:
    if text not in SCHEDULES:
        raise unknown(key, text, SCHEDULES)
    return SCHEDULES[text]


def _numbers(key: str, text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(each) for each in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(0 < each <= MOST for each in numbers):
        raise InputError(f"{key} must be numbers above 0 with commas between, got {text or 'nothing'}")
    return tuple(int(each) if each.is_integer() else each for each in numbers)


OPEN = ("heads", "head_channels", "heads_upsample", "channel_mult")
READ: Mapping[str, Callable[[str, str], Any]] = {
    **dict.fromkeys(("heads", "head_channels", "heads_upsample", "size", "blocks", "num_channels"), _number),
    **dict.fromkeys(("diffusion_steps", "num_classes"), _number),
    **dict.fromkeys(("learn_sigma", "class_cond", "use_scale_shift_norm", "resblock_updown"), _flag),
    **dict.fromkeys(("predict_xstart", "rescale_timesteps"), _flag),
    **dict.fromkeys(("channel_mult", "attention_resolutions"), _numbers),
    "attention": _order,
    "schedule": _schedule,
    **dict.fromkeys(("vae", "pool", "weights"), lambda _, text: text),
}
