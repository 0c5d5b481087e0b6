"""Measurements while a batch is sampled: how far guidance moved its images, how often the networks were evaluated."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from steersman.batching import rms, without_filling
from steersman.sampling.loop import Report

__all__ = ["Watch", "counting", "evaluations", "metered"]


class Watch:
    """A callback that keeps, for each image, the number of dropped updates and how far guidance moved it.

    Both stay on their device, so that no step waits for an accelerator. ``on_step`` is called after each step.
    """

    def __init__(self, on_step: Callable[[], object]) -> None:
        self.on_step = on_step
        self._dropped, self._change = torch.zeros((), dtype=torch.int64), torch.zeros(())

    def __call__(self, report: Report) -> None:
        """Adds what a step did."""
        for update in report.updates:
            if update is not None:
                self._dropped = (~update.finite).to(torch.int64) + self._dropped
                self._change = self._change + update.moved
        if report.step.repeat == 0:
            self.on_step()

    def drops(self, count: int) -> list[int]:
        """Returns the number of dropped updates of each of ``count`` images."""
        return self._dropped.expand(count).tolist()

    def moved(self, count: int) -> list[float] | list[None]:
        """Returns the root mean square of each image's summed `Update.moved`; None where no guide was active."""
        return rms(self._change).flatten().tolist() if self._change.ndim else [None] * count


_inside = threading.local()


def metered(networks: Iterable[nn.Module]) -> None:
    """Has networks counted from now on; calling it again changes nothing."""
    for network in networks:
        if not vars(network).get("metered"):  # on the network, so that a copy, which has the hook, has it too
            network.register_forward_pre_hook(_add)
            vars(network)["metered"] = True


@contextmanager
def counting() -> Iterator[Counter[nn.Module]]:
    """Yields how many images this thread evaluates each metered network for, without those that fill up a block."""
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
    """Returns how many evaluations of each group of networks an image needed.

    It needs one for each of its particles, and two where classifier-free guidance evaluates with and without the label.
    """
    return {name: sum(counts[network] for network in group) / images for name, group in networks.items()}
