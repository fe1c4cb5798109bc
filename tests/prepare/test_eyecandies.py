from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prepare.datasets.eyecandies import (
    background,
    prepare_eyecandies,
    read_depth,
    read_depth_range,
    read_pose,
    unproject,
)
from prepare.errors import InputError
from prepare.organised_cloud import measured, read_xyz

PX = 64
INFO = "dtype: uint16\nnormalization:\n  max: 4.0  # far\n  min: 1.5\nshape:\n- 64\n- 64\n"


def _pose(height: float = 2.75, tilt_deg: float = 0.0, shift: float = 0.01) -> np.ndarray:
    """World to camera: above the support, looking along the world's y axis; the image's top is the world's +z."""
    a = math.radians(tilt_deg)
    look = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], float)
    turn = np.array([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
    pose = np.eye(4)
    pose[:3, :3] = turn @ look
    pose[:3, 3] = -pose[:3, :3] @ [shift, -height, 1.0]
    return pose


def _depth(pose: np.ndarray, block: float = 0.4) -> np.ndarray:
    """z depth of the support y = 0 and of a block of half size 0.4 about (0, 1), `block` high."""
    focal = 711.11 / 512 * PX
    v, u = np.mgrid[:PX, :PX].astype(float)
    ray = np.stack([(u - PX / 2) / focal, (v - PX / 2) / focal, np.ones_like(u)], -1) @ pose[:3, :3]
    centre = -pose[:3, :3].T @ pose[:3, 3]
    depth = -centre[1] / ray[..., 1]
    top = (-block - centre[1]) / ray[..., 1]
    at = centre + top[..., None] * ray
    return np.where((np.abs(at[..., 0]) < 0.4) & (np.abs(at[..., 2] - 1.0) < 0.4), top, depth)


def _sample(folder: Path, stem: str, *, mask: str = "empty", block: float = 0.4, tilt: float = 4.0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pose = _pose(tilt_deg=tilt)
    levels = np.round((_depth(pose, block) - 1.5) / 2.5 * 65535).astype(np.uint16)
    Image.fromarray(levels).save(folder / f"{stem}_depth.png")
    (folder / f"{stem}_info_depth.yaml").write_text(INFO)
    np.savetxt(folder / f"{stem}_pose.txt", pose)
    for light in range(6):
        Image.fromarray(np.full((PX, PX, 3), 40 * light, np.uint8)).save(folder / f"{stem}_image_{light}.png")
    truth = np.zeros((PX, PX, 3), np.uint8)
    truth[30:34, 30:36] = 255 if mask == "bad" else 0
    if mask != "none":
        Image.fromarray(truth).save(folder / f"{stem}_mask.png")


@pytest.fixture
def candy(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "CandyCane"
    for stem in ("000", "001"):
        _sample(folder / "train" / "data", stem)
    _sample(folder / "val" / "data", "00")
    for stem, mask in (("00", "empty"), ("01", "bad"), ("02", "none")):
        _sample(folder / "test_public" / "data", stem, mask=mask)
    _sample(folder / "test_private" / "data", "00", mask="none")
    return folder


def test_points_of_a_hand_made_pose() -> None:
    # The camera stands 2 above the support and looks down: its z is the world's y, its x the world's x, its y the world's -z.
    pose = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 2], [0, 0, 0, 1]])
    depth = np.full((512, 512), 2.0)
    points = unproject(depth, pose)
    assert np.allclose(points[256, 256], [0, 0, 0], atol=1e-12)
    assert np.allclose(points[256, 0], [-256 / 711.11 * 2, 0, 0])  # the first column: left
    assert np.allclose(points[0, 256], [0, 0, 256 / 711.11 * 2])  # the first row: far
    depth[10, 20] = 1.5
    expected = np.linalg.inv(pose) @ [1.5 * (20 - 256) / 711.11, 1.5 * (10 - 256) / 711.11, 1.5, 1.0]
    assert np.allclose(unproject(depth, pose)[10, 20], expected[:3])


def test_the_rule_of_the_background_pixel_by_pixel() -> None:
    points = unproject(_depth(_pose(tilt_deg=5.0)), _pose(tilt_deg=5.0))
    points[40, 3] = [-1.2, -0.3, 1.0]
    behind, one_point = background(points)
    top, bottom = points[0, PX // 2], points[-1, PX // 2]
    start = np.array([0, bottom[1], bottom[2]])
    length = math.hypot(top[1] - bottom[1], top[2] - bottom[2])
    c, s = (top[2] - bottom[2]) / length, (top[1] - bottom[1]) / length
    turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    for row in range(0, PX, 3):
        for column in range(PX):
            q = turn @ (points[row, column] - start)
            assert behind[row, column] == (q[1] > -0.02 or q[2] > 1.8 or abs(q[0]) > 1)
    assert behind[40, 3]
    assert not behind[30:34, 28:36].any()
    assert one_point[0] == 0
    assert np.allclose(one_point, turn.T @ -start + start)


def test_a_class_is_prepared_with_the_left_light_and_the_background_not_measured(
    candy: Path, tmp_path: Path
) -> None:
    (made,) = prepare_eyecandies(candy.parent, lambda name: tmp_path / "work" / name, workers=1)
    found = made.registered
    assert [s.name for s in found.samples()] == [
        "train/good/000", "train/good/001", "validation/good/00", "test/good/00", "test/bad/01",
    ]  # fmt: skip
    assert [name for name, _ in found.refused] == ["test/02"]
    assert "no ground truth for this test sample" in found.refused[0][1]
    assert made.notes == ("test_private has no ground truth and was not read",)
    good, bad = found.samples("test")
    assert good.gt is None
    assert bad.gt is not None
    assert bad.gt.resolve() == candy / "test_public/data/01_mask.png"
    assert bad.rgb.resolve() == candy / "test_public/data/01_image_4.png"
    xyz = read_xyz(bad.xyz)
    valid = measured(xyz)
    side = 0.8 / (2.75 - 0.4) * 711.11 / 512 * PX  # px of the block's top, less its perspective
    assert 0.9 * side**2 < valid.sum() < 1.1 * side**2
    assert (xyz[~valid] == xyz[0, 0]).all()
    assert xyz[0, 0, 0] == 0
    assert xyz[0, 0].any()
    height = -xyz[valid][:, 2]  # x' = x, y' = -z, z' = y, a tenth of each
    assert np.abs(height - 0.04).max() < 2e-5
    assert np.abs(xyz[valid][:, 0]).max() < 0.0405
    assert -0.1405 < xyz[valid][:, 1].min() < xyz[valid][:, 1].max() < -0.0595
    rows = np.nonzero(valid)
    assert np.corrcoef(rows[0], xyz[valid][:, 1])[0, 1] > 0.99
    assert np.corrcoef(rows[1], xyz[valid][:, 0])[0, 1] > 0.99
    loaded = found.load(bad, PX)
    assert loaded.mask is not None
    assert int(loaded.mask.sum()) == 24
    assert float(loaded.rgb[0, 0, 0]) == pytest.approx(160 / 255)
    assert (loaded.xyz[~loaded.valid] == 0).all()


def test_the_blacked_variant_is_black_behind(candy: Path, tmp_path: Path) -> None:
    (made,) = prepare_eyecandies(candy, lambda name: tmp_path / name, variant="rgb-blacked", workers=1)
    bad = made.registered.samples("test")[-1]
    photo = np.asarray(Image.open(bad.rgb))
    assert np.array_equal(photo.any(axis=-1), measured(read_xyz(bad.xyz)))


def test_bad_samples_are_refused_with_a_line(candy: Path, tmp_path: Path) -> None:
    train = candy / "train" / "data"
    _sample(train, "002", block=0.0)
    for stem in ("003", "004", "005", "006", "007"):
        _sample(train, stem)
    (train / "003_info_depth.yaml").write_text("normalization:\n  min: 1\n")
    (train / "004_pose.txt").write_text("1 0 0\n")
    depth = Image.open(train / "005_depth.png")
    Image.fromarray((np.asarray(depth) >> 8).astype(np.uint8)).save(train / "005_depth.png")
    data = (train / "006_depth.png").read_bytes()
    (train / "006_depth.png").write_bytes(data[: len(data) // 2])
    (train / "007_image_4.png").unlink()
    (made,) = prepare_eyecandies(candy, lambda name: tmp_path / name, workers=1)
    refused = dict(made.registered.refused)
    for stem, words in (
        ("002", "nothing stands on the support"), ("003", "normalization with min and max"),
        ("004", "4 x 4 numbers"), ("005", "16 bit is wanted"), ("006", "damaged or truncated"), ("007", "no photo"),
    ):  # fmt: skip
        assert words in refused[f"train/good/{stem}"]
        assert "\n" not in refused[f"train/good/{stem}"]
    assert [s.name for s in made.registered.samples("train")] == ["train/good/000", "train/good/001"]


@pytest.mark.parametrize(
    "text",
    [
        "normalization:\n  min: 1.5\n  max: 4\n",
        "normalization: {min: 1.5, max: 4.0}\n",
        "normalization: {max: 4.0,\n  min: 1.50}\nother: 3\n",
        "a: {min: 9}\r\nnormalization:\r\n    max: 4e0\r\n    min: 1.5 # near\r\nb:\r\n  min: 7\r\n",
        "normalization:  # of the depth\n\n  min: 1.5\n  max: 4.0",
    ],
)
def test_the_depth_range_is_read_in_yamls_usual_forms(tmp_path: Path, text: str) -> None:
    path = tmp_path / "info.yaml"
    path.write_bytes(text.encode())
    assert read_depth_range(path) == (1.5, 4.0)


@pytest.mark.parametrize(
    "text",
    [
        "", "min: 1\nmax: 2\n", "normalization:\nmin: 1\nmax: 2\n", "normalization:\n  min: 2\n  max: 1\n",
        "normalization:\n  min: 1\n  min: 1\n  max: 2\n", "normalization:\n  min: .nan\n  max: 2\n",
        "normalization:\n  min: !!python/object/apply:os.system [ls]\n  max: 2\n", "normalization:\n  min: 0\n  max: 2\n",
        "normalization:\n  min: 1\n  max: 1e999\n",
    ],
)  # fmt: skip
def test_what_is_no_depth_range_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "info.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match="normalization with min and max"):
        read_depth_range(path)


def test_depth_keeps_its_16_bits_and_the_pose_its_digits(tmp_path: Path) -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(levels).save(tmp_path / "d.png")
    depth = read_depth(tmp_path / "d.png", 1.5, 4.0)
    assert np.array_equal(depth, levels.astype(np.float64) / 65535 * 2.5 + 1.5)
    pose = _pose(tilt_deg=3.3)
    np.savetxt(tmp_path / "pose.txt", pose)
    assert np.allclose(read_pose(tmp_path / "pose.txt"), pose, atol=1e-15)
