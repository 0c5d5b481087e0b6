"""What happens while a batch is drawn: how its images were pushed, how often the networks were asked."""

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from steersman.guidance.view import rms
from steersman.sample import Report

__all__ = ["Meter", "Watch"]


class Watch:
    """Follows the walk of a batch: gradients that were dropped, and how far each image was pushed in all.

    Both are kept where they are computed, so that an accelerator need not wait at each step.
    """

    def __init__(self, on_step: Callable[[], None]) -> None:
        self.on_step = on_step
        self.dropped, self.pushed = torch.zeros((), dtype=torch.int64), torch.zeros(())

    def __call__(self, report: Report) -> None:
        """Takes a step's report."""
        for push in report.pushes:
            if push is not None:
                self.dropped = self.dropped + (~push.finite).sum()
                self.pushed = self.pushed + push.value
        if report.step.repeat == 0:
            self.on_step()

    def moved(self) -> list[float]:
        """Returns how far each image was pushed, once: the watch outlives its batch, whose size it need not keep."""
        pushed, self.pushed = self.pushed, torch.zeros(())
        return rms(pushed).flatten().tolist() if pushed.ndim else []


class Meter:
    """Counts the images that networks are asked about by threads inside, with those that fill up a last block."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self.images, self.inside, self.lock = 0, threading.local(), threading.Lock()
        for network in dict.fromkeys(networks):
            network.register_forward_pre_hook(self._add)

    def __enter__(self) -> None:
        self.inside.now = True

    def __exit__(self, *_: object) -> None:
        self.inside.now = False

    def _add(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if getattr(self.inside, "now", False):
            with self.lock:
                self.images += len(inputs[0])
