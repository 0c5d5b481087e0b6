from steersman.tune.around import TRIED
from steersman.tune.space import space_of
from steersman.tune.trials import Bounds, Trial, choose
from steersman.tune.tuning import Tune, Tuning

__all__ = ["TRIED", "Bounds", "Trial", "Tune", "Tuning", "choose", "space_of"]
