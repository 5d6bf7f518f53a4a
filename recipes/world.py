"""The processes of a launch: how many there are, which one this is, and how they wait."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from ..eval.errors import RunError

ADVICE = (
    "On GPUs: accelerate launch --num_processes 2 -m paredown run …; on the CPU: "
    "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 -m paredown run …"
)


def _alone() -> None:
    """One process has nobody to wait for."""


@dataclass(frozen=True)
class World:
    """The processes that run a recipe together.

    Attributes:
        rank: This process, from 0.
        size: How many there are.
        barrier: Waits until all have come here.
    """

    rank: int = 0
    size: int = 1
    barrier: Callable[[], None] = _alone

    def agree(self, value: bool) -> bool:
        """Gives every process what the first one says."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return bool(broadcast_object_list([value])[0])

    @property
    def main(self) -> bool:
        """Whether this process does what only one may do."""
        return self.rank == 0


def join_world() -> World:
    """Joins the launch this process belongs to; a plain start is a world of one.

    Raises:
        RunError: If the launch meant several processes and this is the only one.
    """
    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    if wanted == 1:
        # accelerate's launcher for one process names a rendezvous only where several were meant.
        if launched and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
            raise RunError(f"The launch names several processes, but one was started. {ADVICE}")
        return World()

    from datetime import timedelta

    import torch
    from accelerate import Accelerator, InitProcessGroupKwargs

    # A stage that one process does alone can take hours; the others wait for it.
    patience = InitProcessGroupKwargs(timeout=timedelta(days=1))
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[patience])
    if accelerator.num_processes != wanted:
        raise RunError(
            f"The launch meant {wanted} processes, but {accelerator.num_processes} found each "
            f"other. {ADVICE}"
        )
    return World(
        accelerator.process_index, accelerator.num_processes, accelerator.wait_for_everyone
    )
