"""`splatad doctor`: what is installed, what is missing, and the command that brings each missing part."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

State = Literal["ok", "absent", "fault"]


@dataclass(frozen=True)
class Command:
    """Print what is there, what is missing and which command brings it. Changes nothing, needs no network."""

    json: bool = False
    """Print one JSON object instead of tables."""

    workspace: Path | None = None
    """Folder of scenes, references and runs. Default: $SPLATAD_WORKSPACE, else ./splatad-work."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table."""

    group: str
    part: str
    state: State  # absent: optional and not installed; fault: should work and does not
    detail: str
    remedy: str = ""  # the command that brings it, or what to do; empty where all is well


@dataclass(frozen=True)
class Extra:
    """An extra of pyproject.toml and what it is good for."""

    purpose: str
    distributions: tuple[str, ...]


# The tests hold this to what pyproject.toml declares.
EXTRAS = {
    "cuda": Extra("fit and render on an NVIDIA GPU", ("gsplat", "packaging")),
    "photos": Extra(
        "camera poses of plain photos and videos", ("pycolmap", "poselib", "imageio-ffmpeg", "pi-heif")
    ),
    "mesh": Extra("references from CAD meshes", ("trimesh", "embreex", "rtree")),
    "features": Extra("learned image features", ("torchvision", "timm")),
    "nerfstudio": Extra("nerfstudio beside splatad", ("nerfstudio",)),
    "viewer": Extra("splats in the browser", ("viser",)),
    "dev": Extra(
        "tests and checks", ("pytest", "pytest-timeout", "beartype", "ruff", "mypy", "import-linter")
    ),
}
CORE = (
    "torch",
    "numpy",
    "scipy",
    "kornia",
    "pillow",
    "imageio",
    "safetensors",
    "tyro",
    "rich",
    "jaxtyping",
    "jinja2",
    "tifffile",
)
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".onnx")


def run(config: Command) -> int:
    """Print the findings; 0 whatever they are."""
    findings = [
        *_machine(),
        *_kernel(),
        *_gpu(),
        *_core(),
        *_extras(),
        *_weights(),
        *_workspace(config.workspace),
    ]
    if config.json:
        print(json.dumps({"findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        _print_tables(findings)
    return 0


def _print_tables(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    # Into a file or a pipe no line is cut: commands must stay whole to be copied.
    console = Console(width=None if sys.stdout.isatty() else 200)
    marks = {"ok": "[green]ok[/]", "absent": "[yellow]absent[/]", "fault": "[red]fault[/]"}
    table = Table(box=None, pad_edge=False, show_header=False)
    for column in ("part", "state", "detail"):
        table.add_column(column, overflow="fold")
    group = ""
    for finding in findings:
        if finding.group != group:
            group = finding.group
            table.add_row(f"\n[bold]{escape(group)}[/]")
        table.add_row("  " + escape(finding.part), marks[finding.state], escape(finding.detail))
    console.print(table)

    missing = [finding for finding in findings if finding.remedy]
    if missing:
        console.print("\n[bold]What brings what is missing[/]")
        for finding in missing:
            console.print(
                f"  {finding.part}: {finding.remedy}", markup=False, highlight=False, soft_wrap=True
            )
    else:
        console.print("\nNothing is missing.")


def _version(distribution: str) -> str | None:
    """The installed version, without importing the package; None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _machine() -> list[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        Finding("machine", "python", "ok", f"{platform.python_version()} at {sys.executable}"),
        Finding("machine", "system", "ok", f"{platform.system()} {platform.release()} {platform.machine()}"),
        Finding(
            "machine", "cpu", "ok", f"{_cpu_name()}; {cores} cores for us; {instruction_set(_cpu_flags())}"
        ),
    ]


def _cpuinfo(field: str) -> str:
    """The first value of `field` in /proc/cpuinfo; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == field), "")


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or "unknown"


def _cpu_flags() -> set[str]:
    return set(_cpuinfo("flags").split())


def instruction_set(cpu_flags: set[str]) -> str:
    """The richest of the kernel's instruction sets that a CPU with these /proc/cpuinfo flags runs."""
    v3 = {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"}
    v4 = v3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
    if v4 <= cpu_flags:
        return "x86-64-v4 (AVX-512)"
    return "x86-64-v3 (AVX2)" if v3 <= cpu_flags else "baseline instructions"


def _kernel() -> list[Finding]:
    remedy = "install a C++ compiler (such as `apt install g++`), then run scripts/setup or `pip install -e .` again"
    # Imported here: the doctor must answer where half of the product is broken.
    try:
        from recon.kernel.library import kernel_info

        info = kernel_info()
    except Exception as error:  # whatever fails is a finding, not a failure of the doctor
        return [Finding("rasterisers", "C++ kernel", "fault", str(error), remedy)]
    detail = f"instruction set {info.instruction_set}, {info.threads} threads, {info.path}"
    return [Finding("rasterisers", "C++ kernel", "ok", detail)]


def _gpu() -> list[Finding]:
    gsplat = _version("gsplat")
    try:
        import torch
    except (ImportError, OSError) as error:
        return [
            Finding(
                "rasterisers", "torch", "fault", f"cannot be imported: {error}", "pip install 'torch>=2.7'"
            )
        ]
    if not torch.cuda.is_available():
        if _nvidia_driver_works() and torch.version.cuda is None:
            return [
                Finding(
                    *(
                        "rasterisers",
                        "CUDA",
                        "fault",
                        f"there is an NVIDIA GPU, but torch {torch.__version__} has no CUDA",
                    ),
                    "pip install --force-reinstall 'torch>=2.7' (a CUDA build), then pip install 'splatad[cuda]'",
                )
            ]
        return [
            Finding(
                "rasterisers", "CUDA", "absent", "no NVIDIA GPU that torch can use; the CPU kernel does all"
            )
        ]
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    device = f"{torch.cuda.get_device_name()}, compute {capability}, CUDA {torch.version.cuda}"
    findings = [Finding("rasterisers", "CUDA", "ok", device)]
    if gsplat is None:
        findings.append(
            Finding("rasterisers", "gsplat", "absent", "needed to use the GPU", "pip install 'splatad[cuda]'")
        )
    elif shutil.which("nvcc") is None and not os.environ.get("CUDA_HOME"):
        detail = f"{gsplat}; no nvcc found, which compiles gsplat's kernels at first use"
        remedy = "install the CUDA toolkit, or use environment.yml, which brings it"
        findings.append(Finding("rasterisers", "gsplat", "fault", detail, remedy))
    else:
        findings.append(
            Finding("rasterisers", "gsplat", "ok", f"{gsplat}; compiled at first use (some minutes)")
        )
    return findings


def _nvidia_driver_works() -> bool:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    try:
        return subprocess.run([tool, "-L"], capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _core() -> list[Finding]:
    versions = {name: _version(name) for name in CORE}
    lacking = [name for name, version in versions.items() if version is None]
    shown = ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)
    if lacking:
        return [
            Finding(
                "python packages", "core", "fault", f"without {', '.join(lacking)}", "pip install splatad"
            )
        ]
    return [Finding("python packages", "core", "ok", shown)]


def _extras() -> list[Finding]:
    findings = []
    for name, extra in EXTRAS.items():
        versions = {distribution: _version(distribution) for distribution in extra.distributions}
        there = ", ".join(f"{key} {version}" for key, version in versions.items() if version is not None)
        lacking = ", ".join(key for key, version in versions.items() if version is None)
        if lacking:
            detail = f"{extra.purpose}: without {lacking}" + (f" (there: {there})" if there else "")
            findings.append(
                Finding("python packages", name, "absent", detail, f"pip install 'splatad[{name}]'")
            )
        else:
            findings.append(Finding("python packages", name, "ok", f"{extra.purpose}: {there}"))
    pytorch3d = _version("pytorch3d")
    if pytorch3d is None:
        remedy = "conda install -c conda-forge pytorch3d (environment.yml brings it; no pip package exists)"
        findings.append(
            Finding("python packages", "pytorch3d", "absent", "only to compare with other renderers", remedy)
        )
    else:
        findings.append(Finding("python packages", "pytorch3d", "ok", pytorch3d))
    return findings


def _weights() -> list[Finding]:
    from prepare.weights import weights_folders

    findings = []
    for folder in weights_folders():
        files = (
            sorted(path for path in folder.glob("*") if path.suffix in WEIGHT_SUFFIXES)
            if folder.is_dir()
            else []
        )
        shown = ", ".join(f"{path.name} ({path.stat().st_size / 1e6:.0f} MB)" for path in files)
        findings.append(
            Finding(
                "weights", str(folder), "ok" if files else "absent", shown or "none; the main job needs none"
            )
        )
    return findings


def _workspace(root: Path | None) -> list[Finding]:
    from splatad.workspace import open_workspace

    workspace = open_workspace(root)
    where = str(workspace.root.resolve())
    if not workspace.root.is_dir():
        return [Finding("workspace", where, "absent", "not there yet; `splatad prepare` makes it")]
    scenes, references = workspace.scene_names(), workspace.reference_names()
    detail = f"scenes: {', '.join(scenes) or 'none'}; references: {', '.join(references) or 'none'}"
    return [Finding("workspace", where, "ok", detail)]
