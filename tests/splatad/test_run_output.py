"""The files of a run, and the names that photos get in it."""

import csv
import io
import json
from pathlib import Path

import pytest
import torch

from detect.defect_kind import KINDS
from prepare.image import read_image, write_image
from splatad.inspector import Inspector
from splatad.run_output import (
    KIND_WORDS,
    folder_name,
    footer,
    map_range,
    output_folders,
    overlay_picture,
    photo_names,
    report_photo,
    verdict_row,
    write_photo,
    write_table,
)

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def inspections(toy, tmp_path_factory):
    """A photo with a painted spot, and a blank one."""
    folder = tmp_path_factory.mktemp("run")
    camera = toy.cameras(6, seed=51)[3]
    rgb = toy.photo(camera, noise_seed=3).rgb
    u, v, _ = camera.project(torch.tensor([[0.0, 0.0, -0.1]]))[0].int().tolist()
    rgb[v - 5 : v + 6, u - 5 : u + 6] = torch.tensor([0.9, 0.1, 0.9])
    write_image(folder / "painted.png", rgb)
    write_image(folder / "blank.png", torch.ones(100, 100, 3))
    inspector = Inspector(toy.loaded)
    return [inspector.inspect(folder / name) for name in ("painted.png", "blank.png")]


def test_a_photos_folder_holds_the_verdict_and_a_picture_of_all_panels(toy, inspections, tmp_path):
    sizes = []
    for inspection in inspections:
        write_photo(tmp_path / inspection.name, inspection, toy.loaded)
        document = json.loads((tmp_path / inspection.name / "verdict.json").read_text("utf-8"))
        assert document["verdict"] == inspection.verdict.name
        shown = read_image(tmp_path / inspection.name / "overlay.png").rgb
        assert torch.allclose(shown, overlay_picture(inspection, toy.loaded).clamp(0, 1), atol=1 / 255)
        sizes.append(shown.shape)
    painted, blank = sizes
    assert painted[1] >= 3 * 100  # photo, render and map side by side
    assert blank[1] < painted[1]
    assert blank[0] > 100  # the verdict stands above the photo


def test_colour_means_the_same_for_all_photos(toy):
    low, high = map_range(toy.loaded)
    assert low < toy.loaded.calibration.threshold < high


def test_the_report_shows_what_was_found_and_nothing_that_was_not(toy, inspections):
    painted, blank = (report_photo(inspection, label="Stains") for inspection in inspections)
    assert (painted.name, painted.verdict, painted.label) == ("painted.png", "NG", "Stains")
    assert painted.score == inspections[0].score
    assert [d.area_px for d in painted.defects] == [d.area_px for d in inspections[0].defects]
    assert torch.equal(painted.anomaly_map, inspections[0].anomaly.values)
    assert painted.numbers["outline overlap"] == f"{inspections[0].located.overlap:.1%}"
    assert (blank.render, blank.anomaly_map, blank.score, dict(blank.numbers)) == (None, None, None, {})
    assert blank.reasons == inspections[1].verdict.reasons


def test_verdicts_csv_has_a_line_a_photo_that_reads_back(inspections, tmp_path):
    write_table(tmp_path / "verdicts.csv", [verdict_row(inspection) for inspection in inspections])
    rows = list(csv.DictReader(io.StringIO((tmp_path / "verdicts.csv").read_text("utf-8"))))
    assert [row["photo"] for row in rows] == ["painted.png", "blank.png"]
    assert [row["verdict"] for row in rows] == ["NG", "CANNOT TELL"]
    assert float(rows[0]["score"]) == pytest.approx(inspections[0].score, rel=1e-5)
    assert int(rows[0]["defects"]) == len(inspections[0].defects) >= 1
    assert int(rows[0]["largest_px"]) == max(d.area_px for d in inspections[0].defects)
    largest = max(inspections[0].defects, key=lambda d: d.area_px)
    assert [row["largest_kind"] for row in rows] == [largest.kind, ""]
    assert (rows[1]["score"], rows[1]["pose_believed"], rows[1]["defects"]) == ("", "", "0")
    assert rows[1]["reason"] == inspections[1].verdict.reasons[0]


def test_a_table_keeps_commas_quotes_and_line_breaks(tmp_path):
    rows = [{"photo": 'a, "b"\nc', "score": 1.5}, {"photo": "ä", "score": ""}]
    write_table(tmp_path / "t.csv", rows)
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
        assert [row["photo"] for row in csv.DictReader(file)] == ['a, "b"\nc', "ä"]
    write_table(tmp_path / "none.csv", [])
    assert (tmp_path / "none.csv").read_text().strip() == ""


def test_photo_names_are_short_and_tell_the_photos_apart():
    assert photo_names([Path("/data/test/a.png")]) == ["a.png"]
    assert photo_names([Path("/d/t/a.png"), Path("/d/t/b.png")]) == ["a.png", "b.png"]
    names = photo_names([Path("/d/Burrs/0.png"), Path("/d/good/0.png"), Path("/d/good/1.png")])
    assert names == ["Burrs/0.png", "good/0.png", "good/1.png"]
    assert photo_names([Path("/d/0.png"), Path("/d/good/0.png")]) == ["0.png", "good/0.png"]


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("Burrs/0.png", "Burrs-0"),
        ("my photo (2).JPG", "my-photo-2"),
        ("../../etc/passwd", None),
        ("..", None),
        (".png", None),
        ("a\\b:c*.png", None),
        ("", None),
        ("no_suffix", "no_suffix"),
        ("v1.2/photo", None),
    ],
)
def test_folder_names_are_safe(name, folder):
    made = folder_name(name)
    assert made
    assert not set(made) & set('/\\:*?"<>| ()')
    assert made not in (".", "..")
    assert not made.startswith(".")
    if folder is not None:
        assert made == folder


def test_footer_names_machine_versions_and_the_fits_config(toy):
    shown = footer(toy.loaded, torch.device("cpu"))
    assert "cores" in shown["machine"]
    assert f"torch {torch.__version__.split('+')[0]}" in shown["versions"]
    assert json.loads(shown["fit"]) == {"seed": 0}


def test_no_two_photos_share_a_folder_whatever_the_case_of_their_names():
    names = ["a/part.png", "A/Part.png", "a-part.jpg", "b.png"]
    places = output_folders(names)
    assert len({place.casefold() for place in places}) == len(names)
    assert places[0] == folder_name(names[0])
    assert places[1:3] == [folder_name(names[1]) + "-2", folder_name(names[2]) + "-3"]
    assert output_folders(names) == places


def test_the_report_names_every_kind_of_defect_in_words():
    assert set(KIND_WORDS) == set(KINDS)
    assert len(set(KIND_WORDS.values())) == len(KINDS)
