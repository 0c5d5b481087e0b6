"""Trained classifiers, with what guidance must know of them.

A classifier maps an image in [-1, 1] to logits f(x) ∈ R^K, and what they mean is its head:

    softmax        log p(names[i] | x) = f_i(x) - log sum_k exp f_k(x)                      one of K classes
    binary         log p(names[1] | x) = log σ(f(x)),  log p(names[0] | x) = log σ(-f(x))    one logit, two classes
    multi-label    log p(names[i] | x) = log σ(f_i(x))                                       independent labels
    texts          f_i(x) = c cos(u(x), v_i), a softmax over the texts i                     `TextClassifier`

A noise-aware classifier has a schedule of its own, alpha' and sigma', and the images may be of another one. At the time
t' with the same ``sigma' / alpha' = sigma / alpha`` both see the same picture and noise, but for a factor:

    f(x_t, t) = f'(alpha' / alpha x_t, t')
"""

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steersman.batching import broadcast, cosine, in_blocks, is_out_of_memory, send
from steersman.errors import InputError, notice, one_line, shown
from steersman.models.classifiers.preprocess import Preprocess, convert_channels
from steersman.models.classifiers.smoothing import NoReLU, SoftCalls, activations, soften
from steersman.names import OR, classes_of, each_class, resolve
from steersman.precision import loss_scaled
from steersman.schedule import Level, Schedule, times

__all__ = ["Classifier", "TextClassifier"]


class Classifier(nn.Module):
    """A network with its preprocessing and the names of its classes.

    The network is frozen in place: its weights get no gradient, and it stays in evaluation mode.

    Args:
        network: Maps the preprocessed image, ``(B, C, h, w)``, to logits ``(B, K)``; a noise-aware one maps the image
            and the time of its noise level, ``(B,)``.
        preprocess: How an image in [-1, 1] becomes the network's input. If it does not state the channels, they are
            those of the network's first convolution.
        names: One name per class or label; synonyms within a name are separated by commas.
        binary: Whether the network has one logit for two classes; σ(f) is the probability of ``names[1]``. With one
            name, the other class is that name with ``not``.
        multilabel: Whether σ(f_i) is the probability of ``names[i]``, independently of the other labels.
        noise_aware: Whether the network was trained on noisy images and takes the time of their level.
        schedule: The noise schedule of its training; None if that is the denoiser's.

    Attributes:
        block: Number of images that the network gets at a time, None for the whole batch (`steersman.batching`).
        spec: What `load_classifier` was given, for messages; None for a network that was not loaded.
        open_vocabulary: Whether any text is a class, which it becomes when it is first resolved.
        softplus: Sharpness β of the Softplus units that `smooth` put in place of the ReLUs, None for ReLUs.
        smoothed: The number of these units, for information.

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
    spec: str | None = None
    softplus: float | None = None
    smoothed: int = 0

    def __init__(
        self,
        network: nn.Module,
        *,
        preprocess: Preprocess,
        names: Iterable[str],
        binary: bool = False,
        multilabel: bool = False,
        noise_aware: bool = False,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__()
        for name, given, valid, wanted in (
            ("network", network, isinstance(network, nn.Module), "a torch.nn.Module; load_classifier takes texts"),
            ("preprocess", preprocess, isinstance(preprocess, Preprocess), "a steersman.Preprocess"),
            ("names", names, not isinstance(names, Mapping), "a list of the classes' names, in their order"),
        ):
            if not valid:
                raise InputError(f"{name} of a Classifier must be {wanted}, got {shown(given)}")
        self.network = network.requires_grad_(False)
        self.preprocess = preprocess
        self.names = tuple(names)
        self.binary, self.multilabel = binary, multilabel
        self.noise_aware, self.schedule = noise_aware, schedule
        if not self.names and not self.open_vocabulary:
            raise InputError("a classifier needs the names of its classes, got none")
        if binary and multilabel:
            raise InputError("a classifier is binary or multilabel, got both; binary is for one logit alone")
        if binary and len(self.names) == 1:
            self.names = (f"not {self.names[0]}", *self.names)
        if binary and len(self.names) != 2:
            raise InputError(f"a binary classifier has two names, got {len(self.names)}")
        convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
        self._channels = next((first.in_channels for first in convolutions), None)
        self.eval()

    def __repr__(self) -> str:
        kind = "labels" if self.multilabel else "texts" if self.open_vocabulary else "classes"
        titles = [shown(self.title(index)).strip("'\"") for index in range(min(3, len(self.names)))]
        more = ", …" if len(self.names) > 3 else ""
        listed = f": {', '.join(titles)}{more}" if titles else ""
        return f"{type(self).__name__}({self._network_name}, {len(self.names)} {kind}{listed})"

    @property
    def _network_name(self) -> str:
        """The class of the network, or of what our own wrapper contains, for messages."""
        network = self.network
        while type(network).__name__.startswith("_") and (child := next(network.children(), None)) is not None:
            network = child
        return type(network).__name__

    @property
    def _said_name(self) -> str:
        """The network, and where it was loaded from."""
        return self._network_name if self.spec is None else f"{self._network_name} of {self.spec!r}"

    def train(self, mode: bool = True) -> "Classifier":
        """Keeps the network in evaluation mode: a guide is never trained."""
        return super().train(False)

    def forward(self, image: Float[Tensor, "B C H W"], level: Level | None = None) -> Float[Tensor, "B K"]:
        """Returns the logits f(x), in float64 where the network's weights are, else in float32.

        Args:
            image: Images in [-1, 1], on the network's device.
            level: The noise level of the images, of any schedule; only a noise-aware network uses it.

        Raises:
            InputError: A noise-aware network gets no level, the network does not take such images, or its outputs are
                not the logits of its classes.
        """
        weights = _dtype(self.network)
        # Half precision has too few digits for resizing, and for the log-softmax that follows.
        exact = torch.promote_types(weights, torch.float32)
        image, time = image.to(exact), ()
        if self.noise_aware:
            if level is None:
                raise InputError("a noise-aware classifier needs the noise level of the images, got none")
            if self.schedule is not None:
                image, level = _at_own_level(self.schedule, image, level)
            time = (times(level, len(image), image.device, exact),)

        def logits(image: Tensor, *time: Tensor) -> Tensor:
            pixels = self._in_own_channels(self.preprocess(image).to(weights), *time)
            return self._checked(self._output(pixels, *time)).to(exact)

        return in_blocks(loss_scaled(logits, weights), self.block, image, *time)

    def _in_own_channels(self, pixels: Float[Tensor, "B C h w"], *time: Tensor) -> Float[Tensor, "B c h w"]:
        """Returns an input with the network's channels, where the preprocessing does not state them."""
        if self.preprocess.channels is not None or {pixels.shape[1], self._channels} != {1, 3}:
            return pixels
        if self._channels == 1 and self._runs(torch.zeros_like(pixels[:1]), *(each[:1] for each in time)):
            self._channels = None  # it converts three channels to one by itself
            return pixels
        return convert_channels(pixels, self._channels)

    def _runs(self, *inputs: Tensor) -> bool:
        """Returns whether the network takes an input."""
        try:
            with torch.no_grad():
                self._output(*inputs)
        except Exception as error:  # a network's own code may fail in any way
            if is_out_of_memory(error):
                raise
            return False
        return True

    def takes_size(self, side: int) -> bool:
        """Returns whether the network takes squares of ``side`` pixels."""
        channels = 1 if self.preprocess.channels == "grey" else self._channels or 3
        device = next(self.network.parameters(), torch.zeros(())).device
        time = [torch.zeros(1, device=device)] * self.noise_aware
        return self._runs(torch.zeros(1, channels, side, side).to(device, _dtype(self.network)), *time)

    def _output(self, pixels: Float[Tensor, "B c h w"], *time: Tensor) -> object:
        try:
            return self.network(pixels, *time)
        except InputError:
            raise
        except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
            if is_out_of_memory(error):
                raise
            size = " x ".join(map(str, pixels.shape[1:]))
            raise InputError(
                f"classifier: {self._said_name} does not take an input of {size} ({one_line(error)})"
            ) from error

    def _checked(self, output: object) -> Float[Tensor, "B K"]:
        """Returns a network's output as one row of logits per image."""
        if self.binary and isinstance(output, Tensor) and output.ndim == 1:
            output = output[:, None]
        width = 1 if self.binary else len(self.names)
        given, hint = type(output).__name__, ""
        if isinstance(output, Tensor):
            if output.ndim == 2 and (self.open_vocabulary or output.shape[1] == width):
                return output
            given = f"outputs of shape {tuple(output.shape)}"
            if output.ndim == 2 and output.shape[1] == 1 and len(self.names) == 2:
                hint = "; a network with one logit for two classes is stated as binary"
        raise InputError(
            f"classifier: {self._said_name} must give (images, {width}) logits, as it has {len(self.names)} names, "
            f"got {given}{hint}"
        )

    @torch.no_grad()
    def features(self, image: Float[Tensor, "B C H W"], level: Level | None = None) -> Float[Tensor, "B D"]:
        """Returns the input of the network's last linear layer, without gradient; the arguments are those of `forward`.

        Raises:
            InputError: The network has no linear layer.
        """
        linear = [module for module in self.network.modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise InputError(f"{self._network_name} has no linear layer to take features before")
        inputs: list[Tensor] = []
        handle = linear[-1].register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
        try:
            logits = self(image, level)
        finally:
            handle.remove()
        return inputs[-1].flatten(1).to(logits.dtype)

    def smooth(self, beta: float) -> "Classifier":
        """Returns this classifier with every ReLU replaced by Softplus_β (EluCD 4.3), and the same weights.

        Args:
            beta: Sharpness β > 0 of the softplus; the larger, the closer to the trained network.

        Raises:
            InputError: β is not positive, or the network has no ReLU.
        """
        network, count = soften(self.network, beta)
        smooth = copy(self)
        smooth._modules = {"network": network}  # copy alone would share the modules' dictionary
        smooth.softplus, smooth.smoothed = beta, count
        if count == 0 and not (isinstance(network, SoftCalls) and smooth._calls_relu(network)):
            others = ", ".join(activations(self.network))
            raise NoReLU(
                f"smoothing: {self._network_name} must have a ReLU for softplus {beta:g} to replace, "
                f"has {f'only {others}' if others else 'none'}"
            )
        return smooth

    def _calls_relu(self, network: SoftCalls) -> bool:
        """Returns whether a network that cannot be traced softens a call when it runs, or cannot be run alone."""
        return not self.takes_size(self.preprocess.size or 64) or network.softened > 0

    def title(self, index: int) -> str:
        """Returns the first of the synonyms of a class."""
        return self.names[index].split(",")[0].strip()

    def resolve(self, target: str | int) -> int:
        """Returns the index of a class, given as index in [0, K), as its number in a text, or as a name in any case.

        A class's full name comes before its comma-separated synonyms.

        Raises:
            InputError: The index is out of range, the name is unknown, or it names more than one class.
        """
        return resolve(target, self.names)

    def members(self, target: Any) -> tuple[int, ...]:  # noqa: ANN401
        """Returns the indices of the classes that a target means, in ascending order: one class, or a set of them.

        Args:
            target: What `resolve` takes; such names joined by ``|``; a name of WordNet above some classes of ImageNet,
                such as ``dog``; or several of these, for their union.

        Raises:
            InputError: A name is unknown or ambiguous, an index is out of range, or the set holds every class.
        """
        return self._members(target, notice)

    def _members(self, target: Any, tell: Callable[[str], object]) -> tuple[int, ...]:  # noqa: ANN401
        indices = sorted({index for part in each_class(target, "target") for index in self._classes_of(part, tell)})
        if not indices:
            raise InputError("target must hold at least one class, got an empty set")
        if len(indices) == len(self.names) > 1 and not self.open_vocabulary:
            raise InputError(f"target must leave out a class, got {shown(target)}, which is every class there is")
        return tuple(indices)

    def _classes_of(self, target: str | int, tell: Callable[[str], object]) -> tuple[int, ...]:
        return classes_of(target, self.names, tell=tell)

    def find(self, target: str | int) -> tuple[int, ...] | None:
        """Returns the indices of the classes that a target means, None where `members` finds none."""
        try:
            return self._members(target, lambda text: None)
        except InputError:
            return None


class TextClassifier(Classifier):
    """An image network and a text encoder into the same embedding space, such as CLIP: any text is a target.

    Its logits are ``f_i(x) = c cos(u(x), v_i)`` with the embeddings u of the image and v of the texts. The softmax over
    several texts is zero-shot classification (the objective ``class``); a text's own logit is its similarity (the
    objective ``logit``). The classes are the texts in the order in which they were resolved; for a softmax, all of them
    should be resolved before the first image.

    Args:
        network: Maps the preprocessed image, ``(B, C, h, w)``, to its embedding u, ``(B, D)``.
        encode: Maps a text to its embedding v, ``(D,)``; called once per text.
        sharpness: The logit scale c, above 0.
        preprocess: How an image in [-1, 1] becomes the network's input.
        names: Texts to resolve at once.

    Raises:
        InputError: A text cannot be encoded.

    Example:
        >>> import steersman as sm
        >>> import torch
        >>> encode = {"left": torch.tensor([1.0, 0.0]), "right": torch.tensor([0.0, 1.0])}.__getitem__
        >>> settings = {"encode": encode, "sharpness": 10.0, "preprocess": sm.Preprocess()}
        >>> classifier = sm.TextClassifier(torch.nn.Flatten(), **settings)
        >>> classifier.resolve("left"), classifier.resolve("right")
        (0, 1)
        >>> classifier(torch.tensor([0.6, 0.8]).reshape(1, 1, 1, 2))
        tensor([[6., 8.]])
    """

    open_vocabulary = True

    def __init__(
        self,
        network: nn.Module,
        *,
        encode: Callable[[str], Tensor],
        sharpness: float,
        preprocess: Preprocess,
        names: Iterable[str] = (),
    ) -> None:
        super().__init__(network, preprocess=preprocess, names=())
        self.encode, self.sharpness = encode, sharpness
        # No buffers: half precision would round them.
        self.embeddings: tuple[Float[Tensor, " D"], ...] = ()
        self._sent: Float[Tensor, "K D"] | None = None
        for name in names:
            self.resolve(name)

    def forward(self, image: Float[Tensor, "B C H W"], level: Level | None = None) -> Float[Tensor, "B K"]:
        """Returns the logits ``c cos(u(x), v_i)`` as `Classifier.forward` does; some text must have been resolved."""
        return self.sharpness * self.similarity(image, level)

    def embed(self, image: Float[Tensor, "B C H W"], level: Level | None = None) -> Float[Tensor, "B D"]:
        """Returns the embeddings u(x) of images."""
        return super().forward(image, level)

    def similarity(self, image: Float[Tensor, "B C H W"], level: Level | None = None) -> Float[Tensor, "B K"]:
        """Returns the cosines ``cos(u(x), v_i)``, in [-1, 1]."""
        if not self.embeddings:
            raise InputError("target must be given to a classifier of texts, as any text, got none")
        u = self.embed(image, level)
        v = self._sent  # kept where it was used last, so that no step waits for a copy
        if v is None or (len(v), v.device, v.dtype) != (len(self.embeddings), u.device, u.dtype):
            with torch.inference_mode(False):  # it may be differentiated through later
                self._sent = v = send(torch.stack(self.embeddings).to(u.dtype), u.device)
        return cosine(u, v)

    def smooth(self, beta: float) -> "TextClassifier":
        """Refuses: networks that are trained with texts have no ReLU."""
        raise NoReLU(f"smoothing: a classifier of texts has no ReLU for softplus {beta:g} to replace")

    def title(self, index: int) -> str:
        """Returns the text itself; its commas separate no synonyms."""
        return self.names[index]

    @torch.no_grad()
    def resolve(self, target: str | int) -> int:
        """Returns the index of a text, which becomes a class if it is none yet; a number is an index.

        Case and repeated spaces do not matter, as in CLIP's tokens.

        Raises:
            InputError: The text is empty or cannot be encoded, or the index is out of range.
        """
        if not isinstance(target, str):
            return super().resolve(target)
        text = " ".join(target.split())
        known = [name.casefold() for name in self.names]
        if text.casefold() in known:
            return known.index(text.casefold())
        if not text:
            raise InputError("target must not be an empty text")
        self.embeddings += (self.encode(text),)
        self.names += (text,)
        return len(self.names) - 1

    def _classes_of(self, target: str | int, tell: Callable[[str], object]) -> tuple[int, ...]:
        return tuple(map(self.resolve, target.split(OR) if isinstance(target, str) else [target]))


def _at_own_level(
    schedule: Schedule, image: Float[Tensor, "B C H W"], level: Level
) -> tuple[Float[Tensor, "B C H W"], Level]:
    """Returns images as a schedule has them at the same noise-to-signal ratio, and its level.

    Beyond the schedule's range, at its nearest level, signal or noise, whichever there is more of, has its scale.
    """
    own = schedule.at_ratio(level.sigma / level.alpha)
    scale = torch.where(level.sigma > level.alpha, own.sigma / level.sigma, own.alpha / level.alpha)
    return broadcast(scale, image) * image, own


def _dtype(network: nn.Module) -> torch.dtype:
    floating = (weight.dtype for weight in network.parameters() if weight.is_floating_point())
    return next(floating, torch.float32)
