"""What several analyses are told: the networks, which levels to visit, and where to run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from steersman.blocks import block_size
from steersman.errors import InputError
from steersman.guidance import ClassifierInput
from steersman.lab.analysis.times import choose
from steersman.lab.run import check_device
from steersman.models.classifiers import Classifier, load_classifier
from steersman.models.classifiers.stated import Unstated
from steersman.models.denoisers import load_denoiser
from steersman.recipes.axes import build
from steersman.schedule import Level

__all__ = ["Scope", "floats"]


@dataclass(frozen=True, kw_only=True)
class Scope:
    """The networks of an analysis, the levels that it visits, and where it runs.

    Attributes:
        denoiser: As `steersman.models.denoisers.load_denoiser` reads it.
        classifiers: Each ``[NAME=]SPEC``; the default if None.
        views: What classifiers are shown; ``x_t`` and ``x0_hat`` if None.
        preprocess: How classifiers are fed.
        size: At what side in pixels.
        times: Levels to visit, by their times, separated by commas.
        every: Or every K-th.
        count: Or so many.
        batch_size: Images at a time.
        device: Where the networks run.
    """

    denoiser: str
    classifiers: Sequence[str] | None = None
    views: Sequence[str] | None = None
    preprocess: str = "own"
    size: int | None = None
    times: str | None = None
    every: int | None = None
    count: int | None = None
    batch_size: int = 16
    device: str = "cpu"

    def settings(self) -> dict[str, Any]:
        """Returns what of it makes the figures."""
        made = ("denoiser", "preprocess", "size", "times", "every", "count")
        return {name: getattr(self, name) for name in made} | {"classifiers": self.specs(), "views": list(self.shown())}

    def specs(self) -> dict[str, str]:
        """Returns each classifier by its name.

        Raises:
            InputError: Two of one name.
        """
        found: dict[str, str] = {}
        for each in self.classifiers or ("imagenet:efficientnet-lite0",):
            name, named, spec = each.partition("=")
            name, spec = (name, spec) if named and ":" not in name else (each, each)
            if name in found:
                raise InputError(f"classifier: each name may be given only once, as NAME=SPEC, got {name!r} twice")
            found[name] = spec
        return found

    def shown(self) -> dict[str, ClassifierInput]:
        """Returns the views by name."""
        return {name: build("input", name) for name in self.views or ("noisy", "denoised")}

    def load_denoiser(self) -> Any:  # noqa: ANN401
        """Returns the denoiser, in blocks of one size."""
        check_device(self.device)
        denoiser = load_denoiser(self.denoiser, device=self.device)
        self.fit([denoiser], self.batch_size)
        return denoiser

    def load_classifiers(self, **settings: Any) -> dict[str, Classifier]:  # noqa: ANN401
        """Returns the classifiers by name, in blocks of one size, fed as said here or in the settings."""
        settings = {"preprocess": self.preprocess, "size": self.size} | settings
        found = {}
        for name, spec in self.specs().items():
            found[name] = load_classifier(spec, device=self.device, **settings)
            if isinstance(found[name].preprocess, Unstated):
                raise found[name].preprocess.refusal()
        self.fit(found.values(), self.batch_size)
        return found

    def fit(self, parts: Iterable[Any], size: int) -> None:
        """Has denoiser and classifiers see blocks of one size, for batches of a size that is at most the batch size."""
        block = block_size(self.device, size)
        for each in parts:
            each.block = block if size == self.batch_size else min(block, size)

    def places(self, levels: Sequence[Level]) -> list[int]:
        """Returns the places of the levels to visit among all."""
        times = None if self.times is None else floats("times", self.times)
        return choose(levels, times=times, every=self.every, count=self.count)


def floats(name: str, text: str) -> list[float]:
    """Returns the numbers that stand between commas."""
    try:
        return [float(each) for each in text.split(",")]
    except ValueError:
        raise InputError(f"{name} must be numbers with commas between them, got {text!r}") from None
