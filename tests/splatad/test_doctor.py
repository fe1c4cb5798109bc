"""`splatad doctor` tells what is there from what is not, and for the latter what brings it."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest
import torch

from prepare.errors import MissingPartError
from recon.kernel import library
from splatad.cli import main
from splatad.commands import doctor


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No weights, caches or workspace of the machine that runs the tests."""
    for name in ("SPLATAD_WEIGHTS", "SPLATAD_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SPLATAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def _findings(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[str, str]]:
    """The doctor's findings by part, as `--json` gives them."""
    capsys.readouterr()
    assert main(["doctor", "--json", *arguments]) == 0
    return {finding["part"]: finding for finding in json.loads(capsys.readouterr().out)["findings"]}


def _pretend_installed(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    def version(name: str) -> str:
        if name in versions:
            return versions[name]
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_an_extra_is_ok_only_when_all_its_packages_are_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _pretend_installed(monkeypatch, {"viser": "1.1.1", "pycolmap": "4.2.1"})
    found = _findings(capsys)
    assert found["viewer"]["state"] == "ok"
    assert "viser 1.1.1" in found["viewer"]["detail"]
    assert found["viewer"]["remedy"] == ""
    assert found["photos"]["state"] == "absent"
    assert "without poselib, imageio-ffmpeg, pi-heif (there: pycolmap 4.2.1)" in found["photos"]["detail"]
    assert found["photos"]["remedy"] == "pip install 'splatad[photos]'"
    assert found["core"]["state"] == "fault"


def test_the_core_is_ok_with_its_real_versions(capsys: pytest.CaptureFixture[str]) -> None:
    core = _findings(capsys)["core"]
    assert core["state"] == "ok"
    assert f"torch {importlib.metadata.version('torch')}" in core["detail"]


def test_a_kernel_that_loads_is_shown_with_what_it_says_of_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    info = library.KernelInfo(Path("/there/_raster.so"), "v3", 2)
    monkeypatch.setattr(library, "kernel_info", lambda: info)
    kernel = _findings(capsys)["C++ kernel"]
    assert (kernel["state"], kernel["detail"]) == ("ok", "instruction set v3, 2 threads, /there/_raster.so")


def test_a_kernel_that_does_not_load_is_a_fault_with_its_reason_and_a_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def kernel_info() -> library.KernelInfo:
        raise MissingPartError("the library is not there")

    monkeypatch.setattr(library, "kernel_info", kernel_info)
    kernel = _findings(capsys)["C++ kernel"]
    assert (kernel["state"], kernel["detail"]) == ("fault", "the library is not there")
    assert "C++ compiler" in kernel["remedy"]


def test_a_gpu_without_gsplat_asks_for_the_cuda_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _pretend_installed(monkeypatch, {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    found = _findings(capsys)
    assert "Some GPU, compute 9.0" in found["CUDA"]["detail"]
    assert (found["gsplat"]["state"], found["gsplat"]["remedy"]) == ("absent", "pip install 'splatad[cuda]'")


def test_a_gpu_that_this_torch_cannot_use_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: Some GPU'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    cuda = _findings(capsys)["CUDA"]
    assert cuda["state"] == "fault"
    assert "has no CUDA" in cuda["detail"]
    assert "'torch>=2.7'" in cuda["remedy"]


def test_weights_are_found_in_the_named_folder_and_in_the_cache(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    named, cached = tmp_path / "named", tmp_path / "cache/weights"
    for folder, file in ((named, "a.safetensors"), (cached, "b.pth")):
        folder.mkdir(parents=True)
        (folder / file).write_bytes(bytes(2_000_000))
        (folder / "notes.txt").touch()
    monkeypatch.setenv("SPLATAD_WEIGHTS", str(named))
    found = _findings(capsys)
    assert found[str(named)]["detail"] == "a.safetensors (2 MB)"
    assert found[str(cached)]["detail"] == "b.pth (2 MB)"


def test_the_workspace_is_listed_and_never_made(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    workspace = tmp_path / "work"
    assert _findings(capsys, "--workspace", str(workspace))[str(workspace)]["state"] == "absent"
    assert not workspace.exists()
    (workspace / "scenes/gear").mkdir(parents=True)
    (workspace / "scenes/gear/transforms.json").touch()
    found = _findings(capsys, "--workspace", str(workspace))[str(workspace)]
    assert (found["state"], found["detail"]) == ("ok", "scenes: gear; references: none")


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("sse2", "baseline instructions"),
        ("avx avx2 bmi1 bmi2 f16c fma abm movbe", "x86-64-v3 (AVX2)"),
        ("avx avx2 bmi1 bmi2 f16c fma abm movbe avx512f", "x86-64-v3 (AVX2)"),
        (
            "avx avx2 bmi1 bmi2 f16c fma abm movbe avx512f avx512bw avx512cd avx512dq avx512vl",
            "x86-64-v4 (AVX-512)",
        ),
    ],
)
def test_the_instruction_set_is_the_richest_that_all_flags_allow(flags: str, name: str) -> None:
    assert doctor.instruction_set(set(flags.split())) == name


def test_the_table_names_each_missing_part_once_with_its_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _pretend_installed(monkeypatch, {})
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for extra in doctor.EXTRAS:
        assert shown.count(f"  {extra}: pip install 'splatad[{extra}]'\n") == 1
