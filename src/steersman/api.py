"""Guided samples by one call: what is given as text is loaded, the recipe is bound, and images come out."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from steersman.classifiers import Classifier
from steersman.denoise import Denoiser
from steersman.denoisers import load_denoiser
from steersman.errors import InputError, notice
from steersman.files import in_8_bits
from steersman.guidance.targets import Target, resolved
from steersman.memory import halving, is_out_of_memory
from steersman.precision import ieee
from steersman.recipes import Guides, Recipe, load_recipe
from steersman.sampling import Callback
from steersman.sampling import sample as sample_batch
from steersman.sampling.loop import labelled
from steersman.watch import Watch

__all__ = ["Result", "sample"]

Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class Result:
    """The samples of one call, with their seeds.

    Attributes:
        tensor: The images in [-1, 1], ``(B, C, H, W)``, or samples of the denoiser's shape; a sample that became
            non-finite is left as it is.
        seeds: The seed of each sample.
        dropped: The number of guidance updates of each sample that were dropped because they were not finite.

    Example:
        >>> import steersman as sm
        >>> result = sm.sample("zoo:mnist", seeds=[3], steps=2, progress=False)
        >>> result.images[0].size
        (28, 28)
    """

    tensor: Float[Tensor, "B *image"]
    seeds: tuple[int, ...]
    dropped: tuple[int, ...]

    @property
    def images(self) -> list[Image.Image]:
        """The images as Pillow's, grey or RGB.

        Raises:
            InputError: The samples are no images of 1 or 3 channels.
        """
        if self.tensor.ndim != 4 or self.tensor.shape[1] not in (1, 3):
            raise InputError(
                f"images must have 1 or 3 channels and two sides, got samples of shape {tuple(self.tensor.shape[1:])}; "
                "use result.tensor"
            )
        pixels = in_8_bits(self.tensor).permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(each[..., 0] if each.shape[-1] == 1 else each) for each in pixels]


def sample(
    denoiser: str | Path | Denoiser,
    *,
    classifier: str | Path | Classifier | Sequence[str | Path | Classifier] | None = None,
    target: Target | Iterable[Target] | None = None,
    recipe: str | Path | Recipe | Guides = "default",
    scale: float | None = None,
    steps: int | None = None,
    seeds: int | Iterable[int] = 4,
    condition: Mapping[str, Any] | None = None,
    batch_size: int = 8,
    device: str | torch.device | None = None,
    progress: bool = True,
    callback: Callback | None = None,
) -> Result:
    """Draws one image for each seed from a diffusion model, steered by a classifier towards a target.

    Image k depends on seed k and the settings alone, not on the batch, except for the rounding of the networks.

    Args:
        denoiser: The diffusion model: what `steersman.load_denoiser` takes, or a `Denoiser`.
        classifier: The classifier: what `steersman.load_classifier` takes, or a `Classifier`; several steer together.
            None samples without guidance.
        target: The target class, by name or index: one for all images, or one for each.
        recipe: The method: what `steersman.load_recipe` takes, or the guides of a recipe that is already bound.
        scale: The guidance scale, in place of the recipe's.
        steps: The number of steps, in place of the recipe's.
        seeds: The seeds, or their number, counted from 0.
        condition: The model's own conditioning: ``label`` (a name or an index, one or one for each image), ``prompt``,
            ``cfg_scale``, whatever the model takes.
        batch_size: The number of images drawn at once; halved while they do not fit into memory.
        device: The device of the models that are loaded here; by default the accelerator if there is one, else the
            CPU. A denoiser that is given as an object stays on its device, and the others are loaded there.
        progress: Whether to show a progress bar.
        callback: Called after each step of each batch with a `Report`: the denoised image, each guide's gradient before
            and after stabilisation, its update, and the log-likelihood.

    Returns:
        The images with their seeds.

    Raises:
        InputError: Something that cannot be loaded or does not fit together, a target without a classifier or a
            classifier without a target, or a setting out of range.

    Example:
        >>> import steersman as sm
        >>> result = sm.sample(
        ...     "zoo:mnist", classifier="zoo:mnist-lenet", target="7", recipe="nrcg", steps=2, seeds=2, progress=False
        ... )
        >>> result.tensor.shape
        torch.Size([2, 1, 28, 28])
    """
    seeds = tuple(range(seeds)) if isinstance(seeds, int) else tuple(map(int, seeds))
    if not seeds:
        raise InputError("seeds must hold at least one seed, got none")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    changes = {} if steps is None else {"walk.steps": steps}
    guides = _guides(classifier, recipe, changes, scale, device := _device(device, denoiser))
    if isinstance(denoiser, str | Path):
        denoiser = load_denoiser(str(denoiser), device=device)
    if isinstance(guides, Recipe):
        if target is not None:
            raise InputError(f"target needs a classifier that steers to it, got target {target!r} and no classifier")
        if scale is not None:
            raise InputError(f"scale needs a classifier whose gradient it scales, got scale {scale} and no classifier")
        sampler, settings, guides, targets = guides.sampler(), {**guides.walk(), "particles": None}, (), None
    else:
        sampler, settings, targets = guides.sampler, guides.sampling, resolved(guides, target).tolist()
        if len(targets) not in (1, len(seeds)):
            raise InputError(f"target must be one, or one for each of the {len(seeds)} images, got {len(targets)}")
    conditions = labelled(condition or {}, len(seeds), denoiser.classes, device)

    def draw(rows: slice) -> tuple[Tensor, list[int]]:
        """Returns the images of a batch, and how many updates of each were dropped."""
        count = len(seeds[rows])
        watch = Watch(lambda: bar.update(count / settings["steps"]))
        x0 = sample_batch(
            denoiser,
            sampler,
            guides=guides,
            target=None if targets is None else targets[0] if len(targets) == 1 else targets[rows],
            seeds=seeds[rows],
            condition={key: each[rows] if isinstance(each, Tensor) else each for key, each in conditions.items()},
            device=device,
            callbacks=(watch,) if callback is None else (watch, callback),
            **settings,
        )
        images = denoiser.decode(x0)
        return images if getattr(denoiser, "latent", False) else images.clamp(-1, 1), watch.drops(count)

    with ieee(), torch.no_grad(), tqdm(total=len(seeds), disable=not progress, unit="image") as bar:
        tensors, drops = zip(*_in_batches(draw, len(seeds), batch_size), strict=True)
    tensor = torch.cat(tensors)
    lost = [seed for seed, row in zip(seeds, tensor.flatten(1).isfinite().all(1).tolist(), strict=True) if not row]
    if lost:
        notice(f"the images of seeds {', '.join(map(str, lost))} are not finite; try a smaller scale")
    return Result(tensor=tensor, seeds=seeds, dropped=tuple(chain.from_iterable(drops)))


def _device(device: str | torch.device | None, denoiser: object) -> torch.device:
    """Returns where all runs: where it is asked for, where the denoiser is, or the accelerator that there is."""
    if device is not None:
        return torch.device(device)
    if not isinstance(denoiser, str | Path):
        network = getattr(denoiser, "network", None)
        parameter = next(network.parameters(), None) if isinstance(network, torch.nn.Module) else None
        return torch.device("cpu") if parameter is None else parameter.device
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return there or torch.device("cpu")


def _guides(
    classifier: str | Path | Classifier | Sequence[str | Path | Classifier] | None,
    recipe: str | Path | Recipe | Guides,
    changes: Mapping[str, object],
    scale: float | None,
    device: torch.device,
) -> Guides | Recipe:
    """Returns the bound recipe; without a classifier, the recipe as it is."""
    if isinstance(recipe, Guides):
        if classifier is not None or changes or scale is not None:
            raise InputError("recipe is bound to its classifier already: classifier, scale and steps must be left out")
        return recipe
    recipe = load_recipe(recipe, changes, scale=scale)
    if classifier is None:
        return recipe
    given = [classifier] if isinstance(classifier, str | Path | Classifier) else classifier
    return recipe.bind(*given, device=str(device))


def _in_batches(draw: Callable[[slice], Made], count: int, size: int) -> list[Made]:
    """Returns what is drawn of so many rows, a batch at a time, in smaller ones from where the memory holds no more."""
    drawn: list[Made] = []
    held = size
    for first in range(0, count, size):
        rows = range(first, min(first + size, count))
        try:
            more, held = halving(partial(_parts, draw, rows), min(held, len(rows)))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(
                "the memory must hold one image, and does not; use a recipe that takes the gradient with respect "
                "to x0_hat, or a smaller model"
            ) from error
        drawn += more
    return drawn


def _parts(draw: Callable[[slice], Made], rows: range, size: int) -> list[Made]:
    """Returns what is drawn of some rows, so many at a time."""
    return [draw(slice(first, min(first + size, rows.stop))) for first in range(rows.start, rows.stop, size)]
