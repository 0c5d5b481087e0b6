from .api import Result as Result
from .api import sample as sample
from .api import steer as steer
from .denoise import Denoiser as Denoiser
from .errors import InputError as InputError
from .guidance import (
    Adam as Adam,
)
from .guidance import (
    BinaryProbability as BinaryProbability,
)
from .guidance import (
    Chain as Chain,
)
from .guidance import (
    ClassProbability as ClassProbability,
)
from .guidance import (
    Clip as Clip,
)
from .guidance import (
    Constant as Constant,
)
from .guidance import (
    Damped as Damped,
)
from .guidance import (
    Denoised as Denoised,
)
from .guidance import (
    DenoisedImage as DenoisedImage,
)
from .guidance import (
    Deviation as Deviation,
)
from .guidance import (
    Ema as Ema,
)
from .guidance import (
    Every as Every,
)
from .guidance import (
    Guide as Guide,
)
from .guidance import (
    Interval as Interval,
)
from .guidance import (
    Linear as Linear,
)
from .guidance import (
    Lookahead as Lookahead,
)
from .guidance import (
    Mean as Mean,
)
from .guidance import (
    Momentum as Momentum,
)
from .guidance import (
    NoisePrediction as NoisePrediction,
)
from .guidance import (
    Noisy as Noisy,
)
from .guidance import (
    Polyak as Polyak,
)
from .guidance import (
    Product as Product,
)
from .guidance import (
    Relative as Relative,
)
from .guidance import (
    Rescaled as Rescaled,
)
from .guidance import (
    Rms as Rms,
)
from .guidance import (
    Sample as Sample,
)
from .guidance import (
    Signal as Signal,
)
from .guidance import (
    Sine as Sine,
)
from .guidance import (
    Spherical as Spherical,
)
from .guidance import (
    Sum as Sum,
)
from .guidance import (
    Taper as Taper,
)
from .guidance import (
    TargetLogit as TargetLogit,
)
from .guidance import (
    Transition as Transition,
)
from .guidance import (
    Variance as Variance,
)
from .models.classifiers import (
    Classifier as Classifier,
)
from .models.classifiers import (
    Preprocess as Preprocess,
)
from .models.classifiers import (
    TextClassifier as TextClassifier,
)
from .models.classifiers import (
    load_classifier as load_classifier,
)
from .models.denoisers import NetworkDenoiser as NetworkDenoiser
from .models.denoisers import load_denoiser as load_denoiser
from .recipes import Recipe as Recipe
from .recipes import load_recipe as load_recipe
from .recipes import recipe_names as recipe_names
from .recipes import register as register
from .sampling import (
    DDIM as DDIM,
)
from .sampling import (
    DDPM as DDPM,
)
from .sampling import (
    DPMpp as DPMpp,
)
from .sampling import (
    Heun as Heun,
)
from .sampling import (
    NamedScheduler as NamedScheduler,
)
from .sampling import (
    Particles as Particles,
)
from .sampling import (
    Recurrence as Recurrence,
)
from .sampling import (
    Report as Report,
)
from .schedule import EDM as EDM
from .schedule import VP as VP
from .schedule import Flow as Flow
