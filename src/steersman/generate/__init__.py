from steersman.generate.drawing import Unfinished, generate
from steersman.generate.share import Share
from steersman.generate.status import Status, status
from steersman.generate.stop import Stop
from steersman.generate.store import Store
from steersman.generate.summary import Summary

__all__ = [
    "Share",
    "Status",
    "Stop",
    "Store",
    "Summary",
    "Unfinished",
    "generate",
    "status",
]
