"""Generated datasets on disk: layout, camera geometry, true poses, resuming, refusing."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from prepare.camera import Camera, focal_from_fov, from_opengl_cam_to_world
from prepare.errors import UsageError
from prepare.generate.dataset import Settings, generate, train_cameras
from prepare.generate.objects import make_object
from prepare.generate.raycast import cast, light, photograph

TINY = Settings(family="robot", seed=3, views=4, good=1, defects=1, size_px=48, supersample=1, noise=0.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("raw")
    steps = []
    result = generate(
        out, "bot", TINY, workers=1, on_progress=lambda done, total: steps.append((done, total))
    )
    assert steps == [(done, 8) for done in range(9)]
    assert (result.folder, result.written, result.kept) == (out / "bot", 8, 0)
    return result.folder


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_layout_is_mad_sims_with_unpadded_numbers_and_nothing_left_over(made):
    assert set(contents(made)) == {
        *(f"train/good/{n}.png" for n in range(4)),
        *(f"test/{kind}/0.png" for kind in ("good", "Burrs", "Missing", "Stains")),
        *(f"ground_truth/{kind}/0_mask.png" for kind in ("Burrs", "Missing", "Stains")),
        "transforms.json",
        "test_poses.json",
        "generator.json",
    }
    settings = json.loads((made / "generator.json").read_text())
    assert (settings["family"], settings["seed"], settings["name"]) == ("robot", 3, "bot")


def test_train_photos_are_the_product_seen_from_the_poses_in_transforms_json(made):
    record = json.loads((made / "transforms.json").read_text())
    assert record["camera_angle_x"] == pytest.approx(0.69111)
    product = make_object("robot", 3)
    maps = light(product)
    for frame in record["frames"]:
        view = photograph(product, maps, camera_of(frame["transform_matrix"]), 1)
        stored = np.asarray(Image.open(made / frame["file_path"]))
        assert stored.dtype == np.uint8
        assert stored.shape == (48, 48, 3)
        assert np.mean(np.abs(stored - 255 * view.rgb) > 2) < 0.01  # poses pass through text unrounded
        assert (stored[0, 0] == 255).all()


def camera_of(matrix):
    focal = focal_from_fov(48, 0.69111)
    return Camera(
        from_opengl_cam_to_world(torch.tensor(matrix, dtype=torch.float64)), focal, focal, 24.0, 24.0, 48, 48
    )


def test_every_test_photo_has_its_true_pose_and_every_defect_its_mask(made):
    poses = json.loads((made / "test_poses.json").read_text())["poses"]
    assert set(poses) == {f"test/{kind}/0.png" for kind in ("good", "Burrs", "Missing", "Stains")}
    product = make_object("robot", 3)
    for path, matrix in poses.items():
        stored = np.asarray(Image.open(made / path)).astype(int)
        here = cast(product.parts, camera_of(matrix), 1).part >= 0
        mask = np.zeros((48, 48), bool)
        if "good" not in path:
            mask_image = np.asarray(Image.open(made / "ground_truth" / path.split("/")[1] / "0_mask.png"))
            assert set(np.unique(mask_image)) == {0, 255}
            mask = mask_image > 0
        painted = (stored < 255).any(axis=2)
        # The silhouette agrees with the pose, but for what the defect added or took away.
        assert np.mean((painted != here) & ~mask) < 0.002


def test_train_cameras_stand_on_the_sphere_level_and_look_at_its_centre():
    for views in (1, 2, 5, 60, 72, 210):
        cameras = train_cameras(replace(TINY, views=views))
        assert len(cameras) == views
        for camera in cameras:
            centre = camera.centre
            assert float(centre.norm()) == pytest.approx(3.0)
            torch.testing.assert_close(camera.forward, -centre / 3)
            assert abs(float(camera.world_to_cam[0, 2])) < 1e-12  # the image's x axis is horizontal: no roll
            assert float(camera.world_to_cam[1, 2]) < 0  # up in the world is up in the image
    directions = torch.stack([c.forward for c in train_cameras(replace(TINY, views=72))])
    grid = torch.nn.functional.normalize(
        torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)).double(), dim=1
    )
    nearest = torch.rad2deg(torch.arccos((grid @ directions.T).amax(dim=1).clamp(-1, 1)))
    assert float(nearest.max()) < 25  # no direction is far from a reference photo
    assert float(nearest.mean()) < 11


def test_a_stopped_run_is_completed_to_the_same_bytes_and_leaves_the_rest_alone(made):
    before = contents(made)
    kept = (made / "train/good/2.png").stat().st_mtime_ns
    for path in (
        "test/Stains/0.png",
        "ground_truth/Stains/0_mask.png",
        "train/good/1.png",
        "transforms.json",
    ):
        (made / path).unlink()
    (made / "ground_truth/Burrs/0_mask.png").unlink()  # a photo without its mask is made again
    result = generate(made.parent, "bot", TINY, workers=1)
    assert (result.written, result.kept) == (3, 5)
    assert contents(made) == before
    assert (made / "train/good/2.png").stat().st_mtime_ns == kept


def test_other_settings_are_refused_and_named(made):
    before = contents(made)
    with pytest.raises(UsageError, match="views was 4, now 5"):
        generate(made.parent, "bot", replace(TINY, views=5), workers=1)
    assert contents(made) == before


def test_an_older_folder_that_does_not_name_the_areas_of_defects_is_completed(tmp_path):
    first = generate(tmp_path, "bot", TINY, workers=1)
    marker = first.folder / "generator.json"
    older = json.loads(marker.read_text())
    del older["defect_px"]
    marker.write_text(json.dumps(older))
    assert generate(tmp_path, "bot", TINY, workers=1).written == 0
    with pytest.raises(UsageError, match="defect_px was"):
        generate(tmp_path, "bot", replace(TINY, defect_px=(25.0, 100.0)), workers=1)


def test_a_folder_of_someone_elses_is_never_touched(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(UsageError, match=r"nothing is overwritten"):
        generate(tmp_path, "mine", TINY, workers=1)
    assert contents(tmp_path) == {"mine/notes.txt": b"keep"}
    (tmp_path / "mine" / "generator.json").write_text("[not json")
    with pytest.raises(UsageError, match=r"generator\.json: cannot be read"):
        generate(tmp_path, "mine", TINY, workers=1)


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"views": 0}, "--views"),
        ({"size_px": 8}, "--size-px"),
        ({"noise": -0.1}, "--noise"),
        ({"seed": -1}, "--seed"),
        ({"defect_px": (100.0, 25.0)}, "--defect-px"),
        ({"defect_px": (0.0, 25.0)}, "--defect-px"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_written(tmp_path, change, flag):
    with pytest.raises(UsageError, match=flag):
        generate(tmp_path, "x", replace(TINY, **change), workers=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "..", "a/b", "/abs"])
def test_a_name_that_is_a_path_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match="--name"):
        generate(tmp_path, name, TINY, workers=1)
    assert not list(tmp_path.iterdir())


def test_noise_is_on_test_photos_only_and_repeats(made, tmp_path):
    settings = replace(TINY, defects=0, views=1, noise=0.05)
    first = generate(tmp_path, "a", settings, workers=1).folder
    second = generate(tmp_path, "b", settings, workers=1).folder
    assert (first / "test/good/0.png").read_bytes() == (second / "test/good/0.png").read_bytes()
    noisy, clean = (np.asarray(Image.open(f / "test/good/0.png")).astype(float) for f in (first, made))
    middle = (clean > 60) & (clean < 195)
    assert (noisy - clean)[middle].std() == pytest.approx(0.05 * 255, rel=0.1)
    assert (np.asarray(Image.open(first / "train/good/0.png"))[0, :, 0] == 255).all()


@pytest.mark.slow
def test_the_number_of_workers_changes_no_byte(made, tmp_path):
    shared = generate(tmp_path, "bot", TINY, workers=2).folder
    assert contents(shared) == contents(made)
