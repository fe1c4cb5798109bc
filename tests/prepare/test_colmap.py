from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from prepare.colmap_model import read_colmap_model
from prepare.datasets.colmap import prepare_colmap
from prepare.datasets.scene_folder import read_missing
from prepare.errors import InputError
from prepare.points import read_points
from prepare.scene import load_scene
from splatad.commands.prepare import Colmap, run

_DATA = Path(os.environ.get("SPLATAD_TESTDATA") or Path(__file__).parents[3] / "shared" / "data")
_NUMBERS = {
    "SIMPLE_PINHOLE": 0,
    "PINHOLE": 1,
    "SIMPLE_RADIAL": 2,
    "RADIAL": 3,
    "OPENCV": 4,
    "OPENCV_FISHEYE": 5,
    "FOV": 7,
}
_PARAMETERS = {
    "SIMPLE_PINHOLE": (21.0, 8.5, 6.5),
    "PINHOLE": (21.0, 22.0, 8.5, 6.5),
    "SIMPLE_RADIAL": (21.0, 8.5, 6.5, 0.05),
    "RADIAL": (21.0, 8.5, 6.5, 0.05, -0.02),
    "OPENCV": (21.0, 22.0, 8.5, 6.5, 0.05, -0.02, 0.003, -0.004),
    "OPENCV_FISHEYE": (21.0, 22.0, 8.5, 6.5, 0.05, -0.02, 0.003, -0.004),
    "FOV": (21.0, 22.0, 8.5, 6.5, 0.05),
}


def _inside(tmp_path: Path) -> Any:
    return lambda name: tmp_path / "work" / name


def _photos(folder: Path, names: list[str], size: tuple[int, int] = (16, 12)) -> None:
    for index, name in enumerate(names):
        pixels = np.random.default_rng(index).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)


def _pose(index: int) -> tuple[np.ndarray, np.ndarray]:
    """A quaternion wxyz of either sign, and a translation."""
    quaternion = Rotation.random(random_state=index).as_quat(scalar_first=True)
    return (-quaternion if index % 2 else quaternion), np.array([0.1 * index, -1.0, 4.0])


def _text(folder: Path, cameras: list[str], names: list[str], *, camera_of: Any = lambda index: 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{i + 1} {model} 16 12 {' '.join(map(repr, _PARAMETERS[model]))}" for i, model in enumerate(cameras)
    ]
    (folder / "cameras.txt").write_text("# Camera list\n" + "\n".join(lines) + "\n")
    lines = []
    for index, name in enumerate(names):
        quaternion, translation = _pose(index)
        numbers = " ".join(repr(float(value)) for value in (*quaternion, *translation))
        lines += [
            f"{index + 1} {numbers} {camera_of(index)} {name}",
            "1.0 2.0 -1 3.5 4.5 7" if index % 2 else "",
        ]
    (folder / "images.txt").write_text("# Image list\n" + "\n".join(lines) + "\n")
    (folder / "points3D.txt").write_text("# points\n1 0.5 1 2 255 0 51 0.4 1 0 2 1\n2 1 1 1 0 0 0 0.1\n")
    return folder


def _binary(folder: Path, cameras: list[str], names: list[str], *, camera_of: Any = lambda index: 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    data = struct.pack("<Q", len(cameras))
    for i, model in enumerate(cameras):
        values = _PARAMETERS[model]
        data += struct.pack(f"<iiQQ{len(values)}d", i + 1, _NUMBERS[model], 16, 12, *values)
    (folder / "cameras.bin").write_bytes(data)
    data = struct.pack("<Q", len(names))
    for index, name in enumerate(names):
        quaternion, translation = _pose(index)
        data += struct.pack("<I7dI", index + 1, *quaternion, *translation, camera_of(index))
        data += name.encode() + b"\0" + struct.pack("<Q", index)
        data += struct.pack("<ddQ", 1.0, 2.0, 2**64 - 1) * index
    (folder / "images.bin").write_bytes(data)
    data = struct.pack("<Q", 1) + struct.pack("<Q3d3BdQ", 1, 0.5, 1.0, 2.0, 255, 0, 51, 0.4, 1) + b"\0" * 8
    (folder / "points3D.bin").write_bytes(data)
    return folder


@pytest.mark.parametrize("form", [_text, _binary])
@pytest.mark.parametrize("model", [name for name in _PARAMETERS if name != "FOV"])
def test_a_point_projects_as_pycolmap_projects_it(tmp_path: Path, form: Any, model: str) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    folder = form(tmp_path, [model], ["b.png", "a.png"])
    images = read_colmap_model(folder).images
    assert [image.name for image in images] == ["a.png", "b.png"]
    point = np.array([0.3, -0.4, 2.0])
    for image, index in zip(images, (1, 0), strict=True):
        quaternion, translation = _pose(index)
        rotation = pycolmap.Rotation3d(quaternion[[1, 2, 3, 0]])
        in_cam = pycolmap.Rigid3d(rotation, translation) * point
        in_cam[2] = abs(in_cam[2])  # in front, for the lens's sake
        lens = pycolmap.Camera(model=model, width=16, height=12, params=list(_PARAMETERS[model]))
        expected = lens.img_from_cam(in_cam[None])[0]
        ours = image.world_to_cam[:3, :3].numpy() @ point + image.world_to_cam[:3, 3].numpy()
        np.testing.assert_allclose(np.abs(ours[2]), in_cam[2], atol=1e-12)
        ideal = torch.tensor(in_cam[:2] / in_cam[2])
        bent = image.lens.distortion.distort(ideal).numpy()
        found = bent * (image.lens.fl_x, image.lens.fl_y) + (image.lens.cx, image.lens.cy)
        np.testing.assert_allclose(found, expected, atol=1e-9)
        np.testing.assert_allclose(ours[:2], in_cam[:2], atol=1e-12)


@pytest.mark.parametrize("form", [_text, _binary])
@pytest.mark.parametrize(
    ("model", "photos"),
    [
        ("sparse/0", "images"),
        ("sparse", "images"),
        ("dense/0/sparse", "dense/0/images"),
        ("colmap/sparse/0", "colmap/images"),
        (".", "images"),
        ("sparse/0", "input"),
        ("sparse/0", "."),
    ],
)
def test_model_and_photos_are_found_where_colmap_puts_them(
    tmp_path: Path, form: Any, model: str, photos: str
) -> None:
    source = tmp_path / "vase"
    names = ["left/a.png", "left/b.png"]
    form(source / model, ["SIMPLE_RADIAL"], names)
    _photos(source / photos, names)
    folder = prepare_colmap(source, _inside(tmp_path))[0]
    scene = load_scene(folder)
    assert [view.name for view in scene.views] == [f"images/{name}" for name in names]
    for index, view in enumerate(scene.views):
        assert view.image_path.resolve() == (source / photos / names[index]).resolve()
        quaternion, translation = _pose(index)
        rotation = Rotation.from_quat(quaternion, scalar_first=True).as_matrix()
        np.testing.assert_allclose(view.camera.world_to_cam[:3, :3], rotation, atol=1e-6)
        np.testing.assert_allclose(view.camera.world_to_cam[:3, 3], translation, atol=1e-6)
        assert view.distortion is not None
        assert view.distortion.k1 == 0.05
    assert scene.points_path is not None
    cloud = read_points(scene.points_path)
    torch.testing.assert_close(cloud.positions[0], torch.tensor([0.5, 1.0, 2.0]))
    assert cloud.colours is not None
    torch.testing.assert_close(cloud.colours[0], torch.tensor([1.0, 0.0, 0.2]))


def test_each_photo_keeps_its_own_camera(tmp_path: Path) -> None:
    source = tmp_path / "vase"
    names = ["a.png", "b.png"]
    _binary(source / "sparse", ["OPENCV", "PINHOLE"], names, camera_of=lambda index: 2 - index)
    _photos(source / "images", names)
    folder = prepare_colmap(source, _inside(tmp_path))[0]
    pinhole, bent = load_scene(folder).views
    assert pinhole.distortion is None
    assert bent.distortion is not None
    assert (bent.distortion.k2, bent.distortion.p1, bent.distortion.p2) == (-0.02, 0.003, -0.004)
    document = json.loads((folder / "transforms.json").read_text())
    assert not {"k1", "k2", "p1", "k3"} & document.keys()  # nerfstudio takes all of them from one place
    assert document["fl_x"] == 21.0


def test_the_model_with_the_most_photos_is_taken_unless_one_is_named(tmp_path: Path) -> None:
    source = tmp_path / "vase"
    _text(source / "sparse" / "0", ["PINHOLE"], ["a.png", "gone.png"])
    _text(source / "sparse" / "1", ["PINHOLE"], ["a.png", "b.png", "c.png", "lost.png"])
    _photos(source / "images", ["a.png", "b.png", "c.png"])
    folder = prepare_colmap(source, _inside(tmp_path))[0]
    assert len(load_scene(folder).views) == 3
    assert read_missing(folder) == ("lost.png",)
    named = prepare_colmap(source, _inside(tmp_path), name="named", model=source / "sparse" / "0")[0]
    assert len(load_scene(named).views) == 1
    assert read_missing(named) == ("gone.png",)
    record = json.loads((named / "prepare.json").read_text())
    assert record["model"] == str(source / "sparse" / "0")
    _photos(tmp_path / "elsewhere", ["gone.png"])
    other = prepare_colmap(source, _inside(tmp_path), name="other", images=tmp_path / "elsewhere")[0]
    assert [view.name for view in load_scene(other).views] == ["images/gone.png"]


def test_a_model_without_points_is_a_scene_without_points(tmp_path: Path) -> None:
    source = tmp_path / "vase"
    (_text(source, ["PINHOLE"], ["a.png"]) / "points3D.txt").unlink()
    _photos(source, ["a.png"])
    assert load_scene(prepare_colmap(source, _inside(tmp_path))[0]).points_path is None


def test_every_shortened_binary_file_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = _binary(tmp_path / "model", ["OPENCV", "PINHOLE"], ["a.png", "b.png"])
    for name in ("cameras.bin", "images.bin"):
        whole = (folder / name).read_bytes()
        for length in range(len(whole)):
            (folder / name).write_bytes(whole[:length])
            with pytest.raises(InputError, match=rf"{name}.*truncated or not COLMAP's {name}; copy it again"):
                read_colmap_model(folder)
        (folder / name).write_bytes(whole + b"\0")
        with pytest.raises(InputError, match="goes on after its last row"):
            read_colmap_model(folder)
        (folder / name).write_bytes(struct.pack("<Q", 2**63) + whole[8:])
        with pytest.raises(InputError, match="truncated"):
            read_colmap_model(folder)
        (folder / name).write_bytes(whole)
    assert len(read_colmap_model(folder).images) == 2


@pytest.mark.parametrize("form", [_text, _binary])
def test_lenses_we_cannot_undo_are_refused_with_a_way_out(tmp_path: Path, form: Any) -> None:
    folder = form(tmp_path, ["FOV"], ["a.png"])
    with pytest.raises(InputError, match=r"lens model FOV.*not supported.*image_undistorter"):
        read_colmap_model(folder)


def test_a_lens_model_of_the_future_is_refused(tmp_path: Path) -> None:
    folder = _binary(tmp_path, ["PINHOLE"], ["a.png"])
    data = bytearray((folder / "cameras.bin").read_bytes())
    data[12:16] = struct.pack("<i", 99)
    (folder / "cameras.bin").write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"cameras\.bin: camera 1 has the lens model number 99"):
        read_colmap_model(folder)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("cameras.txt", "PINHOLE 16 12 21.0", "PINHOLE 16 12 -1", "focal lengths -1.0 and 22.0"),
        ("cameras.txt", "PINHOLE 16 12 21.0", "PINHOLE 16 12 nan", "focal lengths nan"),
        ("cameras.txt", "PINHOLE 16", "PINHOLE 0", "0 x 12 px"),
        ("cameras.txt", "22.0 ", "", "3 parameters, PINHOLE has 4"),
        ("cameras.txt", "PINHOLE", "PINHOLE x", "line 2 is not `CAMERA_ID MODEL"),
        ("images.txt", " 1 a.png", " 3 a.png", "taken by camera 3, which the cameras file does not list"),
        ("images.txt", " 1 a.png", " a.png", "line 2 is not `IMAGE_ID QW"),
        ("images.txt", "b.png", "a.png", "lists 'a.png' 2 times"),
        ("images.txt", "4.0 1 a.png", "inf 1 a.png", "no rotation"),
        ("images.txt", "a.png\n\n", "a.png\n", "line 3 must hold the points"),
        ("images.txt", "3.5 4.5 7", "3.5 4.5", "line 5 must hold the points"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, file: str, old: str, new: str, message: str) -> None:
    folder = _text(tmp_path, ["PINHOLE"], ["a.png", "b.png"])
    text = (folder / file).read_text()
    assert text.count(old) == 1
    (folder / file).write_text(text.replace(old, new))
    with pytest.raises(InputError) as raised:
        read_colmap_model(folder)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_quaternions_that_are_no_rotation_are_refused(tmp_path: Path) -> None:
    folder = _binary(tmp_path, ["PINHOLE"], ["a.png"])
    data = bytearray((folder / "images.bin").read_bytes())
    data[12:44] = struct.pack("<4d", 0, 0, 0, 0)
    (folder / "images.bin").write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"image 1 'a\.png' has no rotation"):
        read_colmap_model(folder)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    source = tmp_path / "vase"
    with pytest.raises(InputError, match="no such folder"):
        prepare_colmap(source, _inside(tmp_path))
    source.mkdir()
    with pytest.raises(InputError, match="has no COLMAP model"):
        prepare_colmap(source, _inside(tmp_path))
    _text(source / "sparse" / "0", ["PINHOLE"], ["a.png"])
    with pytest.raises(InputError, match=r"none of its 1 photos is there, the first is 'a\.png'.*--images"):
        prepare_colmap(source, _inside(tmp_path))
    with pytest.raises(InputError, match="no such folder; give the folder of the photos"):
        prepare_colmap(source, _inside(tmp_path), images=tmp_path / "gone")
    _photos(source / "images", ["a.png"], size=(12, 16))
    with pytest.raises(InputError, match="does not fit its camera of 16 x 12"):
        prepare_colmap(source, _inside(tmp_path))
    _photos(source / "images", ["a.png"])
    (source / "sparse" / "0" / "points3D.txt").write_text("1 2 3\n")
    with pytest.raises(InputError, match="line 1 is not a COLMAP point"):
        prepare_colmap(source, _inside(tmp_path))
    (source / "sparse" / "0" / "points3D.txt").unlink()
    _text(source / "sparse" / "0", ["PINHOLE"], ["../a.png"])
    with pytest.raises(InputError, match="leads out of the scene's folder"):
        prepare_colmap(source, _inside(tmp_path))
    (source / "sparse" / "0" / "images.txt").write_text("# none\n")
    with pytest.raises(InputError, match="registers no image"):
        prepare_colmap(source, _inside(tmp_path))
    assert not (tmp_path / "work").exists()


def test_the_figurine_of_many_cameras_is_prepared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not (_DATA / "test_colmap").is_dir():
        pytest.skip(f"no real input at {_DATA / 'test_colmap'}; set SPLATAD_TESTDATA")
    assert run(Colmap(data=_DATA / "test_colmap", workspace=tmp_path)) == 0
    assert "test_colmap: 23 views" in capsys.readouterr().out
    scene = load_scene(tmp_path / "scenes" / "test_colmap")
    assert len({(view.camera.width, view.camera.height) for view in scene.views}) > 3
    assert scene.points_path is not None
    points = read_points(scene.points_path).positions
    # The undistorted photos go with the undistorted model: its points project into the photos that see them.
    inside = []
    for view in scene.views:
        u, v, depth = view.camera.project(points).unbind(-1)
        inside.append((depth > 0) & (u > 0) & (u < view.camera.width) & (v > 0) & (v < view.camera.height))
    assert float(torch.stack(inside).float().sum(0).min()) >= 2
