from steersman.lab.generate.drawing import Unfinished, generate
from steersman.lab.generate.share import Share
from steersman.lab.generate.state import Status, status
from steersman.lab.generate.store import Store
from steersman.lab.generate.summary import Summary

__all__ = [
    "Share",
    "Status",
    "Store",
    "Summary",
    "Unfinished",
    "generate",
    "status",
]
