from steersman.generate.drawing import Unfinished, generate
from steersman.generate.share import Share
from steersman.generate.state import Status, status
from steersman.generate.store import Store
from steersman.generate.summary import Summary

__all__ = [
    "Share",
    "Status",
    "Store",
    "Summary",
    "Unfinished",
    "generate",
    "status",
]
