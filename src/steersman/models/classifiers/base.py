"""A trained classifier with what guidance must know of it.

A classifier maps an image in [-1, 1] to logits f(x) ∈ R^K, and what they mean is its head:

    softmax        log p(names[i] | x) = f_i(x) - log sum_k exp f_k(x)                      one of K classes
    binary         log p(names[1] | x) = log σ(f(x)),  log p(names[0] | x) = log σ(-f(x))    one logit, two classes
    multi-label    log p(names[i] | x) = log σ(f_i(x))                                       each label for itself

Objectives and measurements follow it. The weights are frozen: only the image has a gradient.

One that knows noise has a schedule of its own, alpha' and sigma', and the images may be of another one. At the time t'
with the same ``sigma' / alpha' = sigma / alpha``, both see the same picture and the same noise, but for a factor:

    f(x_t, t) = f'(alpha' / alpha x_t, t')
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steersman.batching import in_blocks, is_out_of_memory
from steersman.errors import InputError, one_line, shown
from steersman.models.classifiers.preprocess import Preprocess, in_channels
from steersman.models.classifiers.smoothing import NoReLU, SoftCalls, activations, soften
from steersman.names import resolve
from steersman.precision import loss_scaled
from steersman.schedule import Level, Schedule, broadcast, times

__all__ = ["Classifier"]


class Classifier(nn.Module):
    """A network with its preprocessing and the names of its classes.

    The network is frozen in place: its weights get no gradient, and it stays in evaluation mode.

    Args:
        network: Maps the preprocessed image, ``(B, C, h, w)``, to logits ``(B, K)``; with ``told_level``, it
            maps the image and the level's time, ``(B,)``.
        preprocess: How an image in [-1, 1] becomes the network's input. If it does not state the channels, they are
            those of the network's first convolution: for a network of three channels, one channel is repeated; for a
            network of one channel, the luminance of red, green and blue is taken.
        names: One name a class or label; synonyms within a name are separated by commas.
        binary: Whether the network has one logit for two classes; σ(f) is the probability of ``names[1]``. With one
            name, the other class is that name with ``not``.
        multilabel: Whether σ(f_i) is the probability of ``names[i]``, independently of the other labels.
        told_level: Whether the network was trained on noisy images and takes the time of their level.
        schedule: The noise schedule of its training; None if that is the denoiser's.
        softplus: The sharpness β of the Softplus units that `smooth` put in place of the ReLUs.
        smoothed: The number of these units, for information.

    Attributes:
        block: How many images the network gets at a time, None for the whole batch (`steersman.batching`).
        open_vocabulary: Whether any text is a class, which it becomes when it is first resolved.

    Raises:
        InputError: There are no names, a binary network has more than two names, or is also multi-label.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2))
        >>> classifier = sm.Classifier(network, preprocess=sm.Preprocess(size=8), names=["cat", "dog"])
        >>> classifier
        Classifier(Sequential, 2 classes: cat, dog)
        >>> classifier(2 * torch.rand(4, 3, 32, 32) - 1).shape, classifier.resolve("dog")
        (torch.Size([4, 2]), 1)
    """

    block: int | None = None
    open_vocabulary: bool = False

    def __init__(
        self,
        network: nn.Module,
        *,
        preprocess: Preprocess,
        names: Iterable[str],
        binary: bool = False,
        multilabel: bool = False,
        told_level: bool = False,
        schedule: Schedule | None = None,
        softplus: float | None = None,
        smoothed: int = 0,
    ) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.preprocess = preprocess
        self.names = tuple(names)
        self.binary = binary
        self.multilabel = multilabel
        self.told_level = told_level
        self.schedule = schedule
        self.softplus, self.smoothed = softplus, smoothed
        if not self.names and not self.open_vocabulary:
            raise InputError("a classifier needs the names of its classes, got none")
        if binary and multilabel:
            raise InputError("a classifier is binary or multilabel, got both; binary is for one logit alone")
        if binary and len(self.names) == 1:
            self.names = (f"not {self.names[0]}", *self.names)
        if binary and len(self.names) != 2:
            raise InputError(f"a binary classifier has two names, got {len(self.names)}")
        self.takes = next((each.in_channels for each in network.modules() if isinstance(each, nn.Conv2d)), None)
        self.eval()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._kind}, {self._classes})"

    @property
    def _classes(self) -> str:
        """How many classes there are and the first of their names, in at most a line."""
        kind = "labels" if self.multilabel else "texts" if self.open_vocabulary else "classes"
        first = [shown(self.title(index)).strip("'\"") for index in range(min(3, len(self.names)))]
        more = ", …" * (len(self.names) > len(first))
        return f"{len(self.names)} {kind}" + (f": {', '.join(first)}{more}" if first else "")

    def train(self, mode: bool = True) -> "Classifier":
        """Keeps the network in evaluation mode, whatever is asked for: a guide is never trained."""
        return super().train(False)

    def forward(self, image: Float[Tensor, "B C H W"], level: Level | None = None) -> Float[Tensor, "B K"]:
        """Returns the logits f(x).

        Args:
            image: Images in [-1, 1], on the network's device.
            level: The noise level of the images, of whatever schedule; only a network that was trained to be told it
                sees it.

        Returns:
            The logits, in float64 where the network's weights are, else in float32.

        Raises:
            InputError: The network needs the level, and there is none; it does not take such images; or its outputs are
                not the logits of the classes that it has names for.
        """
        weights = _dtype(self.network)
        # Half precision has too few digits for resizing, and for the log-softmax that follows.
        exact = torch.promote_types(weights, torch.float32)
        image, told = image.to(exact), []
        if self.told_level:
            if level is None:
                raise InputError("this classifier was trained to be told the noise level, but got none")
            if self.schedule is not None:
                image, level = _on(self.schedule, image, level)
            told = [times(level, len(image), image.device, exact)]

        def logits(image: Tensor, *told: Tensor) -> Tensor:
            image = self._adapted(self.preprocess(image).to(weights), *told)
            return self._checked(self._output(image, *told)).to(exact)

        return in_blocks(loss_scaled(logits, weights), self.block, image, *told)

    @property
    def _kind(self) -> str:
        """What the network is, for messages: the class of what a wrapper of ours holds."""
        network = self.network
        while type(network).__name__.startswith("_") and (held := next(network.children(), None)) is not None:
            network = held
        return type(network).__name__

    def _adapted(self, shown: Float[Tensor, "B C h w"], *told: Tensor) -> Float[Tensor, "B c h w"]:
        """Returns an input with the channels that the network takes, where its preprocessing does not state them."""
        if self.preprocess.channels is not None or {shown.shape[1], self.takes} != {1, 3}:
            return shown
        if self.takes == 1 and self._runs(torch.zeros_like(shown[:1]), *(each[:1] for each in told)):
            self.takes = None  # it makes one channel of three by itself
            return shown
        return in_channels(shown, self.takes)

    def _runs(self, *inputs: Tensor) -> bool:
        """Returns whether the network takes an input."""
        try:
            with torch.no_grad():
                self._output(*inputs)
        except Exception as error:  # of a network's own code, which may fail in any way
            if is_out_of_memory(error):
                raise
            return False
        return True

    def takes_size(self, side: int) -> bool:
        """Returns whether the network takes squares of so many pixels."""
        channels = 1 if self.preprocess.channels == "grey" else self.takes or 3
        parameter = next(self.network.parameters(), torch.zeros(()))
        told = [torch.zeros(1, device=parameter.device)] * self.told_level
        return self._runs(torch.zeros(1, channels, side, side).to(parameter.device, _dtype(self.network)), *told)

    def _output(self, shown: Float[Tensor, "B c h w"], *told: Tensor) -> object:
        """Returns what the network makes of its input."""
        try:
            return self.network(shown, *told)
        except InputError:
            raise
        except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
            if is_out_of_memory(error):
                raise
            size = " x ".join(map(str, shown.shape[1:]))
            name = self._kind
            raise InputError(f"classifier: {name} does not take an input of {size} ({one_line(error)})") from error

    def _checked(self, output: object) -> Float[Tensor, "B K"]:
        """Returns a network's output as one row of logits an image."""
        if self.binary and isinstance(output, Tensor) and output.ndim == 1:
            output = output[:, None]
        width = 1 if self.binary else len(self.names)
        given, more = type(output).__name__, ""
        if isinstance(output, Tensor):
            if output.ndim == 2 and (self.open_vocabulary or output.shape[1] == width):
                return output
            given = f"outputs of shape {tuple(output.shape)}"
            if output.ndim == 2 and output.shape[1] == 1 and len(self.names) == 2:
                more = "; a network with one logit for two classes is stated as binary"
        raise InputError(
            f"classifier: {self._kind} must give (images, {width}) logits, as it has "
            f"{len(self.names)} names, got {given}{more}"
        )

    @torch.no_grad()
    def features(self, image: Float[Tensor, "B C H W"], level: Level | None = None) -> Float[Tensor, "B D"]:
        """Returns the penultimate features of the images: the input of the network's last linear layer.

        Args:
            image: Images in [-1, 1], on the network's device.
            level: The noise level of the images, as in ``forward``.

        Returns:
            The features, without gradient, in the dtype of the logits.

        Raises:
            InputError: The network has no linear layer.
        """
        linear = [module for module in self.network.modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise InputError(f"{self._kind} has no linear layer to take features before")
        seen: list[Tensor] = []
        handle = linear[-1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        try:
            logits = self(image, level)
        finally:
            handle.remove()
        return seen[-1].flatten(1).to(logits.dtype)

    def smooth(self, beta: float) -> "Classifier":
        """Returns this classifier with every ReLU replaced by Softplus_β (EluCD 4.3), and the same weights.

        Args:
            beta: Sharpness β > 0 of the softplus; the larger, the closer to the trained network.

        Raises:
            InputError: β is not positive.
            NoReLU: The network has no ReLU.
        """
        network, count = soften(self.network, beta)
        smooth = Classifier(
            network,
            preprocess=self.preprocess,
            names=self.names,
            binary=self.binary,
            multilabel=self.multilabel,
            told_level=self.told_level,
            schedule=self.schedule,
            softplus=beta,
            smoothed=count,
        )
        if count == 0 and not (isinstance(network, SoftCalls) and smooth._calls_relu(network)):
            has = ", ".join(activations(self.network))
            raise NoReLU(
                f"smoothing: {self._kind} must have a ReLU for softplus {beta:g} to replace, "
                f"has {f'only {has}' if has else 'none'}"
            )
        return smooth

    def _calls_relu(self, network: SoftCalls) -> bool:
        """Returns whether a network that cannot be traced softens anything when it runs, or cannot be run alone."""
        return not self.takes_size(self.preprocess.size or 64) or network.softened > 0

    def title(self, index: int) -> str:
        """Returns what a class is called: the first of its synonyms."""
        return self.names[index].split(",")[0].strip()

    def resolve(self, target: str | int) -> int:
        """Returns the index of a class.

        Args:
            target: An index in [0, K), as number or text, or a name in any case: first a class's full name,
                then any of its comma-separated synonyms.

        Raises:
            InputError: The index is out of range, the name is unknown, or it names more than one class.
        """
        return resolve(target, self.names)

    def find(self, target: str | int) -> int | None:
        """Returns the index of a class, None where `resolve` finds none."""
        try:
            return self.resolve(target)
        except InputError:
            return None


def _on(schedule: Schedule, image: Float[Tensor, "B C H W"], level: Level) -> tuple[Float[Tensor, "B C H W"], Level]:
    """Returns images as a schedule has them at the same noise-to-signal ratio, and its level.

    Beyond the schedule's range, at its nearest level, signal or noise, whichever there is more of, has its scale.
    """
    own = schedule.at_ratio(level.sigma / level.alpha)
    scale = torch.where(level.sigma > level.alpha, own.sigma / level.sigma, own.alpha / level.alpha)
    return broadcast(scale, image) * image, own


def _dtype(network: nn.Module) -> torch.dtype:
    floating = (p.dtype for p in network.parameters() if p.is_floating_point())
    return next(floating, torch.float32)
