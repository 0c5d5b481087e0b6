from steersman.lab.data.load import load_data
from steersman.lab.data.sportballs import CLASSES, SportBalls, render

__all__ = ["CLASSES", "SportBalls", "load_data", "render"]
