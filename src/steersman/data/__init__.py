from steersman.data.sportballs import CLASSES, SportBalls, render

__all__ = ["CLASSES", "SportBalls", "render"]
