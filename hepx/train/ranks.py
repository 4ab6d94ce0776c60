"""The processes of one training: `torchrun` starts them, each takes its share of every batch, sums go over all of them.

The gradients are summed in one message after the backward pass rather than by DistributedDataParallel: they are those
of one loss of the whole batch, in which balance losses are not means over processes, and models of a megabyte have
nothing to gain from overlapping several messages with the backward pass.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from hepx.errors import ConfigError

PATIENCE = timedelta(days=7)  # others wait while the first process converts; a dead process is noticed by torchrun


@dataclass(frozen=True)
class Ranks:
    """This process (`rank` of `size`; `local_rank` of `local_size` on its machine). The first one writes."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, num_events: int) -> slice:
        """The events of a batch that this process takes."""
        return slice(num_events * self.rank // self.size, num_events * (self.rank + 1) // self.size)

    def total(self, value: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
        """Sum over the processes. Its gradient is that of this process's own term, so that the sum over the processes
        of the gradients of a function of totals is the gradient of that function."""
        return value if self.size == 1 else _Total.apply(value)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))

    def any(self, *flags: bool) -> list[bool]:
        """For each flag: whether it is raised in any process."""
        if self.size == 1:
            return list(flags)
        found = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return [bool(one) for one in found.tolist()]

    def from_first(self, flag: bool) -> bool:
        """The flag of the first process."""
        return self.any(flag and self.is_first)[0]

    @torch.no_grad()
    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the values of the first one."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)


ALONE = Ranks()


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        del ctx
        summed = value.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        del ctx
        return gradients[0]


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that torchrun started with this one; alone if it did not. The one place that reads its
    variables (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT)."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set. Start several processes with torchrun: "
            "torchrun --nproc_per_node=2 -m hepx.cli train CONFIG"
        )
    rank = int(os.environ["RANK"])
    ranks = Ranks(rank, size, int(os.environ.get("LOCAL_RANK", rank)), int(os.environ.get("LOCAL_WORLD_SIZE", size)))
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(ranks.local_rank)
    dist.init_process_group(backend, timeout=PATIENCE, rank=rank, world_size=size)
    try:
        yield ranks
    finally:
        dist.destroy_process_group()
