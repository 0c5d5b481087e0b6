"""An analysis on the terminal: its networks, its parts with a progress bar, its files, a short table."""

from steersman.cli.analyzing.accuracy import accuracy
from steersman.cli.analyzing.agreement import agree
from steersman.cli.analyzing.calibration import calibration
from steersman.cli.analyzing.directions import directions
from steersman.cli.analyzing.gradients import gradients
from steersman.cli.analyzing.scope import Scope
from steersman.cli.analyzing.sensitivity import sensitivity

__all__ = ["Scope", "accuracy", "agree", "calibration", "directions", "gradients", "sensitivity"]
