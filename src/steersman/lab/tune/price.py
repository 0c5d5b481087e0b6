"""What an image costs: the evaluations of all networks and the passes back through them, each by its measured time.

    cost = sum_n (evaluations_n t_n + passes_n b_n) / t_denoiser

So the unit is one evaluation of the denoiser. What an image takes is counted while one is drawn, and depends on the
settings alone; the times are each the least of several, the denoiser's taken in turn with the others', once for all
trials. So a cost does not depend on what else the machine does meanwhile.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from steersman.errors import about
from steersman.files import read_json, write_json
from steersman.lab.report.tables import in_a_line
from steersman.lab.session import Session
from steersman.lab.speed.bench import Call, Calls
from steersman.lab.speed.profiling import timed
from steersman.typed import typed

__all__ = ["Cost", "Prices"]

DENOISER, DECODER, CLASSIFIER = "denoiser", "decoder", "classifier"
BACK = ", and back"
ROUNDS = 7


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What an image takes.

    Attributes:
        value: In evaluations of the denoiser.
        evaluations: How often ``denoiser`` and ``classifier``, and a latent model's ``decoder``, are evaluated.
        passes: How often a gradient goes back through them.
    """

    value: float
    evaluations: Mapping[str, int]
    passes: Mapping[str, int]


class Prices:
    """The times of networks, by name and settings, in units of the denoiser's; written down when they are measured.

    Args:
        file: Where to.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known: dict[str, float] = _known(file) if file.exists() else {}

    def of(self, session: Session) -> Cost:
        """Returns what an image of a session costs; one is drawn.

        Raises:
            InputError: It cannot be drawn.
        """
        named = _named(session)
        places = {id(network): name for name, network in named.items()}
        evaluations, passes, plays = dict.fromkeys(named, 0), dict.fromkeys(named, 0), {}
        for call, back in _recorded(session).events:
            name = places[id(call.network)]
            (passes if back else evaluations)[name] += _images(call)
            if (key := f"{name}{BACK}" if back else name) not in plays:
                many = _of(call, session.run.at_once)
                plays[key] = Calls(events=[(many, False), (many, True)] if back else [(many, False)])
        self._measure(plays, session.run.device)
        value = sum(count * self.known[name] for name, count in evaluations.items() if count)
        value += sum(count * self._back(name) for name, count in passes.items() if count)
        return Cost(value=round(value, 2), evaluations=_summed(evaluations), passes=_summed(passes))

    def _back(self, name: str) -> float:
        """Returns the price of a pass back, without the evaluation before it."""
        return max(0.0, self.known[f"{name}{BACK}"] - self.known[name])

    def _measure(self, plays: Mapping[str, Calls], device: str) -> None:
        """Times what has no price yet, the denoiser's evaluation in turn with it."""
        new = [name for name in plays if name not in self.known]
        if not new:
            return
        best = dict.fromkeys((DENOISER, *new), math.inf)
        for _ in range(ROUNDS):
            best = {name: min(least, timed(plays[name].replay, device)[0]) for name, least in best.items()}
        self.known |= {name: best[name] / best[DENOISER] for name in new}
        write_json(self.file, self.known)


def _named(session: Session) -> dict[str, nn.Module]:
    """Returns the networks that draw, by what makes their price."""
    settings = in_a_line(session.run.recipe.classifier_settings())
    names = (DENOISER, *(f"{spec} {settings}" for spec in session.run.classifiers), DECODER)
    return dict(zip(names, session.networks, strict=False))  # most have no decoder


def _recorded(session: Session) -> Calls:
    """Returns the calls that one image takes, alone: no block is filled up."""
    parts = (session.denoiser, *session.classifiers)
    blocks = [each.block for each in parts]
    calls = Calls()
    try:
        for each in parts:
            each.block = None
        with calls.recording(session.networks):
            session.draw([(session.targets[0], session.run.seed)])
    finally:
        for each, block in zip(parts, blocks, strict=True):
            each.block = block
    return calls


def _of(call: Call, images: int) -> Call:
    """Returns the call of so many images, those of a call again and again; the first tensor asks for a gradient."""
    count, times = _images(call), -(-images // _images(call))

    def many(value: Any) -> Any:  # noqa: ANN401
        if not isinstance(value, Tensor) or not value.ndim or len(value) != count:
            return value
        return value.detach().repeat(times, *[1] * (value.ndim - 1))

    args, kwargs = tuple(map(many, call.args)), {name: many(value) for name, value in call.kwargs.items()}
    next(each for each in (*args, *kwargs.values()) if isinstance(each, Tensor) and each.ndim).requires_grad_()
    return replace(call, args=args, kwargs=kwargs, graph=True)


def _images(call: Call) -> int:
    return next(len(each) for each in (*call.args, *call.kwargs.values()) if isinstance(each, Tensor) and each.ndim)


def _summed(counts: Mapping[str, int]) -> dict[str, int]:
    """Returns the counts with those of all classifiers together."""
    found = {name: count for name, count in counts.items() if name in (DENOISER, DECODER)}
    return found | {CLASSIFIER: sum(count for name, count in counts.items() if name not in found)}


def _known(file: Path) -> dict[str, float]:
    """Returns the times that a file holds."""
    with about("tune", file):
        return typed("", read_json(file), dict[str, float])
