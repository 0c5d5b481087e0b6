"""Guides at work in a diffusers pipeline, which stays as it is.

A pipeline asks its network, makes one output of what it says (classifier-free guidance, for one), and hands that to its
scheduler, whose ``step`` leads to the next sample. There lies the seam: guides change what goes into ``step`` and what
comes out of it, and nothing else (`steersman.pipelines.trajectory`). What asks the network again or differentiates it
also needs to know how the pipeline comes from one step to the next (`steersman.pipelines.recording`).
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from steersman.classifiers import Classifier
from steersman.errors import InputError
from steersman.guidance.guide import Guide
from steersman.guidance.targets import Target
from steersman.pipelines.walk import Walk
from steersman.recipes import Recipe, load_recipe
from steersman.sampling.loop import Recurrence
from steersman.sampling.particles import Particles

__all__ = ["steer"]


@contextmanager
def steer(
    pipe: Any,  # noqa: ANN401
    guide: Guide | Sequence[Guide] | None = None,
    target: Target | Iterable[Target] | None = None,
    *,
    classifier: str | Path | Classifier | None = None,
    recipe: str | Path | Recipe = "default",
    scale: float | None = None,
    recurrence: Recurrence | None = None,
    particles: Particles | None = None,
    frames: Sequence[int] | None = None,
) -> Iterator[None]:
    """Steers whatever a diffusers pipeline draws inside the ``with`` block.

    Pipeline, scheduler and arguments are used as they are, any number of times; every call is a trajectory of its own.
    On leaving the block, also by an exception, the pipeline is as it was before. Where no guide is active, its images
    are the same bit for bit.

    The samples are images in [-1, 1], or latents that the pipeline's VAE decodes, one at a time and with its blocks
    recomputed for the gradient, to save memory; then a classifier input that clips does so after decoding. Of a video
    the classifier sees the frames, and the objective is their mean. Which pipelines are covered is a table in
    docs/models.md.

    The gradient with respect to ``x0_hat`` (route direct) leaves the network alone: it may be offloaded, quantised or
    compiled. The gradient with respect to ``x_t`` (route through) needs one whose weights stay where they are, and that
    has a gradient; it may be wrapped by ``torch.compile``, be in half precision, and recompute its blocks. What a
    pipeline computes beside its network, such as a ControlNet's residuals, counts as given there. Guides decode as the
    pipeline does, in the VAE's slices or tiles where it has them, and compute in float32 whatever the parts are in.

    The lookahead input, the injection ``sample``, recurrence and particles evaluate the pipeline's network again, with
    the conditioning of its last call, and combine the outputs as the pipeline does. Each particle costs one more
    evaluation; its random numbers come from the pipeline's generators.

    All of that is tested on a CPU with small random networks: ``torch.compile`` by its eager backend, offloading by
    accelerate's hooks ``cpu_offload`` and ``cpu_offload_with_hook`` to the CPU itself. Quantised networks are not.

    The pipeline's scheduler clips as it is set to, also what guides made of the denoised image.

    Args:
        pipe: The pipeline; its scheduler is chosen before.
        guide: The guide, or several; what `Recipe.bind` returns includes the recipe's recurrence and particles. Without
            a guide, the recipe is bound to the classifier.
        target: The target class, as index or as a name that the guide's classifier knows: one for all images, or one
            for each, in the order in which the pipeline returns them.
        classifier: The classifier, if no guide is given: what `steersman.load_classifier` takes, or a `Classifier`.
        recipe: The method, if no guide is given: what `steersman.load_recipe` takes.
        scale: The guidance scale, in place of the recipe's.
        recurrence: How often steps are repeated, in place of the recipe's.
        particles: The particles of an image and their resampling, in place of the recipe's.
        frames: The frames of a video that the classifier sees, negative numbers from the end; all by default.

    Raises:
        InputError: A pipeline or scheduler that is not known here, guides that the pipeline cannot follow (gradients
            through a network that is offloaded or compiled in place; recurrence or particles with a scheduler that
            keeps a history), or targets that are not one or one an image. What depends on the images themselves is
            refused at the first step.

    Warns:
        UserWarning: No step was guided.

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
    if guide is not None and (scale is not None or recipe != "default"):
        raise InputError(
            "steer takes recipe and scale with a classifier alone, got them with a guide, which has its own"
        )
    if guide is None:
        if classifier is None:
            raise InputError("steer needs a guide or a classifier, got neither")
        guide = load_recipe(recipe, scale=scale).bind(classifier, device=str(getattr(pipe, "_execution_device", "cpu")))
    walk = Walk(
        pipe,
        (guide,) if isinstance(guide, Guide) else tuple(guide),
        target,
        recurrence=recurrence or getattr(guide, "recurrence", None) or Recurrence(),
        particles=particles or getattr(guide, "particles", None) or Particles(),
        frames=frames,
    )
    with ExitStack() as stack:
        walk.attach(stack)
        yield
        if pipe.scheduler is not walk.scheduler:
            raise InputError("pipe.scheduler: replaced while steering, so that nothing was steered; set it before")
        if walk.guides and not walk.guided:
            warnings.warn(
                "steer: no step was guided; the guides' scale, weight or interval is zero at every step that the "
                "pipeline made, or it made none",
                stacklevel=3,
            )
