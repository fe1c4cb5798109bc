"""Who uses the cores: the C++ kernel's threads or torch's."""

from __future__ import annotations

import torch


def leave_cores_to_the_kernel(device: torch.device) -> None:
    """Let torch's own operations run on one thread while the kernel rasterises on the CPU.

    Torch's idle worker threads spin, and the operations between two kernel calls are small: with two torch threads on
    two cores a fit step takes over twice the processor time, an inspection up to three times. Results do not change.
    """
    if device.type == "cpu":
        torch.set_num_threads(1)
