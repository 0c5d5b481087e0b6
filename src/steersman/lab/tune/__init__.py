from steersman.lab.tune.search import TRIED, space_of
from steersman.lab.tune.tuning import Bounds, Trial, Tune, Tuning, choose

__all__ = ["TRIED", "Bounds", "Trial", "Tune", "Tuning", "choose", "space_of"]
