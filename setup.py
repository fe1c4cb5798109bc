"""Builds the C++ rasteriser as one plain shared library, `recon/kernel/_raster.so`; all else is in pyproject.toml.

The library has a C interface and is loaded by ctypes, so the build needs a compiler and nothing else: no torch, no
Python headers (docs/decisions/0002-kernel-as-plain-c-abi.md). Where it cannot be built the install goes on with a
warning; with SPLATAD_REQUIRE_KERNEL=1 (scripts/setup) it stops instead.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

KERNEL = Path("recon/kernel")
FLAGS = [
    *("-O3", "-std=c++17", "-fPIC", "-pthread", "-fvisibility=hidden", "-Wall"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
]
# `kernel_isa.cpp` is compiled once for each. The order is that of the link, from the plainest to the richest: where two
# objects hold the same inline function of the standard library the linker keeps the first, which every CPU can run.
INSTRUCTION_SETS = {
    "base": [],
    "v3": ["-march=x86-64-v3"],
    "v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
}


def find_compiler() -> list[str]:
    """The C++ compiler's command: $CXX, else the one Python was built with, else g++, c++ or clang++."""
    candidates = [os.environ.get("CXX"), sysconfig.get_config_var("CXX"), "g++", "c++", "clang++"]
    for candidate in candidates:
        command = shlex.split(candidate or "")
        if command and shutil.which(command[0]):
            return command
    raise CompileError("no C++ compiler found: install one (g++ or clang++) or set CXX")


def execute(command: list[str]) -> None:
    """Run one compiler command and show what it says. Raises: CompileError where it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(shlex.join(command) + "\n" + done.stdout, end="", flush=True)
    if done.returncode != 0:
        lines = done.stdout.strip().splitlines() or ["the compiler said nothing"]
        shown = [line for line in lines if "error" in line.lower()] or lines
        raise CompileError(f"{command[0]} failed with status {done.returncode}: {shown[0]}")


class BuildKernel(build_ext):
    """Compiles the kernel once per instruction set and links the objects into one library."""

    def get_ext_filename(self, fullname: str) -> str:
        """`recon/kernel/_raster.so`: no Python version in the name, since any Python can load it."""
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def run(self) -> None:
        # An older library must not outlive a failed build: it may not fit the Python code beside it.
        if self.inplace:
            for older in KERNEL.glob("_raster*.so"):
                older.unlink()
        super().run()

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name))
        library.unlink(missing_ok=True)
        try:
            self.build_library(library)
        except (CompileError, OSError) as error:
            if os.environ.get("SPLATAD_REQUIRE_KERNEL") == "1":
                raise SystemExit(f"splatad: the C++ kernel was not built: {error}") from error
            self.warn(f"the C++ kernel was not built ({error}); splatad runs without it, on a GPU or slowly")

    def build_library(self, library: Path) -> None:
        compiler = find_compiler()
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        try:
            objects = self.compile_objects(compiler, INSTRUCTION_SETS if x86 else {"base": []})
        except CompileError as error:
            if not x86:
                raise
            # GCC 10 and older do not know x86-64-v3 and -v4.
            self.warn(f"{error}; trying again without AVX2 and AVX-512")
            objects = self.compile_objects(compiler, {"base": []})
        library.parent.mkdir(parents=True, exist_ok=True)
        link_flags = shlex.split(os.environ.get("LDFLAGS", ""))
        execute([*compiler, "-shared", "-pthread", "-o", str(library), *map(str, objects), *link_flags])

    def compile_objects(self, compiler: list[str], instruction_sets: dict[str, list[str]]) -> list[Path]:
        folder = Path(self.build_temp) / KERNEL
        folder.mkdir(parents=True, exist_ok=True)
        only_base = ["-DSPLATAD_ONLY_BASE"] if list(instruction_sets) == ["base"] else []
        flags = [*FLAGS, *shlex.split(os.environ.get("CXXFLAGS", ""))]
        jobs = [(KERNEL / "dispatch.cpp", folder / "dispatch.o", only_base)]
        for name, machine_flags in instruction_sets.items():
            defines = [f"-DSPLATAD_ISA={name}", *machine_flags]
            jobs.append((KERNEL / "kernel_isa.cpp", folder / f"kernel_{name}.o", defines))
        with ThreadPoolExecutor(max_workers=2) as pool:
            commands = [
                [*compiler, *flags, *extra, "-c", str(cpp), "-o", str(obj)] for cpp, obj, extra in jobs
            ]
            list(pool.map(execute, commands))
        return [obj for _, obj, _ in jobs]


class KernelWheel(bdist_wheel):
    """A wheel holds machine code but nothing of one Python version: py3-none-PLATFORM."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            "recon.kernel._raster",
            sources=[str(KERNEL / "dispatch.cpp"), str(KERNEL / "kernel_isa.cpp")],
            depends=sorted(map(str, KERNEL.glob("*.h"))),
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernel, "bdist_wheel": KernelWheel},
)
