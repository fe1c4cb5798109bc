"""The build: what pyproject.toml promises, and how setup.py drives the compiler (a recording fake stands in for it)."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import splatad
from splatad.commands import doctor

REPO = Path(__file__).resolve().parents[2]
PYPROJECT: dict[str, Any] = tomllib.loads((REPO / "pyproject.toml").read_text())
needs_x86 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the build differs on other processors")

# Writes its command line to $FAKE_LOG, fails for any argument in $FAKE_REFUSES, else makes the file after -o.
FAKE_COMPILER = """#!/bin/sh
echo "$@" >> "$FAKE_LOG"
for argument in "$@"; do
  case " $FAKE_REFUSES " in *" $argument "*) echo "error: bad value for $argument"; exit 1 ;; esac
done
while [ $# -gt 0 ]; do [ "$1" = -o ] && echo made > "$2"; shift; done
exit 0
"""


def _distribution(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower()


def _build(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run setup.py in `folder`, a copy of what a build reads."""
    return subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=folder,
        env={**os.environ, "CXXFLAGS": "", "LDFLAGS": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def source_tree(tmp_path: Path) -> Path:
    """The build files with an empty kernel and no Python code."""
    tree = tmp_path / "tree"
    (tree / "recon/kernel").mkdir(parents=True)
    shutil.copy(REPO / "setup.py", tree)
    for name in ("dispatch.cpp", "kernel_isa.cpp"):
        (tree / "recon/kernel" / name).touch()
    (tree / "pyproject.toml").write_text(
        '[project]\nname = "splatad"\nversion = "0"\n[tool.setuptools]\npackages = []\n'
    )
    return tree


@pytest.fixture
def fake_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Path of the log that a fake $CXX writes, one command a line."""
    compiler = tmp_path / "fake-c++"
    compiler.write_text(FAKE_COMPILER)
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("FAKE_REFUSES", "")
    return tmp_path / "log"


def test_an_isolated_build_asks_for_setuptools_alone() -> None:
    assert [_distribution(requirement) for requirement in PYPROJECT["build-system"]["requires"]] == [
        "setuptools"
    ]


def test_every_package_folder_is_installed() -> None:
    roots = ("splatad", "recon", "pose", "detect", "prepare")
    on_disk = {
        ".".join(file.parent.relative_to(REPO).parts)
        for root in roots
        for file in (REPO / root).rglob("__init__.py")
    }
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == on_disk


def test_the_version_has_one_source() -> None:
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "splatad.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", splatad.__version__)


def test_the_doctor_knows_every_extra_and_its_packages() -> None:
    declared = PYPROJECT["project"]["optional-dependencies"]
    assert set(doctor.EXTRAS) == set(declared)
    for name, extra in doctor.EXTRAS.items():
        assert set(extra.distributions) <= {_distribution(requirement) for requirement in declared[name]}, (
            name
        )


def test_the_doctor_knows_every_core_package() -> None:
    assert set(doctor.CORE) == {
        _distribution(requirement) for requirement in PYPROJECT["project"]["dependencies"]
    }


def test_torch_and_torchvision_are_never_pinned_to_one_version() -> None:
    project = PYPROJECT["project"]
    everything = [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]
    assert not [r for r in everything if _distribution(r) in ("torch", "torchvision") and "==" in r]


@needs_x86
def test_the_kernel_is_compiled_once_per_instruction_set_and_linked_plainest_first(
    source_tree: Path, fake_compiler: Path
) -> None:
    done = _build(source_tree, "build_ext", "--inplace")
    assert done.returncode == 0, done.stderr
    *compiles, link = fake_compiler.read_text().splitlines()
    sets = {
        command.split("-DSPLATAD_ISA=")[1].split()[0]: command for command in compiles if "_ISA=" in command
    }
    assert len(compiles) == 4
    assert set(sets) == {"base", "v3", "v4"}
    assert "-march" not in sets["base"]
    assert "-march=x86-64-v3" in sets["v3"]
    assert "-march=x86-64-v4 -mprefer-vector-width=512" in sets["v4"]
    assert not [command for command in compiles if "SPLATAD_ONLY_BASE" in command]
    objects = [Path(word).name for word in link.split() if word.endswith(".o")]
    assert objects == ["dispatch.o", "kernel_base.o", "kernel_v3.o", "kernel_v4.o"]
    assert (source_tree / "recon/kernel/_raster.so").is_file()


@needs_x86
def test_a_compiler_that_does_not_know_avx512_still_gives_a_kernel(
    source_tree: Path, fake_compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_REFUSES", "-march=x86-64-v4")
    done = _build(source_tree, "build_ext", "--inplace")
    assert done.returncode == 0, done.stderr
    *_, dispatch_or_base, other, link = fake_compiler.read_text().splitlines()
    assert sum("-DSPLATAD_ONLY_BASE" in command for command in (dispatch_or_base, other)) == 1
    assert [Path(word).name for word in link.split() if word.endswith(".o")] == [
        "dispatch.o",
        "kernel_base.o",
    ]
    assert (source_tree / "recon/kernel/_raster.so").is_file()


def test_without_a_kernel_the_install_goes_on_with_a_warning_and_no_older_library_stays(
    source_tree: Path, fake_compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_REFUSES", "-shared")
    older = source_tree / "recon/kernel/_raster.so"
    older.write_text("built from other sources")
    done = _build(source_tree, "build_ext", "--inplace")
    assert done.returncode == 0, done.stderr
    assert "the C++ kernel was not built" in done.stdout + done.stderr
    assert not older.exists()


def test_where_the_kernel_is_required_its_failure_stops_the_build(
    source_tree: Path, fake_compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_REFUSES", "-c")
    done = _build(source_tree, "build_ext", "--inplace", SPLATAD_REQUIRE_KERNEL="1")
    assert done.returncode != 0
    assert "the C++ kernel was not built" in done.stderr
    assert "bad value for -c" in done.stderr


def test_the_wheel_is_for_any_python_3_of_this_platform(source_tree: Path, fake_compiler: Path) -> None:
    done = _build(source_tree, "bdist_wheel")
    assert done.returncode == 0, done.stderr
    (wheel,) = (source_tree / "dist").iterdir()
    assert re.fullmatch(r"splatad-0-py3-none-\w+\.whl", wheel.name)


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_a_real_compiler_gives_a_library_that_ctypes_loads(
    source_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "c++")
    exported = 'extern "C" __attribute__((visibility("default")))'
    kernel = source_tree / "recon/kernel"
    (kernel / "kernel_isa.cpp").write_text(
        "#define JOIN_(a, b) a##b\n#define JOIN(a, b) JOIN_(a, b)\n"
        'extern "C" int JOIN(answer_, SPLATAD_ISA)() { return 42; }\n'
    )
    (kernel / "dispatch.cpp").write_text(
        f'extern "C" int answer_base();\n{exported} int answer() {{ return answer_base(); }}\n'
    )
    done = _build(source_tree, "build_ext", "--inplace", SPLATAD_REQUIRE_KERNEL="1")
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(kernel / "_raster.so"))
    assert library.answer() == 42
    assert not hasattr(
        library, "answer_base"
    )  # only what is exported on purpose can clash with other libraries


def _script(tmp_path: Path, name: str, *tools: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/NAME on a pretended machine: these tools, a few of the system's, no virtual environment."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("bash", "env", "dirname", "sed", "cat", *tools):
        found = shutil.which(tool)
        assert found is not None, tool
        (folder / tool).symlink_to(found)
    environment = {"PATH": str(folder), "SPLATAD_VENV": str(tmp_path / "venv")}
    return subprocess.run(
        [str(REPO / "scripts" / name)], env=environment, capture_output=True, text=True, check=False
    )


def test_setup_without_a_compiler_says_what_to_install(tmp_path: Path) -> None:
    done = _script(tmp_path, "setup")
    assert done.returncode == 4
    assert done.stderr.startswith("setup: no C++ compiler found; install one")
    assert not (tmp_path / "venv").exists()


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_setup_without_a_recent_python_says_what_to_install(tmp_path: Path) -> None:
    done = _script(tmp_path, "setup", "g++")
    assert done.returncode == 4
    assert done.stderr.startswith("setup: no Python 3.11 or newer")
    assert not (tmp_path / "venv").exists()


def test_gpu_check_without_a_gpu_says_so_with_its_own_status(tmp_path: Path) -> None:
    done = _script(tmp_path, "gpu_check")
    assert done.returncode == 4
    assert "no NVIDIA GPU on this machine" in done.stderr
