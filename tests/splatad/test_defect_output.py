"""Defects as JSON, CSV, COCO and masks: every field read back, masks decoded, millimetres by hand."""

import csv
import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from detect.defect_kind import KINDS, KindEvidence
from detect.defects import Defect
from detect.verdict import Verdict
from prepare.camera import Camera
from prepare.image import read_image, read_mask
from prepare.undistort import Distortion
from splatad.defect_output import (
    COLUMNS,
    coco_document,
    file_box,
    photo_defects,
    run_lengths,
    write_photo_defects,
    write_run_defects,
)
from splatad.inspector import Inspection
from splatad.lens import QueryLens

EVIDENCE = KindEvidence(0.0, 0.5, 0.25, 1.5, None, 0.01)


def defect(kind, box, **changes):
    x0, y0, x1, y1 = box
    mask = torch.zeros(6, 8, dtype=torch.bool)
    mask[y0:y1, x0:x1] = True
    made = Defect(
        kind, box, int(mask.sum()), 4.5, 2.25, (0.1, -0.2, 0.3), 0.5, 0.04, (0.0, 0.0, 1.0), mask,
        torch.tensor([3, 7, 11]), EVIDENCE,
    )  # fmt: skip
    return replace(made, **changes)


def inspection(name="a.png", defects=(), file=(8, 6), verdict="NG", distortion=None):
    """Of a photo inspected at 8 x 6 px, whose file has another size."""
    camera = Camera(torch.eye(4), 10.0, 10.0, file[0] / 2, file[1] / 2, *file)
    lens = QueryLens(camera, False, distortion, "test")
    photo = torch.zeros(6, 8, 3)
    return Inspection(
        name, Verdict(verdict, ("because",)), photo, photo[..., 0], None, None, None, tuple(defects), {}, lens
    )


def decoded(counts, size):
    """The mask of COCO's uncompressed run lengths, by its definition."""
    flat, value = [], False
    for count in counts:
        flat += [value] * count
        value = not value
    height, width = size
    return np.array(flat).reshape(width, height).T


def test_run_lengths_go_down_the_columns_and_start_with_zeros():
    mask = np.array([[0, 1, 1], [0, 0, 1]], bool)
    assert run_lengths(mask) == [2, 1, 1, 2]
    assert run_lengths(~mask) == [0, 2, 1, 1, 2]
    assert run_lengths(np.zeros((2, 3), bool)) == [6]
    assert run_lengths(np.ones((2, 3), bool)) == [0, 6]


def test_run_lengths_decode_to_the_mask():
    for seed in range(5):
        mask = np.random.default_rng(seed).random((7, 11)) < 0.4
        assert np.array_equal(decoded(run_lengths(mask), mask.shape), mask)


def test_coco_masks_boxes_and_areas_decode_to_the_file_s_pixels():
    found = [defect("missing", (1, 2, 4, 5)), defect("discoloured", (6, 0, 8, 1))]
    photos = [
        photo_defects(inspection("a.png", found, (16, 12)), "part", None),
        photo_defects(inspection("b.png", [], (8, 6), "OK"), "part", None),
        photo_defects(inspection("c.png", found[:1]), "part", None),
    ]
    coco = coco_document(photos)
    assert [c["name"] for c in coco["categories"]] == list(KINDS)
    assert [(i["id"], i["file_name"], i["width"], i["height"]) for i in coco["images"]] == [
        (1, "a.png", 16, 12),
        (2, "b.png", 8, 6),
        (3, "c.png", 8, 6),
    ]
    assert [(a["id"], a["image_id"]) for a in coco["annotations"]] == [(1, 1), (2, 1), (3, 3)]
    names = {c["id"]: c["name"] for c in coco["categories"]}
    assert [names[a["category_id"]] for a in coco["annotations"]] == ["missing", "discoloured", "missing"]
    large, corner, small = coco["annotations"]
    mask = decoded(large["segmentation"]["counts"], large["segmentation"]["size"])
    expected = np.zeros((12, 16), bool)
    expected[4:10, 2:8] = True
    assert np.array_equal(mask, expected)
    assert (large["bbox"], large["area"], large["iscrowd"], large["score"]) == ([2, 4, 6, 6], 36, 0, 4.5)
    assert (corner["bbox"], corner["area"]) == ([12, 0, 4, 2], 8)
    assert (small["bbox"], small["area"]) == ([1, 2, 3, 3], 9)


@pytest.mark.skipif(
    importlib.util.find_spec("pycocotools") is None, reason="pycocotools is not installed: pip install it"
)
def test_pycocotools_reads_the_masks(tmp_path):
    from pycocotools.coco import COCO

    found = [defect("added", (1, 2, 4, 5))]
    write_run_defects(tmp_path, [photo_defects(inspection("a.png", found), "part", None)])
    coco = COCO(str(tmp_path / "coco.json"))
    (annotation,) = coco.loadAnns(coco.getAnnIds())
    assert np.array_equal(coco.annToMask(annotation).astype(bool), found[0].mask.numpy())


@pytest.mark.parametrize(
    ("box", "file", "expected"),
    [
        ((1, 2, 4, 5), (8, 6), (1, 2, 4, 5)),
        ((1, 2, 4, 5), (16, 12), (2, 4, 8, 10)),
        ((1, 2, 4, 5), (20, 15), (2, 5, 10, 13)),  # 2.5, 5 to 10, 12.5: every pixel touched
        ((0, 0, 8, 6), (21, 16), (0, 0, 21, 16)),
    ],
)
def test_boxes_are_scaled_to_the_file_s_pixels(box, file, expected):
    assert file_box(box, (8, 6), file) == expected


def test_csv_has_a_row_a_defect_with_millimetres_by_hand(tmp_path):
    found = [
        defect("added", (1, 2, 4, 5)),
        defect("changed", (0, 0, 1, 1), centre=None, extent=None, area=None, normal=None),
    ]
    photos = [
        photo_defects(inspection('a, "b".png', found, (16, 12)), "part", 20.0),
        photo_defects(inspection("c.png", found[:1]), "part", None),
        photo_defects(inspection("good.png", [], verdict="OK"), "part", None),
    ]
    write_run_defects(tmp_path, photos)
    with (tmp_path / "defects.csv").open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert tuple(reader.fieldnames) == COLUMNS
    assert [(r["photo"], r["defect"], r["kind"]) for r in rows] == [
        ('a, "b".png', "1", "added"),
        ('a, "b".png', "2", "changed"),
        ("c.png", "1", "added"),
    ]
    first, nowhere, unscaled = rows
    assert [first[f"{c}_px"] for c in ("x0", "y0", "x1", "y1")] == ["1", "2", "4", "5"]
    assert [first[f"file_{c}_px"] for c in ("x0", "y0", "x1", "y1")] == ["2", "4", "8", "10"]
    assert (first["area_px"], first["file_area_px"], first["splats"]) == ("9", "36", "3")
    assert [float(first[f"centre_{axis}_mm"]) for axis in "xyz"] == pytest.approx([2.0, -4.0, 6.0])
    assert float(first["extent_mm"]) == pytest.approx(10.0)
    assert float(first["area_mm2"]) == pytest.approx(16.0)  # 0.04 * 20^2
    assert [float(first[f"normal_{axis}"]) for axis in "xyz"] == [0.0, 0.0, 1.0]
    assert {
        nowhere[n] for n in ("centre_x", "centre_z_mm", "extent", "extent_mm", "area_mm2", "normal_y")
    } == {""}
    assert (unscaled["extent"], unscaled["extent_mm"], unscaled["centre_x_mm"]) == ("0.5", "", "")


def test_a_run_without_defects_has_a_table_of_headings_alone(tmp_path):
    write_run_defects(tmp_path, [photo_defects(inspection(verdict="OK"), "part", None)])
    assert (tmp_path / "defects.csv").read_text("utf-8").split("\n")[0].strip() == ",".join(COLUMNS)
    assert len((tmp_path / "defects.csv").read_text("utf-8").splitlines()) == 1
    assert json.loads((tmp_path / "coco.json").read_text("utf-8"))["annotations"] == []


def test_the_document_names_units_sizes_and_whether_the_picture_was_straightened(tmp_path):
    bent = inspection("a.png", [defect("added", (1, 2, 4, 5))], (16, 12), distortion=Distortion(k1=0.1))
    photos = [photo_defects(bent, "part", 20.0), photo_defects(inspection("b.png"), None, None)]
    write_run_defects(tmp_path, photos)
    document = json.loads((tmp_path / "defects.json").read_text("utf-8"))
    assert (document["format"], document["version"]) == ("splatad-defects", 1)
    first, second = document["photos"]
    assert (first["inspected_size_px"], first["file_size_px"]) == ([8, 6], [16, 12])
    assert (first["straightened"], second["straightened"]) == (True, False)
    assert (first["reference"], second["reference"]) == ("part", None)
    (entry,) = first["defects"]
    named = {name for name in document["units"] if not name.startswith("*")}
    assert named <= set(entry)  # every unit is of a field that is there
    assert entry["evidence"]["behind"] is None
    assert entry["centre_mm"] == pytest.approx([2.0, -4.0, 6.0])
    assert "splat_indices" not in entry


def test_a_photos_folder_holds_masks_and_the_splats(tmp_path):
    shown = inspection("a.png", [defect("missing", (1, 2, 4, 5)), defect("added", (6, 0, 8, 1))])
    write_photo_defects(tmp_path, shown, photo_defects(shown, "part", None))
    document = json.loads((tmp_path / "defects.json").read_text("utf-8"))
    assert [entry["splat_indices"] for entry in document["defects"]] == [[3, 7, 11]] * 2
    mask = read_mask(tmp_path / "mask.png")
    assert torch.equal(mask, shown.defects[0].mask | shown.defects[1].mask)
    assert set((read_image(tmp_path / "mask.png").rgb * 255).unique().tolist()) == {0.0, 255.0}
    labels = (read_image(tmp_path / "labels.png").rgb[..., 0] * 255).round()
    for number, found in enumerate(shown.defects, start=1):
        assert torch.equal(labels == number, found.mask)


def test_a_photo_that_cannot_be_judged_has_no_mask_and_a_good_one_an_empty_one(tmp_path):
    for name, verdict in (("doubt", "CANNOT TELL"), ("good", "OK")):
        shown = inspection(name, [], verdict=verdict)
        write_photo_defects(tmp_path / name, shown, photo_defects(shown, "part", None))
    assert sorted(p.name for p in (tmp_path / "doubt").iterdir()) == ["defects.json"]
    assert not read_mask(tmp_path / "good" / "mask.png").any()
