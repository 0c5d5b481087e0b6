"""Whether two figures of some settings move together, whatever the shape of the curve.

    rho = correlation of rank(x) and rank(y),    equal values share the mean of their ranks           (Spearman 1904)

rho is 1 if y rises wherever x does, and -1 if it falls. Its interval is the bootstrap's over the settings: of R draws
of n settings with replacement, the quantiles of rho_r at 2.5% and 97.5%, without the draws whose x or y are all equal.
It says what other settings like these would give, and is too short where there are few: of settings in perfect order
it has no width. So it stands beside the chance of a correlation that far from 0 in settings that were paired at random,

    p = share of the n! pairings with |rho| >= the one found,

which is exact up to 9 settings; of more, pairings are drawn, the one found among them.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steersman.errors import InputError
from steersman.lab.metrics.resample import Figure

__all__ = ["by_chance", "correlation", "rank_correlation", "ranks"]

EXACT = 9  # settings: 362,880 pairings
DRAWN = 100_000  # pairings of more settings
RESAMPLES = 2000
BLOCK = 2_000_000  # comparisons at a time
NEAR = 1e-9  # what rounding may make of equal correlations


def ranks(values: Float[Tensor, "*R n"]) -> Float[Tensor, "*R n"]:
    """Returns the ranks along the last dimension, from 1; equal values share the mean of theirs."""
    less = (values[..., None, :] < values[..., :, None]).sum(-1)
    equal = (values[..., None, :] == values[..., :, None]).sum(-1)
    return less + (equal + 1).double() / 2


def correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Returns Spearman's rho, in [-1, 1]; not a number if all x or all y are equal.

    Args:
        x: A figure of each setting.
        y: Another one.

    Raises:
        InputError: They are not as many, fewer than 2, or not finite.
    """
    return float(_correlations(*_pair(x, y)))


def rank_correlation(x: Sequence[float], y: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0) -> Figure:
    """Returns Spearman's rho with its 95% interval over the settings; all None where it is not defined.

    Args:
        x: A figure of each setting.
        y: Another one.
        resamples: R.
        seed: Of the draws.

    Raises:
        InputError: As in `correlation`.
    """
    first, second = _pair(x, y)
    value, count = correlation(x, y), len(first)
    if math.isnan(value):
        return Figure()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(count, (resamples, count), generator=generator)
    found = _in_blocks(lambda rows: _correlations(first[rows], second[rows]), drawn, count)
    found = found[found.isfinite()]
    low, high = found.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Figure(value, low, high)


def by_chance(x: Sequence[float], y: Sequence[float], *, drawn: int = DRAWN, seed: int = 0) -> float:
    """Returns p, in (0, 1]; not a number where rho is not.

    Args:
        x: A figure of each setting.
        y: Another one.
        drawn: Pairings of more than 9 settings.
        seed: Of these.

    Raises:
        InputError: As in `correlation`.
    """
    first, second = (ranks(each) - (len(each) + 1) / 2 for each in _pair(x, y))  # about their mean
    count, exact = len(first), len(first) <= EXACT
    if not (first.any() and second.any()):
        return float("nan")
    if exact:
        pairings = _all_orders(count)
    else:
        pairings = torch.rand(drawn, count, generator=torch.Generator().manual_seed(seed)).argsort(1)
    far = float((first @ second).abs()) - NEAR  # as rho, but for a factor that no pairing changes
    hits = int((_in_blocks(lambda rows: second[rows] @ first, pairings, 1).abs() >= far).sum())
    return hits / len(pairings) if exact else (hits + 1) / (drawn + 1)


def _pair(x: Sequence[float], y: Sequence[float]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    first, second = (torch.tensor(each, dtype=torch.float64) for each in (list(x), list(y)))
    if len(first) != len(second) or len(first) < 2:
        raise InputError(
            f"correlation needs two lists of the same length, at least 2, got {len(first)} and {len(second)} values"
        )
    if not (first.isfinite().all() and second.isfinite().all()):
        raise InputError("correlation needs finite values, but some are not finite")
    return first, second


def _correlations(x: Float[Tensor, "*R n"], y: Float[Tensor, "*R n"]) -> Float[Tensor, "*R"]:
    """Returns rho along the last dimension, 0 / 0 where a row is all equal."""
    middle = (x.shape[-1] + 1) / 2
    first, second = ranks(x) - middle, ranks(y) - middle
    return (first * second).sum(-1) / (first.square().sum(-1) * second.square().sum(-1)).sqrt()


def _all_orders(count: int) -> Int[Tensor, "N n"]:
    """Returns all orders of the numbers from 0, a row each: the last one at every place of each order of the others."""
    orders = torch.zeros(1, 0, dtype=torch.int64)
    for number in range(count):
        last = torch.full((len(orders), 1), number)
        orders = torch.cat([torch.cat([orders[:, :at], last, orders[:, at:]], 1) for at in range(number + 1)])
    return orders


def _in_blocks(
    found: Callable[[Tensor], Float[Tensor, " N"]], rows: Int[Tensor, "R n"], width: int
) -> Float[Tensor, " R"]:
    """Returns what is found of each row; of so many rows at a time as comparisons have room."""
    return torch.cat([found(block) for block in rows.split(max(1, BLOCK // (width * rows.shape[1])))])
