from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prepare.camera import look_at
from prepare.datasets.llff import prepare_llff
from prepare.errors import InputError
from prepare.scene import load_scene
from splatad.commands.prepare import Llff, run


def _inside(tmp_path: Path) -> Any:
    return lambda name: tmp_path / "work" / name


def _photos(folder: Path, count: int, size: tuple[int, int] = (40, 30)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"IMG_{index:03d}.JPG", format="JPEG")


# By hand: a camera at (0, 0, 5) that looks down -z, image-up along +y. Its down is -y, its right +x, its backward +z.
_BY_HAND = np.array(
    [
        [0.0, 1.0, 0.0, 0.0, 30.0],
        [-1.0, 0.0, 0.0, 0.0, 40.0],
        [0.0, 0.0, 1.0, 5.0, 50.0],
    ]
)


def _row(matrix: np.ndarray = _BY_HAND) -> np.ndarray:
    return np.concatenate([matrix.reshape(-1), [1.0, 9.0]])


def _around(angle: float) -> np.ndarray:
    """A camera on a circle about +y that looks at the origin, in LLFF's columns."""
    position = np.array([3 * np.sin(angle), 1.0, 3 * np.cos(angle)])
    backward = position / np.linalg.norm(position)
    right = np.cross([0.0, 1.0, 0.0], backward)
    right /= np.linalg.norm(right)
    down = -np.cross(backward, right)
    return np.stack([down, right, backward, position, [30.0, 40.0, 50.0]], axis=1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "fern"
    _photos(folder / "images", 3)
    rows = [_row(), _row(_around(0.4)), _row(_around(2.0))]
    np.save(folder / "poses_bounds.npy", np.stack(rows))
    return folder


def test_a_point_projects_where_the_hand_made_camera_sees_it(source: Path, tmp_path: Path) -> None:
    scene = load_scene(prepare_llff(source, _inside(tmp_path))[0])
    assert [view.name for view in scene.views] == [f"images/IMG_{index:03d}.JPG" for index in range(3)]
    camera = scene.views[0].camera
    # One to the right and one half up of the origin, five away: 50 / 5 px a unit about the centre (20, 15).
    u, v, depth = camera.project(torch.tensor([[1.0, 0.5, 0.0]]))[0].tolist()
    assert (u, v, depth) == pytest.approx((30.0, 10.0, 5.0), abs=1e-5)
    for view, angle in zip(scene.views[1:], (0.4, 2.0), strict=True):
        position = torch.tensor([3 * np.sin(angle), 1.0, 3 * np.cos(angle)], dtype=torch.float32)
        expected = look_at(position, torch.zeros(3), torch.tensor([0.0, 1.0, 0.0]))
        torch.testing.assert_close(view.camera.world_to_cam, expected, atol=1e-5, rtol=0)


def test_the_lens_is_scaled_to_smaller_photos(source: Path, tmp_path: Path) -> None:
    (source / "images").rename(source / "originals")
    _photos(source / "images_8", 3, (5, 4))
    _photos(source / "images_4", 3, (10, 8))
    scene = load_scene(prepare_llff(source, _inside(tmp_path))[0])
    camera = scene.views[0].camera
    assert (camera.width, camera.height, camera.fl_x) == (10, 8, 12.5)
    named = load_scene(prepare_llff(source, _inside(tmp_path), name="full", images=source / "originals")[0])
    assert named.views[0].camera.fl_x == 50.0


def test_other_files_beside_the_photos_do_not_count(source: Path, tmp_path: Path) -> None:
    (source / "images" / "Thumbs.db").write_bytes(b"x")
    (source / "images" / ".IMG_000.JPG").write_bytes(b"x")
    assert len(load_scene(prepare_llff(source, _inside(tmp_path))[0]).views) == 3


def test_more_or_fewer_photos_than_cameras_are_refused(source: Path, tmp_path: Path) -> None:
    (source / "images" / "IMG_001.JPG").unlink()
    with pytest.raises(InputError, match=r"has 2 photos where poses_bounds\.npy has 3 cameras"):
        prepare_llff(source, _inside(tmp_path))
    assert not (tmp_path / "work").exists()


def _saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _archived() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.zeros((3, 17)))
    return file.getvalue()


_WHOLE = _saved(np.stack([_row()] * 3))
_MIRRORED = _row(_BY_HAND * np.array([1, 1, -1, 1, 1]))
_HALF_PIXEL = _row(_BY_HAND + np.array([[0, 0, 0, 0, 0.5], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a whole .npy file"),
        (b"\x93NUMPY", "not a whole .npy file"),
        (_WHOLE[:100], "not a whole .npy file"),
        (_WHOLE[:-1], "not a whole .npy file"),
        (_WHOLE.replace(b"(3, 17)", b"(9, 17)"), "not a whole .npy file"),
        (_saved(np.array([{"a": 1}], dtype=object)), "not a whole .npy file"),
        (_archived(), "archive of arrays"),
        (_saved(np.zeros((3, 15))), r"must be n x 17 numbers, got 3 x 15 of float64"),
        (_saved(np.zeros(17)), r"must be n x 17 numbers, got 17 of float64"),
        (_saved(np.zeros((0, 17))), r"must be n x 17 numbers, got 0 x 17"),
        (_saved(np.zeros((3, 17), dtype=complex)), "of complex128"),
        (_saved(np.full((3, 17), np.nan)), "NaN or infinite"),
        (_saved(np.zeros((3, 17))), "camera 0 is not a rotation"),
        (_saved(np.stack([_MIRRORED] * 3)), "mirror image"),
        (_saved(np.stack([_HALF_PIXEL] * 3)), r"camera 0 is 40 x 30\.5 px"),
    ],
)
def test_a_damaged_array_is_refused_in_one_line(
    source: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    (source / "poses_bounds.npy").write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        prepare_llff(source, _inside(tmp_path))
    assert "poses_bounds.npy" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "work").exists()


def test_what_is_not_there_is_said(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        prepare_llff(tmp_path / "gone", _inside(tmp_path))
    with pytest.raises(InputError, match=r"has no poses_bounds\.npy"):
        prepare_llff(tmp_path, _inside(tmp_path))
    with pytest.raises(InputError, match="gone: no such folder"):
        prepare_llff(source, _inside(tmp_path), images=tmp_path / "gone")
    (source / "images").rename(source / "photos")
    with pytest.raises(InputError, match="no folder images or images_4"):
        prepare_llff(source, _inside(tmp_path))
    _photos(source / "images", 3, (30, 40))
    with pytest.raises(InputError, match="does not fit its camera of 40 x 30"):
        prepare_llff(source, _inside(tmp_path))


def test_the_command_prepares_into_the_workspace(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(Llff(data=source, workspace=tmp_path / "ws")) == 0
    printed = capsys.readouterr().out
    assert "fern: 3 views of 40 x 30" in printed
    assert "splatad fit --class fern" in printed
