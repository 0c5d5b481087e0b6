"""Noise schedules: the levels that a sampling goes down.

A noisy sample is ``x_t = alpha x_0 + sigma eps`` with ``eps ~ N(0, I)``; the ratio ``sigma / alpha`` orders the levels.

    VP     alpha^2 + sigma^2 = 1, alpha^2 = prod (1 - beta) over T discrete times        Ho et al. 2020
    EDM    alpha = 1, any sigma, time = ln(sigma) / 4                                    Karras et al. 2022
    Flow   alpha = 1 - sigma, time = T sigma                                             Lipman et al. 2023

Between two times of VP, ``log(sigma / alpha)`` is linear; towards a last time without signal (zero terminal SNR, Lin et
al. 2024), ``alpha / sigma`` falls linearly. Levels are float64 on the CPU, and cast where they meet a sample
(`steersman.batching.broadcast`).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from steersman.batching import broadcast
from steersman.errors import InputError, unknown
from steersman.typed import finite

__all__ = [
    "CLEAN",
    "EDM",
    "MOST",
    "VP",
    "Flow",
    "Level",
    "Ratios",
    "Schedule",
    "Spacing",
    "check_ratios",
    "check_spacing",
    "from_diffusers",
    "noised",
    "times",
]

MOST = 1_000_000  # times of a schedule; networks are trained on thousands

Spacing = Literal["linspace", "leading", "trailing", "karras", "logsnr"]
Ratios = tuple[float, ...]
"""Falling noise-to-signal ratios, as a spacing: between neighbours, the steps are even in the logarithm."""


class Level(NamedTuple):
    """A noise level, ``x_t = alpha x_0 + sigma eps``, and the time that the network is conditioned on."""

    alpha: Float64[Tensor, "*batch"]
    sigma: Float64[Tensor, "*batch"]
    time: Float64[Tensor, "*batch"]


CLEAN = Level(*(torch.tensor(value, dtype=torch.float64) for value in (1.0, 0.0, 0.0)))
"""The last level of every sampling, at which no denoiser is evaluated."""


def noised(x0: Float[Tensor, "B *shape"], eps: Float[Tensor, "B *shape"], level: Level) -> Float[Tensor, "B *shape"]:
    """Returns ``x_t = alpha x_0 + sigma eps``."""
    return broadcast(level.alpha, x0) * x0 + broadcast(level.sigma, x0) * eps


def times(level: Level, count: int, device: torch.device, dtype: torch.dtype) -> Float[Tensor, " count"]:
    """Returns the time of each of ``count`` images."""
    if level.time.ndim == 0:
        # As a number, which is a kernel's argument: a copy to the device would wait for it.
        return torch.full((count,), float(level.time), device=device, dtype=dtype)
    return level.time.to(device, dtype).expand(count)


def check_ratios(section: str, ratio_min: float, ratio_max: float, *, apart: bool = False) -> None:
    """Refuses limits of ``sigma / alpha`` that are out of order, or equal where they must be apart."""
    if not 0 <= ratio_min <= ratio_max or (apart and ratio_min == ratio_max):
        raise InputError(
            f"{section}.ratio_min and {section}.ratio_max must satisfy 0 <= ratio_min {'<' if apart else '<='} "
            f"ratio_max, got {ratio_min} and {ratio_max}"
        )


def check_spacing(spacing: str | Ratios, name: str = "spacing") -> None:
    """Refuses an unknown spacing, and ratios that do not fall."""
    if isinstance(spacing, str):
        if spacing not in get_args(Spacing):
            raise unknown(name, spacing, get_args(Spacing))
    elif len(spacing) < 2 or not all(math.inf > a > b > 0 for a, b in pairwise(spacing)):
        raise InputError(f"{name} must be at least two falling ratios above 0, got {list(spacing)}")


def _through(ratios: Ratios, count: int) -> Float64[Tensor, " count"]:
    """Returns ``count`` ratios from the first to the last, with the same share of them between any two neighbours."""
    position = _even(0, len(ratios) - 1, count)
    below = position.long().clamp(max=len(ratios) - 2)
    logs = _float64(ratios).log()
    return torch.lerp(logs[below], logs[below + 1], position - below).exp()


def _float64(value: Any) -> Tensor:  # noqa: ANN401
    return torch.as_tensor(value, dtype=torch.float64, device="cpu")


def _even(first: float, last: float, count: int) -> Float64[Tensor, " count"]:
    return torch.linspace(first, last, count, dtype=torch.float64)


class Schedule(ABC):
    """The noise schedule that a denoiser was trained on: its levels, and those of a sampling."""

    _spacings: ClassVar[tuple[Spacing, ...]]

    @classmethod
    def __subclasshook__(cls, other: type) -> Any:  # noqa: ANN401
        """A class of the user's own that has these methods is a schedule as well."""
        if cls is not Schedule:
            return NotImplemented
        return all(callable(getattr(other, name, None)) for name in ("levels", "at_time", "at_ratio", "start"))

    @property
    @abstractmethod
    def _limits(self) -> tuple[float, float, float]:
        """The largest number of steps, and the smallest and the largest finite ``sigma / alpha`` of sampling."""

    @abstractmethod
    def _own_levels(self, steps: int, spacing: Spacing, ratio_min: float, ratio_max: float) -> Iterable[Level]:
        """Returns the levels of any spacing but ``karras`` and ``logsnr``."""

    @abstractmethod
    def at_time(self, time: float | Tensor) -> Level:
        """Returns the level at a time, or at one time per image."""

    @abstractmethod
    def at_ratio(self, ratio: float | Tensor) -> Level:
        """Returns the level with this noise-to-signal ratio ``sigma / alpha``."""

    def start(self, level: Level) -> float:
        """Returns the standard deviation of the noise that a sampling from this level starts from."""
        return float(level.sigma)

    def levels(
        self, steps: int, spacing: Spacing | Ratios = "linspace", ratio_min: float = 0.0, ratio_max: float = math.inf
    ) -> tuple[Level, ...]:
        """Returns the levels of a sampling, noisiest first, and `CLEAN` after them.

        ``karras`` spreads ``(sigma / alpha)^(1 / 7)`` evenly over the range (EDM, eq. 5), ``logsnr`` the logarithm of
        ``sigma / alpha``. ``linspace`` spreads the time: of `VP` rounded, as in ADM's respacing, of `Flow` before its
        shift. ``leading`` and ``trailing`` take every ``T / steps``-th time, from the clean and from the noisy end as
        in diffusers, and have no range. Ratios and the ends of the range are clamped to those of the schedule.
        """
        most, smallest, largest = self._limits
        if not 1 <= steps <= most:
            trained = f"between 1 and {most}, the number of times that the model was trained on"
            allowed = "at least 1" if most == math.inf else trained
            raise InputError(f"steps must be {allowed}, got {steps}")
        named = isinstance(spacing, str)
        if named and spacing not in self._spacings:
            raise unknown(f"spacing of {type(self).__name__}", spacing, self._spacings)
        check_spacing(spacing)
        if (not named or spacing in ("leading", "trailing")) and (ratio_min > 0 or ratio_max < math.inf):
            raise InputError(
                f"sampling.ratio_min and sampling.ratio_max must be 0 and inf with the spacing {spacing}, "
                f"got {ratio_min} and {ratio_max}"
            )
        if not isinstance(spacing, str):
            return (*map(self.at_ratio, _through(spacing, steps).clamp(smallest, largest)), CLEAN)
        last, first = (min(max(ratio, smallest), largest) for ratio in (ratio_min, ratio_max))
        match spacing:
            case "karras":
                levels = map(self.at_ratio, _even(first ** (1 / 7), last ** (1 / 7), steps) ** 7.0)
            case "logsnr":
                levels = map(self.at_ratio, _even(math.log(first), math.log(last), steps).exp())
            case _:
                levels = self._own_levels(steps, spacing, ratio_min, ratio_max)
        return (*levels, CLEAN)


@dataclass(frozen=True, kw_only=True, eq=False)
class VP(Schedule):
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

    _spacings = ("linspace", "leading", "trailing", "karras", "logsnr")

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha_bar", _float64(self.alpha_bar).detach())
        falls = self.alpha_bar.ndim == 1 and len(self.alpha_bar) > 0 and bool((self.alpha_bar.diff() < 0).all())
        if not (falls and 0 < self.alpha_bar[0] < 1 and self.alpha_bar[-1] >= 0):
            raise InputError(
                "schedule.alpha_bar, the running product of 1 - beta, must fall from below 1 at the first time to 0 or "
                "more at the last; betas must be above 0 and below 1, and only the last may be 1"
            )

    def __repr__(self) -> str:
        first, last = self.alpha_bar[[0, -1]].tolist()
        return f"VP({len(self.alpha_bar)} times, alpha_bar {first:.4g} to {last:.4g})"

    @property
    def betas(self) -> Float64[Tensor, " T"]:
        """``beta_t = 1 - alpha_bar_t / alpha_bar_{t-1}``."""
        return 1 - self.alpha_bar / torch.cat([self.alpha_bar.new_ones(1), self.alpha_bar[:-1]])

    def start(self, level: Level) -> float:
        """Returns 1: data of unit variance has it at every level."""
        return 1.0

    @classmethod
    def linear(cls, count: int = 1000, first: float = 1e-4, last: float = 0.02) -> "VP":
        """``beta`` linear from first to last (Ho et al. 2020)."""
        return cls.from_betas(_even(first, last, count))

    @classmethod
    def cosine(cls, count: int = 1000) -> "VP":
        """``alpha_bar(u) ~ cos^2((u + .008) / 1.008 pi / 2)``, ``beta`` at most .999 (Nichol & Dhariwal 2021)."""
        u = _even(0, 1, count + 1)
        alpha_bar = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        return cls.from_betas((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999))

    @classmethod
    def from_betas(cls, betas: Float[Tensor, " T"]) -> "VP":
        """``alpha_bar_t = prod_{u <= t} (1 - beta_u)``."""
        return cls(alpha_bar=(1 - _float64(betas).detach()).cumprod(0))

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> "VP":
        """Returns the schedule of a diffusers scheduler's configuration, which must be variance-preserving."""
        for key, supported in (("timestep_type", "discrete"), ("snr_shift_scale", None)):
            if config.get(key, supported) != supported:
                raise InputError(f"schedule: {key} must be {supported}, got {config[key]}")
        schedule = cls._from_config(config)
        if not config.get("rescale_betas_zero_snr"):
            return schedule
        alpha = schedule.alpha_bar.sqrt()
        return cls(alpha_bar=((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2)

    @classmethod
    def _from_config(cls, config: Mapping[str, Any]) -> "VP":
        count = _count(config)
        first, last = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
        if (betas := config.get("trained_betas")) is not None:
            return cls.from_betas(_float64(betas))
        if "beta_schedule" not in config:
            name = config.get("_class_name", "a configuration without betas")
            raise InputError(f"schedule must be a scheduler with a beta_schedule or trained_betas, got {name}")
        match config["beta_schedule"]:
            case "linear":
                return cls.linear(count, first, last)
            case "scaled_linear":
                return cls.from_betas(_even(first**0.5, last**0.5, count) ** 2)
            case "squaredcos_cap_v2":
                return cls.cosine(count)
            case "sigmoid":
                return cls.from_betas(_even(-6, 6, count).sigmoid() * (last - first) + first)
            case other:
                raise unknown("beta_schedule", other, ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"))

    @property
    def _log_ratio(self) -> Float64[Tensor, " T"]:
        """``log(sigma / alpha)``, increasing with time."""
        return (torch.log1p(-self.alpha_bar) - self.alpha_bar.log()) / 2

    def at_time(self, time: float | Tensor) -> Level:
        """Returns the level at a time in [0, T - 1], also between two times."""
        time = _float64(time)
        below = time.floor().long().clamp(0, len(self.alpha_bar) - 1)
        above = time.ceil().long().clamp(0, len(self.alpha_bar) - 1)
        low, high, share = self._log_ratio[below], self._log_ratio[above], (time - below).clamp(0, 1)
        log_ratio = torch.where(high.isfinite(), torch.lerp(low, high, share), low - (-share).log1p())
        return self._level(log_ratio, time)

    def at_ratio(self, ratio: float | Tensor) -> Level:
        """Returns the level with this ``sigma / alpha``, clamped to the schedule's range."""
        knots = self._log_ratio
        log_ratio = _float64(ratio).log().clamp(knots[0], knots[-1])
        above = torch.searchsorted(knots, log_ratio).clamp(min(1, len(knots) - 1), len(knots) - 1)
        below = (above - 1).clamp(min=0)
        rise, interval = log_ratio - knots[below], knots[above] - knots[below]
        share = torch.where(interval.isfinite(), rise / interval, -torch.expm1(-rise))
        return self._level(log_ratio, below + share.nan_to_num(0))

    @staticmethod
    def _level(log_ratio: Tensor, time: Tensor) -> Level:
        return Level(torch.sigmoid(-2 * log_ratio).sqrt(), torch.sigmoid(2 * log_ratio).sqrt(), time)

    @property
    def _limits(self) -> tuple[float, float, float]:
        finite = self._log_ratio[self._log_ratio.isfinite()]
        return len(self.alpha_bar), float(finite[0].exp()), float(finite[-1].exp())

    def _own_levels(self, steps: int, spacing: Spacing, ratio_min: float, ratio_max: float) -> Iterable[Level]:
        count, index = len(self.alpha_bar), torch.arange(steps, dtype=torch.float64)
        if spacing == "linspace":
            first, last = (float(self.at_ratio(ratio).time) for ratio in (ratio_max, ratio_min))
            times = _even(first, last, steps).round()
        elif spacing == "leading":
            times = (index * (count // steps)).flip(0)
        else:
            times = (count - index * count / steps).round() - 1
        return map(self.at_time, times)


@dataclass(frozen=True, kw_only=True)
@finite
class EDM(Schedule):
    """A variance-exploding schedule, ``x_t = x_0 + sigma eps``, with the time ``ln(sigma) / 4`` (EDM, table 1).

    Attributes:
        ratio_min: The smallest ``sigma`` of sampling, at the last level before the clean image.
        ratio_max: The ``sigma`` at which sampling starts. The schedule also has levels beyond these two.

    Raises:
        InputError: Not ``0 < ratio_min < ratio_max``.

    Example:
        >>> import steersman as sm
        >>> levels = sm.EDM(ratio_min=0.002, ratio_max=80.0).levels(4, spacing="karras")
        >>> [round(float(level.sigma), 3) for level in levels]
        [80.0, 9.723, 0.47, 0.002, 0.0]
    """

    ratio_min: float = 0.002
    ratio_max: float = 80.0

    _spacings = ("linspace", "karras", "logsnr")

    def __post_init__(self) -> None:
        if not 0 < self.ratio_min < self.ratio_max < math.inf:
            raise InputError(
                "schedule.ratio_min and schedule.ratio_max must be finite and satisfy 0 < ratio_min < ratio_max, got "
                f"{self.ratio_min} and {self.ratio_max}"
            )

    def at_time(self, time: float | Tensor) -> Level:
        """Returns the level with ``sigma = exp(4 time)``."""
        return self.at_ratio((4 * _float64(time)).exp())

    def at_ratio(self, ratio: float | Tensor) -> Level:
        """Returns the level with this ``sigma / alpha = sigma``, above 0."""
        sigma = _float64(ratio)
        return Level(torch.ones_like(sigma), sigma, sigma.log() / 4)

    @property
    def _limits(self) -> tuple[float, float, float]:
        return math.inf, self.ratio_min, self.ratio_max

    def _own_levels(self, steps: int, spacing: Spacing, ratio_min: float, ratio_max: float) -> Iterable[Level]:
        return self.levels(steps, "logsnr", ratio_min, ratio_max)[:-1]  # even times are even logarithms of sigma


@dataclass(frozen=True, kw_only=True)
@finite
class Flow(Schedule):
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

    _spacings = ("linspace", "trailing", "karras", "logsnr")

    def __post_init__(self) -> None:
        if not (0 < self.shift < math.inf and self.count >= 1):
            raise InputError(
                "schedule.shift must be above 0 and finite, and schedule.count at least 1, got "
                f"{self.shift} and {self.count}"
            )
        if not self._limits[1] < self.ratio_max < math.inf:
            raise InputError(
                f"schedule.ratio_max must be finite and above {self._limits[1]:.3g}, the last level's sigma / alpha, "
                f"got {self.ratio_max}"
            )

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any], mu: float | None = None) -> "Flow":
        """Returns the schedule of a diffusers scheduler's configuration, which must be of flow matching.

        Where the shift depends on the image's size it is ``e^mu``, or mu for the linear kind; pipelines compute mu.
        """
        if not _is_flow(config):
            name = config.get("_class_name", "a configuration without a class")
            raise InputError(f"schedule must be a flow-matching scheduler, or one with use_flow_sigmas, got {name}")
        dynamic = bool(config.get("use_dynamic_shifting"))
        for key in ("invert_sigmas", "use_dynamic_shifting" if mu is None else "shift_terminal"):
            if config.get(key):
                raise InputError(f"schedule must be flow matching with a shift of its own, got a scheduler with {key}")
        shift = config.get("flow_shift" if config.get("use_flow_sigmas") else "shift", 1.0)
        if dynamic and mu is not None:
            shift = mu if config.get("time_shift_type") == "linear" else math.exp(mu)
        return cls(shift=float(shift), count=_count(config))

    @property
    def _limits(self) -> tuple[float, float, float]:
        sigma = self._shifted(self._shifted(1 / self.count))  # diffusers' schedulers shift u twice
        return math.inf, sigma / (1 - sigma), self.ratio_max

    def _shifted(self, u: Any) -> Any:  # noqa: ANN401
        return self.shift * u / (1 + (self.shift - 1) * u)

    def at_time(self, time: float | Tensor) -> Level:
        """Returns the level with ``sigma = time / T``, of a time in [0, T]."""
        sigma = _float64(time) / self.count
        return Level(1 - sigma, sigma, sigma * self.count)

    def at_ratio(self, ratio: float | Tensor) -> Level:
        """Returns the level with this ``sigma / alpha``, from 0 to infinity."""
        ratio = _float64(ratio)
        sigma = 1 / (1 + 1 / ratio)
        return Level(1 / (1 + ratio), sigma, sigma * self.count)

    def _own_levels(self, steps: int, spacing: Spacing, ratio_min: float, ratio_max: float) -> Iterable[Level]:
        if spacing == "linspace":
            smallest = min(max(ratio_min, self._limits[1]), self.ratio_max)
            sigmas = (float(self.at_ratio(max(ratio, smallest)).sigma) for ratio in (ratio_max, smallest))
            first, last = (sigma / (self.shift - (self.shift - 1) * sigma) for sigma in sigmas)
            u = _even(first, last, steps)
        else:
            u = 1 - torch.arange(steps, dtype=torch.float64) / steps
        sigmas = self._shifted(u)
        return map(self.at_ratio, (sigmas / (1 - sigmas)).clamp(max=self.ratio_max))


def _count(config: Mapping[str, Any]) -> int:
    """Returns T; bounded, as a tensor of T numbers is made."""
    count = int(config.get("num_train_timesteps", 1000))
    if not 1 <= count <= MOST:
        raise InputError(f"schedule.num_train_timesteps must be between 1 and {MOST}, got {count}")
    return count


def _is_flow(config: Mapping[str, Any]) -> bool:
    """Returns whether a configuration is of flow matching, which one without a class's name shows by its shift."""
    named = str(config.get("_class_name", "")).startswith("FlowMatch")
    return named or bool(config.get("use_flow_sigmas")) or ("shift" in config and "beta_schedule" not in config)


def from_diffusers(config: Mapping[str, Any], mu: float | None = None) -> VP | Flow:
    """Returns the schedule of a diffusers scheduler's configuration, variance-preserving or flow matching."""
    return Flow.from_diffusers(config, mu) if _is_flow(config) else VP.from_diffusers(config)
