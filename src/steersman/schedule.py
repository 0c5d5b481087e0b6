"""Noise over time: a schedule gives levels, and a walk down them.

A noisy image is ``x_t = alpha x_0 + sigma eps`` with ``eps ~ N(0, I)``. What tells one level from another is the ratio
``sigma / alpha``; a variance-preserving schedule (Ho et al. 2020) has ``alpha^2 + sigma^2 = 1``, with ``alpha^2`` the
running product of ``1 - beta`` over T discrete times. Between two of those times, ``log(sigma / alpha)`` is linear;
where the last has no signal (zero terminal SNR, Lin et al. 2024), ``alpha / sigma`` falls linearly to it.
A variance-exploding one (EDM, Karras et al. 2022) has ``alpha = 1``, any ``sigma``, and the time ``ln(sigma) / 4``.
Flow matching (Lipman et al. 2023) has ``alpha = 1 - sigma``, and the time ``T sigma``.

All of it is float64; it is cast where it meets an image (`broadcast`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from steersman.errors import InputError, unknown
from steersman.typed import finite

__all__ = [
    "CLEAN",
    "EDM",
    "MOST",
    "VP",
    "Flow",
    "Level",
    "Schedule",
    "Spacing",
    "broadcast",
    "check_ratios",
    "even_ratios",
    "from_diffusers",
    "karras_ratios",
    "times",
]

MOST = 1_000_000  # times of a schedule; networks are trained on thousands

Spacing = Literal["linspace", "leading", "trailing", "karras", "logsnr"]


class Level(NamedTuple):
    """A noise level: ``x_t = alpha x_0 + sigma eps``, and the time that the network was trained to be told."""

    alpha: Float64[Tensor, "*batch"]
    sigma: Float64[Tensor, "*batch"]
    time: Float64[Tensor, "*batch"]


CLEAN = Level(*(torch.tensor(value, dtype=torch.float64) for value in (1.0, 0.0, 0.0)))
"""The end of every walk. No denoiser is asked there; its time is that of a clean image in `VP` and `Flow`."""


@runtime_checkable
class Schedule(Protocol):
    """What a denoiser was trained on."""

    def start(self, level: Level) -> float:
        """Returns the standard deviation of the noise that a walk from a level starts from."""
        ...

    def at_time(self, time: float | Tensor) -> Level:
        """Returns the level at a time, or at one time an image."""
        ...

    def at_ratio(self, ratio: float | Tensor) -> Level:
        """Returns the level whose noise-to-signal ratio ``sigma / alpha`` is given."""
        ...

    def levels(
        self, steps: int, spacing: Spacing = "linspace", ratio_min: float = 0.0, ratio_max: float = math.inf
    ) -> tuple[Level, ...]:
        """Returns so many levels, noisiest first, with ratios ``sigma / alpha`` from high to low, and then `CLEAN`."""
        ...


def broadcast(value: Float[Tensor, "*batch"], like: Tensor) -> Tensor:
    """Casts a level's number to an image's dtype, and shapes (B,) to (B, 1, 1, 1); () serves on any device as it is."""
    if value.ndim == 0:
        return value.to(dtype=like.dtype)
    return value.to(device=like.device, dtype=like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def times(level: Level, count: int, device: torch.device, dtype: torch.dtype) -> Float[Tensor, " count"]:
    """Returns each image's time; one that they share goes to a device as a number, which nobody has to await."""
    if level.time.ndim == 0:
        return torch.full((count,), float(level.time), device=device, dtype=dtype)
    return level.time.to(device, dtype).expand(count)


def karras_ratios(steps: int, ratio_min: float, ratio_max: float, rho: float = 7.0) -> Float64[Tensor, " steps"]:
    """``t_i = (high^(1 / rho) + i / (N - 1) (low^(1 / rho) - high^(1 / rho)))^rho`` (Karras et al. 2022, eq. 5)."""
    return torch.linspace(ratio_max ** (1 / rho), ratio_min ** (1 / rho), steps, dtype=torch.float64) ** rho


def even_ratios(steps: int, ratio_min: float, ratio_max: float) -> Float64[Tensor, " steps"]:
    """``log t_i = log high + i / (N - 1) (log low - log high)``: even steps of the log signal-to-noise ratio."""
    return torch.linspace(math.log(ratio_max), math.log(ratio_min), steps, dtype=torch.float64).exp()


def check_ratios(section: str, ratio_min: float, ratio_max: float, *, apart: bool = False) -> None:
    """Refuses limits of the noise-to-signal ratio ``sigma / alpha`` that are out of order, or equal where not allowed.

    Raises:
        InputError: They are.
    """
    if not 0 <= ratio_min <= ratio_max or (apart and ratio_min == ratio_max):
        raise InputError(
            f"{section}.ratio_min and {section}.ratio_max must satisfy 0 <= ratio_min {'<' if apart else '<='} "
            f"ratio_max, got {ratio_min} and {ratio_max}"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class VP:
    """A variance-preserving schedule of T discrete times, ``alpha_t = sqrt(alpha_bar_t)``.

    Attributes:
        alpha_bar: The cumulative product of ``1 - beta``, ``(T,)``, decreasing, in (0, 1). The last value may be 0
            (zero terminal SNR); a network that predicts ``epsilon`` cannot be evaluated at that level. Kept in float64
            on the CPU.

    Raises:
        InputError: It does not fall, or not from below 1 to 0 or above.

    Example:
        >>> import steersman as sm
        >>> levels = sm.VP.linear(1000, 1e-4, 0.02).levels(3)
        >>> [(round(float(level.time)), round(float(level.sigma / level.alpha), 2)) for level in levels]
        [(999, 157.41), (500, 3.44), (0, 0.01), (0, 0.0)]
    """

    alpha_bar: Float[Tensor, " T"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha_bar", torch.as_tensor(self.alpha_bar).detach().to("cpu", torch.float64))
        falls = self.alpha_bar.ndim == 1 and len(self.alpha_bar) > 0 and bool((self.alpha_bar.diff() < 0).all())
        if not (falls and 0 < self.alpha_bar[0] < 1 and self.alpha_bar[-1] >= 0):
            raise InputError(
                "schedule.alpha_bar, the running product of 1 - beta, must fall from below 1 at the first time to 0 or "
                "more at the last; betas must be above 0 and below 1, and only the last may be 1"
            )

    @property
    def betas(self) -> Float64[Tensor, " T"]:
        """``beta_t = 1 - alpha_bar_t / alpha_bar_{t-1}``."""
        return 1 - self.alpha_bar / torch.cat([self.alpha_bar.new_ones(1), self.alpha_bar[:-1]])

    def start(self, level: Level) -> float:
        """Returns 1, the deviation at any level of data of unit variance."""
        return 1.0

    @classmethod
    def linear(cls, count: int = 1000, first: float = 1e-4, last: float = 0.02) -> "VP":
        """``beta`` linear from first to last (Ho et al. 2020)."""
        return cls.from_betas(torch.linspace(first, last, count, dtype=torch.float64))

    @classmethod
    def cosine(cls, count: int = 1000, offset: float = 0.008, largest: float = 0.999) -> "VP":
        """``alpha_bar(u) ~ cos^2((u + offset) / (1 + offset) pi / 2)``, ``beta`` capped (Nichol & Dhariwal 2021)."""
        u = torch.linspace(0, 1, count + 1, dtype=torch.float64)
        alpha_bar = torch.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
        return cls.from_betas((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=largest))

    @classmethod
    def from_betas(cls, betas: Float[Tensor, " T"]) -> "VP":
        """``alpha_bar_t = prod_{u <= t} (1 - beta_u)``."""
        return cls(alpha_bar=(1 - torch.as_tensor(betas).detach().to("cpu", torch.float64)).cumprod(0))

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> "VP":
        """The schedule that a diffusers scheduler's configuration describes.

        Raises:
            InputError: The configuration describes no variance-preserving schedule, or one unknown here.
        """
        count = _count(config)
        if config.get("timestep_type", "discrete") != "discrete":
            raise InputError(
                f"schedule: timestep_type must be discrete, got {config['timestep_type']}: the network would be told "
                "times that are none of its betas'"
            )
        if "snr_shift_scale" in config:
            raise InputError("schedule: snr_shift_scale, by which the betas' noise is shifted, is not supported")
        schedule = cls._of_betas(config, count)
        if not config.get("rescale_betas_zero_snr"):
            return schedule
        alpha = schedule.alpha_bar.sqrt()
        return cls(alpha_bar=((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2)

    @classmethod
    def _of_betas(cls, config: Mapping[str, Any], count: int) -> "VP":
        first, last = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
        if (betas := config.get("trained_betas")) is not None:
            return cls.from_betas(torch.as_tensor(betas, dtype=torch.float64))
        if "beta_schedule" not in config:
            given = config.get("_class_name", "a configuration without betas")
            raise InputError(f"schedule must be a scheduler with a beta_schedule or trained_betas, got {given}")
        match config["beta_schedule"]:
            case "linear":
                return cls.linear(count, first, last)
            case "scaled_linear":
                return cls.from_betas(torch.linspace(first**0.5, last**0.5, count, dtype=torch.float64) ** 2)
            case "squaredcos_cap_v2":
                return cls.cosine(count)
            case "sigmoid":
                steep = torch.linspace(-6, 6, count, dtype=torch.float64).sigmoid()
                return cls.from_betas(steep * (last - first) + first)
            case other:
                raise unknown("beta_schedule", other, ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"))

    @property
    def _log_ratio(self) -> Float64[Tensor, " T"]:
        """``log(sigma / alpha)``, rising with time."""
        return (torch.log1p(-self.alpha_bar) - self.alpha_bar.log()) / 2

    def at_time(self, time: float | Tensor) -> Level:
        """Returns the level at a time in [0, T - 1], whole or between."""
        time = torch.as_tensor(time, dtype=torch.float64, device="cpu")
        below = time.floor().long().clamp(0, len(self.alpha_bar) - 1)
        above = time.ceil().long().clamp(0, len(self.alpha_bar) - 1)
        ratio_min, ratio_max, share = self._log_ratio[below], self._log_ratio[above], (time - below).clamp(0, 1)
        log_ratio = torch.where(
            ratio_max.isfinite(), torch.lerp(ratio_min, ratio_max, share), ratio_min - (-share).log1p()
        )
        return self._level(log_ratio, time)

    def at_ratio(self, ratio: float | Tensor) -> Level:
        """Returns the level whose ``sigma / alpha`` is given, within the schedule's own range."""
        log_ratio = torch.as_tensor(ratio, dtype=torch.float64, device="cpu").log()
        knots = self._log_ratio
        log_ratio = log_ratio.clamp(knots[0], knots[-1])
        above = torch.searchsorted(knots, log_ratio).clamp(min(1, len(knots) - 1), len(knots) - 1)
        below = (above - 1).clamp(min=0)
        risen, whole = log_ratio - knots[below], knots[above] - knots[below]
        share = torch.where(whole.isfinite(), risen / whole, -torch.expm1(-risen))
        return self._level(log_ratio, below + share.nan_to_num(0))

    @staticmethod
    def _level(log_ratio: Tensor, time: Tensor) -> Level:
        return Level(torch.sigmoid(-2 * log_ratio).sqrt(), torch.sigmoid(2 * log_ratio).sqrt(), time)

    def levels(
        self, steps: int, spacing: Spacing = "linspace", ratio_min: float = 0.0, ratio_max: float = math.inf
    ) -> tuple[Level, ...]:
        """Returns the levels of a walk of so many steps, noisiest first, and `CLEAN` after them.

        Args:
            steps: How many steps, in [1, T].
            spacing: ``linspace`` rounds ``linspace(0, T - 1, steps)`` (ADM's respacing); ``leading`` and ``trailing``
                take every ``T / steps``-th time from the clean and from the noisy end, as diffusers names them, and
                know no range; ``karras`` and ``logsnr`` spread `karras_ratios` and `even_ratios` over the range, at
                times that are not whole, of which the first has a signal.
            ratio_min: The last level's ``sigma / alpha``, within the schedule's own range.
            ratio_max: The first level's, likewise.

        Raises:
            InputError: More steps than the schedule has times, fewer than one, or an unknown spacing.
        """
        count = len(self.alpha_bar)
        first, last = self.at_ratio(ratio_max), self.at_ratio(ratio_min)
        if spacing in ("leading", "trailing") and (ratio_min > 0 or ratio_max < math.inf):
            raise InputError(
                f"sampling.ratio_min and sampling.ratio_max must be 0 and inf with the spacing {spacing}, "
                f"got {ratio_min} and {ratio_max}"
            )
        if not 1 <= steps <= count:
            raise InputError(
                f"steps must be between 1 and {count}, the number of times that the model was trained on, got {steps}"
            )
        match spacing:
            case "linspace":
                times = torch.linspace(float(first.time), float(last.time), steps, dtype=torch.float64).round()
            case "leading":
                times = (torch.arange(steps, dtype=torch.float64) * (count // steps)).flip(0)
            case "trailing":
                times = (count - torch.arange(steps, dtype=torch.float64) * count / steps).round() - 1
            case "karras" | "logsnr":
                spread = karras_ratios if spacing == "karras" else even_ratios
                largest = self._log_ratio[self._log_ratio.isfinite()][-1].exp()
                ends = (float((each.sigma / each.alpha).clamp(max=largest)) for each in (last, first))
                times = self.at_ratio(spread(steps, *ends)).time
            case _:
                raise unknown("spacing", spacing, get_args(Spacing))
        return (*(self.at_time(time) for time in times), CLEAN)


@dataclass(frozen=True, kw_only=True)
@finite
class EDM:
    """A variance-exploding schedule, ``x_t = x_0 + sigma eps``, with the time ``ln(sigma) / 4`` (EDM, table 1).

    Attributes:
        ratio_min: The smallest ``sigma`` of sampling, at the last level before the clean image.
        ratio_max: The ``sigma`` at which sampling starts. The schedule also has levels beyond these two.

    Raises:
        InputError: Not ``0 < low < high``.

    Example:
        >>> import steersman as sm
        >>> levels = sm.EDM(ratio_min=0.002, ratio_max=80.0).levels(4, spacing="karras")
        >>> [round(float(level.sigma), 3) for level in levels]
        [80.0, 9.723, 0.47, 0.002, 0.0]
    """

    ratio_min: float = 0.002
    ratio_max: float = 80.0

    def __post_init__(self) -> None:
        if not 0 < self.ratio_min < self.ratio_max < math.inf:
            raise InputError(
                "schedule.low and schedule.high must be finite and satisfy 0 < low < high, got "
                f"{self.ratio_min} and {self.ratio_max}"
            )

    def start(self, level: Level) -> float:
        """Returns its ``sigma``, as EDM starts."""
        return float(level.sigma)

    def at_time(self, time: float | Tensor) -> Level:
        """Returns the level ``sigma = exp(4 time)``."""
        return self.at_ratio((4 * torch.as_tensor(time, dtype=torch.float64, device="cpu")).exp())

    def at_ratio(self, ratio: float | Tensor) -> Level:
        """Returns the level of any ``sigma / alpha`` above 0, which is ``sigma`` here."""
        sigma = torch.as_tensor(ratio, dtype=torch.float64, device="cpu")
        return Level(torch.ones_like(sigma), sigma, sigma.log() / 4)

    def levels(
        self, steps: int, spacing: Spacing = "linspace", ratio_min: float = 0.0, ratio_max: float = math.inf
    ) -> tuple[Level, ...]:
        """Returns the levels of a walk of so many steps, noisiest first, and `CLEAN` after them.

        Args:
            steps: How many steps.
            spacing: ``linspace`` for even times, which is ``logsnr`` here; ``karras`` for `karras_ratios`.
            ratio_min: The last level's ``sigma``, within the schedule's own range.
            ratio_max: The first level's, likewise.

        Raises:
            InputError: Fewer than one step, or a spacing that needs discrete times.
        """
        if steps < 1:
            raise InputError(f"steps must be at least 1, got {steps}")
        ratio_min, ratio_max = (min(max(ratio, self.ratio_min), self.ratio_max) for ratio in (ratio_min, ratio_max))
        match spacing:
            case "linspace" | "logsnr":
                sigmas = even_ratios(steps, ratio_min, ratio_max)
            case "karras":
                sigmas = karras_ratios(steps, ratio_min, ratio_max)
            case _:
                raise unknown("spacing of EDM", spacing, ("linspace", "karras", "logsnr"))
        return (*(self.at_ratio(sigma) for sigma in sigmas), CLEAN)


@dataclass(frozen=True, kw_only=True)
@finite
class Flow:
    """Flow matching, ``x_t = (1 - sigma) x_0 + sigma eps``, with the time ``T sigma``.

    Sampling takes even steps of u, shifted towards the noise (Esser et al. 2024, eq. 23):
    ``sigma = shift u / (1 + (shift - 1) u)``. At ``sigma = 1`` there is no signal, and ``sigma / alpha`` is infinite.
    The schedule has this level, but its own sampling starts below it.

    Attributes:
        shift: The shift of the levels towards the noise, above 0; 1 for none.
        count: T, the time at ``sigma = 1``.
        ratio_max: The noise-to-signal ratio ``sigma / alpha`` at which sampling starts.

    Raises:
        InputError: A shift or count that is not above 0, or a ratio that is not finite.

    Example:
        >>> import steersman as sm
        >>> levels = sm.Flow(shift=3.0).levels(4, spacing="trailing")
        >>> [round(float(level.sigma), 3) for level in levels]
        [0.999, 0.9, 0.75, 0.5, 0.0]
    """

    shift: float = 1.0
    count: int = 1000
    ratio_max: float = 1000.0

    def __post_init__(self) -> None:
        if not (0 < self.shift < math.inf and self.count >= 1):
            raise InputError(
                "schedule.shift must be above 0 and finite, and schedule.count at least 1, got "
                f"{self.shift} and {self.count}"
            )
        if not self._ratio(self._last) < self.ratio_max < math.inf:
            raise InputError(
                f"schedule.high must be finite and above {self._ratio(self._last):.3g}, the last level's sigma / "
                f"alpha, got {self.ratio_max}"
            )

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any], mu: float | None = None) -> "Flow":
        """The schedule that a diffusers scheduler's configuration describes.

        Args:
            config: The configuration.
            mu: What its pipeline makes of the image's size, where the shift depends on that: it is ``e^mu``, or mu for
                the linear kind.

        Raises:
            InputError: The configuration describes no flow matching, or a shift that depends on the image's size where
                no mu is given.
        """
        if not _flows(config):
            given = config.get("_class_name", "a configuration without a class")
            raise InputError(f"schedule must be a flow-matching scheduler, or one with use_flow_sigmas, got {given}")
        dynamic = bool(config.get("use_dynamic_shifting"))
        for key in ("invert_sigmas", *(("shift_terminal",) if mu is not None else ("use_dynamic_shifting",))):
            if config.get(key):
                raise InputError(f"schedule must be flow matching with a shift of its own, got a scheduler with {key}")
        shift = config.get("flow_shift" if config.get("use_flow_sigmas") else "shift", 1.0)
        if dynamic and mu is not None:
            shift = mu if config.get("time_shift_type") == "linear" else math.exp(mu)
        return cls(shift=float(shift), count=_count(config))

    @property
    def _last(self) -> float:
        """A walk's last ``sigma``; diffusers' schedulers bend u at first from 1 / T, and then once more."""
        return self._bent(self._bent(1 / self.count))

    def _bent(self, u: Any) -> Any:  # noqa: ANN401
        return self.shift * u / (1 + (self.shift - 1) * u)

    @staticmethod
    def _ratio(sigma: float) -> float:
        return sigma / (1 - sigma)

    def start(self, level: Level) -> float:
        """Returns its ``sigma``: what the noise is multiplied with."""
        return float(level.sigma)

    def at_time(self, time: float | Tensor) -> Level:
        """Returns the level ``sigma = time / T``, of a time in [0, T]."""
        sigma = torch.as_tensor(time, dtype=torch.float64, device="cpu") / self.count
        return Level(1 - sigma, sigma, sigma * self.count)

    def at_ratio(self, ratio: float | Tensor) -> Level:
        """Returns the level whose ``sigma / alpha`` is given, of any from 0 to infinity."""
        ratio = torch.as_tensor(ratio, dtype=torch.float64, device="cpu")
        sigma = 1 / (1 + 1 / ratio)
        return Level(1 / (1 + ratio), sigma, sigma * self.count)

    def levels(
        self, steps: int, spacing: Spacing = "linspace", ratio_min: float = 0.0, ratio_max: float = math.inf
    ) -> tuple[Level, ...]:
        """Returns the levels of a walk of so many steps, noisiest first, and `CLEAN` after them.

        Args:
            steps: How many steps.
            spacing: ``linspace`` for even steps of u, from 1 and to the last one of diffusers' schedulers where no
                range is given; ``trailing`` for every N-th of u from 1 on, as Flux's pipeline has them, which knows no
                range; ``karras`` and ``logsnr`` for `karras_ratios` and `even_ratios`.
            ratio_min: The last level's ``sigma / alpha``, within the schedule's own range.
            ratio_max: The first level's, likewise.

        Raises:
            InputError: Fewer than one step, or a spacing that needs discrete times.
        """
        if steps < 1:
            raise InputError(f"steps must be at least 1, got {steps}")
        if spacing == "trailing" and (ratio_min > 0 or ratio_max < math.inf):
            raise InputError(
                f"sampling.ratio_min and sampling.ratio_max must be 0 and inf with the spacing {spacing}, "
                f"got {ratio_min} and {ratio_max}"
            )
        ratio_min = min(max(ratio_min, self._ratio(self._last)), self.ratio_max)
        match spacing:
            case "linspace":
                first, last = (float(self.at_ratio(max(ratio, ratio_min)).sigma) for ratio in (ratio_max, ratio_min))
                begin, end = (each / (self.shift - (self.shift - 1) * each) for each in (first, last))
                sigmas = self._bent(torch.linspace(begin, end, steps, dtype=torch.float64))
                ratios = (sigmas / (1 - sigmas)).clamp(max=self.ratio_max)
            case "trailing":
                sigmas = self._bent(1 - torch.arange(steps, dtype=torch.float64) / steps)
                ratios = (sigmas / (1 - sigmas)).clamp(max=self.ratio_max)
            case "karras" | "logsnr":
                spread = karras_ratios if spacing == "karras" else even_ratios
                ratios = spread(steps, ratio_min, min(max(ratio_max, ratio_min), self.ratio_max))
            case _:
                raise unknown("spacing of Flow", spacing, ("linspace", "trailing", "karras", "logsnr"))
        return (*(self.at_ratio(ratio) for ratio in ratios), CLEAN)


def _count(config: Mapping[str, Any]) -> int:
    """Returns T, of which there is a number each."""
    count = int(config.get("num_train_timesteps", 1000))
    if not 1 <= count <= MOST:
        raise InputError(f"schedule.num_train_timesteps must be between 1 and {MOST}, got {count}")
    return count


def _flows(config: Mapping[str, Any]) -> bool:
    """Whether it is flow matching's; a scheduler that was not loaded does not tell its class, but has a shift alone."""
    named = str(config.get("_class_name", "")).startswith("FlowMatch")
    return named or bool(config.get("use_flow_sigmas")) or ("shift" in config and "beta_schedule" not in config)


def from_diffusers(config: Mapping[str, Any], mu: float | None = None) -> VP | Flow:
    """The schedule that a diffusers scheduler's configuration describes, variance-preserving or flow matching.

    Args:
        config: The configuration.
        mu: As `Flow.from_diffusers` takes it.

    Raises:
        InputError: It describes neither, or one unknown here.
    """
    return Flow.from_diffusers(config, mu) if _flows(config) else VP.from_diffusers(config)
