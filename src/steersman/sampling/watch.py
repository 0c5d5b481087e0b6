"""What happens while a batch is drawn: how far guidance moved its images, how often the networks were asked."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from steersman.batching import rms, without_filling
from steersman.sampling import Report

__all__ = ["Watch", "counting", "evaluations", "metered"]


class Watch:
    """Follows the steps of a batch: of each image the updates that were dropped, and how far they moved it in all.

    Both are kept where they are computed, so that an accelerator need not wait at each step.
    """

    def __init__(self, on_step: Callable[[], object]) -> None:
        self.on_step = on_step
        self.dropped, self.change = torch.zeros((), dtype=torch.int64), torch.zeros(())

    def __call__(self, report: Report) -> None:
        """Takes a step's report."""
        for update in report.updates:
            if update is not None:
                self.dropped = (~update.finite).to(torch.int64) + self.dropped
                self.change = self.change + update.moved
        if report.step.repeat == 0:
            self.on_step()

    def drops(self, count: int) -> list[int]:
        """Returns how many updates of each of so many images were dropped."""
        return self.dropped.expand(count).tolist()

    def moved(self, count: int) -> list[float] | list[None]:
        """Returns how far guidance moved each of so many images, in the units of a sample; None where none was active.

        It is the root mean square of the sum of what each update moved (`steersman.guidance.Update.moved`).
        """
        return rms(self.change).flatten().tolist() if self.change.ndim else [None] * count


_inside = threading.local()


def metered(networks: Iterable[nn.Module]) -> None:
    """Lets networks be counted from now on; once is enough, whoever shares them."""
    for network in networks:
        if not vars(network).get("metered"):  # on the network, so that a copy, which has the hook, has it too
            network.register_forward_pre_hook(_add)
            vars(network)["metered"] = True


@contextmanager
def counting() -> Iterator[Counter[nn.Module]]:
    """Yields how many images each metered network is asked about by this thread; what fills up a block is none."""
    _inside.counts = counts = Counter[nn.Module]()
    try:
        yield counts
    finally:
        _inside.counts = None


def _add(network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    if (counts := getattr(_inside, "counts", None)) is not None:
        counts[network] += without_filling(len(inputs[0]))


def evaluations(
    counts: Counter[nn.Module], networks: Mapping[str, Iterable[nn.Module]], images: int
) -> dict[str, float]:
    """Returns the cost of an image: how many evaluations of each network it needed.

    An evaluation is a network's output for one input. An image needs one for each of its particles, two where
    classifier-free guidance asks with and without the label, and none for what only fills up a block.

    Args:
        counts: What was counted.
        networks: The networks by what they are to the run; those of one name are added up.
        images: How many images they were counted for.
    """
    return {name: sum(counts[each] for each in group) / images for name, group in networks.items()}
