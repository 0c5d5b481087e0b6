"""Guides at work in a diffusers pipeline, which stays as it is.

A pipeline asks its network, makes one output of what it says (classifier-free guidance, for one), and hands that to its
scheduler, whose ``step`` leads to the next sample. There lies the seam: guides change what goes into ``step`` and what
comes out of it, and nothing else (`steersman.pipelines.walk`). The route ``through`` also needs to know what enters the
network (`steersman.pipelines.network`).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from steersman.errors import InputError
from steersman.guidance.guide import Guide
from steersman.pipelines.targets import Target
from steersman.pipelines.walk import Walk

__all__ = ["steer"]


@contextmanager
def steer(
    pipe: Any,  # noqa: ANN401
    guide: Guide | Sequence[Guide],
    target: Target | Sequence[Target] | None = None,
) -> Iterator[None]:
    """Steers whatever a diffusers pipeline draws inside the ``with`` block.

    Pipeline, scheduler and arguments are used as they are, any number of times; every call is a walk of its own. On
    leaving the block, also by an exception, the pipeline is as it was before. Where no guide is active, its images are
    the same bit for bit.

    The samples are images in [-1, 1], or latents that the pipeline's VAE decodes, one at a time and with its blocks
    recomputed for the gradient, to save memory; then a view that clips does so after decoding. What a pipeline computes
    from the sample beside its network, such as a ControlNet's residuals, counts as given on the route ``through``.

    The route ``direct`` leaves the network alone: it may be offloaded, quantised or compiled. The route ``through``
    needs one whose weights stay where they are, and that has a gradient; it may be wrapped by ``torch.compile``, be in
    half precision, and recompute its blocks. Guides decode as the pipeline does, in the VAE's slices or tiles where it
    has them, and compute in float32 whatever the parts are in.

    All of that is tested on a CPU with small random networks: ``torch.compile`` by its eager backend, offloading by
    accelerate's hooks ``cpu_offload`` and ``cpu_offload_with_hook`` to the CPU itself. Quantised networks are not.

    The pipeline's scheduler clips as it is set to, also what guides made of the denoised image.

    Args:
        pipe: The pipeline; its scheduler is chosen before.
        guide: The guide, or several.
        target: The class to steer to, as index or as a name that the guide's classifier knows: one for all images, or
            one each, in the order in which the pipeline returns them.

    Raises:
        InputError: A pipeline or scheduler that is not known here, a guide that needs what a pipeline does not have
            (samples moved before the network is asked, which a pipeline does between two of its own steps; a view that
            asks it again, whose output a pipeline combines in its own way; gradients through a network that is
            offloaded or compiled in place), or targets that are not one or one an image. What depends on the images
            themselves is refused at the first step.
    """
    guides = (guide,) if isinstance(guide, Guide) else tuple(guide)
    walk = Walk(pipe, guides, target)
    with ExitStack() as stack:
        walk.attach(stack)
        yield
        if pipe.scheduler is not walk.scheduler:
            raise InputError("pipe.scheduler: replaced while steering, so that nothing was steered; set it before")
