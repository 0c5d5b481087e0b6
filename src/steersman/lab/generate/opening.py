"""Opening a run: everything is measured, loaded and tried before the first file is written."""

from collections.abc import Sequence
from concurrent.futures import CancelledError
from contextlib import suppress

import torch

from steersman.errors import InputError
from steersman.guidance.step import Step
from steersman.lab.placement import choose_placement
from steersman.lab.run import Run
from steersman.lab.session import Networks, Session, Target, load_session
from steersman.precision import ieee
from steersman.sampling import Report, levels_of
from steersman.schedule import CLEAN

__all__ = ["open_session"]


def open_session(run: Run, networks: Networks | None = None, *, rehearse: bool = True) -> Session:
    """Returns a run that is ready to draw: placed, loaded and rehearsed.

    Example:
        >>> from steersman.lab.generate import open_session
        >>> from steersman.lab.run import Run
        >>> session = open_session(Run(targets=("baseball",), classifiers=("zoo:sportballs-mobilenet",)))
        >>> [target.name for target in session.targets]
        ['baseball']
    """
    session = load_session(choose_placement(run), networks)
    if rehearse:
        _rehearse(session)
    return session


@torch.no_grad()
@ieee()
def _rehearse(session: Session) -> None:
    """Asks all parts about a blank image, and takes the first step of a sample."""

    def ask_all_and_begin(jobs: Sequence[tuple[Target, int]]) -> None:
        _ask_all(session)
        _begin(session, jobs)

    list(session.batches.map(ask_all_and_begin, [(session.targets[0], session.run.seed)]))


def _ask_all(session: Session) -> None:
    """Asks denoiser, guides and judge, also the guides that are at rest in the first step."""
    run, denoiser, target, device = session.run, session.denoiser, session.targets[0], session.run.device
    settings = {key: run.recipe.sampling()[key] for key in ("steps", "spacing", "ratio_min", "ratio_max")}
    levels = levels_of(run.recipe.sampler(), denoiser.schedule, **settings)
    blank = torch.zeros(1, *denoiser.shape, device=device)
    image = denoiser.decode(blank)
    if image.ndim != 4 or image.shape[1] not in (1, 3):
        raise InputError(
            f"the denoiser's images must have 1 or 3 channels, got images of shape {tuple(image.shape[1:])}; "
            "one of latents needs its vae/ beside unet/ and scheduler/"
        )
    session.evaluate(image, [target])
    prediction = denoiser(blank, levels[0], **session.conditioning([target]))
    step = Step.at(levels, 0)
    for guide in session.guides:
        guide.objective(image, torch.tensor([target.guide], device=device), CLEAN)
        if guide.scale:
            guide.weight(step, blank, prediction, blank)


def _begin(session: Session, jobs: Sequence[tuple[Target, int]]) -> None:
    """Begins to sample, and leaves in the second step."""

    def leave(report: Report) -> None:
        if report.step.index or report.step.repeat:
            raise CancelledError

    with suppress(CancelledError):
        session.draw(jobs, [leave])
