from steersman.lab.generate.drawing import Share, Unfinished, generate, generate_until_stopped, open_session
from steersman.lab.generate.store import Status, Store, status
from steersman.lab.generate.summary import Summary

__all__ = [
    "Share",
    "Status",
    "Store",
    "Summary",
    "Unfinished",
    "generate",
    "generate_until_stopped",
    "open_session",
    "status",
]
