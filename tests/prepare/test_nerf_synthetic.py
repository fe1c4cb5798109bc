from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from prepare.camera import focal_from_fov, from_opengl_cam_to_world
from prepare.datasets.nerf_synthetic import prepare_nerf_synthetic
from prepare.datasets.nerfstudio import prepare_nerfstudio
from prepare.datasets.scene_folder import read_missing
from prepare.errors import InputError
from prepare.image import write_mask
from prepare.scene import load_scene, load_view_image
from splatad.commands.prepare import Nerfstudio, NerfSynthetic, run

_DATA = Path(os.environ.get("SPLATAD_TESTDATA") or Path(__file__).parents[3] / "shared" / "data")


def _pose(seed: int) -> list[list[float]]:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    matrix[:3, 3] = [0.1 * seed, 2.0, -1.0]
    return matrix.tolist()  # type: ignore[no-any-return]


def _rgba(path: Path, seed: int) -> np.ndarray:
    image = np.random.default_rng(seed).integers(0, 256, (12, 16, 4), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return image


@pytest.fixture
def synthetic(tmp_path: Path) -> Path:
    folder = tmp_path / "chair"
    for split, count in {"train": 3, "val": 1, "test": 2}.items():
        frames = []
        for index in range(count):
            _rgba(folder / split / f"r_{index}.png", index)
            frames.append({"file_path": f"./{split}/r_{index}", "transform_matrix": _pose(index)})
        (folder / f"transforms_{split}.json").write_text(
            json.dumps({"camera_angle_x": 0.7, "frames": frames})
        )
    return folder


def _inside(tmp_path: Path) -> Any:
    return lambda name: tmp_path / "work" / name


@pytest.mark.parametrize("prepared", [False, True])
def test_train_photos_are_views_and_val_and_test_photos_good_queries(
    synthetic: Path, tmp_path: Path, prepared: bool
) -> None:
    folder = prepare_nerf_synthetic(synthetic, _inside(tmp_path))[0] if prepared else synthetic
    scene = load_scene(folder)
    at = "images/" if prepared else ""
    assert scene.name == "chair"
    assert [view.name for view in scene.views] == [f"{at}train/r_{index}.png" for index in range(3)]
    assert [query.name for query in scene.queries] == [
        f"{at}{n}.png" for n in ("val/r_0", "test/r_0", "test/r_1")
    ]
    assert {query.label for query in scene.queries} == {"good"}
    for index, view in enumerate(scene.views):
        expected = from_opengl_cam_to_world(torch.tensor(_pose(index), dtype=torch.float64)).float()
        torch.testing.assert_close(view.camera.world_to_cam, expected, atol=1e-6, rtol=0)
        assert view.camera.fl_x == pytest.approx(focal_from_fov(16, 0.7))
    truth = scene.queries[2].world_to_cam
    assert truth is not None
    expected = from_opengl_cam_to_world(torch.tensor(_pose(1), dtype=torch.float64)).float()
    torch.testing.assert_close(truth, expected, atol=1e-6, rtol=0)


def test_alpha_is_kept(synthetic: Path, tmp_path: Path) -> None:
    stored = _rgba(synthetic / "train" / "r_0.png", 9)
    scene = load_scene(prepare_nerf_synthetic(synthetic, _inside(tmp_path), copy=True)[0])
    alpha = torch.from_numpy(stored[..., 3]).float() / 255
    torch.testing.assert_close(load_view_image(scene.views[0]).alpha, alpha)


def test_test_photos_that_are_not_there_are_missing_not_fatal(synthetic: Path, tmp_path: Path) -> None:
    (synthetic / "test" / "r_0.png").unlink()
    folder = prepare_nerf_synthetic(synthetic, _inside(tmp_path), name="stool")[0]
    assert folder.name == "stool"
    assert read_missing(folder) == ("test/r_0",)
    assert len(load_scene(folder).queries) == 2


def test_a_folder_in_another_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        prepare_nerf_synthetic(tmp_path / "gone", _inside(tmp_path))
    with pytest.raises(InputError, match=r"no transforms_train\.json"):
        prepare_nerf_synthetic(tmp_path, _inside(tmp_path))
    with pytest.raises(InputError, match=r"no transforms\.json"):
        prepare_nerfstudio(tmp_path, _inside(tmp_path))
    with pytest.raises(InputError, match="no such folder"):
        prepare_nerfstudio(tmp_path / "gone", _inside(tmp_path))


def _nerfstudio(folder: Path) -> Path:
    for name in ("0.png", "2.png"):
        image = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        (folder / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / "images" / name)
    write_mask(folder / "m" / "2.png", torch.ones(12, 16, dtype=torch.bool))
    (folder / "cloud.ply").write_text(
        "ply\nformat ascii 1.0\nelement vertex 1\n"
        "property float x\nproperty float y\nproperty float z\nend_header\n1 2 3\n"
    )
    frames: list[dict[str, Any]] = [
        {
            "file_path": "images/0.png",
            "transform_matrix": _pose(0),
            "fl_x": 21.5,
            "depth_file_path": "d/0.png",
        },
        {"file_path": "images/1.png", "transform_matrix": _pose(1)},
        {"file_path": "images/2", "transform_matrix": _pose(2), "mask_path": "m/2.png"},
    ]
    document = {
        "fl_x": 20.0,
        "fl_y": 19.0,
        "cx": 7.5,
        "cy": 6.5,
        "w": 16,
        "h": 12,
        "k1": 0.05,
        "ply_file_path": "cloud.ply",
        "scale_to_mm": 12.5,
        "applied_transform": [[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]],
        "applied_scale": 1.5,
        "frames": frames,
    }
    (folder / "transforms.json").write_text(json.dumps(document))
    queries = [
        {"file_path": "images/2.png", "label": "Stains", "transform_matrix": _pose(2), "mask_path": "m/2.png"}
    ]
    (folder / "queries.json").write_text(json.dumps({"version": 1, "queries": queries}))
    return folder


@pytest.mark.parametrize("by_file", [False, True])
def test_a_foreign_scene_reads_the_same_after_preparing(tmp_path: Path, by_file: bool) -> None:
    source = _nerfstudio(tmp_path / "vase")
    folder = prepare_nerfstudio(source / "transforms.json" if by_file else source, _inside(tmp_path))[0]
    before, after = load_scene(source), load_scene(folder)
    assert after.name == "vase"
    assert before.missing == ("images/1.png",) == read_missing(folder)
    assert after.missing == ()
    assert after.scale_to_mm == 12.5
    listed = json.loads((folder / "transforms.json").read_text())
    assert listed["applied_transform"] == [
        [1, 0, 0, 0],
        [0, 0, 1, 0],
        [0, -1, 0, 0],
    ]  # nerfstudio goes by them
    assert listed["applied_scale"] == 1.5
    assert after.points_path is not None
    assert after.points_path.resolve() == source / "cloud.ply"
    for old, new in zip(before.views, after.views, strict=True):
        assert new.name == "images/" + old.name
        assert new.distortion == old.distortion is not None
        assert (new.mask_path is None) == (old.mask_path is None)
        assert torch.equal(new.camera.world_to_cam, old.camera.world_to_cam)
        assert (new.camera.fl_x, new.camera.fl_y, new.camera.cx) == (
            old.camera.fl_x,
            old.camera.fl_y,
            old.camera.cx,
        )
        torch.testing.assert_close(load_view_image(new).rgb, load_view_image(old).rgb)
    (old_query,), (new_query,) = before.queries, after.queries
    assert new_query.label == "Stains"
    assert new_query.mask_path is not None
    assert old_query.world_to_cam is not None
    assert new_query.world_to_cam is not None
    assert torch.equal(new_query.world_to_cam, old_query.world_to_cam)


def test_points_given_beside_the_scene_are_checked_and_linked(tmp_path: Path) -> None:
    source = _nerfstudio(tmp_path / "vase")
    (tmp_path / "broken.ply").write_text("ply\n")
    with pytest.raises(InputError, match=r"broken\.ply"):
        prepare_nerfstudio(source, _inside(tmp_path), points=tmp_path / "broken.ply")
    assert not (tmp_path / "work").exists()
    (tmp_path / "points3D.txt").write_text("1 0 0 0 255 0 0 0.5\n")
    folder = prepare_nerfstudio(source, _inside(tmp_path), points=tmp_path / "points3D.txt")[0]
    assert load_scene(folder).points_path == folder / "points.txt"


def test_the_commands_prepare_into_the_workspace(
    synthetic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = tmp_path / "ws"
    assert run(NerfSynthetic(data=synthetic, workspace=workspace)) == 0
    assert "chair: 3 views of 16 x 12, 0 foreground masks, 3 queries (3 good)" in capsys.readouterr().out
    assert run(Nerfstudio(data=_nerfstudio(tmp_path / "vase"), name="pot", workspace=workspace)) == 0
    printed = capsys.readouterr().out
    assert "pot: 2 views" in printed
    assert "points: points.ply" in printed
    assert "splatad fit --class pot" in printed


@pytest.mark.parametrize(("name", "views", "missing"), [("fox", 50, 17), ("plush", 97, 0)])
def test_real_phone_scenes_are_prepared(tmp_path: Path, name: str, views: int, missing: int) -> None:
    if not (_DATA / name).is_dir():
        pytest.skip(f"no real input at {_DATA / name}; set SPLATAD_TESTDATA")
    folder = prepare_nerfstudio(_DATA / name, _inside(tmp_path))[0]
    scene = load_scene(folder)
    assert len(scene.views) == views
    assert len(read_missing(folder)) == missing
    assert all(view.distortion is not None for view in scene.views)


def test_the_real_bulldozer_is_prepared(tmp_path: Path) -> None:
    if not (_DATA / "nerf_lego").is_dir():
        pytest.skip(f"no real input at {_DATA / 'nerf_lego'}; set SPLATAD_TESTDATA")
    scene = load_scene(prepare_nerf_synthetic(_DATA / "nerf_lego", _inside(tmp_path), name="lego")[0])
    assert len(scene.views) == 100
    assert scene.views[99].camera.fl_x == pytest.approx(1111.111, abs=1e-2)
