"""`splatad prepare mesh` and what `splatad fit` takes from such a scene."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prepare.scene import load_scene
from recon.fit import PRESETS, FitConfig, fit_scene, initial_cloud
from splatad.cli import main
from splatad.commands.fit import Fit, _fit_config, _folds, _usual_preset

trimesh = pytest.importorskip("trimesh")
pytest.importorskip("embreex")


@pytest.fixture
def box(tmp_path: Path) -> Path:
    trimesh.creation.box((20.0, 10.0, 4.0)).export(tmp_path / "box.stl")
    return tmp_path / "box.stl"


def prepare(box: Path, *flags: str) -> int:
    small = ("--views", "16", "--size-px", "48", "--points", "400", "--supersample", "2")
    return main(["prepare", "mesh", str(box), *small, "--workspace", str(box.parent / "work"), *flags])


def test_a_mesh_becomes_a_scene_and_the_next_step_is_said(
    box: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(box, "--unit", "inch") == 0
    printed = capsys.readouterr().out
    assert "box: 16 views of 48 x 48" in printed
    assert "12 faces, 20 x 10 x 4 inch (as --unit says)" in printed
    assert "next: splatad fit --class box" in printed


def test_a_broken_mesh_is_one_line_and_status_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "flat.obj").write_text("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n")
    assert prepare(tmp_path / "flat.obj") == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no area; export the part again" in error
    assert not (tmp_path / "work").exists()


def test_a_fit_takes_the_preset_of_meshes_without_folds(box: Path) -> None:
    prepare(box)
    folder = box.parent / "work" / "scenes" / "box"
    assert _usual_preset(folder) == "mesh"
    assert _usual_preset(box.parent) == "default"
    config = Fit(preset="mesh")
    assert _folds(config, 96) == 0
    assert _fit_config(config, 0) == PRESETS["mesh"]
    assert _fit_config(Fit(), 0) == FitConfig()  # nothing changes for other scenes


def test_splats_start_flat_on_the_surface_and_already_look_like_the_part(box: Path) -> None:
    prepare(box)
    scene = load_scene(box.parent / "work" / "scenes" / "box")
    cloud = initial_cloud(scene)
    assert cloud is not None
    assert cloud.source == "surface"
    assert cloud.normals is not None
    config = replace(PRESETS["mesh"], steps=1, checkpoint_seconds=0.0)
    fit = fit_scene(scene, config)
    assert fit.initial_source == "surface"
    quality = fit.mean_psnr(held_out=False)
    assert quality is not None
    assert quality > 18.0  # dB, after one step: 400 splats hang over the edges
    scales = fit.gaussians.log_scales
    assert bool((scales[:, 2] < scales[:, :2].min(dim=1).values - 1.0).all())
    assert torch.isfinite(scales).all()
