"""What the commands that have an action can be asked."""

from enum import Enum


class RegistryAction(Enum):
    """Of the registry of tuned models."""

    list = "list"
    show = "show"
    alias = "alias"
    rollback = "rollback"


class ControlAction(Enum):
    """Of runs: what only looks, then what is asked of a sweep (sweep/control.py)."""

    list = "list"
    show = "show"
    jobs = "jobs"
    stop = "stop"
    clone = "clone"
    extend = "extend"
    pause = "pause"
    resume = "resume"
    cancel = "cancel"
