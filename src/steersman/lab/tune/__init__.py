from steersman.lab.tune.space import TRIED, space_of
from steersman.lab.tune.trials import Bounds, Trial, choose
from steersman.lab.tune.tuning import Tune, Tuning

__all__ = ["TRIED", "Bounds", "Trial", "Tune", "Tuning", "choose", "space_of"]
