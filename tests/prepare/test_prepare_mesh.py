"""A mesh becomes a scene: what is written, kept, made anew, and in which units."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from prepare.datasets import mesh as module
from prepare.datasets.mesh import MeshSettings, prepare_mesh, read_depth
from prepare.datasets.scene_folder import prepared_kind
from prepare.errors import UsageError
from prepare.points import read_points
from prepare.scene import Scene, load_scene, load_view_image

trimesh = pytest.importorskip("trimesh")
pytest.importorskip("embreex")

SMALL = MeshSettings(views=12, size_px=48, points=300, supersample=2)


@pytest.fixture
def box(tmp_path: Path) -> Path:
    """20 x 10 x 4, its middle at (10, 5, 2)."""
    part = trimesh.creation.box((20.0, 10.0, 4.0))
    part.apply_translation((10.0, 5.0, 2.0))
    part.export(tmp_path / "box.stl")
    return tmp_path / "box.stl"


def prepared(box: Path, settings: MeshSettings = SMALL) -> tuple[Scene, dict, list[str]]:
    (folder,), told = prepare_mesh(box, lambda name: box.parent / "scenes" / name, settings)
    return load_scene(folder), json.loads((folder / "prepare.json").read_text()), told


def test_the_scene_has_photos_with_alpha_points_with_normals_and_a_scale(box: Path) -> None:
    scene, record, told = prepared(box)
    assert len(scene.views) == 12
    assert prepared_kind(scene.folder) == "mesh"
    assert record["complete"]
    assert record["coloured"] is False
    image = load_view_image(scene.views[0])
    assert image.background is not None
    assert image.background.tolist() == [1, 1, 1]
    assert 0.1 < float(image.alpha.mean()) < 0.9
    assert scene.points_path is not None
    cloud = read_points(scene.points_path)
    assert len(cloud.positions) >= 300
    assert cloud.normals is not None
    np.testing.assert_allclose(cloud.positions.abs().amax(0), [1.0, 0.5, 0.2], atol=0.02)
    assert scene.scale_to_mm == pytest.approx(10.0)  # half of 20 mm is 1
    assert any("20 x 10 x 4 mm (guessed" in line for line in told)


@pytest.mark.parametrize(
    ("unit", "scale_to_mm"), [("mm", 10.0), ("cm", 100.0), ("m", 10_000.0), ("inch", 254.0)]
)
def test_the_scale_follows_the_unit(box: Path, unit: str, scale_to_mm: float) -> None:
    scene, _, _ = prepared(box, MeshSettings(views=8, size_px=32, points=100, supersample=1, unit=unit))  # type: ignore[arg-type]
    assert scene.scale_to_mm == pytest.approx(scale_to_mm)


def test_a_kept_world_is_the_files(box: Path) -> None:
    settings = MeshSettings(views=8, size_px=32, points=100, supersample=1, scale="kept")
    scene, record, _ = prepared(box, settings)
    assert scene.points_path is not None
    positions = read_points(scene.points_path).positions
    np.testing.assert_allclose(positions.mean(0), [10.0, 5.0, 2.0], atol=1.0)
    assert scene.scale_to_mm == pytest.approx(1.0)
    assert record["mesh_to_world"] == np.eye(4).tolist()
    for view in scene.views:  # each looks at the part's middle
        u, v, _ = view.camera.project(torch.tensor([[10.0, 5.0, 2.0]]))[0].tolist()
        assert (u, v) == pytest.approx((16.0, 16.0), abs=1e-3)


def test_mesh_to_world_takes_the_files_up_to_z(box: Path) -> None:
    settings = MeshSettings(views=8, size_px=32, points=100, supersample=1, up="y")
    _, record, _ = prepared(box, settings)
    matrix = np.array(record["mesh_to_world"])
    np.testing.assert_allclose(matrix[:3, :3] @ [0, 10, 0], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(matrix @ [10, 5, 2, 1], [0, 0, 0, 1], atol=1e-12)
    assert np.linalg.det(matrix[:3, :3]) > 0


def test_depth_files_give_points_on_the_surface(box: Path) -> None:
    scene, _, _ = prepared(box)
    document = json.loads((scene.folder / "transforms.json").read_text())
    view, frame = scene.views[3], document["frames"][3]
    depth = read_depth(scene.folder / frame["depth_file_path"], document["depth_unit"])
    rows, columns = np.nonzero(np.isfinite(depth))
    z = depth[rows, columns]
    camera = view.camera
    seen = np.stack(
        [(columns + 0.5 - camera.cx) / camera.fl_x * z, (rows + 0.5 - camera.cy) / camera.fl_y * z, z], axis=1
    )
    pose = camera.world_to_cam.numpy()
    points = (seen - pose[:3, 3]) @ pose[:3, :3]
    off = np.abs(np.abs(points) / [1.0, 0.5, 0.2] - 1.0).min(axis=1)  # on one of the box's planes
    assert len(off) > 200
    assert off.max() < 2e-3


def test_what_is_there_is_kept_and_the_same_bits_come_again(
    box: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, _, _ = prepared(box)
    files = sorted(p for p in scene.folder.rglob("*") if p.is_file() and p.name != "prepare.json")
    before = {path: path.read_bytes() for path in files}
    stamps = {path: path.stat().st_mtime_ns for path in files if path.parent.name == "images"}
    lost = scene.folder / "images" / "0005.png"
    lost.unlink()
    (scene.folder / "transforms.json").unlink()
    drawn: list[int] = []
    write = module._write
    monkeypatch.setattr(module, "_write", lambda folder, i, *rest: (drawn.append(i), write(folder, i, *rest)))
    prepared(box)
    assert drawn == [5]
    assert {path: path.read_bytes() for path in files} == before
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items() if path != lost)


def test_other_settings_or_another_mesh_make_all_photos_anew(box: Path) -> None:
    first, _, _ = prepared(box)
    pixels = (first.folder / "images" / "0000.png").read_bytes()
    trimesh.creation.box((20.0, 10.0, 8.0)).export(box)
    second, _, _ = prepared(box)
    assert (second.folder / "images" / "0000.png").read_bytes() != pixels
    third, _, _ = prepared(box, MeshSettings(views=9, size_px=48, points=300, supersample=2))
    assert len(third.views) == 9
    assert len(list((third.folder / "images").iterdir())) == 9


def test_a_folder_of_another_file_is_left_alone(box: Path) -> None:
    prepared(box)
    other = box.with_name("other.stl")
    other.write_bytes(box.read_bytes())
    with pytest.raises(UsageError, match="was prepared from"):
        prepare_mesh(other, lambda _: box.parent / "scenes" / "box", SMALL)
    assert (box.parent / "scenes" / "box" / "transforms.json").is_file()


def test_progress_counts_the_photos(box: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    prepare_mesh(
        box, lambda name: box.parent / "scenes" / name, SMALL, progress=lambda *call: calls.append(call)
    )
    assert calls[0] == ("box", 0, 12)
    assert calls[-1] == ("box", 12, 12)


@pytest.mark.parametrize(
    ("field", "value"), [("views", 3), ("size_px", 8), ("supersample", 0), ("points", 5)]
)
def test_settings_out_of_range_are_refused(box: Path, field: str, value: int) -> None:
    with pytest.raises(UsageError, match=f"--{field.replace('_', '-')} {value}"):
        prepare_mesh(box, lambda name: box.parent / name, MeshSettings(**{field: value}))
