"""The processes that share a training's steps: what they add up and agree on."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

_PATIENCE = timedelta(minutes=30)
"""Ranks may be apart by a validation's answers."""
_BUCKET_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Ranks:
    """A process among `count` that share. Alone, nothing is sent and nothing is copied.

    Gradients are added, not averaged as DistributedDataParallel does: the denominator of a loss is
    that of the whole step already, a rank without a micro-batch adds nothing, and a step that one
    rank has no memory for can be taken again by all, since nothing is sent before all are done.
    """

    rank: int = 0
    count: int = 1
    device: torch.device | None = None
    """Where sums are made; None is the CPU."""

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sums(self, values: Sequence[float]) -> list[float]:
        """Return each value's sum over the ranks."""
        return self._over(values, dist.ReduceOp.SUM)

    def any(self, flag: bool) -> bool:  # noqa: FBT001 - like the builtin
        return self._over([float(flag)], dist.ReduceOp.MAX)[0] > 0

    def smallest(self, value: int) -> int:
        return int(self._over([float(value)], dist.ReduceOp.MIN)[0])

    def _over(self, values: Sequence[float], how: dist.ReduceOp.RedOpType) -> list[float]:
        if self.count == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, how)
        found: list[float] = tensor.tolist()
        return found

    def add_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Make every rank's gradient the sum of all."""
        if self.count == 1:
            return
        for bucket in _buckets(parameters):
            grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in bucket]
            flat = torch.cat([g.reshape(-1) for g in grads])
            dist.all_reduce(flat)
            parts = torch.split(flat, [p.numel() for p in bucket])
            for p, part in zip(bucket, parts, strict=True):
                p.grad = part.view_as(p).clone()


def _buckets(
    parameters: Sequence[torch.nn.Parameter],
) -> Iterator[list[torch.nn.Parameter]]:
    """Yield parameters of one type, some tens of megabytes together."""
    bucket: list[torch.nn.Parameter] = []
    held = 0
    for parameter in parameters:
        size = parameter.numel() * parameter.element_size()
        if bucket and (held + size > _BUCKET_BYTES or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, held = [], 0
        bucket.append(parameter)
        held += size
    if bucket:
        yield bucket


ALONE = Ranks()


@contextlib.contextmanager
def joined(rank: int, count: int, meeting: Path, device: torch.device) -> Iterator[Ranks]:
    """Yield this process's place once all have met; `meeting` is a file not yet there.

    gloo on the CPU, nccl on graphics cards (one a rank).
    """
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{meeting.absolute()}",
        rank=rank,
        world_size=count,
        timeout=_PATIENCE,
    )
    try:
        yield Ranks(rank, count, device)
    finally:
        dist.destroy_process_group()
