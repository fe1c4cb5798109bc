"""The C++ kernel through ctypes: loading, its structs, threads and instruction set.

Built by setup.py as `_raster<suffix>` beside this file. Calls release the GIL.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sysconfig
from ctypes import c_char_p, c_double, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prepare.errors import MissingPartError

ABI_VERSION = 6
InstructionSet = Literal["auto", "base", "v3", "v4"]


class SplatInput(ctypes.Structure):
    """Mirrors `SplatInput` of kernel.h."""

    _fields_ = (
        ("means", c_void_p),
        ("quats", c_void_p),
        ("log_scales", c_void_p),
        ("logit_opacities", c_void_p),
        ("sh", c_void_p),
        ("colours", c_void_p),
        ("count", c_int32),
        ("sh_stride", c_int32),
        ("sh_degree", c_int32),
    )


class CameraInput(ctypes.Structure):
    """Mirrors `CameraInput` of kernel.h."""

    _fields_ = (
        ("world_to_cam", c_float * 12),
        ("fl_x", c_float),
        ("fl_y", c_float),
        ("cx", c_float),
        ("cy", c_float),
        ("width", c_int32),
        ("height", c_int32),
        ("near_plane", c_float),
        ("blur", c_float),
        ("antialiased", c_int32),
    )


class SplatGradients(ctypes.Structure):
    """Mirrors `SplatGradients` of kernel.h; null pointers are not written."""

    _fields_ = (
        ("means", c_void_p),
        ("quats", c_void_p),
        ("log_scales", c_void_p),
        ("logit_opacities", c_void_p),
        ("sh", c_void_p),
        ("colours", c_void_p),
        ("world_to_cam", c_void_p),
        ("means2d", c_void_p),
        ("weights", c_void_p),
    )


class PoseStep(ctypes.Structure):
    """Mirrors `PoseStep` of kernel.h: one Gauss-Newton pass."""

    _fields_ = (
        ("pivot", c_float * 3),
        ("gain", c_float * 3),
        ("bias", c_float * 3),
        ("huber", c_float),
        ("geman", c_float),
        ("unknowns", c_int32),
        ("keep", c_int32),
        ("reuse", c_int32),
        ("hessian", c_double * 49),
        ("gradient", c_double * 7),
        ("cost", c_double),
        ("weight", c_double),
        ("squared", c_double),
        ("moments", c_double * 18),
        ("cross", c_double * 42),
    )


class AdamField(ctypes.Structure):
    """Mirrors `AdamField` of kernel.h: one parameter of all splats."""

    _fields_ = (
        ("value", c_void_p),
        ("gradient", c_void_p),
        ("mean", c_void_p),
        ("square", c_void_p),
        ("width", c_int32),
        ("first_width", c_int32),
        ("first_rate", c_float),
        ("rest_rate", c_float),
    )


class AdamRule(ctypes.Structure):
    """Mirrors `AdamRule` of kernel.h."""

    _fields_ = (
        ("beta_1", c_float),
        ("beta_2", c_float),
        ("epsilon", c_float),
        ("unbias_root", c_float),
    )


STAGES = ("project", "sort", "bin", "composite", "backward_composite", "backward_project")


class ViewStatistics(ctypes.Structure):
    """Mirrors `ViewStatistics` of kernel.h: what the last forward and backward did."""

    _fields_ = (
        ("drawn", c_int64),
        ("pairs", c_int64),
        ("block_operations", c_int64),
        ("stage_ms", c_double * len(STAGES)),
    )


@dataclass(frozen=True)
class KernelInfo:
    """What `splatad doctor` tells of the kernel."""

    path: Path  # of the shared library
    instruction_set: str  # "base" (any processor), "v3" (AVX2), "v4" (AVX-512)
    threads: int  # used by a call


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded library.

    Raises: MissingPartError where it was not built (no C++ compiler at installation) or cannot be loaded.
    """
    folder = Path(__file__).parent
    suffixes = [sysconfig.get_config_var("EXT_SUFFIX"), ".abi3.so", ".so"]
    found = next((p for suffix in suffixes if suffix and (p := folder / f"_raster{suffix}").exists()), None)
    if found is None:
        raise MissingPartError(
            f"{folder}: the C++ kernel is not built; install a C++17 compiler (g++ or clang++), then run "
            "`pip install --force-reinstall --no-deps splatad` (in a checkout: scripts/setup)"
        )
    try:
        loaded = ctypes.CDLL(str(found))
    except OSError as error:
        raise MissingPartError(
            f"{found}: cannot be loaded ({error}); build it again with scripts/setup"
        ) from error
    if loaded.splatad_abi_version() != ABI_VERSION:
        raise MissingPartError(
            f"{found}: built from other sources than these; build it again with scripts/setup"
        )
    loaded.splatad_isa.restype = c_char_p
    loaded.splatad_create.restype = c_void_p
    loaded.splatad_destroy.argtypes = [c_void_p]
    loaded.splatad_forward.argtypes = [c_void_p] * 7
    loaded.splatad_composite_extra.argtypes = [c_void_p, c_void_p, c_void_p, c_int32, c_void_p, c_void_p]
    loaded.splatad_backward.argtypes = [c_void_p] * 11
    loaded.splatad_pose_step.argtypes = [c_void_p] * 10
    loaded.splatad_ssim_moments.argtypes = [c_void_p, c_int32, c_int32, c_void_p, c_void_p]
    pointers: list[Any] = [c_void_p] * 5
    loaded.splatad_l1_ssim.argtypes = [*pointers, c_int32, c_int32, c_float, c_void_p, c_void_p]
    loaded.splatad_adam_step.argtypes = [c_void_p, c_int32, c_int32, c_void_p, c_void_p]
    loaded.splatad_statistics.argtypes = [c_void_p, ctypes.POINTER(ViewStatistics)]
    wanted = os.environ.get("SPLATAD_ISA")
    if wanted and loaded.splatad_choose_isa(wanted.encode()) != 0:
        raise MissingPartError(
            f"SPLATAD_ISA={wanted}: this processor or build has no such path; use base, v3, v4 or auto"
        )
    return loaded


def kernel_info() -> KernelInfo:
    """Where the library lies and what it runs on.

    Raises: MissingPartError as `library`.
    """
    loaded = library()
    return KernelInfo(Path(loaded._name), loaded.splatad_isa().decode(), loaded.splatad_threads())


def set_threads(count: int) -> None:
    """Let each call use at most `count` threads (default: $SPLATAD_THREADS, else one a core). Results do not change."""
    library().splatad_set_threads(count)


def peak_multiply_adds() -> float:
    """Multiply-adds of 16 lanes that one core does in a second with the instruction set in use; measured, in 20 ms."""
    function = library().splatad_peak_multiply_adds
    function.restype = c_double
    return float(function())


def choose_instruction_set(name: InstructionSet) -> None:
    """Use another code path from now on; "base" is the portable one.

    Raises: MissingPartError where this processor or build lacks it.
    """
    if library().splatad_choose_isa(name.encode()) != 0:
        raise MissingPartError(
            f"instruction set {name}: not on this processor or not in this build; use base"
        )


class ViewContext:
    """The kernel's memory of one view between forward and what follows it. Returned to a pool when dropped."""

    _free: list[int] = []  # noqa: RUF012  contexts to use again: their buffers are already the right size

    def __init__(self) -> None:
        try:
            self.handle = ViewContext._free.pop()
        except IndexError:
            self.handle = library().splatad_create()
        if not self.handle:
            raise MemoryError("the rasteriser could not allocate its view context")

    def __del__(self) -> None:
        handle = getattr(self, "handle", None)
        if handle:
            if len(ViewContext._free) < 8:
                ViewContext._free.append(handle)
            else:
                library().splatad_destroy(handle)


def check(status: int) -> None:
    """Turn a kernel's status into an exception.

    Raises: MemoryError, ValueError.
    """
    if status == 1:
        raise MemoryError("the rasteriser ran out of memory; use fewer splats or a smaller image")
    if status == 3:
        raise ValueError("a field has more numbers a splat than the kernel's Adam takes")
    if status == 4:
        raise ValueError(
            "a pose pass has 6 or 7 unknowns, and reuses a Jacobian kept for the same image size"
        )
    if status != 0:
        raise ValueError("the image is wider than the rasteriser's limit of 131072 px")
