"""Several processes as one: the few collective operations that data-parallel training needs (torchrun sets ranks)."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """This process's place among `world` processes."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """The rank that writes files and speaks."""
        return self.rank == 0

    @staticmethod
    def join() -> Ranks:
        """Join the group that torchrun describes in the environment; alone without one."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return Ranks()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
            # Left to the interpreter's last moments, the group's threads now and then outlive what they use: an abort.
            atexit.register(_leave)
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        return Ranks(dist.get_rank(), dist.get_world_size())

    def sum(self, *values: Tensor) -> None:
        """Replace each value, on every rank, by its sum over the ranks."""
        if self.world > 1:
            for value in values:
                dist.all_reduce(value)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum gradients over the ranks, in one message for each type."""
        if self.world == 1:
            return
        groups: dict[torch.dtype, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.requires_grad:
                if parameter.grad is None:  # a rank whose rows never reached a parameter still takes part
                    parameter.grad = torch.zeros_like(parameter)
                groups.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for grads in groups.values():
            flat = torch.cat([grad.flatten() for grad in grads])
            dist.all_reduce(flat)
            for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
                grad.copy_(part.view_as(grad))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank: all ranks then stop at the same step."""
        if self.world == 1:
            return flag
        device = "cuda" if torch.cuda.is_available() else "cpu"
        value = torch.tensor(float(flag), device=device)
        dist.all_reduce(value)
        return bool(value > 0)

    def share(self, count: int) -> slice:
        """This rank's part of `count` things, in their order; parts differ by one at most."""
        return slice(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in order, on every rank: whatever pickle takes, tensors on the CPU."""
        found = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        if self.world > 1:
            dist.barrier()


def _leave() -> None:
    """Take the group down while the interpreter still stands, unless the program has done so itself."""
    if dist.is_initialized():
        dist.destroy_process_group()


ALONE = Ranks()
