from steersman.lab.data.images import load_data
from steersman.lab.data.sportballs import CLASSES, SportBalls, render

__all__ = ["CLASSES", "SportBalls", "load_data", "render"]
