"""One process or several (torchrun): sums over all of them, the same calls for one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the other processes where torchrun started several (WORLD_SIZE): nccl on a GPU, gloo else."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wait_for_all() -> None:
    """Return when every process has come here."""
    if world() > 1:
        dist.barrier()


def sum_over_processes(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over the processes; one message for all of a type."""
    if world() == 1:
        return
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    for own in by_type.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in own])
        dist.all_reduce(flat)
        first = 0
        for tensor in own:
            tensor.copy_(flat[first : first + tensor.numel()].view_as(tensor))
            first += tensor.numel()


def sum_gradients(network: nn.Module) -> None:
    """Sum the gradients over the processes. A parameter that had none here may have one elsewhere: it counts as zero."""
    if world() == 1:
        return
    has = torch.tensor([float(p.grad is not None) for p in network.parameters()])
    has = has.to(next(network.parameters()).device)
    dist.all_reduce(has)
    gradients = []
    for used, parameter in zip(has.tolist(), network.parameters(), strict=True):
        if used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    sum_over_processes(gradients)


def mean_of_buffers(network: nn.Module) -> None:
    """Give all processes the mean of their running statistics: batch normalisation on the CPU has each its own."""
    buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    if world() == 1 or not buffers:
        return
    sum_over_processes(buffers)
    for buffer in buffers:
        buffer.div_(world())
