"""A quota of tuning jobs that run at once on a cluster: the custom resource `tuning_slot`, of which each driver holds
one. A cluster that has none has no quota.

A slot is a placement group of its driver, without a process of its own: Ray removes it when the driver ends, however it
ends. Its name says who holds it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from raytune_llm.sweep import status
from raytune_llm.sweep.status import State

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

RESOURCE = "tuning_slot"
MESSAGE_SECONDS = 30.0
POLL_SECONDS = 1.0

_held: tuple[str, PlacementGroup] | None = None
"""Ray's id of this driver, and its slot."""


def acquire(run: str, say: Callable[[str], None] = lambda line: print(line, flush=True)) -> None:
    """Wait until the connected cluster has a free tuning slot, and hold it until `release` or this process's end. A
    driver that holds one takes no second one, and one without a cluster none. run: NAME/RUN, for others to see."""
    import ray
    from ray.util import placement_group, remove_placement_group

    global _held
    if not ray.is_initialized():
        return
    driver = ray.get_runtime_context().get_job_id()
    total = int(ray.cluster_resources().get(RESOURCE, 0))
    if total == 0 or (_held is not None and _held[0] == driver):
        return
    slot = placement_group([{RESOURCE: 1}], name=f"{RESOURCE} of {status.user()}: {run}")
    last_message = -MESSAGE_SECONDS
    try:
        while not slot.wait(POLL_SECONDS):
            if time.monotonic() - last_message >= MESSAGE_SECONDS:
                last_message = time.monotonic()
                line = f"waiting for a tuning slot: {in_use(total)}"
                status.update(state=State.waiting, note=line)
                say(line)
    except BaseException:
        remove_placement_group(slot)
        raise
    _held = driver, slot
    status.update(state=State.checking, note="")


def release() -> None:
    """Give this driver's slot back, where it holds one and is still connected."""
    global _held
    if _held is None:
        return
    import ray
    from ray.util import remove_placement_group

    if ray.is_initialized() and ray.get_runtime_context().get_job_id() == _held[0]:
        remove_placement_group(_held[1])
    _held = None


def in_use(total: int) -> str:
    """How many slots are held, and by whom."""
    from ray.util import placement_group_table

    groups = [group for group in placement_group_table().values() if group["name"].startswith(RESOURCE)]
    holders = [group["name"].removeprefix(f"{RESOURCE} of ") for group in groups if group["state"] == "CREATED"]
    return f"{len(holders)} of {total} in use ({'; '.join(sorted(holders)) or 'by others'})"
