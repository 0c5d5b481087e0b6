"""The cost of an image: evaluations of all networks, and backward passes through them, each by its measured time.

    cost = sum_n (evaluations_n t_n + passes_n b_n) / t_denoiser

The unit is one evaluation of the denoiser. The counts are taken while one image is drawn, and depend on the settings
alone. The times are the least of several, taken in turn with the denoiser's, once for all trials, so that a cost does
not depend on what else the machine does.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from steersman.errors import about
from steersman.files import read_json, write_json
from steersman.lab.bench import Call, Calls
from steersman.lab.profiling import timed
from steersman.lab.report.tables import in_a_line
from steersman.lab.session import Session
from steersman.typed import typed

__all__ = ["COUNTED", "Cost", "Prices"]

COUNTED = DENOISER, DECODER, CLASSIFIER = "denoiser", "decoder", "classifier"
BACK = ", and back"  # what the price of an evaluation with a backward pass is called after its network
ROUNDS = 7


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of an image.

    Attributes:
        value: In evaluations of the denoiser.
        evaluations: Number of evaluations of ``denoiser``, ``classifier`` and a latent model's ``decoder``.
        passes: Number of backward passes through them.
    """

    value: float
    evaluations: Mapping[str, int]
    passes: Mapping[str, int]


class Prices:
    """The times of networks in units of the denoiser's, by name and settings, written to a file once measured."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known: dict[str, float] = {}
        if file.exists():
            with about("tune", file):
                self.known = typed("", read_json(file), dict[str, float])

    def of(self, session: Session) -> Cost:
        """Returns the cost of an image of a session, of which one is drawn."""
        settings = in_a_line(session.run.recipe.classifier_settings())
        named = (DENOISER, *(f"{spec} {settings}" for spec in session.run.classifiers), DECODER)
        names = dict(zip(session.networks, named, strict=False))  # most have no decoder
        evaluations, passes = Counter[str](), Counter[str]()
        samples: dict[str, Calls] = {}
        for call, back in _one_image(session).events:
            name = names[call.network]
            (passes if back else evaluations)[name] += _images(call)
            if (key := f"{name}{BACK}" if back else name) not in samples:
                batch = _repeated(call, session.run.at_once)
                samples[key] = Calls(events=[(batch, False), (batch, True)] if back else [(batch, False)])
        self._measure(samples, session.run.device)
        value = sum(count * self.known[name] for name, count in evaluations.items() if count)
        for name, count in passes.items():
            if count:
                value += count * max(0.0, self.known[f"{name}{BACK}"] - self.known[name])
        kinds = {name: name if name in COUNTED else CLASSIFIER for name in names.values()}
        return Cost(value=round(value, 2), evaluations=_by(kinds, evaluations), passes=_by(kinds, passes))

    def _measure(self, samples: Mapping[str, Calls], device: str) -> None:
        """Times the calls that have no price yet, in turn with the denoiser's."""
        new = [name for name in samples if name not in self.known]
        if not new:
            return
        best = dict.fromkeys((DENOISER, *new), math.inf)
        for _ in range(ROUNDS):
            best = {name: min(least, timed(samples[name].replay, device)[0]) for name, least in best.items()}
        self.known |= {name: best[name] / best[DENOISER] for name in new}
        write_json(self.file, self.known)


def _one_image(session: Session) -> Calls:
    """Returns the calls that one image takes."""
    parts, calls = (session.denoiser, *session.classifiers), Calls()
    blocks = [part.block for part in parts]
    try:
        for part in parts:
            part.block = None  # else an image is repeated to fill a block, and passes through the copies count
        with calls.recording(session.networks):
            session.draw([(session.targets[0], session.run.seed)])
    finally:
        for part, block in zip(parts, blocks, strict=True):
            part.block = block
    return calls


def _repeated(call: Call, images: int) -> Call:
    """Returns a call with its images repeated to a batch; the first tensor requires a gradient."""
    count, times = _images(call), -(-images // _images(call))

    def repeated(value: Any) -> Any:  # noqa: ANN401
        if not isinstance(value, Tensor) or not value.ndim or len(value) != count:
            return value
        return value.detach().repeat(times, *[1] * (value.ndim - 1))

    args, kwargs = tuple(map(repeated, call.args)), {name: repeated(value) for name, value in call.kwargs.items()}
    _batch((*args, *kwargs.values())).requires_grad_()
    return replace(call, args=args, kwargs=kwargs, graph=True)


def _images(call: Call) -> int:
    return len(_batch((*call.args, *call.kwargs.values())))


def _batch(inputs: Iterable[object]) -> Tensor:
    """Returns the first input of a network that is a batch."""
    return next(each for each in inputs if isinstance(each, Tensor) and each.ndim)


def _by(kinds: Mapping[str, str], counts: Mapping[str, int]) -> dict[str, int]:
    """Returns the counts of each kind of network, of all classifiers together."""
    found = dict.fromkeys(kinds.values(), 0)
    for name, kind in kinds.items():
        found[kind] += counts[name]
    return found
