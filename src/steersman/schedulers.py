"""What is known of diffusers' schedulers by their names: how each holds the sample, ``x_t = c z``.

    discrete    whole times of a variance-preserving schedule, c = 1               DDPM, DDIM, PNDM, LCM, CogVideoX
    solver      any sigma of it, or of flow matching, as it tells itself, c = 1    DPMSolver, UniPC, DEIS
    ratio       z = x_0 + s eps, of which the network is shown c z = alpha z,
                c = 1 / sqrt(1 + s^2)                                              Euler, Heun, KDPM2, LMS, ancestral
    edm         z = x_0 + s eps, EDM's own, c = 1                                  EDMEuler, EDMDPMSolverMultistep
    flow        z = (1 - s) x_0 + s eps, flow matching, c = 1                      FlowMatchEuler, FlowMatchHeun

A sampler (`steersman.sampling.diffusers`) and a pipeline's guides (`steersman.pipelines`) each know some of them.
"""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

__all__ = ["FAMILIES", "Family", "solver_levels"]

Family = Literal["discrete", "solver", "ratio", "edm", "flow"]

FAMILIES: Mapping[str, Family] = {
    "CogVideoXDDIMScheduler": "discrete",
    "CogVideoXDPMScheduler": "discrete",
    "DDIMScheduler": "discrete",
    "DDPMScheduler": "discrete",
    "DEISMultistepScheduler": "solver",
    "DPMSolverMultistepScheduler": "solver",
    "DPMSolverSDEScheduler": "ratio",
    "DPMSolverSinglestepScheduler": "solver",
    "EDMDPMSolverMultistepScheduler": "edm",
    "EDMEulerScheduler": "edm",
    "EulerAncestralDiscreteScheduler": "ratio",
    "EulerDiscreteScheduler": "ratio",
    "FlowMatchEulerDiscreteScheduler": "flow",
    "FlowMatchHeunDiscreteScheduler": "flow",
    "HeunDiscreteScheduler": "ratio",
    "KDPM2AncestralDiscreteScheduler": "ratio",
    "KDPM2DiscreteScheduler": "ratio",
    "LCMScheduler": "discrete",
    "LMSDiscreteScheduler": "ratio",
    "PNDMScheduler": "discrete",
    "UniPCMultistepScheduler": "solver",
}
"""The family by the class's name."""


def solver_levels(scheduler: Any, sigmas: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """Returns alpha and sigma of a solver in ``log(alpha / sigma)``: of flow matching, or variance-preserving.

    The arithmetic is diffusers' own, to the last bit.
    """
    if scheduler.config.get("use_flow_sigmas"):
        return 1 - sigmas, sigmas
    alphas = 1 / ((sigmas**2 + 1) ** 0.5)
    return alphas, sigmas * alphas
