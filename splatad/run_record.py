"""What is written beside every result so that it can be understood and made again: config, versions, machine."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import torch

import splatad

RECORDED = ("torch", "numpy", "gsplat", "kornia", "scipy", "pillow")


def run_settings(fit_config: Any, device: torch.device) -> dict[str, Any]:
    """The resolved fit config with versions and device, as plain values."""
    return {
        "fit": json.loads(json.dumps(dataclasses.asdict(fit_config))),
        "device": str(device),
        "versions": versions(),
        "machine": machine(device),
    }


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"splatad": splatad.__version__, "python": platform.python_version()}
    for name in RECORDED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine(device: torch.device | None = None) -> str:
    """The processor (and GPU) in words."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    text = f"{name}, {_cores()} cores"
    if device is None or device.type == "cpu":
        from recon.kernel.library import kernel_info

        info = kernel_info()
        return f"{text}, C++ kernel {info.instruction_set}, {info.threads} threads"
    return f"{text}, {torch.cuda.get_device_name(device)} through gsplat"


def _cores() -> int:
    import os

    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
