from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from prepare.errors import InputError, UsageError
from prepare.organised_cloud import read_xyz, write_xyz, xyz_size
from prepare.registered import (
    RegisteredClass,
    check_count,
    hundreds,
    load_pair,
    nearest,
    pad_edge,
    pad_zero,
    write_class,
)


def _cloud(height: int, width: int) -> np.ndarray:
    """A plane half a metre away, seen by a camera; its rim was not measured."""
    v, u = np.mgrid[:height, :width].astype(np.float32)
    z = np.full((height, width), 0.5, np.float32)
    xyz = np.stack([(u + 0.5 - width / 2) / 900 * z, (v + 0.5 - height / 2) / 900 * z, z], axis=-1)
    xyz[:2] = 0
    return xyz


def _photo(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 255, (height, width, 3)).astype(np.uint8)


def _write(folder: Path, height: int = 80, width: int = 80) -> tuple[Path, Path, Path]:
    folder.mkdir(exist_ok=True, parents=True)
    rgb, xyz, gt = folder / "rgb.png", folder / "xyz.tiff", folder / "gt.png"
    Image.fromarray(_photo(height, width)).save(rgb)
    write_xyz(xyz, _cloud(height, width))
    truth = np.zeros((height, width), np.uint8)
    truth[10:30, 20:50] = 255
    Image.fromarray(truth).save(gt)
    return rgb, xyz, gt


def test_rope_is_padded_to_900_with_250_rows_and_tire_to_800_with_100_columns() -> None:
    rope, tire = np.ones((400, 900, 3), np.float32), np.ones((800, 600, 3), np.float32)
    assert hundreds((400, 900)) == 900
    padded = pad_zero(rope, 900)
    rows = np.flatnonzero(padded.any(axis=(1, 2)))
    assert padded.shape == (900, 900, 3)
    assert (rows[0], rows[-1]) == (250, 649)
    padded = pad_zero(tire, hundreds((800, 600)))
    columns = np.flatnonzero(padded.any(axis=(0, 2)))
    assert padded.shape == (800, 800, 3)
    assert (columns[0], columns[-1]) == (100, 699)
    assert hundreds((401, 300)) == 500


def test_an_edge_is_repeated_on_both_sides_of_a_photo() -> None:
    photo = _photo(3, 8)
    square = pad_edge(photo, 8)
    assert (square[2:5] == photo).all()
    assert (square[:2] == photo[0]).all()
    assert (square[5:] == photo[-1]).all()


def test_the_nearest_pixel_is_the_one_that_holds_the_new_centre() -> None:
    image = np.arange(49, dtype=np.float32).reshape(7, 7, 1).repeat(3, axis=-1)
    expected = [int((i + 0.5) * 7 / 3) for i in range(3)]
    assert nearest(image, 3)[..., 0].tolist() == [[7.0 * r + c for c in expected] for r in expected]


def test_a_loaded_pair_is_registered_and_measured_where_all_three_coordinates_are_there(
    tmp_path: Path,
) -> None:
    rgb, xyz, _ = _write(tmp_path)
    cloud = _cloud(80, 80)
    cloud[40:44, :, 0] = 0.0  # x alone is missing: no point
    write_xyz(xyz, cloud)
    pair = load_pair(rgb, xyz, 80)
    assert pair.mask is None
    assert torch.equal(pair.rgb, torch.from_numpy(_photo(80, 80) / np.float32(255)))
    assert not pair.valid[:2].any()
    assert not pair.valid[40:44].any()
    assert int(pair.valid.sum()) == 80 * 74
    assert (pair.xyz[~pair.valid] == 0).all()
    assert torch.equal(pair.xyz[pair.valid], torch.from_numpy(cloud)[pair.valid])


def test_a_photo_beside_a_cloud_that_was_padded_is_padded_the_same(tmp_path: Path) -> None:
    rgb, xyz, _ = _write(tmp_path, 60, 80)
    cloud = pad_zero(_cloud(60, 80), 100)
    write_xyz(xyz, cloud)
    pair = load_pair(rgb, xyz, 100)
    assert torch.equal(pair.rgb[20:80, 10:90], torch.from_numpy(_photo(60, 80) / np.float32(255)))
    assert torch.equal(pair.xyz, torch.from_numpy(cloud))
    write_xyz(xyz, _cloud(60, 80))  # not yet padded: side 80
    assert load_pair(rgb, xyz, 80).valid[10:70].sum() == 58 * 80


def _class(folder: Path) -> RegisteredClass:
    rows = []
    for split, defect, stem in (("train", "good", "000"), ("test", "good", "000"), ("test", "hole", "001")):
        _write(folder / split / defect / stem)
        at = f"{split}/{defect}/{stem}"
        rows.append(
            {
                "name": at, "split": split, "defect": defect, "rgb": f"{at}/rgb.png", "xyz": f"{at}/xyz.tiff",
                "gt": f"{at}/gt.png" if split == "test" else None,
            }
        )  # fmt: skip
    header = {
        "name": "bagel", "source": "mvtec-3d", "variant": "rgb", "defects": ["hole"],
        "refused": [{"name": "test/hole/002", "why": "empty"}], "settings": {"seed": 1}, "licence": "none",
    }  # fmt: skip
    write_class(folder, header, rows)
    return RegisteredClass.open(folder)


def test_a_class_lists_its_splits_and_loads_a_truth_only_where_there_is_a_defect(tmp_path: Path) -> None:
    bagel = _class(tmp_path)
    assert (bagel.name, bagel.variant, bagel.defects) == ("bagel", "rgb", ("hole",))
    assert bagel.refused == (("test/hole/002", "empty"),)
    assert [s.name for s in bagel.samples("train")] == ["train/good/000"]
    assert [(s.name, s.label) for s in bagel.samples("test")] == [("test/good/000", 0), ("test/hole/001", 1)]
    assert len(bagel.samples()) == 3
    with pytest.raises(UsageError, match="train, validation, test"):
        bagel.samples("val")
    good, bad = bagel.samples("test")
    mask = bagel.load(good, 80).mask
    assert mask is not None
    assert not mask.any()
    mask = bagel.load(bad, 40).mask
    assert mask is not None
    rows, columns = torch.nonzero(mask).T
    assert (int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())) == (5, 14, 10, 24)
    Image.fromarray(np.zeros((10, 10), np.uint8)).save(bad.gt)
    with pytest.raises(InputError, match="80 x 80 px as the photo are wanted, got 10 x 10"):
        bagel.load(bad, 80)


def test_a_class_file_of_another_kind_or_that_leads_out_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="prepare the class first"):
        RegisteredClass.open(tmp_path)
    _class(tmp_path)
    path = tmp_path / "class.json"
    whole = json.loads(path.read_text())
    for change, words in (
        ({"format": 2}, "in format 1 is wanted"),
        ({"units": "mm"}, "metres are wanted"),
        ({"samples": [{**whole["samples"][0], "xyz": "../../etc/passwd"}]}, "cannot be read"),
        ({"samples": [{**whole["samples"][0], "split": "val"}]}, "cannot be read"),
        ({"refused": [1]}, "cannot be read"),
    ):
        path.write_text(json.dumps({**whole, **change}))
        with pytest.raises(InputError, match=words):
            RegisteredClass.open(tmp_path)
    path.write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        RegisteredClass.open(tmp_path)


def _bad(kind: str, xyz: Path) -> None:
    cloud = _cloud(80, 80)
    if kind == "nan":
        cloud[5, 7:9, 2] = np.nan
        write_xyz(xyz, cloud)
    elif kind == "four":
        tifffile.imwrite(xyz, np.zeros((80, 80, 4), np.float32))
    elif kind == "planar":
        tifffile.imwrite(xyz, np.moveaxis(cloud, 2, 0).copy())
    elif kind == "colour":
        tifffile.imwrite(xyz, _photo(80, 80), photometric="rgb")
    elif kind == "depth":
        write_xyz(xyz, cloud[..., 2:].repeat(3, axis=-1))
    elif kind == "millimetres":
        write_xyz(xyz, cloud * 1000)
    elif kind == "empty":
        write_xyz(xyz, cloud * 0)
    elif kind == "few":
        cloud[4:] = 0
        cloud[:, 60:] = 0
        write_xyz(xyz, cloud)
    elif kind == "size":
        write_xyz(xyz, _cloud(80, 70))
    elif kind == "truncated":
        xyz.write_bytes(xyz.read_bytes()[:2000])
    elif kind == "none":
        xyz.unlink()
    else:
        xyz.write_bytes(b"")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nan", "2 pixels hold NaN"),
        ("four", "got 80 x 80 x 4"),
        ("planar", "got 3 x 80 x 80"),
        ("colour", "got uint8 channels"),
        ("depth", "three equal channels"),
        ("millimetres", "divide millimetres by 1000"),
        ("empty", "the cloud is empty"),
        ("few", "at least 1024 points are wanted at 224 x 224 px, got"),
        ("size", "70 x 80 points do not lie on a photo of 80 x 80 px"),
        ("truncated", "damaged or truncated"),
        ("none", "no such file of points"),
        ("zero bytes", "damaged or truncated"),
    ],
)
def test_bad_points_are_told_in_one_line(tmp_path: Path, kind: str, words: str) -> None:
    rgb, xyz, _ = _write(tmp_path)
    _bad(kind, xyz)
    with pytest.raises(InputError, match=words) as error:
        load_pair(rgb, xyz, 224)
    assert "\n" not in str(error.value)
    assert "xyz.tiff" in str(error.value)


def test_points_that_are_few_for_the_size_are_counted_in_proportion() -> None:
    check_count(1024, 224, "x")
    check_count(64, 56, "x")
    with pytest.raises(InputError, match="at least 64 points"):
        check_count(63, 56, "x")
    with pytest.raises(InputError, match="at least 1024 points"):
        check_count(1023, 448, "x")


def test_points_keep_their_bits_on_disk(tmp_path: Path) -> None:
    cloud = _cloud(30, 50)
    for compress in (True, False):
        write_xyz(tmp_path / "a.tiff", cloud, compress=compress)
        assert np.array_equal(read_xyz(tmp_path / "a.tiff"), cloud)
        assert xyz_size(tmp_path / "a.tiff") == (30, 50)
