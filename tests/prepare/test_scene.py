from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from prepare.camera import from_opengl_cam_to_world
from prepare.errors import InputError
from prepare.image import read_image, write_image, write_mask
from prepare.points import read_points
from prepare.scene import Scene, load_query_image, load_scene, load_view_image

_DATA = Path(os.environ.get("SPLATAD_TESTDATA") or Path(__file__).parents[3] / "shared" / "data")


def _real(name: str) -> Path:
    if not (_DATA / name).is_dir():
        pytest.skip(f"no real input at {_DATA / name}; set SPLATAD_TESTDATA")
    return _DATA / name


def _pose(seed: int = 0) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    matrix[:3, 3] = [0.5, -1.0, 3.0]
    return matrix


def _photo(path: Path, width: int = 40, height: int = 30, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed)))


def _document() -> dict[str, Any]:
    return {
        "camera_model": "OPENCV",
        "fl_x": 50.0,
        "fl_y": 48.0,
        "cx": 21.0,
        "cy": 14.0,
        "w": 40.0,
        "h": 30.0,
        "frames": [
            {"file_path": "images/0.png", "transform_matrix": _pose(0).tolist()},
            {"file_path": "./images/1", "transform_matrix": _pose(1)[:3].tolist()},
        ],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _photo(tmp_path / "part" / "images" / "0.png", seed=0)
    _photo(tmp_path / "part" / "images" / "1.png", seed=1)
    _write(tmp_path / "part", _document())
    return tmp_path / "part"


def _write(folder: Path, document: object, name: str = "transforms.json") -> None:
    (folder / name).write_text(json.dumps(document))


def _with(folder: Path, **changes: Any) -> Scene:
    document = _document()
    document.update(changes)
    _write(folder, {key: value for key, value in document.items() if value is not None})
    return load_scene(folder)


def test_views_have_names_paths_and_cameras_in_our_convention(folder: Path) -> None:
    scene = load_scene(folder)
    assert scene.name == "part"
    assert [view.name for view in scene.views] == ["images/0.png", "images/1.png"]
    assert scene.views[1].image_path == folder / "images" / "1.png"
    assert scene.queries == ()
    assert scene.missing == ()
    for seed, view in enumerate(scene.views):
        # A point 2 in front of the OpenGL camera (its -z), 0.4 to its right (+x) and 0.2 above (+y).
        point = torch.from_numpy(_pose(seed) @ np.array([0.4, 0.2, -2.0, 1.0]))[:3].float()
        u, v, depth = view.camera.project(point[None])[0].tolist()
        assert u == pytest.approx(50 * 0.4 / 2 + 21, abs=1e-4)
        assert v == pytest.approx(-48 * 0.2 / 2 + 14, abs=1e-4)
        assert depth == pytest.approx(2, abs=1e-5)
        assert (view.camera.width, view.camera.height) == (40, 30)
        assert view.distortion is None


def test_the_scene_file_itself_is_accepted_too(folder: Path) -> None:
    assert load_scene(folder / "transforms.json").views[0].name == "images/0.png"


def test_a_legacy_file_takes_the_focal_length_from_the_photos_own_width(folder: Path) -> None:
    bare = {"fl_x": None, "fl_y": None, "cx": None, "cy": None, "w": None, "h": None}
    camera = _with(folder, **bare, camera_angle_x=0.8).views[0].camera
    assert camera.fl_x == pytest.approx(20 / math.tan(0.4))
    assert camera.fl_y == camera.fl_x
    assert (camera.cx, camera.cy) == (20, 15)
    camera = _with(folder, **bare, camera_angle_x=0.8, camera_angle_y=0.5).views[0].camera
    assert camera.fl_y == pytest.approx(15 / math.tan(0.25))


def test_a_frames_own_lens_overrides_the_shared_one(folder: Path) -> None:
    document = _document()
    document["frames"][1].update(fl_x=77.0, k1=0.2)
    _write(folder, document)
    first, second = load_scene(folder).views
    assert (first.camera.fl_x, second.camera.fl_x) == (50, 77)
    assert first.distortion is None
    assert second.distortion is not None
    assert second.distortion.k1 == 0.2


def test_fisheye_is_known_by_both_of_its_names(folder: Path) -> None:
    for change in ({"camera_model": "OPENCV_FISHEYE"}, {"is_fisheye": True}):
        distortion = _with(folder, **change, k1=0.1).views[0].distortion
        assert distortion is not None
        assert distortion.model == "OPENCV_FISHEYE"


def test_a_scaled_photo_gets_a_scaled_camera_and_another_shape_is_refused(folder: Path) -> None:
    _photo(folder / "images" / "0.png", width=20, height=15)
    camera = load_scene(folder).views[0].camera
    assert (camera.fl_x, camera.fl_y, camera.cx, camera.cy) == (25, 24, 10.5, 7)
    assert (camera.width, camera.height) == (20, 15)
    _photo(folder / "images" / "0.png", width=30, height=40)
    with pytest.raises(InputError, match=r"0\.png.*30 x 40.*40 x 30"):
        load_scene(folder)


def test_a_photo_turned_by_exif_must_fit_its_camera_upright(folder: Path) -> None:
    upright = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(upright, 1))).save(folder / "images" / "0.png", exif=exif)
    view = load_scene(folder).views[0]
    torch.testing.assert_close(load_view_image(view).rgb, torch.from_numpy(upright).float() / 255)
    Image.fromarray(upright).save(folder / "images" / "0.png", exif=exif)  # now upright it is portrait
    with pytest.raises(InputError, match="30 x 40"):
        load_scene(folder)


def test_missing_photos_masks_and_points_are_named_and_all_missing_is_an_error(folder: Path) -> None:
    (folder / "images" / "1.png").unlink()
    document = _document()
    document["frames"][0]["mask_path"] = "masks/0.png"
    document["ply_file_path"] = "points.ply"
    _write(folder, document)
    scene = load_scene(folder)
    assert [view.name for view in scene.views] == ["images/0.png"]
    assert set(scene.missing) == {"images/1", "masks/0.png", "points.ply"}
    assert scene.views[0].mask_path is None
    assert scene.points_path is None
    (folder / "images" / "0.png").unlink()
    with pytest.raises(InputError, match="none of its 2 photos is there"):
        load_scene(folder)


def test_a_slightly_rounded_rotation_is_made_exactly_orthonormal(folder: Path) -> None:
    rounded = [[round(value, 4) for value in row] for row in _pose(5).tolist()]
    document = _document()
    document["frames"][0]["transform_matrix"] = rounded
    _write(folder, document)
    rotation = load_scene(folder).views[0].camera.world_to_cam[:3, :3].double()
    assert (rotation @ rotation.T - torch.eye(3)).abs().max() < 5e-7
    expected = from_opengl_cam_to_world(torch.from_numpy(_pose(5)))[:3, :3]
    assert (rotation - expected).abs().max() < 2e-4


def _set(*keys: Any) -> Callable[[dict[str, Any], Any], None]:
    def change(document: dict[str, Any], value: Any) -> None:
        at: Any = document
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value

    return change


_FRAME = ("frames", 0)
_MATRIX = (*_FRAME, "transform_matrix")


@pytest.mark.parametrize(
    ("keys", "value", "reason"),
    [
        (("frames",), [], "no frames"),
        (("frames",), None, "no frames"),
        (("frames",), {"0": 1}, "no frames"),
        (_FRAME, "images/0.png", "must be an object"),
        ((*_FRAME, "file_path"), "/etc/passwd.png", "leads out"),
        ((*_FRAME, "file_path"), "../other/0.png", "leads out"),
        ((*_FRAME, "file_path"), "images/../../0.png", "leads out"),
        ((*_FRAME, "file_path"), "..\\0.png", "leads out"),
        ((*_FRAME, "file_path"), "C:\\0.png", "leads out"),
        ((*_FRAME, "file_path"), "", "must be a path"),
        ((*_FRAME, "file_path"), 7, "must be a path"),
        ((*_FRAME, "mask_path"), "../m.png", "leads out"),
        (("ply_file_path",), "/p.ply", "leads out"),
        ((*_FRAME, "file_path"), "images/1.png", "second time"),
        (_MATRIX, None, "4x4"),
        (_MATRIX, [[1, 0], [0, 1]], "4x4"),
        ((*_MATRIX, 0, 0), "1", "must be a number"),
        ((*_MATRIX, 0, 0), True, "must be a number"),
        ((*_MATRIX, 0, 3), float("nan"), "NaN"),
        ((*_MATRIX, 0, 3), float("inf"), "Infinity"),
        ((*_MATRIX, 0, 3), 1e300, "finite"),
        ((*_MATRIX, 0, 3), 10**400, "finite"),
        ((*_MATRIX, 0, 0), 3.0, "not a rotation"),
        ((*_MATRIX, 3, 3), 2.0, "0 0 0 1"),
        ((*_MATRIX, slice(0, 3)), (np.diag([1, 1, -1.0, 1]))[:3].tolist(), "mirror"),
        (("fl_x",), -3.0, "above 0"),
        (("fl_x",), "50", "must be a number"),
        (("w",), 0, "whole numbers"),
        (("w",), 40.4, "whole numbers"),
        (("camera_model",), "EQUIRECTANGULAR", "not supported"),
        (("camera_model",), ["OPENCV"], "not supported"),
        (("camera_angle_x",), 4.0, "between 0 and pi"),
        (("scale_to_mm",), 0, "above 0"),
    ],
)
def test_a_file_that_cannot_be_trusted_is_refused_in_one_line(
    folder: Path, keys: tuple[Any, ...], value: Any, reason: str
) -> None:
    document = copy.deepcopy(_document())
    _set(*keys)(document, value)
    _write(folder, document)
    with pytest.raises(InputError, match=reason) as error:
        load_scene(folder)
    assert str(error.value).startswith(str(folder / "transforms.json"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "one JSON object"),
        (b'{"frames": [], "a": NaN}', "NaN"),
        (b'{"frames": [1e999]}', "must be an object"),
    ],
)
def test_a_file_that_is_not_the_json_we_read_is_refused(folder: Path, text: bytes, reason: str) -> None:
    (folder / "transforms.json").write_bytes(text)
    with pytest.raises(InputError, match=reason) as error:
        load_scene(folder)
    assert "\n" not in str(error.value)


def test_a_huge_file_is_refused_before_it_is_read(folder: Path) -> None:
    with (folder / "transforms.json").open("wb") as file:
        file.truncate(65 * 1024 * 1024)
    with pytest.raises(InputError, match="limit 64 MB"):
        load_scene(folder)


def test_no_lens_at_all_and_missing_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither fl_x nor camera_angle_x"):
        _with(folder, fl_x=None)
    with pytest.raises(InputError, match="no such scene"):
        load_scene(tmp_path / "gone")
    with pytest.raises(InputError, match=r"no transforms\.json"):
        load_scene(tmp_path)


def test_a_broken_photo_stops_the_reading_with_its_name(folder: Path) -> None:
    (folder / "images" / "1.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"1\.png: is empty"):
        load_scene(folder)


def test_queries_bring_label_mask_and_true_camera(folder: Path) -> None:
    _photo(folder / "test" / "0.png")
    _photo(folder / "test" / "1.png")
    write_mask(folder / "truth" / "0.png", torch.ones(30, 40, dtype=torch.bool))
    queries = [
        {
            "file_path": "test/0.png",
            "label": "Burrs",
            "mask_path": "truth/0.png",
            "transform_matrix": _pose(4).tolist(),
        },
        {"file_path": "test/1.png", "label": None, "mask_path": None},
        {"file_path": "test/2.png", "label": "good"},
    ]
    _write(folder, {"version": 1, "queries": queries}, "queries.json")
    scene = load_scene(folder)
    assert [(query.name, query.label) for query in scene.queries] == [
        ("test/0.png", "Burrs"),
        ("test/1.png", ""),
    ]
    first, second = scene.queries
    assert first.mask_path == folder / "truth" / "0.png"
    assert first.world_to_cam is not None
    torch.testing.assert_close(
        first.world_to_cam, from_opengl_cam_to_world(torch.from_numpy(_pose(4))).float()
    )
    assert second.mask_path is None
    assert second.world_to_cam is None
    assert scene.missing == ("test/2.png",)


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"version": 2, "queries": []}, "version"),
        ({"version": 1}, "list of objects"),
        ({"version": 1, "queries": [1]}, "list of objects"),
        ({"version": 1, "queries": [{"file_path": "../0.png"}]}, "leads out"),
        ({"version": 1, "queries": [{"file_path": "images/0.png", "label": 3}]}, "label"),
        ({"version": 1, "queries": [{"file_path": "images/0.png", "transform_matrix": [[1]]}]}, "4x4"),
    ],
)
def test_queries_that_cannot_be_trusted_are_refused(
    folder: Path, document: dict[str, Any], reason: str
) -> None:
    _write(folder, document, "queries.json")
    with pytest.raises(InputError, match=reason):
        load_scene(folder)


# Photos made ready.


def test_a_photo_with_alpha_lies_over_white(folder: Path) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (30, 40, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(folder / "images" / "0.png")
    image = load_view_image(load_scene(folder).views[0])
    alpha = torch.from_numpy(rgba[..., 3:]).float() / 255
    torch.testing.assert_close(image.alpha, alpha[..., 0])
    torch.testing.assert_close(image.rgb, torch.from_numpy(rgba[..., :3]).float() / 255 * alpha + 1 - alpha)
    assert image.background is not None
    assert image.background.tolist() == [1, 1, 1]


def test_an_opaque_alpha_channel_says_nothing_so_the_border_decides(folder: Path) -> None:
    rgba = np.full((30, 40, 4), 255, dtype=np.uint8)
    rgba[10:20, 10:25, :3] = (200, 30, 30)
    Image.fromarray(rgba).save(folder / "images" / "0.png")
    image = load_view_image(load_scene(folder).views[0])
    expected = torch.zeros(30, 40)
    expected[10:20, 10:25] = 1
    assert torch.equal(image.alpha, expected)


def test_a_listed_mask_is_the_part_and_clutter_without_one_is_all_part(folder: Path) -> None:
    mask = torch.zeros(30, 40)
    mask[5:25, 8:30] = 1.0
    mask[4, 8:30] = 0.4
    write_mask(folder / "masks" / "0.png", mask)
    document = _document()
    document["frames"][0]["mask_path"] = "masks/0.png"
    _write(folder, document)
    masked, unmasked = (load_view_image(view) for view in load_scene(folder).views)
    torch.testing.assert_close(masked.alpha, mask)
    assert masked.background is None
    torch.testing.assert_close(masked.rgb, read_image(folder / "images" / "0.png").rgb)
    assert torch.equal(unmasked.alpha, torch.ones(30, 40))


def test_a_mask_of_another_size_is_scaled_and_of_another_shape_refused(folder: Path) -> None:
    document = _document()
    document["frames"][0]["mask_path"] = "m.png"
    _write(folder, document)
    half = torch.zeros(15, 20, dtype=torch.bool)
    half[:, :10] = True
    write_mask(folder / "m.png", half)
    alpha = load_view_image(load_scene(folder).views[0]).alpha
    assert (alpha[:, :19] == 1).all()
    assert (alpha[:, 21:] == 0).all()
    write_mask(folder / "m.png", half.T)
    with pytest.raises(InputError, match=r"m\.png: is 15 x 20"):
        load_view_image(load_scene(folder).views[0])


def test_a_resized_view_has_the_camera_of_its_size(folder: Path) -> None:
    view = load_scene(folder).views[0]
    image = load_view_image(view, longest_px=20)
    assert image.rgb.shape == (15, 20, 3)
    assert image.alpha.shape == image.valid.shape == (15, 20)
    assert image.camera is not None
    assert (image.camera.width, image.camera.height, image.camera.fl_x) == (20, 15, 25)
    full = load_view_image(view).rgb
    torch.testing.assert_close(image.rgb, full.reshape(15, 2, 20, 2, 3).mean(dim=(1, 3)))


def test_a_distorted_view_is_straightened_and_says_where_it_has_no_data(folder: Path) -> None:
    view = _with(folder, k1=0.5).views[0]
    image = load_view_image(view)
    assert not image.valid[0, 0]
    assert image.valid[14, 20]
    assert (image.alpha[~image.valid] == 0).all()
    small = load_view_image(view, longest_px=20)
    any_invalid = ~image.valid.reshape(15, 2, 20, 2).permute(0, 2, 1, 3).reshape(15, 20, 4).all(dim=-1)
    assert torch.equal(small.valid, ~any_invalid)


def test_a_query_without_a_lens_has_no_camera_and_with_one_it_is_scaled_to_the_photo(folder: Path) -> None:
    lens = load_scene(folder).views[0].camera
    _photo(folder / "query.png", width=80, height=60)
    assert load_query_image(folder / "query.png").camera is None
    camera = load_query_image(folder / "query.png", camera=lens, longest_px=20).camera
    assert camera is not None
    assert (camera.width, camera.height, camera.fl_x, camera.cx) == (20, 15, 25, 10.5)
    _photo(folder / "query.png", width=60, height=80)
    with pytest.raises(InputError, match="60 x 80"):
        load_query_image(folder / "query.png", camera=lens)


# Real scenes.


def test_the_fox_has_50_straightened_portrait_photos_and_17_missing() -> None:
    scene = load_scene(_real("fox"))
    assert (len(scene.views), len(scene.missing)) == (50, 17)
    view = scene.views[0]
    assert (view.camera.width, view.camera.height) == (1080, 1920)
    assert view.distortion is not None
    image = load_view_image(view, longest_px=320)
    assert image.rgb.shape == (320, 180, 3)
    assert image.background is None
    assert image.valid.float().mean() > 0.95


def test_the_plush_dolls_points_have_the_colours_of_the_photos_where_they_project() -> None:
    """Ties axes, intrinsics, undistortion and pixel centres together on a foreign scene: 3 px off fits worse."""
    folder = _real("plush")
    points = read_points(folder / "points3D.ply")
    assert points.colours is not None
    errors: dict[tuple[int, int, bool], list[torch.Tensor]] = {}
    for view in load_scene(folder).views[::16]:
        height, width = view.camera.height, view.camera.width
        u, v, depth = view.camera.project(points.positions).unbind(-1)
        seen = (depth > 0.1) & (u >= 3) & (u < width - 3) & (v >= 3) & (v < height - 3)
        cell = (v[seen] // 16).long() * 1000 + (u[seen] // 16).long()
        nearest = torch.full((100_000,), 1e9).scatter_reduce(0, cell, depth[seen], "amin")
        seen[seen.clone()] = depth[seen] < 1.02 * nearest[cell]  # leave out what other points hide
        row, column, colours = v[seen].long(), u[seen].long(), points.colours[seen]
        straight, bent = load_view_image(view).rgb, read_image(view.image_path).rgb
        for down, right, image in [(0, 0, straight), (0, 0, bent), (3, 0, straight), (0, 3, straight)]:
            difference = (image[row + down, column + right] - colours).abs().mean(dim=1)
            errors.setdefault((down, right, image is bent), []).append(difference)
    medians = {key: float(torch.cat(parts).median()) for key, parts in errors.items()}
    best = medians.pop((0, 0, False))
    assert best < 0.09
    assert all(wrong > 1.03 * best for wrong in medians.values()), medians


def test_the_bulldozer_is_a_scene_of_100_views_listed_without_suffix() -> None:
    scene = load_scene(_real("nerf_lego"))
    assert len(scene.views) == 100
    assert scene.views[0].name == "train/r_0.png"
    assert scene.views[0].camera.fl_x == pytest.approx(1111.111, abs=1e-2)
    centre = scene.views[0].camera.project(torch.zeros(1, 3))[0]
    assert (centre[:2] - 400).abs().max() < 0.01
    image = load_view_image(scene.views[0], longest_px=200)
    assert image.background is not None
    assert 0.1 < image.alpha.mean() < 0.4
