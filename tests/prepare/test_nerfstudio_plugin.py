"""nerfstudio's own code on our scenes: runs where it is installed (shared/stack.md says how with few packages)."""

from __future__ import annotations

import importlib.metadata
import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from prepare.camera import to_opengl_cam_to_world
from prepare.datasets.colmap import prepare_colmap
from prepare.datasets.nerfstudio import prepare_nerfstudio
from prepare.scene import load_scene
from prepare.similarity import read_dataparser_transforms

REPO = Path(__file__).resolve().parents[2]
_GROUP = "nerfstudio.dataparser_configs"


def _source(folder: Path) -> Path:
    """Eight photos round the origin, distorted, turned after structure from motion as ns-process-data does."""
    frames: list[dict[str, Any]] = []
    for index in range(8):
        pixels = np.random.default_rng(index).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        (folder / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
        matrix = np.eye(4)
        matrix[:3, :3] = Rotation.from_euler("yx", [45 * index, -20 + index], degrees=True).as_matrix()
        matrix[:3, 3] = 3 * matrix[:3, 2] + [0.2, 1.0, -0.5]
        frames.append({"file_path": f"images/{index}.png", "transform_matrix": matrix.tolist()})
    lens = {"fl_x": 50.0, "fl_y": 51.0, "cx": 20.5, "cy": 14.0, "w": 40, "h": 30, "k1": 0.05, "p1": 0.001}
    document = {
        "camera_model": "OPENCV",
        **lens,
        "applied_transform": [[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]],
        "applied_scale": 1.5,
        "frames": frames,
    }
    (folder / "transforms.json").write_text(json.dumps(document))
    return folder


def _colmap(folder: Path) -> Path:
    """Three photos of two lenses with distortion of their own."""
    (folder / "images").mkdir(parents=True)
    lines = []
    for index in range(3):
        Image.fromarray(np.full((30, 40, 3), 60 * index, dtype=np.uint8)).save(
            folder / "images" / f"{index}.png"
        )
        quaternion = " ".join(
            map(repr, Rotation.random(random_state=index).as_quat(scalar_first=True).tolist())
        )
        lines += [f"{index + 1} {quaternion} 0.1 {index} 4 {1 + index % 2} {index}.png", ""]
    (folder / "images.txt").write_text("\n".join(lines))
    (folder / "cameras.txt").write_text(
        "1 OPENCV 40 30 50 51 20 15 .05 .02 .001 .003\n2 SIMPLE_RADIAL 40 30 49 20 15 .05\n"
    )
    return folder


def _outputs(folder: Path, **options: Any) -> Any:
    parser = pytest.importorskip(
        "nerfstudio.data.dataparsers.nerfstudio_dataparser",
        reason="nerfstudio is not installed (shared/stack.md)",
    )
    config = parser.NerfstudioDataParserConfig(data=folder, eval_mode="all", **options)
    return config.setup().get_dataparser_outputs("train")


@pytest.mark.parametrize("kind", ["nerfstudio", "colmap"])
def test_nerfstudios_parser_reads_the_cameras_that_we_read(tmp_path: Path, kind: str) -> None:
    if kind == "colmap":
        folder = prepare_colmap(_colmap(tmp_path / "cup"), lambda name: tmp_path / name / "scene")[0]
    else:
        folder = prepare_nerfstudio(_source(tmp_path / "cup"), lambda name: tmp_path / "ws" / name)[0]
    theirs = _outputs(folder, orientation_method="none", center_method="none", auto_scale_poses=False)
    views = load_scene(folder).views
    assert [Path(name) for name in theirs.image_filenames] == [view.image_path for view in views]
    for index, view in enumerate(views):
        camera, lens = view.camera, theirs.cameras[index]
        expected = to_opengl_cam_to_world(camera.world_to_cam)[:3]
        torch.testing.assert_close(lens.camera_to_worlds, expected, atol=1e-6, rtol=0)
        numbers = [float(value) for value in (lens.fx, lens.fy, lens.cx, lens.cy, lens.width, lens.height)]
        assert numbers == pytest.approx(
            [camera.fl_x, camera.fl_y, camera.cx, camera.cy, camera.width, camera.height]
        )
        assert view.distortion is not None
        ours = [view.distortion.k1, view.distortion.k2, view.distortion.k3, view.distortion.k4]
        ours += [view.distortion.p1, view.distortion.p2]
        assert lens.distortion_params.tolist() == pytest.approx(ours)


@pytest.mark.parametrize("prepared", [False, True])
def test_the_transforms_that_nerfstudio_writes_lead_its_cameras_back_to_ours(
    tmp_path: Path, prepared: bool
) -> None:
    source = _source(tmp_path / "cup")
    scene = prepare_nerfstudio(source, lambda name: tmp_path / "ws" / name)[0]
    theirs = _outputs(scene if prepared else source)  # its defaults: upright, centred, scaled
    theirs.save_dataparser_transform(tmp_path / "run" / "dataparser_transforms.json")
    by = read_dataparser_transforms(tmp_path / "run" / "dataparser_transforms.json", scene)
    for view, pose in zip(load_scene(scene).views, theirs.cameras.camera_to_worlds.double(), strict=True):
        ours = to_opengl_cam_to_world(view.camera.world_to_cam.double())
        assert float((pose[:, 3] - ours[:3, 3]).norm()) > 0.1  # it did move them
        torch.testing.assert_close(
            by.scale * by.rotation @ pose[:, 3] + by.translation, ours[:3, 3], atol=1e-5, rtol=0
        )
        torch.testing.assert_close(by.rotation @ pose[:, :3], ours[:3, :3], atol=1e-5, rtol=0)


def test_nerfstudio_finds_our_data_parser_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = pytest.importorskip(
        "nerfstudio.plugins.registry_dataparser", reason="nerfstudio is not installed (shared/stack.md)"
    )
    declared = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["entry-points"][_GROUP]
    points = importlib.metadata.EntryPoints(
        importlib.metadata.EntryPoint(name, value, _GROUP) for name, value in declared.items()
    )
    monkeypatch.setattr(registry, "entry_points", lambda group: points.select(group=group))
    configs, descriptions = registry.discover_dataparsers()
    assert "not turned, moved or scaled" in descriptions["splatad-data"]
    config = configs["splatad-data"]
    config.data = prepare_nerfstudio(_source(tmp_path / "cup"), lambda name: tmp_path / "ws" / name)[0]
    config.load_3D_points = False  # the scene has none
    outputs = config.setup().get_dataparser_outputs("train")
    ours = {
        view.name: to_opengl_cam_to_world(view.camera.world_to_cam) for view in load_scene(config.data).views
    }
    assert len(outputs.image_filenames) == 8 * 9 // 10 + (8 * 9 % 10 > 0)  # nine tenths train
    for name, pose in zip(outputs.image_filenames, outputs.cameras.camera_to_worlds, strict=True):
        expected = ours[Path(name).relative_to(config.data).as_posix()][:3]
        torch.testing.assert_close(pose, expected, atol=1e-6, rtol=0)


def test_splatad_does_not_need_nerfstudio() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    assert not any("nerfstudio" in requirement for requirement in project["dependencies"])
    declared = project["entry-points"][_GROUP]
    module, _, attribute = declared["splatad-data"].partition(":")
    text = (REPO / (module.replace(".", "/") + ".py")).read_text()
    assert f"\n{attribute} = DataParserSpecification(" in text
