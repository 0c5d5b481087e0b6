"""What a run costs beside its networks: the time of sampling over that of the same network calls in a bare loop.

    ratio = seconds that a batch takes / seconds of its network calls alone

Both are timed in turn, now one first and now the other, so that other work on the machine falls on both; the ratio is
the median over these pairs. That of processor seconds, over all threads, hardly depends on other work; on an
accelerator it is the ratio of the host's work alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from steersman.batching import counting, evaluations
from steersman.lab.placement import choose_placement
from steersman.lab.profiling import peak_memory, timed
from steersman.lab.run import Run
from steersman.lab.session import Target, load_session
from steersman.precision import ieee

__all__ = ["Call", "Calls", "bench"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """A call of a network, its inputs with those that a gradient reached as leaves, and whether gradients were on."""

    network: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    graph: bool

    @property
    def leaves(self) -> list[Tensor]:
        """The inputs that a gradient goes back to."""
        inputs = (*self.args, *self.kwargs.values())
        return [value for value in inputs if isinstance(value, Tensor) and value.requires_grad]


@dataclass
class Calls:
    """Recorded calls of networks, to be replayed."""

    # Each call in its order, and again, with True, wherever a gradient went back through it
    events: list[tuple[Call, bool]] = field(default_factory=list)

    @contextmanager
    def recording(self, networks: Sequence[nn.Module]) -> Iterator[None]:
        """Records the calls of these networks."""
        hooks = [network.register_forward_hook(self._record, with_kwargs=True) for network in dict.fromkeys(networks)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _record(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:  # noqa: ANN401
        graph = torch.is_grad_enabled()
        copies = {name: _copy(value) for name, value in kwargs.items()}
        call = Call(network=network, args=tuple(map(_copy, args)), kwargs=copies, graph=graph)
        self.events.append((call, False))
        inputs = (*args, *kwargs.values())
        differentiated = [value for value in inputs if isinstance(value, Tensor) and value.requires_grad]
        if graph and differentiated:
            differentiated[0].register_hook(lambda _: self.events.append((call, True)))

    def replay(self) -> None:
        """Makes the calls again; a gradient goes back through its own call alone, from ones."""
        last = {call: position for position, (call, backward) in enumerate(self.events) if backward}
        outputs: dict[Call, Tensor] = {}
        for position, (call, backward) in enumerate(self.events):
            if backward:
                again = position < last[call]
                output = outputs[call] if again else outputs.pop(call)
                torch.autograd.grad(output, call.leaves, torch.ones_like(output), retain_graph=again)
            else:
                with torch.set_grad_enabled(call.graph):
                    output = _first_tensor(call.network(*call.args, **call.kwargs))
                if call in last:
                    outputs[call] = output
            del output  # and its graph, before the next call takes memory

    def count(self) -> int:
        """Returns the number of forward calls."""
        return sum(not backward for _, backward in self.events)


def _copy(value: Any) -> Any:  # noqa: ANN401
    """Returns a copy of a tensor as a leaf of its own; anything else as it is."""
    return value.detach().clone().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


def _first_tensor(output: Any) -> Tensor:  # noqa: ANN401
    """Returns the first tensor of what a network returned."""
    return output if isinstance(output, Tensor) else _first_tensor(output[0])


@ieee()
def bench(
    run: Run, *, steps: int | None = None, repeats: int = 5, on_pair: Callable[[], object] = lambda: None
) -> tuple[dict[str, Any], Run]:
    """Returns the figures of the first batch of a run, its images a second for ``steps``, and the run as placed."""
    run = choose_placement(run)
    session = load_session(run)
    jobs = [(target, seed) for target in session.targets for seed in range(run.seed, run.seed + run.num)][: run.at_once]

    def recorded(jobs: Sequence[tuple[Target, int]]) -> tuple[Calls, Mapping[str, float], int]:
        calls = Calls()
        with calls.recording(session.networks), counting() as counts:
            session.draw(jobs)
        return calls, evaluations(counts, session.counted, len(jobs)), len(jobs)

    calls, needed, size = next(session.batches.map(recorded, jobs))
    floor, ours = calls.replay, partial(session.draw, jobs[:size])
    pairs = []
    for repeat in range(repeats):
        order = (floor, ours) if repeat % 2 == 0 else (ours, floor)
        times = {work: timed(work, run.device) for work in order}
        pairs.append((times[floor], times[ours]))
        on_pair()
    ratios, cpu_ratios = ([second[clock] / first[clock] for first, second in pairs] for clock in (0, 1))
    seconds = median(wall for _, (wall, _) in pairs)
    figures = {
        "steps": run.steps,
        "images": size,  # fewer than a batch where the memory does not hold it
        "calls": calls.count(),
        "evaluations": needed,  # of each network, that an image needed
        "floor": median(wall for (wall, _), _ in pairs),  # seconds of the network calls alone
        "ours": seconds,
        "ratio": median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "ratio_cpu": median(cpu_ratios),
        "images_per_second": size / seconds * run.steps / (steps or run.steps),
        "peak": peak_memory(ours, run.device),  # bytes
        "peak_floor": peak_memory(floor, run.device),
        "device": torch.cuda.get_device_name(run.device) if run.device.startswith("cuda") else run.device,
        "threads": torch.get_num_threads(),
        "run": run.record(),
    }
    return figures, run
