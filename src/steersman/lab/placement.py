"""``dtype: auto`` or ``auto-float32``: which type, memory layout and block size is fastest for the networks of a run.

Denoiser and classifiers are timed on a block of noise and of images, with a gradient where guidance takes one. Each
gets what takes the least time an image, or the default unless that is slower by `GAIN`. A block that the memory does
not hold is halved until it does.

A faster type must also give what float32 gives. A few images are drawn without guidance, and at each noise level on
their way an image's cosine ``cos(a, b) = <a, b> / (|a| |b|)`` compares the two types:

    classifier    v, the gradient of the guide's objective with respect to the image that the classifier sees
    denoiser      x0_hat; and J^T v, where the gradient passes the denoiser or its decoder, with J the derivative of
                  that image with respect to x_t, or to the latents that the guide sees

Image and v are those of float32 in both, so that each network is compared by itself.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, product
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steersman.batching import Batches, memory_permitting
from steersman.denoise import Conditioned
from steersman.errors import InputError, about, notice
from steersman.files import read_yaml
from steersman.guidance.guide import Guide, after_decoding
from steersman.guidance.step import Step
from steersman.lab.choices import AUTO
from steersman.lab.profiling import timed
from steersman.lab.run import AGREES, LAYOUTS, Placement, Run, read_run
from steersman.lab.session import Session, Target, load_session, set_layout
from steersman.precision import ieee
from steersman.sampling import Report
from steersman.schedule import CLEAN
from steersman.typed import typed

__all__ = ["SIDE_BY_SIDE", "choose_placement", "recorded_placement", "shared_placement"]

SIDE_BY_SIDE = 4  # batches that a CPU draws at the same time, each with its share of the threads
BLOCKS = (4, 8, 16)
"""Block sizes on a CPU; an accelerator sees a batch as a whole."""
GAIN = 1.05
REPEATS = 3
MUCH_SLOWER = 4  # times as slow an image as the fastest: a larger block would not make up for it
LONG_CALL = 5.0  # seconds of a call that is not repeated
LONG_MEASUREMENT = 60.0  # seconds after which only parts without any measurement are measured
WAIT, PATIENCE = 0.2, 900.0  # seconds between two looks for run.yaml, and until it is given up
IMAGES, STEPS = 4, 8  # of the images on which types are compared, at most

Times = dict[Placement, float]
"""Seconds an image."""
Ask = Callable[[int], Callable[[], object]]
"""From a block size to a call that runs a network on one block."""


def recorded_placement(run: Run, out: Path, *, wait: bool = False) -> Run:
    """Returns a run with the placement in the folder's ``run.yaml``, which another process may be about to write."""
    if not run.measured or run.placed:
        return run
    record, until = out / "run.yaml", time.monotonic() + PATIENCE
    while not record.exists():
        if not wait:
            return run
        if time.monotonic() > until:
            raise InputError(
                f"out: {str(out)!r} must get a run.yaml from the process of rank 0, which has written none for "
                f"{PATIENCE:g} s; see whether that process still runs, and start all again"
            )
        time.sleep(WAIT)
    return replace(run, placed=read_run(record, trusted=None).placed)


def shared_placement(run: Run, record: Path) -> Mapping[str, Placement]:
    """Returns one placement for all runs of a sweep or tune: that in its file, else the fastest for the first run."""
    if not run.measured:
        return run.placed
    if not record.exists():
        return choose_placement(run).placed
    with about("out", record):
        shared = read_yaml(record, "out", trusted=None)["shared"]
        return typed("placed", shared.get("placed", {}), dict[str, Placement])


@ieee()
def choose_placement(run: Run) -> Run:
    """Returns a run whose ``dtype`` asks for a measurement with the fastest placement; any other as it is."""
    if not run.measured or run.placed:
        return run
    times: dict[str, Times] = {"denoiser": {}, "classifier": {}}
    cosines: dict[str, dict[str, float]] = {part: {} for part in times}
    exact, *narrower = AUTO[run.dtype if run.device != "mps" else "auto-float32"]
    states, until = list[_State](), time.monotonic() + LONG_MEASUREMENT
    with _threads_of_a_batch(run.device):
        for dtype in (exact, *narrower):
            with memory_permitting():  # else there are no times in this type, or no comparison with it
                session = load_session(replace(run, dtype=dtype, judge=None, compile=False))
                _measure(session, times, until)
                if dtype == exact:
                    states = _reference(session) if narrower else []
                else:
                    faster = [part for part, some in times.items() if some and _fastest(some).dtype == dtype]
                    for part, least in _Outputs(session).cosines(states, faster).items():
                        cosines[part][dtype] = least
            session = None  # before the next one is loaded beside it
    if not times["denoiser"] or (run.guided and not times["classifier"]):
        raise InputError(
            f"the memory of {run.device} must hold one image in one of the types {', '.join((exact, *narrower))}, but "
            "holds it in none; use a device with more memory, or a recipe whose gradient is with respect to x0_hat "
            "(wrt x0_hat)"
        )
    placed = {part: _chosen(part, times[part], cosines[part], exact, run.device) for part in times if times[part]}
    return replace(run, placed=placed)


@contextmanager
def _threads_of_a_batch(device: str) -> Iterator[None]:
    """Computes with as many threads as each of the batches that a CPU draws side by side has."""
    threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(threads // min(SIDE_BY_SIDE, threads))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _chosen(part: str, times: Times, cosines: Mapping[str, float], exact: str, device: str) -> Placement:
    """Returns the fastest placement of a part whose type agrees with the exact one."""
    if all(placement.dtype != exact for placement in times):
        fastest = _fastest(times)
        notice(
            f"the memory of {device} does not hold the {part} in {exact}, so that it runs in {fastest.dtype} without a "
            "comparison of the two"
        )
        return fastest
    agreeing = {exact, *(dtype for dtype, cosine in cosines.items() if cosine > AGREES)}
    fastest = _fastest({placement: seconds for placement, seconds in times.items() if placement.dtype in agreeing})
    return replace(fastest, cosines=cosines)


def _fastest(times: Times) -> Placement:
    """Returns the placement with the least time, or the first one, the default, unless that is clearly slower."""
    first, best = next(iter(times)), min(times, key=times.__getitem__)
    return best if times[first] > GAIN * times[best] else first


def _measure(session: Session, times: dict[str, Times], until: float) -> None:
    """Adds the times of a session in each layout and block; after a moment only those of parts without any."""
    run = session.run
    for layout, (part, networks, ask) in product(LAYOUTS, list(_parts(session))):
        for network in networks:
            set_layout(network, layout)
        blocks, fits = list(_blocks(run, len(session.targets))), False
        while blocks and not (times[part] and time.monotonic() > until):
            block, best = blocks.pop(0), min(times[part].values(), default=float("inf"))
            seconds = None
            with memory_permitting():
                seconds = _seconds(ask(block), run.device, best * block) / block
            if seconds is None:
                blocks = [block // 2] if block > 1 and not fits else []  # larger blocks do not fit either
                continue
            fits, times[part][Placement(dtype=run.dtype, layout=layout, block=block)] = True, seconds
            if seconds > MUCH_SLOWER * best:
                break


def _blocks(run: Run, targets: int) -> tuple[int, ...]:
    if run.device != "cpu":
        return (run.at_once,)
    largest = run.batch_size or max(run.num * targets, BLOCKS[0])
    return tuple(block for block in BLOCKS if block <= largest) or BLOCKS[:1]


def _parts(session: Session) -> Iterator[tuple[str, list[nn.Module], Ask]]:
    """Yields each part of a session with its networks and, given a block size, a call that runs them on a block."""
    denoiser, target = session.denoiser, session.targets[0]
    level = denoiser.schedule.levels(2)[1]
    differentiated = any(guide.differentiates_denoiser for guide in session.guides)

    def noise(block: int) -> Tensor:
        for network in (denoiser, *session.classifiers):
            network.block = block
        generator = torch.Generator().manual_seed(0)
        return torch.randn(block, *denoiser.shape, generator=generator).to(session.run.device)

    def denoise(block: int) -> Callable[[], object]:
        condition = session.conditioning([target] * block)
        return partial(_run, [lambda x_t: denoiser(x_t, level, **condition).x0_hat], noise(block), differentiated)

    def classify(block: int) -> Callable[[], object]:
        with torch.no_grad():
            images = denoiser.decode(noise(block)).clamp(-1, 1)
        targets = session.rows([target] * block)
        objectives = [lambda image, guide=guide: guide.objective(image, targets, CLEAN) for guide in session.guides]
        return partial(_run, objectives, images, True)

    yield "denoiser", [denoiser.network], denoise
    if session.guides:
        yield "classifier", [classifier.network for classifier in session.classifiers], classify


def _run(functions: Sequence[Callable[[Tensor], Tensor]], x: Tensor, differentiated: bool) -> None:
    """Evaluates functions of an input, with the gradients of those that have one."""
    with torch.set_grad_enabled(differentiated):
        for function in functions:
            leaf = x.detach().requires_grad_(differentiated)
            output = function(leaf)
            if output.requires_grad:
                torch.autograd.grad(output.sum(), leaf)


def _seconds(ask: Callable[[], object], device: str, best: float) -> float:
    """Returns the least time of some calls after a first one, which warms up; of a slow call, that of the first."""
    if (first := timed(ask, device)[0]) > max(LONG_CALL, MUCH_SLOWER * best if best < float("inf") else 0):
        return first
    times: list[float] = []
    for _ in range(REPEATS):
        times.append(timed(ask, device)[0])
        if times[-1] > 1.5 * best:
            break
    return min(times)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Gradient:
    """What a guide sees, its image, the gradient ``v`` at that image, and ``J^T v`` unless J is the identity."""

    input: Float[Tensor, "B *shape"]
    image: Float[Tensor, "B *image"]
    v: Float[Tensor, "B *image"]
    pulled: Float[Tensor, "B *shape"] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class _State:
    """A batch at a level, its prediction in float32, and the gradients of guides by their index."""

    targets: Sequence[Target]
    x_t: Float[Tensor, "B *shape"]
    step: Step
    x0_hat: Float[Tensor, "B *shape"]
    gradients: dict[int, _Gradient] = field(default_factory=dict)


def _reference(session: Session) -> list[_State]:
    """Returns the states of a few images of a run whose networks are in float32."""
    run = session.run
    seeds = range(run.seed, run.seed + min(run.num, IMAGES))
    jobs = [(target, seed) for seed in seeds for target in session.targets][:IMAGES]
    outputs, batches = _Outputs(session), Batches(len(jobs), tell=lambda _: None)
    return list(chain.from_iterable(batches.map(outputs.states, jobs)))


class _Outputs:
    """What the networks of a session give, asked about whole batches."""

    def __init__(self, session: Session) -> None:
        self.session = session
        for network in (session.denoiser, *session.classifiers):
            network.block = None
        self.latent = getattr(session.denoiser, "latent", False)
        self.guides: list[Guide] = [after_decoding(guide) if self.latent else guide for guide in session.guides]

    @torch.no_grad()
    def states(self, jobs: Sequence[tuple[Target, int]]) -> list[_State]:
        """Returns the states of a batch after each step but the last, with what guides give there."""
        reports, targets = list[Report](), [target for target, _ in jobs]
        steps = max(2, min(STEPS, self.session.run.steps))
        self.session.samples(jobs, [reports.append], guided=False, steps=steps, recurrence=None)
        states = [
            _State(targets=targets, x_t=before.x, step=at.step, x0_hat=self.x0_hat(targets, before.x, at.step))
            for before, at in zip(reports, reports[1:], strict=False)
        ]
        for index, guide in enumerate(self.guides):
            active = [state for state in states if guide.active(state.step)]
            for state in active or (states if guide.scale else ()):
                leaf, input, image = self.seen(index, state)
                if (v := self.gradient(index, state, image)) is not None:
                    passes = guide.differentiates_denoiser or self.latent
                    pulled = torch.autograd.grad(image, leaf, v)[0] if passes else None
                    state.gradients[index] = _Gradient(input=input.detach(), image=image.detach(), v=v, pulled=pulled)
        return states

    def cosines(self, states: Sequence[_State], parts: Collection[str]) -> dict[str, float]:
        """Returns the least cosine with these states of each of the parts that can be compared."""
        cosines: dict[str, list[float]] = {"denoiser": [], "classifier": []}
        for state in states if parts else ():
            cosines["denoiser"].append(_cosine(self.x0_hat(state.targets, state.x_t, state.step), state.x0_hat))
            for index, exact in state.gradients.items():
                if (v := self.gradient(index, state, exact.image)) is not None:
                    cosines["classifier"].append(_cosine(v, exact.v))
                if exact.pulled is not None:
                    leaf, _, image = self.seen(index, state, exact.input)
                    pulled = torch.autograd.grad(image, leaf, exact.v)[0]
                    cosines["denoiser"].append(_cosine(pulled, exact.pulled))
        return {part: round(min(cosines[part]), 4) for part in parts if cosines[part]}

    @torch.no_grad()
    def x0_hat(self, targets: Sequence[Target], x_t: Tensor, step: Step) -> Tensor:
        """Returns the prediction as a sampling step uses it."""
        x0_hat = self._denoiser(targets)(x_t, step.level).x0_hat
        return x0_hat.clamp(-1, 1) if self.session.run.recipe.sampling()["clip"] and not self.latent else x0_hat

    def seen(self, index: int, state: _State, input: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the tensor that a guide's gradient is with respect to, what the guide sees, and its image.

        An input that is given is that of float32, unless the networks under comparison make the input.
        """
        guide, denoiser = self.guides[index], self._denoiser(state.targets)
        through = guide.wrt == "x_t"
        leaf = state.x_t.detach().requires_grad_(through)
        if input is None or through:
            with torch.set_grad_enabled(guide.differentiates_denoiser):
                prediction = denoiser(leaf, state.step.level) if guide.input.needs_denoiser else None
            with torch.set_grad_enabled(through):
                input = guide.input(leaf, prediction, state.step.level, denoiser)
        if not through:
            leaf = input = input.detach().requires_grad_()
        with torch.enable_grad():
            return leaf, input, denoiser.decode(input)

    @torch.enable_grad()
    def gradient(self, index: int, state: _State, image: Tensor) -> Tensor | None:
        """Returns the gradient ``v`` of a guide's objective at an image; None for an objective that has none."""
        image = image.detach().requires_grad_()
        log_likelihood = self.guides[index].objective(image, self.session.rows(state.targets), state.step.level)
        return torch.autograd.grad(log_likelihood.sum(), image)[0] if log_likelihood.requires_grad else None

    def _denoiser(self, targets: Sequence[Target]) -> Conditioned:
        return Conditioned(self.session.denoiser, self.session.conditioning(targets))


def _cosine(a: Float[Tensor, "B *shape"], b: Float[Tensor, "B *shape"]) -> float:
    """Returns the least cosine of two values of each image; 1 where they are equal, 0 where one is not finite."""
    a, b = (value.detach().cpu().double().flatten(1) for value in (a, b))
    cosine = ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).nan_to_num(0, 0, 0)
    return float(torch.where((a == b).all(1), 1, cosine).min())
