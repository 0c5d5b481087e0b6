from steersman.guidance.guide import Guide, Steering, Update, Wrt
from steersman.guidance.objective import (
    Augmented,
    BinaryProbability,
    ClassProbability,
    Cone,
    Log,
    MonteCarlo,
    Objective,
    Root,
    Sum,
    Switch,
    TargetLogit,
    Toward,
    Translated,
)
from steersman.guidance.stabilizer import Adam, Chain, Clip, Ema, Identity, Momentum, Rms, Stabilizer, State
from steersman.guidance.step import (
    ClassifierInput,
    Denoised,
    DenoisedImage,
    Estimate,
    Injection,
    Lookahead,
    Mean,
    NoisePrediction,
    Noisy,
    Rescaled,
    Sample,
    Spherical,
    Step,
    posterior_mean,
    reverse_variance,
)
from steersman.guidance.weight import (
    Constant,
    Damped,
    Deviation,
    Difference,
    Every,
    Interval,
    Linear,
    Polyak,
    Product,
    Relative,
    Signal,
    Sine,
    Taper,
    Transition,
    Variance,
    Weight,
)

__all__ = ["Guide", "Steering", "Step", "Update", "Wrt", "posterior_mean", "reverse_variance"]
__all__ += ["Augmented", "BinaryProbability", "ClassProbability", "Cone", "Log", "MonteCarlo", "Objective", "Root"]
__all__ += ["Sum", "Switch", "TargetLogit", "Toward", "Translated"]
__all__ += ["ClassifierInput", "Denoised", "Lookahead", "Noisy", "Rescaled"]
__all__ += ["Adam", "Chain", "Clip", "Ema", "Identity", "Momentum", "Rms", "Stabilizer", "State"]
__all__ += [
    "Constant",
    "Damped",
    "Deviation",
    "Difference",
    "Every",
    "Interval",
    "Linear",
    "Polyak",
    "Product",
    "Relative",
]
__all__ += ["Signal", "Sine", "Taper", "Transition", "Variance", "Weight"]
__all__ += ["DenoisedImage", "Estimate", "Injection", "Mean", "NoisePrediction", "Sample", "Spherical"]
