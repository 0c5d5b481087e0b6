"""A classifier whose classes are texts: any text is a target.

A network embeds the image as u(x), an encoder each text as v_i, into one space, and

    f_i(x) = c cos(u(x), v_i),

c being the sharpness (CLIP: logit scale) that both were trained with, so that the softmax over several texts is
zero-shot classification (the objective ``class``). One text's own logit is its similarity (the objective ``logit``):
the constant c is one with the guide's scale, so that similarity needs no objective of its own.
"""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from steersman.batching import cosine, send
from steersman.errors import InputError
from steersman.models.classifiers.base import Classifier
from steersman.models.classifiers.preprocess import Preprocess
from steersman.models.classifiers.smoothing import NoReLU
from steersman.schedule import Level

__all__ = ["TextClassifier"]


class TextClassifier(Classifier):
    """An image network and a text encoder into the same embedding space, such as CLIP.

    Its classes are the texts that have been resolved, in that order. If the objective is a softmax over them, all of
    them should be resolved before the first image.

    Args:
        network: Maps the preprocessed image, ``(B, C, h, w)``, to its embedding u, ``(B, D)``.
        encode: Maps a text to its embedding v, ``(D,)``; called once a text.
        sharpness: The logit scale c, above 0.
        preprocess: How an image in [-1, 1] becomes the network's input.
        names: Texts to resolve at once.

    Raises:
        InputError: A text that cannot be encoded.

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
        self.encode = encode
        self.sharpness = sharpness
        # Neither a buffer, which half precision would round, nor on the network's device before it is asked for there.
        self.embeddings: tuple[Float[Tensor, " D"], ...] = ()
        self._sent: Float[Tensor, "K D"] | None = None
        for name in names:
            self.resolve(name)

    def forward(self, image: Float[Tensor, "B C H W"], level: Level | None = None) -> Float[Tensor, "B K"]:
        """Returns the logits ``c cos(u(x), v_i)``; the arguments, type and device are a `Classifier`'s.

        Raises:
            InputError: No text has been resolved yet.
        """
        return self.sharpness * self.similarity(image, level)

    def similarity(self, image: Float[Tensor, "B C H W"], level: Level | None = None) -> Float[Tensor, "B K"]:
        """Returns the cosines ``cos(u(x), v_i)``, in [-1, 1]; see ``forward``."""
        if not self.embeddings:
            raise InputError("target must be given to a classifier of texts, as any text, got none")
        u = super().forward(image, level)
        v = self._sent  # kept where it was used last, so that no step waits for a copy
        if v is None or (len(v), v.device, v.dtype) != (len(self.embeddings), u.device, u.dtype):
            with torch.inference_mode(False):  # it may be differentiated through later
                self._sent = v = send(torch.stack(self.embeddings).to(u.dtype), u.device)
        return cosine(u, v)

    def smooth(self, beta: float) -> "TextClassifier":
        """Refuses: the towers that are trained with texts have no ReLU.

        Raises:
            NoReLU: Always.
        """
        raise NoReLU(f"smoothing: a classifier of texts has no ReLU for softplus {beta:g} to replace")

    def title(self, index: int) -> str:
        """Returns the text itself: its commas part no synonyms."""
        return self.names[index]

    @torch.no_grad()
    def resolve(self, target: str | int) -> int:
        """Returns the index of a text, which becomes a class if it is none yet.

        Args:
            target: Any text, in which neither case nor the width of spaces matter, as in CLIP's tokens; a number is an
                index only where it is no text.

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
