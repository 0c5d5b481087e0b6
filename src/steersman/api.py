"""The public functions: `sample` draws guided images by one call, `steer` guides a diffusers pipeline."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from steersman.batching import Batches, expand, row_count, take
from steersman.denoise import Denoiser
from steersman.errors import InputError, notice
from steersman.files import in_8_bits
from steersman.guidance.guide import Guide
from steersman.guidance.target import Encoded, Target, resolve_targets
from steersman.models.classifiers import Classifier
from steersman.models.denoisers import load_denoiser
from steersman.pipelines.steered import SteeredPipeline
from steersman.precision import ieee
from steersman.recipes import Guides, Recipe, load_recipe
from steersman.sampling import Callback
from steersman.sampling import sample as sample_batch
from steersman.sampling.loop import Recurrence, labelled
from steersman.sampling.particles import Particles
from steersman.sampling.watch import Watch, warning_of

__all__ = ["Result", "sample", "steer"]


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
            None samples without guidance, unless the recipe's objective needs no classifier.
        target: The target, one for all images or a list of one for each: a class, by name or index; a set of classes,
            as a Python set, as ``"tabby|tiger cat"``, or as a name of WordNet such as ``"dog"``; or what else the
            recipe's objective takes, such as a reference image.
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

    Warns:
        Notice: Images that are not finite, or that guidance hardly changed, or changed beyond recognition.

    Example:
        >>> import steersman as sm
        >>> result = sm.sample(
        ...     "zoo:mnist", classifier="zoo:mnist-lenet", target="7", recipe="nrcg", steps=2, seeds=2, progress=False
        ... )
        >>> result.tensor.shape
        torch.Size([2, 1, 28, 28])
    """
    if not isinstance(denoiser, str | Path | Denoiser):
        raise InputError(
            "denoiser must be a text such as 'zoo:sportballs', a folder, or a steersman.Denoiser, got "
            f"{type(denoiser).__name__}; a pipeline is steered by steersman.steer, a network wrapped as "
            "NetworkDenoiser(network, schedule=..., shape=...)"
        )
    if not isinstance(seeds, int | Iterable) or isinstance(seeds, str):
        raise InputError(f"seeds must be a number of images, or a list of one seed for each, got {seeds!r}")
    if condition is not None and not isinstance(condition, Mapping):
        raise InputError(f"condition must be a mapping such as {{'label': 'cat'}}, got {condition!r}")
    seeds = tuple(range(seeds)) if isinstance(seeds, int) else tuple(map(int, seeds))
    if not seeds:
        raise InputError("seeds must hold at least one seed, got none")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    changes = {} if steps is None else {"sampling.steps": steps}
    guides = _guides(classifier, recipe, changes, scale, device := _device(device, denoiser))
    if isinstance(denoiser, str | Path):
        denoiser = load_denoiser(str(denoiser), device=device)
    if isinstance(guides, Recipe):
        if target is not None:
            raise InputError(f"target needs a classifier that steers to it, got target {target!r} and no classifier")
        if scale is not None:
            raise InputError(f"scale needs a classifier whose gradient it scales, got scale {scale} and no classifier")
        sampler, settings, guides, targets = guides.sampler(), {**guides.sampling(), "particles": None}, (), None
    else:
        sampler, settings, targets = guides.sampler, guides.sampling, resolve_targets(guides, target)
        if (given := row_count(targets)) not in (1, len(seeds)):
            raise InputError(f"target must be one, or one for each of the {len(seeds)} images, got {given}")
        targets = expand(targets, len(seeds), "cpu")
    conditions = labelled(condition or {}, len(seeds), denoiser.classes, device)

    def draw(numbers: range) -> tuple[Tensor, list[int], list[float] | list[None]]:
        """Returns the images of a batch, of each the number of updates that were dropped, and how far it was moved."""
        rows, count = slice(numbers.start, numbers.stop), len(numbers)
        watch = Watch(lambda share: bar.update(count * share), settings["recurrence"])
        x0 = sample_batch(
            denoiser,
            sampler,
            guides=guides,
            target=None if targets is None else Encoded(take(targets, torch.arange(numbers.start, numbers.stop))),
            seeds=seeds[rows],
            condition={key: each[rows] if isinstance(each, Tensor) else each for key, each in conditions.items()},
            device=device,
            callbacks=(watch,) if callback is None else (watch, callback),
            **settings,
        )
        images = denoiser.decode(x0)
        return (
            images if getattr(denoiser, "latent", False) else images.clamp(-1, 1),
            watch.drops(count),
            watch.moved(count),
        )

    batches = Batches(
        min(batch_size, len(seeds)),
        refusal="the memory must hold one image, and does not; use a recipe that takes the gradient with respect to "
        "x0_hat, or a smaller model",
    )
    with ieee(), torch.no_grad(), tqdm(total=len(seeds), disable=not progress, unit="image") as bar:
        tensors, drops, moved = zip(*batches.map(draw, range(len(seeds))), strict=True)
    tensor = torch.cat(tensors)
    lost = [seed for seed, row in zip(seeds, tensor.flatten(1).isfinite().all(1).tolist(), strict=True) if not row]
    if lost:
        notice(f"the images of seeds {', '.join(map(str, lost))} are not finite; try a smaller scale")
    elif said := warning_of(list(chain.from_iterable(moved))):
        notice(said)
    return Result(tensor=tensor, seeds=seeds, dropped=tuple(chain.from_iterable(drops)))


def _device(device: str | torch.device | None, denoiser: object) -> torch.device:
    """Returns the given device, that of the denoiser, or the accelerator if there is one."""
    if device is not None:
        try:
            return torch.device(device)
        except RuntimeError as error:
            raise InputError(f"device must be cpu, cuda, cuda:0, … or mps, got {device!r}") from error
    if not isinstance(denoiser, str | Path):
        network = getattr(denoiser, "network", None)
        parameter = next(network.parameters(), None) if isinstance(network, torch.nn.Module) else None
        return torch.device("cpu") if parameter is None else parameter.device
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def _guides(
    classifier: str | Path | Classifier | Sequence[str | Path | Classifier] | None,
    recipe: str | Path | Recipe | Guides,
    changes: Mapping[str, object],
    scale: float | None,
    device: torch.device,
) -> Guides | Recipe:
    """Returns the bound recipe; without a classifier that it needs, the recipe as it is."""
    if isinstance(recipe, Guides):
        if classifier is not None or changes or scale is not None:
            raise InputError("recipe is bound to its classifier already: classifier, scale and steps must be left out")
        return recipe
    recipe = load_recipe(recipe, changes, scale=scale)
    if classifier is None:
        return recipe if recipe.needs_classifier else recipe.bind()
    given = [classifier] if isinstance(classifier, str | Path | Classifier) else classifier
    return recipe.bind(*given, device=str(device))


@contextmanager
def steer(
    pipe: Any,  # noqa: ANN401
    guide: Guide | Sequence[Guide] | None = None,
    target: Target | Iterable[Target] | None = None,
    *,
    classifier: str | Path | Classifier | None = None,
    recipe: str | Path | Recipe | None = None,
    scale: float | None = None,
    recurrence: Recurrence | None = None,
    particles: Particles | None = None,
    frames: Sequence[int] | None = None,
) -> Iterator[None]:
    """Steers whatever a diffusers pipeline draws inside the ``with`` block.

    Pipeline, scheduler and arguments are used as they are, any number of times; every call is a trajectory of its own.
    On leaving the block, also by an exception, the pipeline is as it was before. Where no guide is active, its images
    are the same bit for bit. The pipeline's scheduler clips as it is set to, also what guides made of the image.

    The samples are images in [-1, 1], or latents that the pipeline's VAE decodes, one at a time and with recomputed
    activations, to save memory; a classifier input that clips does so after decoding. Of a video the classifier sees
    the frames, and the objective is their mean. docs/models.md lists the pipelines that are covered.

    The gradient with respect to ``x0_hat`` leaves the network alone: it may be offloaded, quantised or compiled. The
    gradient with respect to ``x_t`` needs a network that has a gradient and whose weights stay where they are; it may
    be wrapped by ``torch.compile``, be in half precision, and recompute its activations. What a pipeline computes
    beside its network, such as a ControlNet's residuals, is a constant there.

    The lookahead input, the injection ``sample``, recurrence and particles evaluate the pipeline's network again, with
    the conditioning of its last call. Each particle costs one more evaluation; its random numbers come from the
    pipeline's generators.

    All of that is tested on a CPU with small random networks: ``torch.compile`` by its eager backend, offloading by
    accelerate's hooks to the CPU itself. Quantised networks are not tested.

    Args:
        pipe: The pipeline; its scheduler is chosen before.
        guide: The guide, or several; what `Recipe.bind` returns includes the recipe's recurrence and particles. Without
            a guide, the recipe is bound to the classifier.
        target: The target, as `sample` takes it: one for all images, or a list of one for each, in the order in which
            the pipeline returns them.
        classifier: The classifier, if no guide is given: what `steersman.load_classifier` takes, or a `Classifier`.
        recipe: The method, if no guide is given: what `steersman.load_recipe` takes. By default ``default/once``: a
            pipeline's steps cannot be taken back, so that no image starts again.
        scale: The guidance scale, in place of the recipe's.
        recurrence: How often steps are repeated, in place of the recipe's.
        particles: The particles of an image and their resampling, in place of the recipe's.
        frames: The frames of a video that the classifier sees, negative numbers from the end; all by default.

    Raises:
        InputError: An unknown pipeline or scheduler, guides that the pipeline cannot follow (the gradient with respect
            to ``x_t`` of a network that is offloaded or compiled in place; recurrence or particles with a scheduler
            that keeps a history), or targets that are not one or one for each image. What depends on the images
            themselves is refused at the first step.

    Warns:
        UserWarning: No step was guided.
        Notice: Guidance hardly changed the samples, or changed them beyond recognition.

    Example:
        >>> import steersman as sm
        >>> from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
        >>> from torch import nn
        >>> blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "block_out_channels": [8]}
        >>> pipe = DDPMPipeline(UNet2DModel(sample_size=8, norm_num_groups=4, **blocks), DDPMScheduler())
        >>> pipe.set_progress_bar_config(disable=True)
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
        >>> classifier = sm.Classifier(network, preprocess=sm.Preprocess(size=8), names=["cat", "dog"])
        >>> with sm.steer(pipe, classifier=classifier, target="dog", recipe="nrcg"):
        ...     image = pipe(num_inference_steps=2).images[0]
        >>> image.size
        (8, 8)
    """
    if guide is not None and classifier is not None:
        raise InputError("steer needs a guide or a classifier, got both")
    if guide is not None and (scale is not None or recipe is not None):
        raise InputError(
            "steer takes recipe and scale with a classifier alone, got them with a guide, which has its own"
        )
    if guide is None:
        recipe = load_recipe("default/once" if recipe is None else recipe, scale=scale)
        if classifier is None and recipe.needs_classifier:
            raise InputError("steer needs a guide or a classifier, got neither")
        given = () if classifier is None else (classifier,)
        guide = recipe.bind(*given, device=str(getattr(pipe, "_execution_device", "cpu")))
    guides = (guide,) if isinstance(guide, Guide) or not isinstance(guide, Sequence) else tuple(guide)
    if isinstance(guide, str) or not all(isinstance(each, Guide) for each in guides):
        raise InputError(
            f"guide must be a steersman.Guide or a list of these, as Recipe.bind returns, got {type(guide).__name__}; "
            "a classifier is given as classifier=..., a recipe as recipe=..."
        )
    steered = SteeredPipeline(
        pipe,
        guides,
        target,
        recurrence=recurrence or getattr(guide, "recurrence", None) or Recurrence(),
        particles=particles or getattr(guide, "particles", None) or Particles(),
        frames=frames,
    )
    with ExitStack() as stack:
        steered.attach(stack)
        yield
        if pipe.scheduler is not steered.scheduler:
            raise InputError("pipe.scheduler: replaced while steering, so that nothing was steered; set it before")
        if steered.guides and not steered.guided:
            warnings.warn(
                "steer: no step was guided; the guides' scale, weight or interval is zero at every step that the "
                "pipeline made, or it made none",
                stacklevel=3,
            )
        elif said := warning_of(steered.moved):
            notice(said)
